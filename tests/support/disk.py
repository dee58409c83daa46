"""Disks that are full: a real small one where root allows, and one whose writes fail when the test says so."""

import contextlib
import os
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, *, kib: int):
    """A real file system of so many KiB at `place`; a loud skip where it cannot be mounted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root, to mount a disk so small that it can be filled ({error})")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take every byte there is; the file to remove for having them back."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return filler


class FailingDisk:
    """Writes to files of which `path` is a part of the name fail with `number` while it is set; thread-safe."""

    def __init__(self, patch: pytest.MonkeyPatch, path: str) -> None:
        self.number = 0
        self.failed = 0
        self._path = path
        self._changed = threading.Condition()
        for name in ("write", "writev"):
            patch.setattr(os, name, self._call(getattr(os, name)))

    def wait(self, failures: int, timeout_s: float = 20.0) -> None:
        """Until so many writes have failed."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.failed >= failures, timeout_s)

    def _call(self, real):
        def called(descriptor, *args):
            if self.number and self._path in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                with self._changed:
                    self.failed += 1
                    self._changed.notify_all()
                raise OSError(self.number, os.strerror(self.number))
            return real(descriptor, *args)

        return called
