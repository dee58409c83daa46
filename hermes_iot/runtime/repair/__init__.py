"""What is left of a directory after a disk has harmed it, and how it can be gone on with: ``hermes-iot repair``.

First everything is read and nothing written: each file is whole, or it is not, and from that follow steps and what
they cost. Whoever wants them taken then says so. A step keeps the damaged file under a second name before it puts
anything in its place, each file changes at once or not at all, and the steps of a half-mended directory are the rest
of those of the whole: whoever is killed here begins again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hermes_iot.errors import UsageError
from hermes_iot.runtime.repair.board import examine_board
from hermes_iot.runtime.repair.findings import Diagnosis, Finding, Step
from hermes_iot.runtime.repair.run import examine_run
from hermes_iot.storage.locks import HeldLock, hold

__all__ = ["Diagnosis", "Finding", "Step", "examine", "locate", "locked", "mend"]

_RUN: Final = ("registry.json", "registry.json.bak", "journal", "checkpoints")
_BOARD: Final = ("device.json", "device.json.bak", "update.bin")
#: From a file up to the directory it belongs to: runs/<run>/journal/<segment>.
_LEVELS: Final = 3


def locate(path: Path) -> tuple[Path, str]:
    """The directory that `path` is, or is in, and what it is of: ``run`` or ``device``.

    Raises:
        UsageError: neither.
    """
    for directory in [path, *path.absolute().parents][:_LEVELS]:
        for kind, names in (("run", _RUN), ("device", _BOARD)):
            if any((directory / name).exists() for name in names):
                return directory, kind
    raise UsageError(
        f"{path} holds neither a run nor a device's state",
        why="there is no registry, checkpoint or journal in it, and no device.json"
        if path.exists()
        else "it is not there",
        mend="Name a run's directory (runs/<name>) or a device's --state-dir",
    )


def locked(directory: Path, kind: str) -> HeldLock:
    """Keep its owner out while it is looked at.

    Raises:
        StorageError: its owner is there.
    """
    return hold(
        directory / ("registry.json.lock" if kind == "run" else "lock"),
        thing=f"the {kind} in {directory}",
        mend="Stop that process first: what is in use is not repaired",
    )


def examine(directory: Path, kind: str, *, forget_journal: bool = False) -> Diagnosis:
    """Read everything, write nothing.

    Raises:
        StorageError: unreadable, or written by a newer version.
    """
    return examine_run(directory, forget_journal=forget_journal) if kind == "run" else examine_board(directory)


def mend(diagnosis: Diagnosis) -> None:
    """Take the steps. The lock is the caller's.

    Raises:
        StorageError: one could not be taken; those before it were.
    """
    for step in diagnosis.steps:
        step.take()
