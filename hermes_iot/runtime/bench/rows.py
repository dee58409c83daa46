"""The rows of a comparison: strategies as they are, and variants that are worth a name.

On a command line a row is a strategy's name (or ``path/to/file.py``), one of the names below, or a strategy with
constants of one's own in brackets: ``hermes-plus[momentum=0.7;shares.target_s=2]``. ``codec``, ``codec-down`` and
``learning-rate`` in brackets stand for the options of these names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from hermes_iot.algorithms.strategies import STRATEGIES
from hermes_iot.config import LEARNING_RATE_MAX, toml_value
from hermes_iot.domain import Codec
from hermes_iot.errors import UsageError
from hermes_iot.runtime import strategies
from hermes_iot.runtime.bench.cells import Row
from hermes_iot.runtime.manifest import codecs_of

PLUS: Final = "hermes-plus"


def _plus(label: str, **constants: Any) -> Row:
    return Row(label=f"{PLUS} {label}", strategy=PLUS, constants=constants)


#: The gates of hermes-plus against each other.
GATES: Final = (
    _plus("no gate", gate={"kind": "none"}),
    _plus("paired", gate={"kind": "paired"}),
    _plus("norm", gate={"kind": "norm"}),
    _plus("coin", gate={"kind": "coin"}),
    _plus("strict", gate={"kind": "strict"}),
)
#: Other settings that people will want.
VARIANTS: Final = (
    _plus("lean", shares={"target_s": 4.0, "rounds_per_doubling": 4}),
    _plus("T*=1", shares={"target_s": 1.0}),
    _plus("T*=4", shares={"target_s": 4.0}),
    _plus("T*=8", shares={"target_s": 8.0}),
    _plus("T*=4 no gate", shares={"target_s": 4.0}, gate={"kind": "none"}),
    _plus("T*=1 no gate", shares={"target_s": 1.0}, gate={"kind": "none"}),
    # The model that is served makes half of the difference: one board alone may have such an average, too.
    Row(label="single averaged", strategy="single", constants={"average": 0.2}),
)
#: One part of hermes-plus switched off at a time.
ABLATIONS: Final = (
    _plus("no gate", gate={"kind": "none"}),
    _plus("- momentum", momentum=0.0),
    _plus("- served average", ema_rate=1.0),
    _plus("- short beginning", shares={"first_s": None}),
    _plus("- rows by speed", shares={"rows": "equal"}),
    _plus("- equal times", shares={"length": "steps"}),
    _plus("- weights by speed", weights="uniform"),
    _plus("- longer steps", learning_rate_scale=1.0),
    _plus("- warm-up", warmup_steps=0),
    _plus("- differences down", delta_down=False, codec_down="int4"),
    _plus("- coarse up", codec_up="int4"),
    _plus("- coarse down", codec_down="int4"),
    _plus("+ barrier", barrier=True),
)
NAMED: Final[Mapping[str, Row]] = {row.label: row for row in (*GATES, *VARIANTS, *ABLATIONS)}

#: Every comparison carries these: a fleet's best board alone, as it is and with an average, and the barrier set with care.
ALWAYS: Final = ("single", "single averaged", "bsp-tuned")


def rows_of(text: str) -> tuple[Row, ...]:
    """The rows of a comma-separated list, each once.

    Raises:
        UsageError: an empty list, or a row that is not known or not possible.
    """
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", text)]
    rows = {row.label: row for row in (row_of(word) for word in words if word)}
    if not rows:
        raise UsageError("--strategies names nothing", mend="Use e.g. bsp,hermes,hermes-plus")
    return tuple(rows.values())


def row_of(word: str) -> Row:
    """One row; its constants are tried.

    Raises:
        UsageError: it is not known, or a constant is not possible.
    """
    found = re.fullmatch(r"([^\[\]]+)\[([^\[\]]+)\]", word)
    if word in NAMED:
        row = NAMED[word]
    elif found is not None:
        row = _with_constants(word, found[1].strip(), found[2])
    else:
        row = Row(label=word, strategy=word)
    try:
        strategy, _ = strategies.resolve(row.strategy).build(row.constants)
        codecs_of(row.codec, row.codec_down, strategy.regime)
    except UsageError as error:
        if error.what.startswith("there is no strategy"):
            near = difflib.get_close_matches(word, [*STRATEGIES, *NAMED], n=1)
            known = ", ".join(sorted([*STRATEGIES, *NAMED]))
            mend = f"Did you mean {near[0]!r}?" if near else "One of your own is given as path/to/file.py"
            raise UsageError(f"there is no row {word!r}", why=f"known are {known}", mend=mend) from error
        raise UsageError(f"row {word!r}: {error.what}", why=error.why, mend=error.mend) from error
    return row


def completed(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """With those that every comparison carries."""
    labels = {row.label for row in rows}
    return (*rows, *(row_of(name) for name in ALWAYS if name not in labels))


def _with_constants(word: str, strategy: str, text: str) -> Row:
    constants: dict[str, Any] = {}
    codecs: dict[str, Codec] = {}
    learning_rate: float | None = None
    for part in re.split(r"[;,]", text):
        key, equals, value = (one.strip() for one in part.partition("="))
        *path, last = key.split(".")
        node: Any = constants
        for name in path:
            node = node.setdefault(name, {}) if isinstance(node, dict) else None
        if not equals or not last or not isinstance(node, dict):
            raise UsageError(f"{part!r} in row {word!r} is not understood", mend="Write e.g. hermes-plus[momentum=0.7]")
        if key in {"codec", "codec-down"}:
            codecs[key.replace("-", "_")] = _codec(value, word)
        elif key == "learning-rate":
            learning_rate = _rate(value, word)
        else:
            node[last] = toml_value(value)
    return Row(label=word, strategy=strategy, constants=constants, learning_rate=learning_rate, **codecs)


def _rate(value: str, word: str) -> float:
    rate = toml_value(value)
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate <= LEARNING_RATE_MAX:
        raise UsageError(
            f"learning rate {value!r} in row {word!r} cannot be used", mend="Write e.g. bsp[learning-rate=0.15]"
        )
    return float(rate)


def _codec(value: str, word: str) -> Codec:
    if value not in get_args(Codec):
        raise UsageError(f"codec {value!r} in row {word!r} is not known", mend=f"Use {' or '.join(get_args(Codec))}")
    return cast("Codec", value)
