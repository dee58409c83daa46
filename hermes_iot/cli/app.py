"""The commands by name. Each lives in a module of its own name and loads what is heavy when it runs."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from hermes_iot import __version__
from hermes_iot.cli.bench import bench
from hermes_iot.cli.coordinator import coordinator
from hermes_iot.cli.demo import demo
from hermes_iot.cli.device import device
from hermes_iot.cli.files import offer_variables
from hermes_iot.cli.repair import repair
from hermes_iot.cli.simulate import simulate
from hermes_iot.cli.status import status


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hermes-iot {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    *,
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train one PyTorch model on a fleet of unequal boards over MQTT, sending only the updates worth sending."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def command() -> TyperGroup:
    """The whole command line."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(_root)
    for function in (demo, coordinator, device, status, repair, simulate, bench):
        app.command(function.__name__)(function)
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)  # noqa: S101 - an app of several commands is one
    offer_variables(group)
    return group
