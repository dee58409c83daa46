"""``hermes.toml``: defaults for every option, and constants of strategies.

Keys are option names without the dashes in front (``target-accuracy = 0.97``), at the top level; a table named after a
strategy holds its constants. A key that no command knows is an error with the nearest match.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from hermes_iot.algorithms.strategies import STRATEGIES
from hermes_iot.config import check_keys, read_toml
from hermes_iot.errors import UsageError

DEFAULT_FILE = "hermes.toml"
#: Never read from a file that is easily shared, or meaningless there.
_NOT_IN_FILES = frozenset({"help", "config", "version", "constants"})


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
    known = {
        name: {_key(one.opts): str(one.name) for one in child.params if one.name not in _NOT_IN_FILES}
        for name, child in root.commands.items()
    }
    # A person's own strategy has a table too; it is known by the key "strategy" and by the command line.
    tables = {*STRATEGIES, *(Path(word).stem for word in (str(values.get("strategy", "")), *arguments) if word)}
    check_keys(values, {key for names in known.values() for key in names} | (values.keys() & tables), where=str(path))
    constants = {name: table for name, table in values.items() if name in tables and isinstance(table, dict)}
    for name, value in values.items():
        if isinstance(value, dict) != (name in constants):
            raise UsageError(f"key {name!r} in {path} cannot be used", why="a value is expected, not a table")
    defaults = {
        command: {parameter: values[key] for key, parameter in names.items() if key in values}
        for command, names in known.items()
    }
    return defaults, constants


def _key(words: Sequence[str]) -> str:
    return max(words, key=len).lstrip("-")
