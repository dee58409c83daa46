"""What was found, what is to be done about it, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from hermes_iot.storage import atomic

T = TypeVar("T")

#: torn: what a crash leaves and the next start clears by itself.
State = Literal["whole", "torn", "damaged", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One file, by its name in the directory; `about` says what is in it or what is wrong with it."""

    file: str
    state: State
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do: `words` in the infinitive for a person, `take` does it."""

    words: str
    take: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """A directory as it is.

    Attributes:
        name: of the run or the device; empty where nothing tells it.
        steps: in the order in which they are to be taken; none where it can be gone on with as it is.
        updates_lost: updates that were applied, are in no checkpoint that is left, and cannot be done again.
        records_unread: entries of the journal of which is not even known what they were.
        lost: what else is gone, one sentence each.
        afterwards: how it is gone on with.
    """

    kind: str
    directory: Path
    name: str
    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]
    updates_lost: int = 0
    records_unread: int = 0
    lost: tuple[str, ...] = ()
    afterwards: str = ""

    @property
    def healthy(self) -> bool:
        """Whether nothing is to be done."""
        return not self.steps


def look(path: Path, read: Callable[[Path], T | None]) -> tuple[T | None, Finding]:
    """Read one file, and what that shows.

    Raises:
        StorageError: from `read`, where it is another matter than damage.
    """
    try:
        content = read(path)
    except atomic.Damaged as damage:
        return None, Finding(file=path.name, state="damaged", about=damage.why)
    return content, Finding(file=path.name, state="missing" if content is None else "whole")


def put_aside(path: Path, name: str) -> Step:
    """Move a file that nothing can be made of."""
    return Step(words=f"keep {name} as {name}.damaged-…", take=lambda: atomic.move_aside(path))


def put_back(path: Path, name: str, backup: Path, *, bytes_max: int = atomic.CHECKED_BYTES_MAX) -> Step:
    """Take a backup for the file."""

    def take() -> None:
        data = atomic.read_bounded(backup, bytes_max)
        if path.exists():
            atomic.keep_aside(path)
        atomic.write_atomic(path, data or b"")

    return Step(words=f"keep {name} as {name}.damaged-…, if it is there, and put {backup.name} in its place", take=take)
