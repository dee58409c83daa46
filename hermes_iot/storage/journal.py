"""Records that are on disk before anybody is told of them: append, sync together, read again after any crash.

A journal is a directory of segments, ``journal-<index of its first record>.log``, each

    16 bytes   b"HERMESJ" + format, index of the first record (8 bytes)
    records    length (4), CRC-32 over index and payload (4), index (8), payload
    marks      four bytes 0xff, b"SAFE", an index (8), CRC-32 over index and word (4): records below it were synced

all little endian, a mark behind every group of records.

Appending costs next to nothing; `sync` writes everything appended since the last one with one system call and one
fdatasync (group commit), so the price of safety is shared by whatever arrived meanwhile. Megabytes are not left for it:
once `BEHIND_BYTES` have gathered, a thread makes them safe while the caller goes on, and `sync` has only the rest to
wait for. Little traffic never sees that thread, nor does a disk that is not for threads.

An error while syncing, a full disk above all, cuts the segment back to what was safe and keeps what was to be written:
the caller may try again when there is room, and a reader never finds half a group in between. What fails in the thread
is tried again by the next `sync`, which says what is wrong.

What was synced is read again after a crash only, so the kernel need not keep it in memory. The pages that it gives back
are those it writes to next: where memory is handed out page by page, in virtual machines above all, a used one costs a
sixth of a fresh one.

A crash leaves at most a torn tail, which `Journal` cuts off at its start and says so. What can be torn is the last group,
while its fdatasync had not returned: of its pages any may be on disk and any other missing (file systems write them in
what order they like, and the file's length before them), so whole records behind a broken one say nothing. The mark
does. It is written when the fdatasync has returned, and made safe by the next one: where a mark speaks for a broken
record, or a segment is missing, something else happened to acknowledged records, and that is an error for a person
(`Damaged`), never a shorter journal. A group whose mark was lost with the power, and that was damaged as well, is
the one case that is taken for torn. The CRC finds what a worn card changes; against somebody who may write here it
protects nobody.

Nothing here knows what a record means. One writer at a time, see locks.py.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hermes_iot.errors import StorageError
from hermes_iot.storage import atomic
from hermes_iot.storage.disk import Disk, disk

#: A segment is closed when it has grown beyond so many bytes; whole segments are what `cut` removes.
SEGMENT_BYTES: Final = 64 * 1024 * 1024
#: Longer records are refused, and none is believed.
RECORD_BYTES_MAX: Final = 1024 * 1024 * 1024
FORMAT: Final = 1
#: So much is written behind the caller's back: some milliseconds of a disk's time.
BEHIND_BYTES: Final = 4 * 1024 * 1024

_MAGIC: Final = b"HERMESJ"
_START: Final = struct.Struct("<7sBQ")
#: Of a segment before its first record.
START_BYTES: Final = _START.size
_HEAD: Final = struct.Struct("<IIQ")
_SAFE: Final = b"\xff\xff\xff\xffSAFE"  # no record is so long
_MARK: Final = struct.Struct("<8sQI")
#: Of a mark: a tail that is not longer may have cost nothing else.
MARK_BYTES: Final = _MARK.size
_NAME: Final = re.compile(r"journal-([0-9]{12})\.log")
#: So many indices from a broken record's own on are looked for behind it.
_SEARCH_INDICES: Final = 64
#: And in so many places each: zeros look like small indices.
_SEARCH_PLACES: Final = 10_000
_WRITE_PIECES: Final = 512  # IOV_MAX is 1024 on Linux


@dataclass(slots=True)
class _Group:
    """Records in order, index and pieces each, that become safe together; `bytes` with their heads."""

    records: list[tuple[int, tuple[bytes, ...]]] = field(default_factory=list)
    bytes: int = 0


class Journal:
    """Open for appending; see the module.

    Args:
        directory: created if need be, with its first segment: a journal that is not there was lost.
        segment_bytes: see `SEGMENT_BYTES`.
        first: index of the first record, where there is none yet.

    Attributes:
        torn_bytes: what a crash had left behind the last whole record, and was cut off.

    Raises:
        Damaged: see the module.
        StorageError: not permitted, disk full, or written in a newer format.
    """

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, first: int = 0) -> None:
        atomic.make_directory(directory)
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._pending = _Group()
        self._behind: tuple[_Group, Future[bool]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._descriptor: int | None = None
        self._length = 0
        self._torn = False  # what of a group, or of a mark, reached the file is still in it
        self.torn_bytes = 0
        starts = segments(directory)
        try:
            if starts:
                self._next = self._recover(starts)
            else:
                self._begin(first)
                self._next = first
        except OSError as error:
            self._shut()
            raise atomic.storage_error(error, f"cannot open the journal in {directory}", directory) from error
        self._synced = self._next

    @property
    def next_index(self) -> int:
        """Of the next record appended."""
        return self._next

    @property
    def synced_index(self) -> int:
        """Every record below this one survives a crash."""
        return self._synced

    @property
    def unsynced_bytes(self) -> int:
        """Appended and not known to be safe."""
        return self._pending.bytes + (self._behind[0].bytes if self._behind is not None else 0)

    def append(self, *pieces: bytes | memoryview) -> int:
        """Add one record, made of pieces that are laid end to end; its index. Not safe before `sync`."""
        length = sum(len(piece) for piece in pieces)
        if length > RECORD_BYTES_MAX:
            raise ValueError(f"a record of {length} bytes is over the limit of {RECORD_BYTES_MAX}")
        index = self._next
        self._pending.records.append((index, tuple(bytes(piece) for piece in pieces)))
        self._pending.bytes += _HEAD.size + length
        self._next += 1
        if self._pending.bytes >= BEHIND_BYTES and (self._behind is None or self._behind[1].done()):
            self._write_behind()
        return index

    def sync(self) -> None:
        """Make everything appended safe.

        Raises:
            StorageError: it could not be written and is kept for another try.
        """
        self._catch_up()
        if not self._pending.records:
            return
        try:
            marked = _commit(disk(), self._opened(), self._pending, self._length)
        except OSError as error:
            self._failed()
            raise atomic.storage_error(
                error, f"cannot write the journal in {self._directory}", self._directory
            ) from error
        self._safe(self._pending, marked=marked)
        self._pending = _Group()

    def read(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """The synced records from index `start` on, oldest first, with their indices.

        Raises:
            Damaged: a record between is not whole, or the records from `start` on are not all here.
        """
        starts = segments(self._directory)
        if start > self._synced:
            raise atomic.damaged(self._directory, f"it ends before record {self._synced}, where {start} are known of")
        begins = starts[0] if starts else self._synced
        if start < begins:
            raise atomic.damaged(self._directory, f"records {start} to {begins - 1} are missing")
        for first, following in zip(starts, [*starts, self._synced][1:], strict=True):
            if following <= start:
                continue
            data = _segment(self._directory, first)
            index, end = first, _START.size
            while index < following:
                payload, end = _record(data, end, index)
                if payload is None:
                    raise atomic.damaged(path_of(self._directory, first), f"record {index} is not what was written")
                if index >= start:
                    yield index, bytes(payload)
                index += 1

    def cut(self, before: int) -> int:
        """Remove whole segments of records below `before`, which nobody will read again; how many.

        Raises:
            StorageError: not permitted.
        """
        starts = segments(self._directory)
        removed = 0
        for first, following in itertools.pairwise(starts):
            if following > before:
                break
            try:
                disk().unlink(path_of(self._directory, first))
            except OSError as error:
                raise atomic.storage_error(
                    error, f"cannot cut the journal in {self._directory}", self._directory
                ) from error
            removed += 1
        return removed

    def roll(self) -> None:
        """The next record begins a new segment, so that `cut` can remove all before it."""
        self._catch_up()
        if self._descriptor is not None and not self._pending.records and self._length > _START.size:
            self._shut()

    def close(self) -> None:
        """Give the file back; what was not synced is lost."""
        self._catch_up()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._shut()

    def _recover(self, starts: list[int]) -> int:
        """Cut a torn tail off the newest segment and open it for more; the next index."""
        for first, following in itertools.pairwise(starts):
            index, _ = _whole_records(_segment(self._directory, first), path_of(self._directory, first), first)
            if index != following:  # what else is in it is a last mark that was torn
                raise atomic.damaged(
                    path_of(self._directory, first),
                    f"it ends at record {index}, the next segment begins at {following}",
                )
        newest = starts[-1]
        path = path_of(self._directory, newest)
        data = _segment(self._directory, newest)
        index, end = _whole_records(data, path, newest)
        if end < len(data) and _marked_below(data, end) > index:
            which = f"record {index}" if end else "its beginning"
            raise atomic.damaged(path, f"{which} is not what was written, and was safe once")
        self.torn_bytes = len(data) - end
        if not end:
            self._begin(newest)
            return newest
        self._descriptor = disk().open(path, os.O_WRONLY | os.O_APPEND)
        if self.torn_bytes:
            disk().truncate(self._descriptor, end)
        # What is found was written, not always made safe: neither the records nor the segment's name.
        disk().sync(self._descriptor)
        atomic.sync_directory(self._directory)
        self._length = end
        if index > newest and _mark_at(data, end - MARK_BYTES) != index:
            self._mark_was(written=_write_mark(disk(), self._descriptor, index))
        return index

    def _write_behind(self) -> None:
        """Let the thread make safe what is pending."""
        self._catch_up()
        if not disk().threads:
            return
        try:
            descriptor = self._opened()
        except OSError:
            self._failed()  # `sync` will find it, too, and say so
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hermes-journal")
        outcome = self._thread.submit(_commit, disk(), descriptor, self._pending, self._length)
        self._behind, self._pending = (self._pending, outcome), _Group()

    def _catch_up(self) -> None:
        """Wait for the thread; what it could not write is pending again."""
        if self._behind is None:
            return
        (group, outcome), self._behind = self._behind, None
        if outcome.exception() is None:
            self._safe(group, marked=outcome.result())
            return
        self._failed()
        self._pending = _Group(group.records + self._pending.records, group.bytes + self._pending.bytes)

    def _safe(self, group: _Group, *, marked: bool) -> None:
        self._length += group.bytes
        self._mark_was(written=marked)
        self._synced = group.records[-1][0] + 1

    def _mark_was(self, *, written: bool) -> None:
        if written:
            self._length += MARK_BYTES
        else:
            self._torn = True

    def _failed(self) -> None:
        self._torn = True
        with contextlib.suppress(OSError):  # else before the next try
            self._take_back()

    def _opened(self) -> int:
        """The segment to write to, without half a group."""
        if self._descriptor is not None and self._length >= self._segment_bytes:
            self._shut()
        if self._torn:
            self._take_back()
        if self._descriptor is None:
            self._begin(self._synced)
        assert self._descriptor is not None  # noqa: S101 - `_begin` opened it
        return self._descriptor

    def _begin(self, first: int) -> None:
        path = path_of(self._directory, first)
        self._descriptor = disk().open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC)
        self._length = 0
        _write(disk(), self._descriptor, [beginning(first)])
        disk().sync(self._descriptor)
        atomic.sync_directory(self._directory)
        self._length = _START.size

    def _take_back(self) -> None:
        """What of a group reached the file must not stay: the next try writes the whole group."""
        if self._descriptor is not None and self._length < _START.size:  # not even the segment's beginning
            self._shut()
        if self._descriptor is not None:
            disk().truncate(self._descriptor, self._length)
        else:
            disk().unlink(path_of(self._directory, self._synced))
        self._torn = False

    def _shut(self) -> None:
        if self._descriptor is not None:
            disk().close(self._descriptor)
            self._descriptor = None


def segments(directory: Path) -> list[int]:
    """The first indices of the segments there are, ascending.

    Raises:
        StorageError: the directory cannot be read.
    """
    try:
        names = [_NAME.fullmatch(name) for name in disk().names(directory)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise atomic.storage_error(error, f"cannot read {directory}", directory) from error
    return sorted(int(name[1]) for name in names if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What of one segment is as it was written, broken places or not.

    Attributes:
        first: the index its name says.
        sound: its beginning is whole.
        pieces: runs of whole records with nothing broken between: first index, index after the last, and where in the
            file they lie.
        length: of the file, bytes.
        torn: what is not whole at the end was never safe: it is cut off at the next start.
        safe_below: records below this index were safe once, whole or not; 0 where nothing says so.
    """

    first: int
    sound: bool
    pieces: tuple[tuple[int, int, int, int], ...]
    length: int
    torn: bool = False
    safe_below: int = 0

    @property
    def end(self) -> int:
        """Where the last whole record, and what marks it, ends."""
        return self.pieces[-1][3] if self.pieces else self.sound * _START.size


def scan(directory: Path, first: int, *, until: int | None = None) -> Scan:
    """Look for whole records in a segment, past broken places too; those from index `until` on are another segment's.

    Raises:
        StorageError: written in a newer format, or unreadable for another reason than a bad sector.
    """
    try:
        data = _segment(directory, first)
    except atomic.Damaged:
        return Scan(first=first, sound=False, pieces=(), length=path_of(directory, first).stat().st_size)
    sound = _begins(data, first, path_of(directory, first))
    safe_below = _marked_below(data, 0) if until is None else until  # else the next one was begun when it was safe
    torn = not sound and safe_below <= first
    pieces = []
    found = (first, _START.size) if sound else _following(data, 0, first, until=safe_below)
    while found is not None:
        begin, start = index, end = found
        while until is None or index < until:
            payload, after = _record(data, end, index)
            if payload is None:
                break
            index, end = index + 1, after
        if index > begin:
            pieces.append((begin, index, start, end))
        torn = end < len(data) and index >= safe_below
        found = _following(data, end, index, until=safe_below) if end < len(data) else None
    return Scan(first=first, sound=sound, pieces=tuple(pieces), length=len(data), torn=torn, safe_below=safe_below)


def payloads(directory: Path, found: Scan) -> Iterator[tuple[int, bytes]]:
    """Every whole record that a scan found, with its index."""
    data = _segment(directory, found.first) if found.pieces else memoryview(b"")
    for index, stop, start, _ in found.pieces:
        at = start
        for number in range(index, stop):
            payload, at = _record(data, at, number)
            if payload is not None:
                yield number, bytes(payload)


def excerpt(directory: Path, found: Scan, begin: int, stop: int) -> bytes:
    """A segment that holds, of the whole records that a scan found, those from `begin` on and before `stop`."""
    data = _segment(directory, found.first)
    content = [beginning(begin)]
    for index, following, start, _ in found.pieces:
        at = start
        for number in range(index, following):
            _, after = _record(data, at, number)
            if begin <= number < stop:
                content.append(bytes(data[at:after]))
            at = after
    return b"".join([*content, _mark(stop)])


def beginning(first: int) -> bytes:
    """A segment without records, which begins with this one."""
    return _START.pack(_MAGIC, FORMAT, first)


def _whole_records(data: memoryview, path: Path, first: int) -> tuple[int, int]:
    """Of one segment: the index after its last whole record, and where that and its mark end; 0: not even it begins.

    Raises:
        StorageError: written in a newer format.
    """
    if not _begins(data, first, path):
        return first, 0
    index, end = first, _START.size
    while True:
        payload, after = _record(data, end, index)
        if payload is None:
            return index, end
        index, end = index + 1, after


def _segment(directory: Path, first: int) -> memoryview:
    path = path_of(directory, first)
    data = atomic.read_bounded(path, SEGMENT_BYTES + RECORD_BYTES_MAX)
    if data is None:
        raise atomic.damaged(path, "it is missing")
    return memoryview(data)


def _begins(data: memoryview, first: int, path: Path) -> bool:
    """Whether a segment's beginning is as it was written."""
    if len(data) < _START.size:
        return False
    magic, number, start = _START.unpack_from(data)
    if magic == _MAGIC and start == first and number > FORMAT:
        raise StorageError(
            f"{path} was written by a newer hermes-iot",
            why=f"its format is {number}, this version reads up to {FORMAT}",
            mend="Upgrade hermes-iot",
        )
    return (magic, number, start) == (_MAGIC, FORMAT, first)


def _record(data: memoryview, at: int, index: int) -> tuple[memoryview | None, int]:
    """The payload of the record `index` at this place, and where it and the marks behind it end; None where it is not whole."""
    if at + _HEAD.size > len(data):
        return None, at
    length, crc, found = _HEAD.unpack_from(data, at)
    start = at + _HEAD.size
    if found != index or start + length > len(data):
        return None, at
    payload, after = data[start : start + length], start + length
    if _crc(index, payload) != crc:
        return None, at
    while _mark_at(data, after):
        after += MARK_BYTES
    return payload, after


def _mark(index: int) -> bytes:
    """It says that every record below this one is safe."""
    return _MARK.pack(_SAFE, index, _crc(index, _SAFE))


def _mark_at(data: memoryview, at: int) -> int:
    """The index of the mark at this place; 0 where there is none."""
    if at < 0 or at + MARK_BYTES > len(data):
        return 0
    word, index, crc = _MARK.unpack_from(data, at)
    return int(index) if word == _SAFE and crc == _crc(index, _SAFE) else 0


def _marked_below(data: memoryview, at: int) -> int:
    """The highest index of a mark at this place or behind it; 0 where there is none."""
    content, highest = bytes(data), 0
    place = content.find(_SAFE, at)
    while place >= 0:
        highest = max(highest, _mark_at(data, place))
        place = content.find(_SAFE, place + 1)
    return highest


def _following(data: memoryview, at: int, index: int, *, until: int) -> tuple[int, int] | None:
    """A whole record of this index or one of the next, below `until`, behind a broken place, and where."""
    content, before = bytes(data), _HEAD.size - 8  # of a head, what stands before its index
    for later in range(index, min(until, index + _SEARCH_INDICES)):
        mark = later.to_bytes(8, "little")
        place = content.find(mark, at + before)
        for _ in range(_SEARCH_PLACES):
            if place < 0:
                break
            if _record(data, place - before, later)[0] is not None:
                return later, place - before
            place = content.find(mark, place + 1)
    return None


def path_of(directory: Path, first: int) -> Path:
    """The segment that begins with record `first`."""
    return directory / f"journal-{first:012}.log"


def _crc(index: int, *pieces: bytes | memoryview) -> int:
    crc = zlib.crc32(index.to_bytes(8, "little"))
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return crc


def _commit(using: Disk, descriptor: int, group: _Group, at: int) -> bool:
    """Write a group at the file's end, make it safe, and mark it; touches nothing else, so any thread may.

    Returns whether there was room for the mark.
    """
    pieces: list[bytes] = []
    for index, record in group.records:
        pieces += [_HEAD.pack(sum(map(len, record)), _crc(index, *record), index), *record]
    _write(using, descriptor, pieces)
    using.sync_data(descriptor)
    begins = at // mmap.PAGESIZE * mmap.PAGESIZE
    using.drop_cached(descriptor, begins, at + group.bytes - begins)
    return _write_mark(using, descriptor, group.records[-1][0] + 1)


def _write_mark(using: Disk, descriptor: int, index: int) -> bool:
    try:
        _write(using, descriptor, [_mark(index)])
    except OSError:  # the records are safe without it
        return False
    return True


def _write(using: Disk, descriptor: int, pieces: Sequence[bytes]) -> None:
    """All of them, however the kernel cuts it."""
    rest: list[bytes | memoryview] = list(pieces)
    while rest:
        written = using.writev(descriptor, rest[:_WRITE_PIECES])
        done = 0
        while done < len(rest) and written >= len(rest[done]):
            written -= len(rest[done])
            done += 1
        del rest[:done]
        if written:
            rest[0] = memoryview(rest[0])[written:]
