"""``hermes-iot coordinator``: lead a fleet through one run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from hermes_iot.cli import logs, options
from hermes_iot.cli.connect import BrokerOptions
from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Codec, DataMode, GateSplit, Sampling, Split, Telemetry
from hermes_iot.errors import UsageError
from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT
from hermes_iot.protocol.topics import check_name

Task = Annotated[
    str,
    typer.Option(
        "--task",
        envvar="HERMES_TASK",
        help="digits, mnist, mnist-cnn, cifar10, occupancy, or path/to/file.py of yours.",
    ),
]
Strategy = Annotated[
    str, typer.Option("--strategy", envvar="HERMES_STRATEGY", help="hermes-plus, hermes, bsp, … or path/to/file.py.")
]
Target = Annotated[float | None, typer.Option("--target-accuracy", help="Stop at this validation accuracy, e.g. 0.97.")]
Patience = Annotated[
    int | None, typer.Option("--patience", help="Stop after so many aggregations without a better validation loss.")
]
MaxWall = Annotated[str | None, typer.Option("--max-wall", help="Stop after this time, e.g. 150s or 2h.")]
MaxBytes = Annotated[str | None, typer.Option("--max-bytes", help="Stop after this much model and data traffic.")]
MaxPushes = Annotated[int | None, typer.Option("--max-pushes", help="Stop after so many updates applied.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seeds model, data order and splits.")]
Data = Annotated[str, typer.Option("--data", help="indexed, local or shipped: who holds the rows.")]
SamplingOption = Annotated[
    str | None, typer.Option("--sampling", help="fresh, kept or walk: rows of an iteration. [default: the strategy's]")
]
GateSplitOption = Annotated[
    str | None, typer.Option("--gate-split", help="Rows of the gate's loss: fresh or fixed. [default: by sampling]")
]
Samples = Annotated[int | None, typer.Option("--samples", help="First dataset size of a device, rows.")]
Batch = Annotated[int | None, typer.Option("--batch", help="First mini-batch of a device, rows.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the rows per iteration.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="SGD step size.")]
CodecOption = Annotated[
    str | None,
    typer.Option(
        "--codec", help="Of updates: fp32, fp16, int8, int4, deadzone, topk5, topk10. [default: the strategy's]"
    ),
]
CodecDownOption = Annotated[
    str | None, typer.Option("--codec-down", help="Of the models that answer. [default: --codec, else the strategy's]")
]
TelemetryOption = Annotated[str, typer.Option("--telemetry", help="off, sampled or full: metrics of every iteration.")]
LagMax = Annotated[int | None, typer.Option("--lag-max", help="Updates older by more versions are stale.")]
Chunk = Annotated[int, typer.Option("--chunk-bytes", help="Largest piece of a tensor message.")]
Constants = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A strategy constant, e.g. --set gate.alpha=-1.0."),
]
ScoreOn = Annotated[
    str,
    typer.Option("--score-on", help="validation, or test as the authors' code does (the result is then not clean)."),
]
Validation = Annotated[float, typer.Option("--validation", help="Share of the training rows held out to measure on.")]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")]


def coordinator(
    context: typer.Context,
    *,
    broker: options.Broker,
    fleet: options.Fleet,
    task: Task,
    strategy: Strategy = "hermes-plus",
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="The run's files. [default: runs/<fleet>-<time>, or the unfinished one]"),
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Begin a new run even if one is unfinished.")] = False,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Lead even if another coordinator seems online.")
    ] = False,
    target_accuracy: Target = None,
    patience: Patience = None,
    max_wall: MaxWall = None,
    max_bytes: MaxBytes = None,
    max_pushes: MaxPushes = None,
    seed: Seed = 0,
    data: Data = "indexed",
    sampling: SamplingOption = None,
    gate_split: GateSplitOption = None,
    samples: Samples = None,
    batch: Batch = None,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    validation: Validation = 0.1,
    score_on: ScoreOn = "validation",
    codec: CodecOption = None,
    codec_down: CodecDownOption = None,
    telemetry: TelemetryOption = "off",
    lag_max: LagMax = None,
    chunk_bytes: Chunk = CHUNK_BYTES_DEFAULT,
    constants: Constants = None,
    data_dir: options.DataDir = None,
    plain: Plain = False,
    as_json: options.Json = False,
    prefix: options.Prefix = "hermes",
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    password_file: options.PasswordFile = None,
    config: options.Config = None,  # noqa: ARG001 - read before parsing, see files.py
    verbose: options.Verbose = False,
) -> int:
    """Lead a fleet through one run: merge updates, answer, allocate, decide when it is enough."""
    check_name("fleet", fleet)
    check_name("prefix", prefix)
    access = BrokerOptions.of(
        broker, ca_file=ca_file, cert_file=cert_file, key_file=key_file, password_file=password_file
    )
    settings = run_config(
        task=task,
        strategy=strategy,
        constants=chosen_constants(strategy, constants or [], context.obj or {}),
        seed=seed,
        data=data,
        sampling=sampling,
        gate_split=gate_split,
        samples=samples,
        batch=batch,
        epochs=epochs,
        learning_rate=learning_rate,
        validation=validation,
        score_on=score_on,
        codec=codec,
        codec_down=codec_down,
        telemetry=telemetry,
        lag_max=lag_max,
        chunk_bytes=chunk_bytes,
        rules=stop_rules(target_accuracy, patience, max_wall, max_bytes, max_pushes),
    )
    options.check_directory(data_dir)
    if new and run_dir is not None and (run_dir / "registry.json").exists():
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
    connect = access.connector(session_expiry_s=SESSION_EXPIRY_S)
    # Before seconds of loading: is there a broker, and does nobody else lead?
    look_for_leader(Topics(fleet, prefix=prefix), connect, takeover=takeover)
    directory = run_dir
    if directory is None and not new:
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


def stop_rules(
    target_accuracy: float | None,
    patience: int | None,
    max_wall: str | None,
    max_bytes: str | None,
    max_pushes: int | None,
) -> StopRules:
    """The five rules from what a person wrote.

    Raises:
        UsageError: a time, size or number that cannot be used.
    """
    from hermes_iot.reporting.units import parse_bytes, parse_duration

    max_wall_s = parse_duration(max_wall) if max_wall is not None else None
    bytes_max = parse_bytes(max_bytes) if max_bytes is not None else None
    for name, value in (
        ("patience", patience),
        ("max-wall", max_wall_s),
        ("max-bytes", bytes_max),
        ("max-pushes", max_pushes),
    ):
        if value is not None and value <= 0:
            raise UsageError(f"--{name} {value:g} cannot be used", why="it must be above 0")
    return StopRules(
        target_accuracy=target_accuracy,
        patience=patience,
        max_wall_s=max_wall_s,
        max_bytes=bytes_max,
        max_pushes=max_pushes,
    )


def run_config(
    *,
    task: str,
    strategy: str,
    constants: Mapping[str, Any],
    data: str,
    sampling: str | None,
    gate_split: str | None,
    codec: str | None,
    codec_down: str | None,
    telemetry: str,
    validation: float,
    score_on: str = "validation",
    known_task: bool = False,
    **others: Any,
) -> RunConfig:
    """The run's settings from what a person wrote; the strategy is built once, so a wrong constant shows here.

    `known_task`: the caller brings the task, nothing is to be looked up.

    Raises:
        UsageError: a word that is none of those allowed, an unknown strategy or constant.
    """
    from hermes_iot.runtime import strategies
    from hermes_iot.runtime.trainers import check_source
    from hermes_iot.training import tasks

    for name, value, allowed in (
        ("data", data, get_args(DataMode)),
        ("sampling", sampling, get_args(Sampling)),
        ("gate-split", gate_split, get_args(GateSplit)),
        ("codec", codec, get_args(Codec)),
        ("codec-down", codec_down, get_args(Codec)),
        ("score-on", score_on, get_args(Split)),
        ("telemetry", telemetry, get_args(Telemetry)),
    ):
        if value is not None and value not in allowed:
            raise UsageError(f"--{name} {value!r} is not known", mend=f"Use {' or '.join(allowed)}")
    if not known_task:
        check_source(task)
    if not known_task and task not in tasks.task_names():
        tasks.resolve(task)  # a built-in one would load torch here; of the others we want to know now that they load
    strategies.resolve(strategy).build(constants)
    return RunConfig(
        task=task,
        strategy=strategy,
        constants=constants,
        data_mode=cast("DataMode", data),
        sampling=cast("Sampling | None", sampling),
        gate_split=cast("GateSplit | None", gate_split),
        codec=cast("Codec | None", codec),
        codec_down=cast("Codec | None", codec_down),
        telemetry=cast("Telemetry", telemetry),
        validation_fraction=validation,
        score_on=cast("Split", score_on),
        **others,
    )


def chosen_constants(strategy: str, words: list[str], tables: Mapping[str, Any]) -> dict[str, Any]:
    """A strategy's constants: its table in the file, with ``gate.alpha=-1`` words of the command line over it.

    Raises:
        UsageError: a word without ``=``, or one that goes into something that is no table.
    """
    chosen = copy.deepcopy(dict(tables.get(Path(strategy).stem, {})))
    for word in words:
        key, equals, text = word.partition("=")
        *path, last = key.split(".")
        node: Any = chosen
        for part in path:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not equals or not last or not isinstance(node, dict):
            raise UsageError(f"--set {word!r} is not understood", mend="Write it like --set gate.alpha=-1.0")
        node[last] = _value(text)
    return chosen


def _value(text: str) -> Any:
    """A word as TOML would read it; a bare word is a string."""
    import tomllib

    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
