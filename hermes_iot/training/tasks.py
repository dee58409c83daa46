"""A task is a model and its data: two plain functions in a file, a module or an installed package.

`build_model()` returns an `nn.Module`; `load_data()` (or `load_data(data_dir)`) returns arrays, see `data.normalise`.
There is no base class. A task may also define, at module level:

- `loss(outputs, targets)`: a scalar, the mean over the rows; outputs that are one tensor have a row's answer in each
  row. Default: cross-entropy for integer targets (binary
  cross-entropy when the model gives a single logit), mean squared error for float targets.
- `accuracy(outputs, targets)`: the share of right answers in [0, 1].
- `build_optimizer(parameters, learning_rate)`: a torch optimizer. Default: plain SGD.
- `DEFAULTS = {...}` with any of samples, batch, epochs, learning_rate.

No code crosses the wire, and a name from the wire loads no code either unless somebody installed it here on purpose:
names that a peer sends find built-in tasks and entry points only (`trusted=False`). A file or a module on the import
path is loaded for the person at this machine alone.

The digest of a task's source travels with a run, so two versions of one task do not train one model by accident.

Neither torch nor numpy is imported with this module: the command line's help lists the names.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from hermes_iot.errors import Incompatible, UsageError
from hermes_iot.training.sources import blaming, importable, load_file, load_module, source_sha256

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from hermes_iot.training.data import TaskData

P = ParamSpec("P")
R = TypeVar("R")

#: Where the tasks that come with hermes-iot live; imported when asked for.
BUILTIN: Final = {
    "cifar10": "hermes_iot.training.builtin.cifar10",
    "digits": "hermes_iot.training.builtin.digits",
    "mnist": "hermes_iot.training.builtin.mnist",
    "mnist-cnn": "hermes_iot.training.builtin.mnist_cnn",
    "occupancy": "hermes_iot.training.builtin.occupancy",
}

#: An installed package offers a task by an entry point of this group whose value names a module.
ENTRY_POINTS: Final = "hermes_iot.tasks"

_NAME_CHARACTERS_MAX: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDefaults:
    """What a task proposes for a run's settings; None = no opinion. Units as in `domain.TrainJob`."""

    samples: int | None = None
    batch: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "epochs"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name} is {value!r}", why="it must be a whole number of at least 1")
        rate = self.learning_rate
        if rate is not None and not (type(rate) in (int, float) and math.isfinite(rate) and rate > 0):
            raise UsageError(f"learning_rate is {rate!r}", why="it must be a finite number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, found and loaded. Its functions raise `UsageError` naming their origin whatever goes wrong inside.

    Attributes:
        name: what the run is called after; of a file only its last part, so no folder of this machine travels.
        source_sha256: hex digest of the source.
        build_model: returns the `nn.Module`.
        load_data: returns the data; the data directory is bound.
        loss: `(outputs, targets) -> scalar`, or None for the default.
        build_optimizer: `(parameters, learning_rate) -> optimizer`, or None for plain SGD.
        accuracy: `(outputs, targets) -> number`, or None for the default.
        defaults: see `TaskDefaults`.
    """

    name: str
    source_sha256: str
    build_model: Callable[[], Any]
    load_data: Callable[[], TaskData]
    loss: Callable[[Any, Any], Any] | None
    build_optimizer: Callable[[Any, float], Any] | None
    accuracy: Callable[[Any, Any], Any] | None
    defaults: TaskDefaults


def task_names() -> tuple[str, ...]:
    """Names of the built-in tasks; costs nothing."""
    return tuple(sorted(BUILTIN))


def resolve(name: str, *, data_dir: Path | None = None, trusted: bool = True) -> Task:
    """Find a task and load its source.

    Args:
        name: a built-in task, an installed entry point, `path/to/file.py` (or a package's folder), or `package.module`.
        data_dir: where the task looks for its files; None = `HERMES_DATA_DIR`, if set.
        trusted: False when the name came from the wire.

    Raises:
        UsageError: no such task, or its source does not load or lacks a function.
        Incompatible: an untrusted name is neither built in nor installed.
    """
    if data_dir is None and os.environ.get("HERMES_DATA_DIR"):
        data_dir = Path(os.environ["HERMES_DATA_DIR"])
    if name in BUILTIN:
        return _task(name, importlib.import_module(BUILTIN[name]), data_dir=data_dir, folder=None)
    installed = _installed()
    if name in installed:
        with blaming(f"task {name}", f"importing {installed[name].value}"):
            found = installed[name].load()
        return _task(name, found, data_dir=data_dir, folder=None)
    if not trusted:
        raise Incompatible(
            f"this run's task {name[:_NAME_CHARACTERS_MAX]!r} is not installed here",
            why="a name from the network never loads a file or module",
            mend="If you have its source, start the device with --task NAME (the path or module on this machine)",
        )
    if name.endswith(".py") or os.sep in name:
        path = Path(name).expanduser()
        return _task(path.name, load_file(path), data_dir=data_dir, folder=path.resolve().parent)
    if all(part.isidentifier() for part in name.split(".")) and "." in name:
        module = load_module(name, Path.cwd())
        if module is not None:
            return _task(name, module, data_dir=data_dir, folder=Path.cwd())
    raise _unknown(name, [*BUILTIN, *installed])


def _installed() -> dict[str, EntryPoint]:
    from importlib import metadata  # noqa: PLC0415 - half of this module's import time

    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}


def _unknown(name: str, names: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, names, n=1)
    mend = f"Did you mean {near[0]!r}?" if near else "A task of your own is given as path/to/file.py or package.module"
    return UsageError(f"there is no task {name!r}", why=f"known are {', '.join(sorted(names))}", mend=mend)


def _task(name: str, found: Any, *, data_dir: Path | None, folder: Path | None) -> Task:
    module = found if isinstance(found, ModuleType) else sys.modules.get(getattr(found, "__module__", ""), found)
    origin = f"task {name}" if name in BUILTIN or folder is None else str(getattr(module, "__file__", name))

    build_model = _needed(found, "build_model", origin, folder)
    load_data = _needed(found, "load_data", origin, folder)
    _arguments(build_model, origin, "build_model", allowed=())
    arguments = {"data_dir": data_dir} if _arguments(load_data, origin, "load_data", allowed=("data_dir",)) else {}
    return Task(
        name=name,
        source_sha256=source_sha256(module, origin),
        build_model=build_model,
        load_data=lambda: _loaded(load_data(**arguments), origin),
        loss=_offered(found, "loss", origin),
        build_optimizer=_offered(found, "build_optimizer", origin),
        accuracy=_offered(found, "accuracy", origin),
        defaults=_defaults(getattr(found, "DEFAULTS", {}), origin),
    )


def _loaded(value: object, origin: str) -> TaskData:
    from hermes_iot.training.data import normalise  # noqa: PLC0415 - numpy, see the module's header

    return normalise(value, origin=origin)


def _offered(found: Any, name: str, origin: str, folder: Path | None = None) -> Callable[..., Any] | None:
    value = getattr(found, name, None)
    if value is not None and not callable(value):
        raise UsageError(f"{origin}: {name} is a {type(value).__name__}, not a function")
    return None if value is None else _guarded(value, origin, name, folder)


def _needed(found: Any, name: str, origin: str, folder: Path | None) -> Callable[..., Any]:
    function = _offered(found, name, origin, folder)
    if function is None:
        raise UsageError(f"{origin} lacks a function {name}()", mend="A task defines build_model() and load_data()")
    return function


def _arguments(function: Callable[..., Any], origin: str, name: str, *, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the allowed arguments that a function takes; an unexpected one without a default is an error."""
    taken: list[str] = []
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable written in C that does not tell
        return ()
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD or parameter.name in allowed:
            taken += [parameter.name] if parameter.name in allowed else allowed
        elif parameter.default is parameter.empty and parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            takes = f"it may take {', '.join(allowed)}" if allowed else "it takes no argument"
            raise UsageError(f"{origin}: {name}() wants an argument {parameter.name!r}", why=takes)
    return tuple(taken)


def _defaults(value: object, origin: str) -> TaskDefaults:
    fields = TaskDefaults.__dataclass_fields__
    unknown = [key for key in value if key not in fields] if isinstance(value, dict) else [value]
    if unknown or not isinstance(value, dict):
        raise UsageError(
            f"{origin}: DEFAULTS holds {unknown[0]!r}", why=f"it is a dict with any of {', '.join(fields)}"
        )
    try:
        return TaskDefaults(**value)
    except UsageError as error:
        raise UsageError(f"{origin}: DEFAULTS: {error.what}", why=error.why) from error


def _guarded(function: Callable[P, R], origin: str, name: str, folder: Path | None) -> Callable[P, R]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with blaming(origin, f"{name}()"), importable(folder):
            return function(*args, **kwargs)

    return call
