"""A disk in memory that behaves as badly as a real one is allowed to.

What POSIX promises and no more: written bytes are seen by whoever reads them and survive the end of a process; they
survive a power cut only where the file was synced, and a name, a directory's too, only where its directory was. Without
that the power cut decides: of each file's unsynced content nothing, a part or all of it is there afterwards, and of
each directory's unsynced changes the first so many. A part may end in zeros, or have them in its midst: the length was
written, and of the blocks some were and some were not, in no order.

Space is limited where somebody says so: then a write takes what fits, and what does not fit is `ENOSPC`.

`on_operation` is called before every call that changes something; it may raise to end the process there. A write then
has happened in part, as a SIGKILL between two of its pages would leave it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from hermes_iot.storage.disk import Disk, Piece

#: What is written or not as a whole: a sector, as what is written here is small.
_BLOCK: Final = 512
#: Of a file's unsynced blocks, so many are missing where they are not written in order.
_MISSING: Final = 0.3


@dataclass(slots=True, kw_only=True, eq=False)
class _File:
    """Content as it is seen, and as a power cut leaves it; or a directory, which has none."""

    data: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    time_ns: int = 0
    locked_by: int | None = None
    directory: bool = False


@dataclass(slots=True, kw_only=True)
class _Open:
    """One descriptor: a file, or a directory by its name."""

    file: _File | None
    directory: str = ""
    at: int = 0
    appends: bool = False


#: A change of a directory, all of it or none: what names stand for from now on; None = it is gone.
_Change = tuple[tuple[str, _File | None], ...]


class FakeDisk(Disk):
    """See the module. Mutable.

    Args:
        chance: decides what a power cut leaves, and makes names.
        on_operation: see the module.

    Attributes:
        free_bytes: what can still be written; None = without limit.
    """

    threads = False  # nothing happens twice in the same order with them

    def __init__(self, chance: np.random.Generator, *, on_operation: Callable[[], None] = lambda: None) -> None:
        self.free_bytes: int | None = None
        self._chance = chance
        self._on_operation = on_operation
        self._files: dict[str, _File] = {}  # by path, as seen
        self._safe: dict[str, _File] = {}
        self._unsynced: dict[str, list[_Change]] = {}  # by directory, oldest first
        self._open: dict[int, _Open] = {}
        self._descriptors = 0
        self._time_ns = 0

    # --- what happens to a machine ---------------------------------------------------------------------------------

    def killed(self) -> None:
        """The process that used it is gone: its descriptors are closed, its locks free. Nothing is lost."""
        for descriptor in list(self._open):
            self.close(descriptor)

    def power_cut(self, *, torn: bool) -> int:
        """`killed`, and what was not synced is lost, or, where `torn`, there in part; in how many places that showed."""
        self.killed()
        lost = 0
        for changes in self._unsynced.values():
            kept = int(self._chance.integers(len(changes) + 1)) if torn else 0
            lost += len(changes) > kept
            for change in changes[:kept]:
                _name(self._safe, change)
        self._unsynced.clear()
        self._safe = {name: file for name, file in self._safe.items() if self._is_reached(name)}
        self._files = dict(self._safe)
        for file in {id(one): one for one in self._files.values()}.values():
            if file.data != file.safe:
                lost += 1
                file.safe = self._left_of(bytes(file.data), file.safe) if torn else file.safe
                file.data = bytearray(file.safe)
        return lost

    def _is_reached(self, name: str) -> bool:
        """Whether the directories on the way to a name are safe."""
        return all(str(one) in self._safe for one in list(Path(name).parents)[:-1])

    def _left_of(self, data: bytes, safe: bytes) -> bytes:
        """What a power cut leaves of a file that was `safe` once and has become `data`."""
        chance = np.random.default_rng(self._chance.integers(2**63))  # so that no content moves what comes after it
        first = bool(chance.integers(2))
        if not data.startswith(safe):  # not only longer: the old content or the new
            return data if first else safe
        reached = int(chance.integers(len(safe), len(data) + 1))
        if first:
            return data[:reached] + bytes(int(chance.integers(len(data) - reached + 1)))
        left = bytearray(data[:reached])
        missing = float(chance.choice([0.0, _MISSING]))
        for begin in range(len(safe) // _BLOCK * _BLOCK, reached, _BLOCK):
            if chance.random() < missing:
                place = slice(max(begin, len(safe)), min(begin + _BLOCK, reached))
                left[place] = bytes(place.stop - place.start)
        return bytes(left)

    # --- Disk ------------------------------------------------------------------------------------------------------

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:  # noqa: ARG002 - Disk's signature
        """See `Disk`."""
        name = str(path)
        if flags & os.O_DIRECTORY:
            if not self.is_directory(path):
                raise _error(errno.ENOENT, name)
            return self._descriptor(_Open(file=None, directory=name))
        file = self._files.get(name)
        if file is not None and flags & os.O_EXCL:
            raise _error(errno.EEXIST, name)
        if file is None or flags & os.O_TRUNC:
            self._change()
        if file is None:
            if not flags & os.O_CREAT or not self.is_directory(path.parent):
                raise _error(errno.ENOENT, name)
            self._need_room(name)
            file = _File()
            self._rename((name, file))
        elif flags & os.O_TRUNC:
            self._resize(file, 0)
        return self._descriptor(_Open(file=file, appends=bool(flags & os.O_APPEND)))

    def close(self, descriptor: int) -> None:
        """See `Disk`."""
        one = self._open.pop(descriptor)
        if one.file is not None and one.file.locked_by == descriptor:
            one.file.locked_by = None

    def write(self, descriptor: int, data: Piece) -> int:
        """See `Disk`."""
        one = self._open[descriptor]
        return self._write(self._file(descriptor), bytes(data), one)

    def writev(self, descriptor: int, pieces: Sequence[Piece]) -> int:
        """See `Disk`."""
        return self.write(descriptor, b"".join(bytes(piece) for piece in pieces))

    def pwrite(self, descriptor: int, data: Piece, offset: int) -> int:
        """See `Disk`."""
        return self._write(self._file(descriptor), bytes(data), _Open(file=None, at=offset))

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        """See `Disk`."""
        return bytes(self._file(descriptor).data[offset : offset + length])

    def sync(self, descriptor: int) -> None:
        """See `Disk`."""
        self._change()
        one = self._open[descriptor]
        if one.file is not None:
            one.file.safe = bytes(one.file.data)
            return
        for change in self._unsynced.pop(one.directory, ()):
            _name(self._safe, change)

    def sync_data(self, descriptor: int) -> None:
        """See `Disk`."""
        self.sync(descriptor)

    def drop_cached(self, descriptor: int, offset: int, length: int) -> None:
        """See `Disk`; nothing is cached here."""

    def truncate(self, descriptor: int, length: int) -> None:
        """See `Disk`."""
        self._change()
        self._resize(self._file(descriptor), length)

    def lock(self, descriptor: int) -> None:
        """See `Disk`."""
        file = self._file(descriptor)
        if file.locked_by not in (None, descriptor):
            raise _error(errno.EAGAIN, "")
        file.locked_by = descriptor

    def read(self, path: Path, bytes_max: int) -> tuple[int, bytes]:
        """See `Disk`."""
        file = self._files.get(str(path))
        if file is None:
            raise _error(errno.ENOENT, str(path))
        return len(file.data), bytes(file.data) if len(file.data) <= bytes_max else b""

    def replace(self, path: Path, target: Path) -> None:
        """See `Disk`."""
        self._change()
        file = self._files.get(str(path))
        if file is None:
            raise _error(errno.ENOENT, str(path))
        before = self._files.get(str(target))
        if before is file:
            return  # two names of one file: POSIX does nothing
        self._rename((str(target), file), (str(path), None))
        self._reclaim(before)

    def link(self, path: Path, second: Path) -> None:
        """See `Disk`."""
        self._change()
        file = self._files.get(str(path))
        if file is None:
            raise _error(errno.ENOENT, str(path))
        self._need_room(str(second))
        self._rename((str(second), file))

    def unlink(self, path: Path) -> None:
        """See `Disk`."""
        file = self._files.get(str(path))
        if file is not None:
            self._change()
            self._rename((str(path), None))
            self._reclaim(file)

    def names(self, directory: Path) -> list[str]:
        """See `Disk`."""
        if not self.is_directory(directory):
            raise _error(errno.ENOENT, str(directory))
        return sorted(Path(path).name for path in self._files if Path(path).parent == directory)

    def files(self, directory: Path) -> list[tuple[str, int, int]]:
        """See `Disk`."""
        if not self.is_directory(directory):
            return []
        found = ((name, self._files[str(directory / name)]) for name in self.names(directory))
        return [(name, len(file.data), file.time_ns) for name, file in found if not file.directory]

    def touch(self, path: Path, time_ns: int) -> None:
        """See `Disk`."""
        self._files[str(path)].time_ns = time_ns

    def make_directory(self, directory: Path) -> None:
        """See `Disk`."""
        if str(directory) in self._files or directory.parent == directory:
            raise _error(errno.EEXIST, str(directory))
        if not self.is_directory(directory.parent):
            raise _error(errno.ENOENT, str(directory))
        self._change()
        self._need_room(str(directory))
        self._rename((str(directory), _File(directory=True)))

    def is_directory(self, path: Path) -> bool:
        """See `Disk`."""
        file = self._files.get(str(path))
        return path.parent == path or (file is not None and file.directory)

    def random_hex(self, count: int) -> str:
        """See `Disk`."""
        return self._chance.bytes(count).hex()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _change(self) -> None:
        self._time_ns += 1
        self._on_operation()

    def _descriptor(self, one: _Open) -> int:
        self._descriptors += 1
        self._open[self._descriptors] = one
        return self._descriptors

    def _file(self, descriptor: int) -> _File:
        file = self._open[descriptor].file
        if file is None:
            raise _error(errno.EISDIR, "")
        return file

    def _write(self, file: _File, data: bytes, one: _Open) -> int:
        try:
            self._change()
        except BaseException:  # killed in the middle of it
            self._put(file, data[: int(self._chance.integers(len(data) + 1))], one)
            raise
        if self.free_bytes is not None and data:
            data = data[: self.free_bytes]
            if not data:
                raise _error(errno.ENOSPC, "")
        return self._put(file, data, one)

    def _put(self, file: _File, data: bytes, one: _Open) -> int:
        at = len(file.data) if one.appends else one.at
        grown = max(0, at + len(data) - len(file.data))
        file.data[at : at + len(data)] = data
        one.at = at + len(data)
        file.time_ns = self._time_ns
        if self.free_bytes is not None:
            self.free_bytes = max(0, self.free_bytes - grown)
        return len(data)

    def _resize(self, file: _File, length: int) -> None:
        if self.free_bytes is not None:
            self.free_bytes += max(0, len(file.data) - length)
        del file.data[length:]

    def _reclaim(self, file: _File | None) -> None:
        """A name of this file is gone; where it was the last, its space is free."""
        if self.free_bytes is not None and file is not None and all(one is not file for one in self._files.values()):
            self.free_bytes += len(file.data)

    def _need_room(self, name: str) -> None:
        if self.free_bytes == 0:
            raise _error(errno.ENOSPC, name)

    def _rename(self, *change: tuple[str, _File | None]) -> None:
        """All within one directory."""
        _name(self._files, change)
        self._unsynced.setdefault(str(Path(change[0][0]).parent), []).append(change)


def _name(table: dict[str, _File], change: _Change) -> None:
    for path, file in change:
        if file is None:
            table.pop(path, None)
        else:
            table[path] = file


def _error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)
