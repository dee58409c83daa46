"""``hermes-iot simulate``: a fleet of any size in virtual time, on this machine alone."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hermes_iot.cli import logs, options, run_options
from hermes_iot.cli.signals import Terminated
from hermes_iot.cli.what_if import WhatIf
from hermes_iot.errors import UsageError

#: What is simulated where nobody says for how long.
VIRTUAL = "10m"
_TASK = "mnist"
_COST = "cost"


def simulate(
    context: typer.Context,
    *,
    fleet: Annotated[
        str, typer.Option("--fleet", metavar="NAME", help="azure12, pi-mix, edge1000, ..., or path/to/fleet.toml.")
    ] = "azure12",
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN_DIR", help="Run a recorded run's fleet again; options given change it."),
    ] = None,
    link: Annotated[
        str, typer.Option("--link", metavar="NAME", help="wifi20, slow1, asym, or path/to/link.toml.")
    ] = "wifi20",
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            envvar="HERMES_TASK",
            help="As of a real run, or cost: no training, for large fleets. [default: the fleet's, else mnist]",
        ),
    ] = None,
    faults: Annotated[
        str | None,
        typer.Option(
            "--faults",
            metavar="NAMES",
            help="Instead: small fleets under these faults, with commas, or all of them; list explains each.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="A:B", help="With --faults: a fleet for each. [default: 0:20]")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, max=256, help="With --faults: fleets at a time. [default: the CPUs]"),
    ] = None,
    strategy: run_options.Strategy = "hermes-plus",
    virtual: Annotated[
        str | None,
        typer.Option(
            "--virtual",
            help=f"Stop after this virtual time, e.g. 150s or 2h. [default: {VIRTUAL}, with --from as long as the run]",
        ),
    ] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="The same in hours.")] = None,
    target_accuracy: run_options.Target = None,
    patience: run_options.Patience = None,
    max_bytes: run_options.MaxBytes = None,
    max_pushes: run_options.MaxPushes = None,
    seed: run_options.Seed = 0,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="shipped, indexed or local: who holds the rows. "
            "[default: shipped, for cost indexed, with --dirichlet local, with --from the run's]",
        ),
    ] = None,
    dirichlet: Annotated[
        float | None,
        typer.Option(
            "--dirichlet",
            metavar="ALPHA",
            help="Every board owns rows of its own mixture of classes: 100 is even, 0.1 a few classes each.",
        ),
    ] = None,
    sampling: run_options.SamplingOption = None,
    gate_split: run_options.GateSplitOption = None,
    samples: run_options.Samples = None,
    batch: run_options.Batch = None,
    epochs: run_options.Epochs = None,
    learning_rate: run_options.Rate = None,
    validation: run_options.Validation = 0.1,
    score_on: run_options.ScoreOn = "validation",
    codec: run_options.CodecOption = None,
    codec_down: run_options.CodecDownOption = None,
    codec_for: run_options.CodecForOption = None,
    fine: run_options.FineOption = None,
    telemetry: run_options.TelemetryOption = "off",
    lag_max: run_options.LagMax = None,
    constants: run_options.Constants = None,
    data_dir: options.DataDir = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write simulation.json here: curve, timeline, devices.")
    ] = None,
    plain: run_options.Plain = False,
    as_json: options.Json = False,
    config: options.Config = None,  # read before parsing, see files.py
    verbose: options.Verbose = False,
) -> int:
    """See what a fleet would do: the code of the boards on simulated time, with real training and real bytes."""
    if faults is not None:
        from hermes_iot.cli.trials import under_faults

        return under_faults(context, faults, seeds=seeds, jobs=jobs, plain=plain, as_json=as_json, verbose=verbose)
    if seeds is not None:
        raise UsageError("--seeds belongs to --faults", mend="Use --seed for a simulation")
    from hermes_iot.runtime.simulation.profiles import fleet_of, link_of

    again = WhatIf.of(source, context) if source is not None else None
    boards, line = again.fleet if again is not None else fleet_of(fleet), link_of(link)
    if again is not None:
        strategy = again.strategy
    task = task or boards.task or _TASK
    settings = run_options.run_config(
        context,
        tables=again.tables if again is not None else None,
        known_task=task == _COST,
        task=task,
        strategy=strategy,
        data=data or _data_mode(task, dirichlet),
    )
    virtual_s = _virtual_s(virtual, hours, otherwise_s=again.virtual_s if again is not None else None)
    if again is not None:
        settings = again.changed(settings)
    options.check_directory(data_dir)
    logs.configure(verbose=verbose, quiet=True)

    from rich.console import Console

    from hermes_iot.reporting.replayed import compare
    from hermes_iot.reporting.simulated import Progress, render
    from hermes_iot.reporting.summary import envelope, write_summary
    from hermes_iot.runtime.simulation.benches import equipment_of
    from hermes_iot.runtime.simulation.outcome import SimLimits
    from hermes_iot.runtime.simulation.run import simulate as run
    from hermes_iot.storage.atomic import make_directory

    if out is not None:
        make_directory(out)
    equipment = equipment_of(settings, devices=boards.devices, data_dir=data_dir, dirichlet=dirichlet)
    begun = time.monotonic()
    modelled = task == _COST
    progress = Progress(Console(stderr=True), virtual_s=virtual_s, plain=plain, modelled=modelled)
    try:
        with progress:
            outcome = run(
                settings,
                fleet=boards,
                link=line,
                bench=equipment.bench,
                trainer_of=equipment.trainer_of,
                until=SimLimits(virtual_s=virtual_s),
                observe=progress.on_record,
            )
    except (KeyboardInterrupt, Terminated):
        sys.stderr.write(f"stopped at {progress.come}; nothing of it is kept\n")
        raise
    document = {**outcome.document(), "link": Path(link).stem, "real_s": time.monotonic() - begun}
    if again is not None:
        document |= again.told(settings)
    if out is not None:
        write_summary(out / "simulation.json", document, kind="simulation")
    if as_json:
        # A chart's worth of stretches for each board belongs into a file.
        shown = {key: value for key, value in document.items() if key != "timeline"}
        sys.stdout.write(envelope(shown, kind="simulation") + "\n")
    else:
        render(document, Console(), written=out / "simulation.json" if out is not None else None)
        if again is not None:
            compare(document, Console())
    return 0


def _data_mode(task: str, dirichlet: float | None) -> str:
    """Where nobody says who holds the rows."""
    if dirichlet is not None:
        return "local"
    return "indexed" if task == _COST else "shipped"


def _virtual_s(virtual: str | None, hours: float | None, *, otherwise_s: float | None) -> float:
    from hermes_iot.reporting.units import parse_duration

    if virtual is not None and hours is not None:
        raise UsageError("--virtual and --hours contradict each other", mend="Give one of them")
    if otherwise_s is not None and virtual is None and hours is None:
        return otherwise_s
    seconds = hours * 3600 if hours is not None else parse_duration(virtual or VIRTUAL)
    if not 0 < seconds < math.inf:
        raise UsageError(f"a virtual time of {seconds:g} s cannot be used", why="it must be a finite number above 0")
    return seconds
