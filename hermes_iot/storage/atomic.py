"""Files that are old or new at every instant, and never silently wrong.

Why not simply `open(path, "w")`: measured, 3 of 40 SIGKILLs during such a rewrite left half a file, and so did a full
disk. So every save writes a temporary file beside the target, fsyncs it, renames it over the target and fsyncs the
directory (without the last a power cut can bring the old name back). An error leaves the old content and no temporary
file; only a SIGKILL can leave one, which `sweep` clears at the next start.

Rename protects against crashes, not against worn SD cards, so what we must not misread is framed as well. One framing
serves all: the first line is a head of exactly this form,

    {"hermes-iot": "<kind>", "format": <number>, "bytes": <length>, "sha256": "<hex over kind, number and payload>"

closed by ``}`` and followed by the raw payload (binary), or continued by ``,"body":``, the payload and ``}`` - so that
a JSON payload makes the file one JSON document that `jq .body` and every editor can read. The sum is taken over the
bytes as they lie on disk, not over a canonical re-rendering: cheaper, and *every* changed bit is found, white space
included. SHA-256 rather than CRC32 because it is as fast here (hardware) and can be taken for identity.

A backup is a second name: the previous version stays as ``<name>.bak``. Readers fall back to it with a sentence for the
person; the owner then puts the damaged file aside first (`set_aside`), else its next save would make the damaged
file the backup. Nothing here is locked: a path has one writer at a time, see locks.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hermes_iot.errors import StorageError
from hermes_iot.storage.disk import disk

T = TypeVar("T")

#: Nothing larger is read into memory as a checked file, and so none is written; the largest of ours, a registry of
#: 100,000 devices, is about 70 MB.
CHECKED_BYTES_MAX = 256 * 1024 * 1024

#: A damaged file may be quoted in a log, not copied into it.
_WHY_CHARACTERS_MAX = 300

_HEAD = re.compile(
    rb'\{"hermes-iot": "([a-z-]{1,32})", "format": ([0-9]{1,9}), "bytes": ([0-9]{1,12}), "sha256": "([0-9a-f]{64})"'
)
_BINARY = (b"}\n", b"")
_DOCUMENT = (b',\n"body":\n', b"\n}\n")
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")

_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free space in {directory}"),
    errno.EDQUOT: ("this user's disk quota is used up", "Free space in {directory}"),
    errno.EACCES: ("permission denied", "Give this user read and write access to {directory}"),
    errno.EPERM: ("permission denied", "Give this user read and write access to {directory}"),
    errno.EROFS: ("the file system is read-only", "Remount it writable; a card that turned read-only is worn out"),
    errno.ENOENT: ("the directory does not exist", "Create {directory}"),
    errno.EIO: ("the disk reports an input/output error", "Check the disk or card and replace it"),
}
_NO_SECOND_NAMES = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Damaged(StorageError):
    """A file is not what was written: truncated, changed, or not ours. Caught where a second copy can stand in."""


class DiskFull(StorageError):
    """There was no space. What could not be written is as it was, and the same may work later: see who catches it."""


def storage_error(error: OSError, what: str, directory: Path) -> StorageError:
    """An operating system error as one line: what could not be done, why, and what mends it in `directory`."""
    why, mend = _REASONS.get(error.errno or 0, (error.strerror or str(error), "Check {directory}"))
    kind = DiskFull if error.errno in _NO_SPACE else StorageError
    return kind(what, why=why, mend=mend.format(directory=directory))


def make_directory(directory: Path) -> None:
    """Create a directory and its parents, if need be, and make their names safe.

    Each is safe before the next is made. A crash so leaves one at most that is not, the innermost, and whoever comes next
    makes that safe before anything in it is believed.

    Raises:
        StorageError: not permitted, or a file is in the way.
    """
    try:
        _make_directory(directory)
    except OSError as error:
        what = f"cannot create {directory}"
        there = next((one for one in (directory, *directory.parents) if os.access(one, os.F_OK)), directory.parent)
        if not there.is_dir():
            raise StorageError(what, why=f"{there} is a file", mend="Give a directory") from error
        if error.errno == errno.ENOENT:  # parents were to be made: a file system such as /proc refuses so
            raise StorageError(what, why=f"nothing can be created in {there}", mend="Give another directory") from error
        raise storage_error(error, what, there) from error


def _make_directory(directory: Path) -> None:
    if not disk().is_directory(directory):
        if directory.parent != directory:
            _make_directory(directory.parent)
        try:
            disk().make_directory(directory)
        except FileExistsError:
            if not disk().is_directory(directory):
                raise
    with contextlib.suppress(PermissionError):  # who may not read the parent has not been given it to look after
        sync_directory(directory.parent)


def backup_of(path: Path) -> Path:
    """Where the previous version lies."""
    return path.with_name(f"{path.name}.bak")


def write_atomic(path: Path, *data: bytes | memoryview, backup: bool = False) -> None:
    """Replace the content of `path`; a crash at any instant leaves the old bytes or the new ones.

    Args:
        path: the file; its directory must exist.
        data: the whole new content, in pieces of bytes laid end to end.
        backup: keep the version before as ``<name>.bak``.

    Raises:
        StorageError: disk full, no permission, ...: the old content stands (or, when only the directory's fsync
            failed, already the new one), and no temporary file is left.
    """
    temporary = _temporary(path)
    try:
        _write_through(temporary, data)
        if backup:
            _keep_previous(path)
        disk().replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"cannot write {path}", path.parent) from error
    finally:
        _discard(temporary)


def write_checked(
    path: Path,
    payload: bytes,
    *,
    kind: str,
    version: int,
    backup: bool = False,
    document: bool = False,
    bytes_max: int = CHECKED_BYTES_MAX,
) -> None:
    """`write_atomic` with the framing above around the payload.

    Args:
        path: the file.
        payload: any bytes; JSON text when `document` is set.
        kind: what the file is, lower-case letters and dashes; a file of another kind is refused at reading.
        version: of the payload's layout.
        backup: as in `write_atomic`.
        document: make the whole file one JSON document.
        bytes_max: what `read_checked` will be given.

    Raises:
        StorageError: as in `write_atomic`, or larger than can be read again.
    """
    opening, closing = _DOCUMENT if document else _BINARY
    head = f'{{"hermes-iot": "{kind}", "format": {version}, "bytes": {len(payload)}, "sha256": "'
    parts = (head.encode(), _checksum(kind, version, payload).encode(), b'"', opening, payload, closing)
    data = b"".join(parts)
    if len(data) > bytes_max:
        raise StorageError(f"cannot write {path}", why=f"it has {len(data)} bytes, {bytes_max} can be read again")
    write_atomic(path, data, backup=backup)


def read_checked(path: Path, *, kind: str, version: int, bytes_max: int = CHECKED_BYTES_MAX) -> bytes | None:
    """The payload of a checked file; None when there is no such file.

    Raises:
        Damaged: truncated, changed, too large, or not a file of this kind.
        StorageError: written in a newer format than `version`, or unreadable.
    """
    data = read_bounded(path, bytes_max)
    if data is None:
        return None
    head = _HEAD.match(data)
    if head is None:
        raise damaged(path, "it does not begin like a file of hermes-iot")
    found, number, length, checksum = (group.decode() for group in head.groups())
    opening, closing = _DOCUMENT if data.startswith(_DOCUMENT[0], head.end()) else _BINARY
    start = head.end() + len(opening)
    payload = data[start : len(data) - len(closing)]
    if not data.startswith(opening, head.end()) or not data.endswith(closing) or len(payload) != int(length):
        raise damaged(path, f"{length} bytes were written, {len(payload)} are there")
    if _checksum(found, int(number), payload) != checksum:
        raise damaged(path, "its checksum does not match")
    if found != kind:
        raise damaged(path, f"it is a {found} file, not a {kind} file")
    if int(number) > version:
        raise StorageError(
            f"{path} was written by a newer hermes-iot",
            why=f"its format is {number}, this version reads up to {version}",
            mend="Upgrade hermes-iot, or use another directory",
        )
    return payload


def read_newest(path: Path, read: Callable[[Path], T | None]) -> tuple[T | None, str]:
    """Read a file, or its backup where the file is damaged or gone.

    Args:
        path: the file.
        read: reads and parses one of the two; None when there is none, `Damaged` when it cannot be used.

    Returns:
        What was read (None: neither exists) and a sentence for the person, empty when all is well.

    Raises:
        Damaged: neither copy can be used.
        StorageError: from `read`.
    """
    backup = backup_of(path)
    try:
        newest = read(path)
    except Damaged as damage:
        try:
            previous = read(backup)
        except Damaged:
            previous = None
        if previous is None:
            raise
        return previous, f"{damage.what}: {damage.why}; its previous version {backup.name} is used instead"
    if newest is not None:
        return newest, ""
    previous = read(backup)
    return previous, "" if previous is None else f"{path} is missing; its previous version {backup.name} is used"


def read_bounded(path: Path, bytes_max: int) -> bytes | None:
    """All bytes of a file; None when there is no such file.

    Raises:
        Damaged: larger than `bytes_max` (found before any is read), or on a bad sector.
        StorageError: unreadable for another reason.
    """
    try:
        size, data = disk().read(path, bytes_max)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EIO:
            raise damaged(path, "the disk cannot read it") from error
        raise storage_error(error, f"cannot read {path}", path.parent) from error
    if size > bytes_max:
        raise damaged(path, f"it has {size} bytes, at most {bytes_max} make sense")
    return data


def damaged(path: Path, why: str, *, mend: str = "") -> Damaged:
    """The error for a file that cannot be used, with the remedy that fits any of ours; `why` may quote the file."""
    brief = why.encode("unicode_escape").decode("ascii") if not why.isprintable() else why
    brief = brief if len(brief) <= _WHY_CHARACTERS_MAX else f"{brief[: _WHY_CHARACTERS_MAX - 4]} ..."
    return Damaged(
        f"{path} is damaged",
        why=brief,
        mend=mend or f"hermes-iot repair {path.parent} says what can be mended, and mends it",
    )


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file to ``<name>.damaged`` for inspection; None when there is no file.

    Raises:
        StorageError: not permitted.
    """
    aside = path.with_name(f"{path.name}.damaged")
    try:
        disk().replace(path, aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, f"cannot move the damaged {path} away", path.parent) from error
    return aside


def keep_aside(path: Path) -> Path:
    """Give a damaged file the name ``<name>.damaged-<number>`` besides its own; the new name, which is on disk.

    Raises:
        StorageError: not permitted, or no room for a copy where the file system knows no second names.
    """
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        try:
            if not aside.exists():
                try:
                    os.link(path, aside)
                except OSError as error:
                    if error.errno not in _NO_SECOND_NAMES:
                        raise
                    write_atomic(aside, path.read_bytes())
            elif not aside.samefile(path):  # else somebody was killed here
                continue
            sync_directory(path.parent)
        except OSError as error:
            raise storage_error(error, f"cannot keep the damaged {path} aside", path.parent) from error
        return aside
    raise AssertionError


def move_aside(path: Path) -> Path:
    """`keep_aside`, and then the file is gone under its own name.

    Raises:
        StorageError: as `keep_aside`.
    """
    aside = keep_aside(path)
    try:
        path.unlink()
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"cannot move the damaged {path} away", path.parent) from error
    return aside


def sweep(directory: Path, name: str | None = None) -> None:
    """Remove what killed writers left, and make safe what they renamed.

    One that was killed before the directory's fsync has left a new file that a power cut would take back, after it was
    believed. Only for the owner of the directory, or of the file `name` in it.

    Raises:
        StorageError: the directory cannot be read or written.
    """
    try:
        for entry in disk().names(directory):
            leftover = _TEMPORARY.fullmatch(entry)
            if leftover and name in (None, leftover[1]):
                disk().unlink(directory / entry)
        sync_directory(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, f"cannot clear {directory}", directory) from error


def _checksum(kind: str, version: int, payload: bytes) -> str:
    digest = hashlib.sha256(f"{kind} {version}\n".encode())
    digest.update(payload)
    return digest.hexdigest()


def _temporary(path: Path) -> Path:
    # A fresh name each time: with a fixed one a second writer could rename the first one's half-written file.
    return path.with_name(f".{path.name}.{disk().random_hex(6)}.tmp")


def _write_through(path: Path, data: tuple[bytes | memoryview, ...]) -> None:
    descriptor = disk().open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        for piece in data:
            rest = memoryview(piece)
            while rest:
                rest = rest[disk().write(descriptor, rest) :]
        disk().sync(descriptor)
    finally:
        disk().close(descriptor)


def _keep_previous(path: Path) -> None:
    """Give the present version the backup's name too, without an instant in which either name is empty."""
    second = _temporary(path)
    try:
        try:
            disk().link(path, second)
        except FileNotFoundError:
            return
        except OSError as error:
            # FAT cards and some network file systems know no second names, and say so in several ways.
            if error.errno not in _NO_SECOND_NAMES:
                raise
            with path.open("rb") as source, second.open("xb") as target:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
        disk().replace(second, backup_of(path))
    finally:
        # Also after success: renaming one name of a file onto another name of the same file does nothing (POSIX).
        _discard(second)


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        disk().unlink(temporary)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = disk().open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk().sync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a directory; their renames are synchronous
            raise
    finally:
        disk().close(descriptor)
