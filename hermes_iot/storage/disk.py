"""The file operations that storage is made of, behind one seam: the kernel's, or a simulated disk's.

Whether a file survives a power cut is decided by the order of few calls (write, sync, rename, sync of the directory),
and no test on a real file system can lose what was not synced. So everything in this package that opens, writes or
names a file asks `disk()` for it, which is the kernel unless somebody has put another one in its place for a while
(`using`): the simulator has one that forgets, tears and fills up (`runtime.simulation.fake_disk`).

The methods are system calls by another name, with their arguments and their `OSError`s; nothing is decided here. Flags
and error numbers stay those of `os` and `errno`. The disk in use belongs to a context: other threads keep theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

#: What can be written.
Piece = bytes | bytearray | memoryview


class Disk:
    """The kernel's.

    Attributes:
        threads: whether several threads may use it at once.
    """

    threads = True

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        """A descriptor of a file, or of a directory to sync."""
        return os.open(path, flags, mode)

    def close(self, descriptor: int) -> None:
        """Give it back; locks go with it."""
        os.close(descriptor)

    def write(self, descriptor: int, data: Piece) -> int:
        """Write at the place where it stands; how many bytes were taken."""
        return os.write(descriptor, data)

    def writev(self, descriptor: int, pieces: Sequence[Piece]) -> int:
        """The same for several pieces."""
        return os.writev(descriptor, pieces)

    def pwrite(self, descriptor: int, data: Piece, offset: int) -> int:
        """Write at a place."""
        return os.pwrite(descriptor, data, offset)

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        """Read at a place."""
        return os.pread(descriptor, length, offset)

    def sync(self, descriptor: int) -> None:
        """Content and length survive a power cut; of a directory, the names in it."""
        os.fsync(descriptor)

    def sync_data(self, descriptor: int) -> None:
        """Content, and of the rest only what is needed to read it."""
        os.fdatasync(descriptor)

    def drop_cached(self, descriptor: int, offset: int, length: int) -> None:
        """Nobody will read this soon: its memory, once synced, is for others. A hint, and nothing where there is none."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut to a length."""
        os.ftruncate(descriptor, length)

    def lock(self, descriptor: int) -> None:
        """Lock the file for ourselves until it is closed; `BlockingIOError` where another has it."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def read(self, path: Path, bytes_max: int) -> tuple[int, bytes]:
        """A file's length and its content; of one longer than `bytes_max` nothing is read."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size, file.read() if size <= bytes_max else b""

    def replace(self, path: Path, target: Path) -> None:
        """Rename, over the target where there is one."""
        path.replace(target)

    def link(self, path: Path, second: Path) -> None:
        """Give a file a second name."""
        os.link(path, second)

    def unlink(self, path: Path) -> None:
        """Take a name away; nothing where there is none."""
        path.unlink(missing_ok=True)

    def names(self, directory: Path) -> list[str]:
        """The names in a directory."""
        return [entry.name for entry in directory.iterdir()]

    def files(self, directory: Path) -> list[tuple[str, int, int]]:
        """Name, length and modification time (nanoseconds) of the files in a directory; none where it is not there."""
        if not directory.exists():
            return []
        found = [(entry, entry.stat()) for entry in directory.iterdir() if entry.is_file()]
        return [(entry.name, about.st_size, about.st_mtime_ns) for entry, about in found]

    def touch(self, path: Path, time_ns: int) -> None:
        """Set a file's times."""
        os.utime(path, ns=(time_ns, time_ns))

    def make_directory(self, directory: Path) -> None:
        """Create it in a parent that is there; `FileExistsError` where there is one, or a file."""
        directory.mkdir()

    def is_directory(self, path: Path) -> bool:
        """Whether there is one of this name."""
        return path.is_dir()

    def random_hex(self, count: int) -> str:
        """So many random bytes, as hex digits: for names that nobody else has."""
        return secrets.token_hex(count)


_KERNEL = Disk()
_IN_USE: ContextVar[Disk] = ContextVar("disk", default=_KERNEL)


def disk() -> Disk:
    """The one in use."""
    return _IN_USE.get()


@contextlib.contextmanager
def using(other: Disk) -> Iterator[None]:
    """Use another one in the block, in this context only."""
    token = _IN_USE.set(other)
    try:
        yield
    finally:
        _IN_USE.reset(token)
