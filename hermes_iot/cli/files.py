"""``HERMES_*`` variables and ``hermes.toml``: defaults for every option, and constants of strategies.

A variable is the option's name in capitals (``HERMES_TARGET_ACCURACY``). Keys of the file are option names without the
dashes in front (``target-accuracy = 0.97``), at the top level; a table named after a strategy holds its constants. A
key that no command knows is an error with the nearest match.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from hermes_iot.algorithms.strategies import STRATEGIES
from hermes_iot.config import check_keys, read_toml
from hermes_iot.errors import UsageError

DEFAULT_FILE = "hermes.toml"
#: What a person decides each time: never taken from the environment nor from a file that is easily shared.
_BY_HAND = frozenset(
    {"help", "config", "version", "constants", "resume", "takeover", "as_json", "yes", "forget_journal"}
)
#: A demo brings its own broker, and a simulation its fleet, recorded run or faults, whatever the environment of a real one says.
_BY_HAND_IN = frozenset(
    {("demo", "broker"), ("simulate", "fleet"), ("simulate", "source"), ("simulate", "faults"), ("simulate", "seeds")}
)


def offer_variables(root: TyperGroup) -> None:
    """Give every option that may come from the environment its variable."""
    for command, child in root.commands.items():
        for option in child.params:
            if _may_be_preset(command, str(option.name)) and option.envvar is None:
                option.envvar = f"HERMES_{_key(option.opts).upper().replace('-', '_')}"


def config_path(arguments: Sequence[str]) -> Path | None:
    """The file to read: ``--config``, else ``HERMES_CONFIG``, else ``./hermes.toml`` if it is there.

    Raises:
        UsageError: the file that was named is not there.
    """
    named = os.environ.get("HERMES_CONFIG") or None
    for position, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == "--config" and position + 1 < len(arguments):
            named = arguments[position + 1]
        elif argument.startswith("--config="):
            named = argument.partition("=")[2]
    if named is None:
        return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None
    if not Path(named).is_file():
        raise UsageError(f"there is no configuration file {named}", mend="Check --config or HERMES_CONFIG")
    return Path(named)


def read(arguments: Sequence[str], root: TyperGroup) -> tuple[dict[str, Any], dict[str, Any]]:
    """Click's default map (command -> parameter -> value), and the tables of strategy constants.

    Raises:
        UsageError: no such file, not TOML, an unknown key, or a table where a value belongs.
    """
    path = config_path(arguments)
    if path is None:
        return {}, {}
    values = read_toml(path)
    options = {
        command: {_key(one.opts): str(one.name) for one in child.params if _may_be_preset(command, str(one.name))}
        for command, child in root.commands.items()
    }
    keys = {key for names in options.values() for key in names}
    tables = {*STRATEGIES, *(Path(name).stem for name in _strategies(arguments, values) if name)}
    for name, value in values.items():
        if isinstance(value, dict) and name in root.commands:
            raise UsageError(
                f"table [{name}] in {path} is not known", mend="Options stand at the top level, without a table"
            )
    check_keys(values, keys | tables, where=str(path))
    for name, value in values.items():
        if isinstance(value, dict) != (name in tables):
            what = "a table is expected, for example [hermes.gate]" if name in tables else "a value is expected"
            raise UsageError(f"key {name!r} in {path} cannot be used", why=what)
    constants = {name: table for name, table in values.items() if name in tables}
    defaults = {
        command: {parameter: values[key] for key, parameter in names.items() if key in values}
        for command, names in options.items()
    }
    return defaults, constants


def _strategies(arguments: Sequence[str], values: Mapping[str, Any]) -> Iterator[str]:
    """Strategies that are named anywhere: a person's own one has a table of its stem's name, too."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--strategy":
            yield following
        elif word.startswith("--strategy="):
            yield word.partition("=")[2]
    yield os.environ.get("HERMES_STRATEGY", "")
    yield str(values.get("strategy", ""))


def _may_be_preset(command: str, option: str) -> bool:
    return option not in _BY_HAND and (command, option) not in _BY_HAND_IN


def _key(words: Sequence[str]) -> str:
    return max(words, key=len).lstrip("-")
