"""``hermes-iot device``: one board."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hermes_iot.cli import logs, options
from hermes_iot.cli.connect import BrokerOptions
from hermes_iot.cli.signals import leaving
from hermes_iot.errors import UsageError
from hermes_iot.protocol.topics import check_name
from hermes_iot.storage.device_state import state_directory

log = logging.getLogger(__name__)

#: Seconds between two lines about iterations.
_QUIET_S = 2.0


def device(
    *,
    broker: options.Broker,
    fleet: options.Fleet,
    device_id: Annotated[str, typer.Option("--id", envvar="HERMES_ID", help="This device's name within the fleet.")],
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            help="What must survive a restart is kept here. [default: FLEET/ID below HERMES_STATE_DIR, or in ~/.local/state/hermes-iot]",
        ),
    ] = None,
    slowdown: Annotated[
        float, typer.Option("--slowdown", help="Emulate a board so many times slower; labelled as emulated.")
    ] = 1.0,
    task: Annotated[
        str | None,
        typer.Option("--task", help="A task of your own: path/to/file.py or package.module. [default: the run's]"),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="A strategy of your own: path/to/file.py. [default: the run's]")
    ] = None,
    data_dir: options.DataDir = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="START:STOP", help="In local mode: own only these rows of the set.")
    ] = None,
    max_rows: Annotated[int, typer.Option("--max-rows", min=0, help="Most rows memory allows; 0 = no limit.")] = 0,
    once: Annotated[
        bool, typer.Option("--once", help="Leave when the run ends instead of waiting for the next.")
    ] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one JSON line per event on stdout.")] = False,
    prefix: options.Prefix = "hermes",
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    password_file: options.PasswordFile = None,
    config: options.Config = None,  # read before parsing, see files.py
    verbose: options.Verbose = False,
) -> int:
    """Take part in a fleet's training from this machine."""
    check_name("device id", device_id)
    check_name("fleet", fleet)
    check_name("prefix", prefix)
    if not 1 <= slowdown <= 1000:  # noqa: PLR2004 - more would only be a mistake
        raise UsageError(f"slowdown {slowdown:g} cannot be used", why="it is a factor from 1 to 1000")
    own = options.row_range(rows) if rows is not None else None
    access = BrokerOptions.of(
        broker, ca_file=ca_file, cert_file=cert_file, key_file=key_file, password_file=password_file
    )
    options.check_directory(data_dir)
    logs.configure(verbose=verbose)

    from hermes_iot.core.device import DeviceSettings
    from hermes_iot.runtime import strategies
    from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
    from hermes_iot.runtime.trainers import check_source, for_device

    # What the person named must be there now, not when a run asks for it.
    if task is not None:
        check_source(task)
    if strategy is not None:
        strategies.resolve(strategy)

    runner = DeviceRunner(
        DeviceConfig(
            fleet=fleet,
            device=device_id,
            prefix=prefix,
            state_dir=state_dir if state_dir is not None else state_directory(fleet, device_id),
            slowdown=slowdown,
            strategy=strategy,
            rows_max=max_rows,
            own_rows=own.stop - own.start if own is not None else 0,
            settings=DeviceSettings(once=once),
        ),
        connect=access.connector(),
        trainer_of=for_device(task=task, data_dir=data_dir, rows=own),
        on_record=_jsonl if jsonl else _narrator(),
    )
    if slowdown > 1:
        log.info("slowdown=%g: this is an emulated board, it idles between iterations", slowdown)
    with leaving(runner.stop) as caught:
        reason = runner.run()
    log.info("left reason=%s", reason)
    return caught.exit_code


def _jsonl(event: str, fields: Mapping[str, Any]) -> None:
    finite = {key: None if isinstance(one, float) and not math.isfinite(one) else one for key, one in fields.items()}
    sys.stdout.write(json.dumps({"event": event, **finite}) + "\n")
    sys.stdout.flush()


def _narrator() -> Callable[[str, Mapping[str, Any]], None]:
    """Log what happens; of the iterations one line now and then, with what was published since the last."""
    said_at = -math.inf
    published = 0

    def on_record(event: str, fields: Mapping[str, Any]) -> None:
        nonlocal said_at, published
        if event != "iteration":
            log.info("%s %s", event, _words(fields))
            return
        published += bool(fields["published"])
        now = time.monotonic()
        if now >= said_at + _QUIET_S:
            log.info("%s", _words({**fields, "published": published}))
            said_at, published = now, 0

    return on_record


def _words(fields: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in fields.items()
    )
