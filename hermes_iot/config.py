"""All settings of one run, composed from the algorithms' own and validated once.

Where a value comes from (command line, ``HERMES_*`` environment, ``hermes.toml``, default) is the command line's
business; this module knows what the values mean. Constants of a strategy stand in a table of the strategy's name::

    task = "digits"
    target-accuracy = 0.97

    [hermes.gate]
    alpha = -1.0
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Codec, DataMode, Fine, GateSplit, Sampling, Split, Telemetry
from hermes_iot.errors import UsageError
from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT, INTEGER_MAX

#: What a manifest can carry, see `protocol.schema`.
LEARNING_RATE_MAX: Final = 1e6
_CHUNK_BYTES_MIN: Final = 1024
_CHUNK_BYTES_MAX: Final = 2**28
_SHOWN_CHARS: Final = 40
#: What Python's reader of TOML fails at instead of complaining.
_TOO_MUCH: Final = "brackets are nested too deeply, or a number has thousands of digits"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run. None = the task's own proposal.

    Attributes:
        task: built-in name, installed entry point, ``path/to/file.py`` or ``package.module``.
        strategy: the same for strategies; `constants` are its, as nested tables.
        sampling: None = what the strategy proposes; where that is fresh rows, in local mode a device keeps those it has.
        gate_split: None = with fresh samples a fresh split, with kept ones a fixed slice.
        codec, codec_down: of updates and of the models that answer them; None = what the strategy proposes.
        codec_for: (pattern of device ids, codec of their updates) instead of `codec`; the first that fits counts.
        fine: tensors that travel in fp16 whatever the codec; None = as the model needs it (`algorithms.split`).
        samples, batch: size of a device that was not measured yet, in rows.
        score_on: what merges are weighed and runs are stopped by. "test" is what the authors' code does: it lets the test
            rows steer the training, so the final accuracy is then no longer that of unseen rows.
        lag_max: updates made from a model older by more versions are stale; None = by the strategy's bound.
    """

    task: str
    strategy: str = "hermes-plus"
    constants: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    data_mode: DataMode = "indexed"
    sampling: Sampling | None = None
    gate_split: GateSplit | None = None
    samples: int | None = None
    batch: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    validation_fraction: float = 0.1
    score_on: Split = "validation"
    codec: Codec | None = None
    codec_down: Codec | None = None
    codec_for: tuple[tuple[str, Codec], ...] = ()
    fine: Fine | None = None
    chunk_bytes: int = CHUNK_BYTES_DEFAULT
    telemetry: Telemetry = "off"
    lag_max: int | None = None
    rules: StopRules = field(default_factory=StopRules)

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}", why="it must be at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate <= LEARNING_RATE_MAX:
            raise UsageError(f"learning rate is {self.learning_rate}", why="it must be a positive number, at most 1e6")
        if self.lag_max is not None and self.lag_max < 0:
            raise UsageError(f"lag max is {self.lag_max}", why="it must not be negative")
        if not 0 < self.validation_fraction < 0.5:  # noqa: PLR2004 - half the rows would be too many for any purpose
            raise UsageError(f"validation fraction is {self.validation_fraction}", why="it lies between 0 and 0.5")
        if not 0 <= self.seed <= INTEGER_MAX:
            raise UsageError(f"seed is {self.seed}", why=f"it is a whole number from 0 to {INTEGER_MAX}")
        if not _CHUNK_BYTES_MIN <= self.chunk_bytes <= _CHUNK_BYTES_MAX:
            raise UsageError(
                f"chunk size is {self.chunk_bytes} bytes",
                why=f"it lies between {_CHUNK_BYTES_MIN}, below which it would be mostly headers, and {_CHUNK_BYTES_MAX}",
            )


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of one file.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML", why=str(error), mend="Mend that line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read", why=str(error)) from error
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{path} cannot be read", why=_TOO_MUCH) from error


def toml_value(text: str) -> Any:
    """A word as TOML would read it; a bare word is a string.

    Raises:
        UsageError: it is nested too deeply, or a number has thousands of digits.
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError) as error:
        raise UsageError(f"the value {text[:_SHOWN_CHARS]!r}... cannot be read", why=_TOO_MUCH) from error


def check_keys(given: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Refuse a key nobody reads, with the nearest one that exists.

    Raises:
        UsageError: an unknown key.
    """
    names = sorted(set(known))
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(names)}"
            raise UsageError(f"unknown key {key!r} in {where}", mend=hint)


def check_nested(mapping: Mapping[str, Any], kind: type, *, where: str) -> None:
    """`check_keys` for a table and its sub-tables against a dataclass made of dataclasses.

    Raises:
        UsageError: an unknown key, or a value where a table belongs.
    """
    known: dict[str, Any] = {one.name: one.default_factory for one in fields(kind)}
    check_keys(mapping, known, where=where)
    for name, value in mapping.items():
        nested = known[name]
        if isinstance(nested, type) and is_dataclass(nested):
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}.{name} is {value!r}", why="a table is expected")
            check_nested(value, nested, where=f"{where}.{name}")
