"""The options of a run, and the run's settings from them: the same in `coordinator`, `demo` and `simulate`.

Such a command declares the options it offers and hands over its context. An option goes into the field of `RunConfig`
that has its name, so a new one is a field there, an option here and a parameter of the commands, and is passed on
nowhere.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final, cast, get_args

import typer

from hermes_iot.config import RunConfig, toml_value
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Codec, DataMode, Fine, GateSplit, Sampling, Split, Telemetry
from hermes_iot.errors import UsageError

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
    typer.Option("--codec", help=f"Of updates: {', '.join(get_args(Codec))}. [default: the strategy's]"),
]
CodecDownOption = Annotated[
    str | None, typer.Option("--codec-down", help="Of the models that answer. [default: --codec, else the strategy's]")
]
CodecForOption = Annotated[
    list[str] | None,
    typer.Option(
        "--codec-for",
        metavar="DEVICES=CODEC",
        help="Another codec for the updates of some, such as 'lte-*=topk1' on a thin link; the first that fits counts.",
    ),
]
FineOption = Annotated[
    str | None,
    typer.Option(
        "--fine",
        help="Tensors in fp16 whatever the codec: none, or vectors (biases, normalisation). [default: by the model]",
    ),
]
TelemetryOption = Annotated[str, typer.Option("--telemetry", help="off, sampled or full: metrics of every iteration.")]
LagMax = Annotated[
    int | None, typer.Option("--lag-max", help="Updates older by more versions are stale. [default: the strategy's]")
]
Chunk = Annotated[int, typer.Option("--chunk-bytes", help="Largest piece of a tensor message.")]
Constants = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A constant of the strategy; for hermes-plus e.g. --set gate.z=2."),
]
ScoreOn = Annotated[
    str,
    typer.Option("--score-on", help="validation, or test as the authors' code does (the result is then not clean)."),
]
Validation = Annotated[float, typer.Option("--validation", help="Share of the training rows held out to measure on.")]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")]

#: Options whose field in the run's settings has another name.
FIELDS: Final = {"data": "data_mode", "validation": "validation_fraction"}

_PATTERN: Final = re.compile(r"[A-Za-z0-9_*?\[\]!-]{1,128}")

_WORDS: Final = {
    "data": get_args(DataMode),
    "sampling": get_args(Sampling),
    "gate_split": get_args(GateSplit),
    "codec": get_args(Codec),
    "codec_down": get_args(Codec),
    "fine": get_args(Fine),
    "score_on": get_args(Split),
    "telemetry": get_args(Telemetry),
}


def run_config(
    context: typer.Context, *, tables: Mapping[str, Any] | None = None, known_task: bool = False, **instead: Any
) -> RunConfig:
    """The run's settings from what a person wrote; the strategy is built once, so a wrong constant shows here.

    Args:
        context: of the command, with the values of its options.
        tables: constants by the stem of a strategy's name; None = those of the configuration file.
        known_task: the caller brings the task, nothing is to be looked up.
        instead: values in place of the options of these names.

    Raises:
        UsageError: a word that is none of those allowed, an unknown strategy or constant.
    """
    from hermes_iot.runtime import strategies
    from hermes_iot.runtime.trainers import check_source
    from hermes_iot.training import tasks

    words = {**context.params, **instead}
    task, strategy = words["task"], words["strategy"]
    tables = tables if tables is not None else context.obj or {}
    constants = chosen_constants(strategy, words["constants"] or (), tables)
    rules = _stop_rules(words)
    for name, allowed in _WORDS.items():
        value = words.get(name)
        if value is not None and value not in allowed:
            raise UsageError(f"--{name.replace('_', '-')} {value!r} is not known", mend=f"Use {' or '.join(allowed)}")
    if not known_task:
        check_source(task)
    if not known_task and task not in tasks.task_names():
        tasks.resolve(task)  # a built-in one would load torch here; of the others we want to know now that they load
    strategies.resolve(strategy).build(constants)
    settings = {FIELDS.get(option, option): value for option, value in words.items()}
    settings |= {"constants": constants, "rules": rules, "codec_for": _codec_for(words.get("codec_for") or ())}
    return RunConfig(**{one.name: settings[one.name] for one in fields(RunConfig) if one.name in settings})


def chosen_constants(strategy: str, words: Sequence[str], tables: Mapping[str, Any]) -> dict[str, Any]:
    """A strategy's constants: its table in the file, with ``gate.z=2`` words of the command line over it.

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
            raise UsageError(f"--set {word!r} is not understood", mend="Write it like --set gate.z=2")
        node[last] = _value(text)
    return chosen


def _codec_for(words: Sequence[str]) -> tuple[tuple[str, Codec], ...]:
    """Pairs of a pattern and a codec.

    Raises:
        UsageError: a word without ``=``, a pattern that no device id can fit, or a codec that is none.
    """
    rules: list[tuple[str, Codec]] = []
    for word in words:
        pattern, equals, codec = word.partition("=")
        if not equals or not _PATTERN.fullmatch(pattern):
            raise UsageError(
                f"--codec-for {word!r} is not understood",
                why="before the = stands a device id, or a pattern of ids with * and ?",
                mend="Write it like --codec-for 'lte-*=topk1'",
            )
        if codec not in get_args(Codec):
            raise UsageError(f"--codec-for {codec!r} is not known", mend=f"Use {' or '.join(get_args(Codec))}")
        rules.append((pattern, cast("Codec", codec)))
    return tuple(rules)


def _stop_rules(words: Mapping[str, Any]) -> StopRules:
    """The five rules from what a person wrote.

    Raises:
        UsageError: a time, size or number that cannot be used.
    """
    from hermes_iot.reporting.units import parse_bytes, parse_duration

    patience, max_pushes, max_wall = words["patience"], words["max_pushes"], words.get("max_wall")
    max_wall_s = parse_duration(max_wall) if max_wall is not None else None
    bytes_max = parse_bytes(words["max_bytes"]) if words["max_bytes"] is not None else None
    for name, value in (
        ("patience", patience),
        ("max-wall", max_wall_s),
        ("max-bytes", bytes_max),
        ("max-pushes", max_pushes),
    ):
        if value is not None and value <= 0:
            raise UsageError(f"--{name} {value:g} cannot be used", why="it must be above 0")
    return StopRules(
        target_accuracy=words["target_accuracy"],
        patience=patience,
        max_wall_s=max_wall_s,
        max_bytes=bytes_max,
        max_pushes=max_pushes,
    )


def _value(text: str) -> Any:
    return None if text.lower() == "none" else toml_value(text)
