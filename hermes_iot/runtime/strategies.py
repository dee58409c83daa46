"""Finds a synchronisation strategy by name and builds it from constants: built in, installed, or a file of one's own.

A name from the wire resolves to what is built in or installed; a file runs only when the person at this machine named
it. Constants are checked strictly against the strategy's own `Config`, wherever they come from.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from hermes_iot.algorithms.strategies import STRATEGIES
from hermes_iot.algorithms.strategies.base import Strategy
from hermes_iot.config import check_nested
from hermes_iot.errors import Incompatible, ProtocolError, UsageError
from hermes_iot.protocol.messages import StrategyInfo
from hermes_iot.protocol.schema import from_mapping, to_mapping
from hermes_iot.training.sources import load_file, load_module, source_sha256

#: An installed package offers a strategy by an entry point of this group whose value names a module.
ENTRY_POINTS: Final = "hermes_iot.strategies"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A strategy's module. `source_sha256` is empty for a built-in one: the software's version speaks for it."""

    name: str
    module: ModuleType
    source_sha256: str = ""

    def build(
        self, constants: Mapping[str, Any], *, seed: int | None = None
    ) -> tuple[Strategy[Any, Any], StrategyInfo]:
        """The strategy of these constants, and how a manifest names it.

        Args:
            constants: those that are not the defaults.
            seed: the run's, for a strategy that has a constant of this name and was not given it.

        Raises:
            UsageError: an unknown or impossible constant.
        """
        kind = self.module.Config
        if seed is not None and "seed" in {one.name for one in fields(kind)}:
            constants = {"seed": seed, **constants}
        check_nested(constants, kind, where=self.name)
        try:
            config = from_mapping(constants, kind)
        except ProtocolError as error:
            why = _wanted(str(error), constants, kind) or str(error)
            raise UsageError(f"a constant of strategy {self.name!r} cannot be used", why=why) from error
        info = StrategyInfo(name=self.name, source_sha256=self.source_sha256, constants=to_mapping(config))
        return self.module.build_strategy(config), info


#: Where the decoder found what it did not expect.
_WHERE: Final = re.compile(r"at `\$\.([\w.]+)`")
_TYPES: Final[Mapping[Any, str]] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a word",
    type(None): "none",
}


def _wanted(error: str, constants: Mapping[str, Any], kind: Any) -> str:
    """What a constant of the wrong type must be, in words; empty where the decoder's own words are the best there are."""
    found = _WHERE.search(error)
    value: Any = constants
    for name in found[1].split(".") if found is not None else ():
        hints = get_type_hints(kind) if is_dataclass(kind) else {}
        if name not in hints or not isinstance(value, Mapping) or name not in value:
            return ""
        kind, value = hints[name], value[name]
    words = [*dict.fromkeys(_options(kind))]  # "none" may be a word and a missing value
    return f"{found[1]} is {value!r:.60}; it must be {' or '.join(words)}" if found is not None and all(words) else ""


def _options(kind: Any) -> tuple[str, ...]:
    """Of a type, or of each of a union's."""
    if get_origin(kind) is Literal:
        return tuple(str(one) for one in get_args(kind))
    if get_origin(kind) in {Union, UnionType}:
        return tuple(word for one in get_args(kind) for word in _options(one))
    return (_TYPES.get(kind, ""),)


def resolve(name: str, *, trusted: bool = True) -> Found:
    """Find a strategy.

    Raises:
        UsageError: there is none of this name, or it lacks `Config` or `build_strategy`.
        Incompatible: an untrusted name is neither built in nor installed.
    """
    if name in STRATEGIES:
        return _checked(Found(name=name, module=importlib.import_module(STRATEGIES[name])))
    installed = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    module: ModuleType | None = None
    if name in installed:
        module = importlib.import_module(installed[name].module)
    elif not trusted:
        raise Incompatible(
            f"this run's strategy {name[:80]!r} is not installed here",
            why="a name from the network never loads a file or module",
            mend="If you have its source, start the device with --strategy NAME (the path or module on this machine)",
        )
    elif name.endswith(".py") or os.sep in name:
        path = Path(name).expanduser()
        if not path.exists():
            raise UsageError(f"there is no strategy file {name}", mend="Check the path given with --strategy")
        module, name = load_file(path), path.name
    elif "." in name:
        module = load_module(name, Path.cwd())
    if module is None:
        near = difflib.get_close_matches(name, [*STRATEGIES, *installed], n=1)
        mend = f"Did you mean {near[0]!r}?" if near else "One of your own is given as path/to/file.py"
        known = ", ".join(sorted([*STRATEGIES, *installed]))
        raise UsageError(f"there is no strategy {name!r}", why=f"known are {known}", mend=mend)
    return _checked(Found(name=name, module=module, source_sha256=source_sha256(module, f"strategy {name}")))


def from_manifest(info: StrategyInfo, given: str | None) -> Strategy[Any, Any]:
    """A device's half: what the manifest names, or the person's own file when its source is the coordinator's.

    Raises:
        Incompatible: not to be had here, of another source, or its constants do not fit.
        UsageError: the person's file is wrong.
    """
    found = resolve(given) if given is not None else resolve(info.name, trusted=False)
    if found.source_sha256 != info.source_sha256:
        raise Incompatible(
            f"strategy {info.name!r} here is not the coordinator's",
            why="its source hashes to another value",
            mend="Copy the coordinator's file, or install the same version of hermes-iot",
        )
    try:
        return found.build(info.constants)[0]
    except UsageError as error:
        raise Incompatible(
            f"the constants of strategy {info.name!r} do not fit this version", why=str(error)
        ) from error


def _checked(found: Found) -> Found:
    config, build = getattr(found.module, "Config", None), getattr(found.module, "build_strategy", None)
    if not (isinstance(config, type) and is_dataclass(config) and callable(build)):
        raise UsageError(
            f"strategy {found.name!r} is incomplete",
            why="a strategy's module has a dataclass Config and a function build_strategy(config)",
            mend="See examples/custom_strategy.py",
        )
    return found
