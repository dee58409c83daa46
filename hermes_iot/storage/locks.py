"""One owner per file: an advisory lock that names its holder.

Two writers on one registry, or two boards on one state directory, each save a consistent file and together lose half
of what happened. `fcntl.flock` on a separate ``.lock`` file keeps the second one out: the kernel drops it however the
holder dies, so there is no stale lock to clear by hand. The lock file itself is never deleted - a process waiting on a
deleted file would hold a lock nobody else can see. The pid and host inside are for the error message only.

A forked child shares the lock until it ends or executes another program; a second `hold` in the same process is
refused like any other.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path
from typing import Self

from hermes_iot.errors import HermesError, StorageError
from hermes_iot.storage.atomic import make_directory, storage_error
from hermes_iot.storage.disk import disk

_HOLDER = re.compile(r"pid=([0-9]{1,10}) host=(\S{1,255})\n")


class HeldLock:
    """A lock that is ours until `release`, or until the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let the next one in; harmless when repeated."""
        if self._descriptor is not None:
            disk().close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold(path: Path, *, thing: str, mend: str, error: type[HermesError] = StorageError) -> HeldLock:
    """Take the lock at `path` or say who has it; never waits.

    Args:
        path: the lock file; created, with its directory, where missing.
        thing: what is locked, for the message.
        mend: what the person can do about it.
        error: raised when somebody else holds it.

    Raises:
        HermesError: of the type `error`, naming the holder's pid and host.
        StorageError: the file cannot be created, or the file system knows no locks.
    """
    make_directory(path.parent)
    descriptor = -1
    try:
        descriptor = disk().open(path, os.O_RDWR | os.O_CREAT)
        disk().lock(descriptor)
    except BlockingIOError:
        why = f"{_holder(descriptor)} has it (lock file {path})"
        disk().close(descriptor)
        raise error(f"{thing} is in use", why=why, mend=mend) from None
    except OSError as problem:
        if descriptor >= 0:
            disk().close(descriptor)
        raise storage_error(problem, f"cannot lock {path}", path.parent) from problem
    _sign(descriptor)
    return HeldLock(descriptor)


def _sign(descriptor: int) -> None:
    # The lock holds with or without a name in it: a full disk must not keep the one rightful owner out.
    with contextlib.suppress(OSError):
        text = f"pid={os.getpid()} host={socket.gethostname()}\n".encode()
        disk().pwrite(descriptor, text, 0)
        disk().truncate(descriptor, len(text))


def _holder(descriptor: int) -> str:
    found = _HOLDER.match(disk().pread(descriptor, 512, 0).decode(errors="replace"))
    return f"process {found[1]} on {found[2]}" if found else "another process"
