"""``hermes-iot coordinator``: lead a fleet through one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from hermes_iot.cli import logs, options, run_options
from hermes_iot.cli.connect import BrokerOptions
from hermes_iot.errors import UsageError
from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT
from hermes_iot.protocol.topics import check_name


def coordinator(
    context: typer.Context,
    *,
    broker: options.Broker,
    fleet: options.Fleet,
    task: run_options.Task,
    strategy: run_options.Strategy = "hermes-plus",
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="The run's files. [default: runs/<fleet>-<time>, or the unfinished one]"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--new", help="Go on with the unfinished run if there is one, or begin a new one anyway."
        ),
    ] = True,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Lead even if another coordinator seems online.")
    ] = False,
    target_accuracy: run_options.Target = None,
    patience: run_options.Patience = None,
    max_wall: run_options.MaxWall = None,
    max_bytes: run_options.MaxBytes = None,
    max_pushes: run_options.MaxPushes = None,
    seed: run_options.Seed = 0,
    data: run_options.Data = "indexed",
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
    chunk_bytes: run_options.Chunk = CHUNK_BYTES_DEFAULT,
    constants: run_options.Constants = None,
    data_dir: options.DataDir = None,
    plain: run_options.Plain = False,
    as_json: options.Json = False,
    prefix: options.Prefix = "hermes",
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    password_file: options.PasswordFile = None,
    config: options.Config = None,  # read before parsing, see files.py
    verbose: options.Verbose = False,
) -> int:
    """Lead a fleet through one run: merge updates, answer, allocate, decide when it is enough."""
    check_name("fleet", fleet)
    check_name("prefix", prefix)
    access = BrokerOptions.of(
        broker, ca_file=ca_file, cert_file=cert_file, key_file=key_file, password_file=password_file
    )
    settings = run_options.run_config(context)
    options.check_directory(data_dir)
    if not resume and run_dir is not None and (run_dir / "registry.json").exists():
        raise UsageError(f"{run_dir} holds a run already", mend="Give a new run another --run-dir")
    logs.configure(verbose=verbose, quiet=True)

    from hermes_iot.cli.lead import lead
    from hermes_iot.protocol.topics import Topics
    from hermes_iot.runtime.coordinator import SESSION_EXPIRY_S, CoordinatorRunner
    from hermes_iot.runtime.leadership import look_for_leader
    from hermes_iot.runtime.run_dir import unfinished
    from hermes_iot.runtime.trainers import for_coordinator
    from hermes_iot.storage.atomic import make_directory

    if run_dir is not None:
        make_directory(run_dir)
    connect = access.connector(session_expiry_s=SESSION_EXPIRY_S, manual_ack=True)
    # Before seconds of loading: is there a broker, and does nobody else lead?
    look_for_leader(Topics(fleet, prefix=prefix), connect, takeover=takeover)
    directory = run_dir
    if directory is None and resume:
        directory = unfinished(Path("runs"), fleet, task, strategy)
    if directory is None:
        directory = Path("runs") / f"{fleet}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    make_directory(directory)
    bench = for_coordinator(settings, data_dir=data_dir)

    def runner_of(on_record: Callable[[str, Mapping[str, Any]], None]) -> CoordinatorRunner:
        return CoordinatorRunner(
            settings,
            fleet=fleet,
            run_dir=directory,
            bench=bench,
            connect=connect,
            prefix=prefix,
            takeover=takeover,
            on_record=on_record,
        )

    return lead(
        runner_of,
        broker=str(access.address),
        run_dir=directory,
        kind="run",
        as_json=as_json,
        plain=plain,
        resume="Run the same command again to go on with it.",
    )
