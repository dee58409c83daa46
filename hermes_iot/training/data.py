"""Data sets: what a task's `load_data` may return, who may use which row, and how chance is drawn. numpy only.

- uint8 stays uint8 in memory: CIFAR-10 as float32 is 614 MB and a Pi has 1 GB. It is scaled to float32 in [0, 1] when a
  batch is made. Other integers are indices (tokens) and stay integers; everything else becomes float32.
- The run's permutation must be the same on every board. numpy promises that a bit generator's raw stream never changes
  but allows `Generator.permutation` to change between releases (NEP 19), so every shuffle here is a stable argsort of
  PCG64's raw output.
- Rows nobody trains on are taken from the front of the permutation. The rest is the *pool*: the positions that an
  allocation names (`domain.Ranges`) count from 0 within the pool, so a coordinator needs to know its length only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import Ranges, stable_int
from hermes_iot.errors import ProtocolError, UsageError

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = NDArray[np.intp]

_EXPECTED: Final = (
    "load_data() returns (x, y), or (x_train, y_train, x_test, y_test), or a mapping with 'train': (x, y) and "
    "optionally 'test' and 'validation', all numpy arrays or torch tensors with one row per sample"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Samples and targets, one row each.

    Attributes:
        x: inputs, shape (rows, ...); uint8 (scaled to [0, 1] in a batch), int64 (indices) or float32.
        y: targets, shape (rows, ...); int64 (classes) or float32 (regression).
    """

    x: Array
    y: Array

    def __post_init__(self) -> None:
        for name, array, allowed in (("x", self.x, ("uint8", "int64", "float32")), ("y", self.y, ("int64", "float32"))):
            if array.ndim == 0 or array.dtype.name not in allowed or not array.dtype.isnative:
                raise UsageError(f"{name} is {_describe(array)}", why=f"a data set holds rows of {', '.join(allowed)}")
        if len(self.x) != len(self.y):
            raise UsageError(f"x has {len(self.x)} rows but y has {len(self.y)}", mend=_EXPECTED)
        if self.x.size == 0 or self.y.size == 0:
            raise UsageError(f"the data set is empty: x {self.x.shape}, y {self.y.shape}")

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.x)

    def take(self, rows: Rows) -> Dataset:
        """A copy of the named rows, in that order."""
        return Dataset(x=self.x[rows], y=self.y[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """What a task loaded; a missing split is held out of `train` by `lay_out`."""

    train: Dataset
    validation: Dataset | None = None
    test: Dataset | None = None


def normalise(loaded: object, *, origin: str) -> TaskData:
    """Turn what a task's `load_data` returned into `TaskData`.

    Args:
        loaded: one of the three forms that `_EXPECTED` spells out.
        origin: names the task in messages.

    Raises:
        UsageError: anything else came, saying what was expected and what came.
    """
    if isinstance(loaded, Mapping):
        unknown = [key for key in loaded if key not in ("train", "validation", "test")]
        paired = all(isinstance(pair, tuple | list) and len(pair) == len("xy") for pair in loaded.values())
        if unknown or "train" not in loaded or not paired:
            raise UsageError(f"{origin}: load_data() returned a mapping of {_shape_of(loaded)}", mend=_EXPECTED)
        return TaskData(**{name: _dataset(*pair, origin=f"{origin}: {name}") for name, pair in loaded.items()})
    match loaded:
        case (x, y):
            return TaskData(train=_dataset(x, y, origin=f"{origin}: train"))
        case (x, y, x_test, y_test):
            test = _dataset(x_test, y_test, origin=f"{origin}: test")
            return TaskData(train=_dataset(x, y, origin=f"{origin}: train"), test=test)
    raise UsageError(f"{origin}: load_data() returned {_shape_of(loaded)}", mend=_EXPECTED)


def _dataset(x: object, y: object, *, origin: str) -> Dataset:
    inputs, targets = _array(x, np.float32, origin=f"{origin} x"), _array(y, np.int64, origin=f"{origin} y")
    if targets.dtype == np.uint8:
        targets = targets.astype(np.int64)
    if targets.dtype == np.int64 and targets.ndim > 1 and targets.shape[-1] == 1:
        targets = targets.reshape(targets.shape[:-1])  # a column of class labels is a vector of class labels
    try:
        return Dataset(x=inputs, y=targets)
    except UsageError as error:
        raise UsageError(f"{origin}: {error.what}", why=error.why, mend=error.mend) from error


def _array(value: object, boolean: type[np.generic], *, origin: str) -> Array:
    """One array in one of the storage types; a torch tensor is recognised without importing torch."""
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu().numpy()  # type: ignore[attr-defined] # just seen to have it
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "buif" or value.ndim == 0:
        raise UsageError(f"{origin} is {_describe(value)}", mend=_EXPECTED)
    dtypes: dict[str, type[np.generic]] = {"f": np.float32, "b": boolean, "u": np.int64, "i": np.int64}
    wanted = np.uint8 if value.dtype == np.uint8 else dtypes[value.dtype.kind]
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite and is refused below
        array: Array = np.ascontiguousarray(value, dtype=wanted)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"{origin} holds NaN or infinite values", why="every loss would be NaN")
    return array


def _describe(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _shape_of(loaded: object) -> str:
    if isinstance(loaded, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shape_of(value)}" for key, value in list(loaded.items())[:4]) + "}"
    if isinstance(loaded, tuple | list):
        return f"a {type(loaded).__name__} of {len(loaded)} ({', '.join(_describe(item) for item in loaded[:4])})"
    return _describe(loaded)


def sha256(data: TaskData) -> str:
    """Hex digest over dtype, shape and bytes of the training set: a device with other data is noticed by it."""
    return _sha256(data.train)


def sha256_of_all(data: TaskData) -> str:
    """The same over the rows that are only measured on, too: whatever was measured is of these data."""
    whole = hashlib.sha256(_sha256(data.train).encode())
    for name, held in (("validation", data.validation), ("test", data.test)):
        whole.update(f"{name}:{_sha256(held) if held is not None else ''};".encode())
    return whole.hexdigest()


def _sha256(data: Dataset) -> str:
    digest = hashlib.sha256()
    for array in (data.x, data.y):
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        digest.update(f"{little.dtype.str}{little.shape};".encode())
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def shuffled(key: tuple[int, ...], purpose: str, count: int) -> Rows:
    """A permutation of range(count), shape (count,), the same on every machine for the same (key, purpose)."""
    return np.argsort(_raw(key, purpose, count), kind="stable")


def seed63(key: tuple[int, ...], purpose: str) -> int:
    """A 63-bit seed for somebody else's generator (torch's)."""
    return int(_raw(key, purpose, 1)[0]) >> 1


def _raw(key: tuple[int, ...], purpose: str, count: int) -> NDArray[np.uint64]:
    # The key's length is part of the entropy: SeedSequence pads with zeros, so (1,) and (1, 0) would be one stream.
    bits = np.random.PCG64(np.random.SeedSequence([stable_int(purpose), len(key), *key]))
    return np.asarray(bits.random_raw(count), dtype=np.uint64)


def permutation(seed: int, rows: int) -> Rows:
    """The run's order of the training rows, shape (rows,): equal wherever the seed is."""
    return shuffled((seed,), "run", rows)


def positions(ranges: Ranges, rows: int) -> Rows:
    """The positions that ranges name, in their order; every position when there is no range.

    Raises:
        ProtocolError: a range lies outside [0, rows), two overlap, or together they name no row. (One row must not be
            trained on through one range and tested on through another.)
    """
    if not ranges:
        return np.arange(rows)
    end = 0
    for start, stop in sorted(ranges):
        if not end <= start <= stop <= rows:
            raise ProtocolError("rows", f"the range [{start}, {stop}) overlaps another or leaves [0, {rows})")
        end = stop
    named = np.concatenate([np.arange(start, stop) for start, stop in ranges])
    if not named.size:
        raise ProtocolError("rows", "the allocation names no row")
    return named


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """Who may use which row.

    Attributes:
        pool: indices into the training set of the rows that can be allotted, in the run's order, shape (train_rows,).
        validation: rows for the coordinator's decisions (gate weights, stops); None when nothing was held out.
        test: rows that are only reported on; None when nothing was held out.
    """

    pool: Rows
    validation: Dataset | None
    test: Dataset | None

    def allotted(self, ranges: Ranges) -> Rows:
        """Indices into the training set for an allocation's ranges; raises ProtocolError like `positions`."""
        return self.pool[positions(ranges, self.pool.size)]

    def part(self, rows: Rows) -> Layout:
        """The same with a part of the pool, in the order given: positions in the pool, none twice.

        Raises:
            UsageError: there are none, one is named twice, or one is not in the pool.
        """
        if not rows.size or np.unique(rows).size != rows.size or rows.min() < 0 or rows.max() >= self.pool.size:
            why = f"it names {rows.size} positions of {self.pool.size} rows"
            raise UsageError("a part of the rows is empty, names one twice, or one that is not there", why=why)
        return replace(self, pool=self.pool[rows])


def lay_out(data: TaskData, *, seed: int, validation_fraction: float, rows: slice | None = None) -> Layout:
    """Split a training set for one run: validation first, then test, then the pool, along `permutation`.

    Args:
        data: the loaded task; a split it brings is used as it is and costs no training row.
        seed: the run's.
        validation_fraction: share held out for each missing split, in [0, 0.5); 0 holds out nothing.
        rows: this device's own part of the training set, in the file's order (a device's own days); the held-out rows
            are still those of the whole set, so nobody trains on them.

    Raises:
        UsageError: the fraction is out of range, or no row is left.
    """
    if not (math.isfinite(validation_fraction) and 0 <= validation_fraction < 0.5):  # noqa: PLR2004 - two splits of it
        raise UsageError(f"validation_fraction is {validation_fraction}", why="it lies in [0, 0.5)")
    order = permutation(seed, data.train.rows)
    held = max(1, round(validation_fraction * order.size)) if validation_fraction else 0
    splits = {"validation": data.validation, "test": data.test}
    taken = 0
    for name, brought in splits.items():
        if brought is None and held:
            splits[name] = data.train.take(order[taken : taken + held]) if taken + held < order.size else None
            taken += held
    pool = order[taken:]
    if rows is not None:
        own = np.zeros(order.size, dtype=np.bool_)
        own[rows] = True
        pool = pool[own[pool]]
    if not pool.size:
        why = f"{order.size} rows, {taken} of them held out" + (f", {rows} asked for" if rows is not None else "")
        raise UsageError("no row is left to train on", why=why)
    return Layout(pool=pool, validation=splits["validation"], test=splits["test"])
