"""metrics.jsonl: every record of a run as one line of JSON, for plots and for people's own scripts.

Diagnostics, not state: nothing is ever restored from this file, so it is appended to without fsync, and written at
most once a second because a write per record wears SD cards and slows the coordinator. A crash loses the last second
and may leave half a line; the next process of the run ends that line and goes on behind it, and the reader skips it.
What a full disk has no room for is counted as lost, said once in the log, and ends no run: the lines after it are
written when there is room. Any other failure of the disk is raised once; from then on lines are only counted.

A file that has grown large becomes metrics.jsonl.1, the one before it metrics.jsonl.2, and so on; the oldest is deleted.
So a run that goes on for weeks keeps what happened last, and whoever reads metrics.jsonl reads all of them in order.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import numbers
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hermes_iot.errors import StorageError
from hermes_iot.storage.atomic import DiskFull, storage_error

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S: Final = 1.0
#: A file as large as this is put behind a new one, and so many are kept besides it. About a million lines in all.
FILE_BYTES_MAX: Final = 64 * 1024 * 1024
OLDER_MAX: Final = 3
#: No record of ours comes near it; whatever is longer was not written by us.
LINE_BYTES_MAX: Final = 65_536
_END: Final = b"\n"
_ELAPSED_MAX_S: Final = 1e10
#: Digits of an integer that is a float's, too. JSON's have no end, and arithmetic with a longer one overflows.
_DIGITS_MAX: Final = 308


def finite(value: object) -> Any:
    """The same in types JSON has: NaN and infinities become None, numpy's numbers Python's, paths strings."""
    match value:
        case None | bool() | str():
            return value
        case Mapping():
            return {str(key): finite(one) for key, one in value.items()}
        case list() | tuple():
            return [finite(one) for one in value]
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            number = float(value)
            return number if math.isfinite(number) else None
        case _:
            return str(value)


class MetricsLog:
    """Appends records to a file. Every method may be called from any thread.

    Attributes:
        lost: records that were not written because the disk was full or failed, or the log was closed.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.monotonic, file_bytes_max: int = FILE_BYTES_MAX
    ) -> None:
        """Open, or create, the file.

        Raises:
            StorageError: not permitted, no such directory, ...
        """
        self.path = path
        self.lost = 0
        self._clock = clock
        self._file_bytes_max = file_bytes_max
        self._flushed_at = clock()
        self._lines: list[bytes] = []
        self._full = False
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        try:
            self._descriptor = _opened(path)
        except OSError as error:
            raise self._error(error) from error
        if _ends_torn(self._descriptor):
            self._lines.append(_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StorageError as failure:
            if error is None:
                raise
            log.warning("metrics %s", failure)  # what ended the run is the news

    def on_record(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one record; ``elapsed_s`` is among its fields.

        Raises:
            StorageError: the disk is gone. Raised once; later records are only counted in `lost`.
        """
        line = json.dumps(finite({"event": event, **fields}), separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._descriptor is None:
                self.lost += 1
                return
            self._lines.append(line)
            now = self._clock()
            if event == "finished" or now - self._flushed_at >= FLUSH_INTERVAL_S:
                self._flushed_at = now
                self._flush()

    def close(self) -> None:
        """Write what is waiting and close; a second time does nothing.

        Raises:
            StorageError: the last lines could not be written.
        """
        with self._lock:
            if self._descriptor is not None:
                self._flush()
                self._give_up()

    def _flush(self) -> None:
        content = b"".join(self._lines)
        rest = memoryview(content)
        if self._descriptor is None:
            return
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            failure, written = self._error(error), len(content) - len(rest)
            ends = itertools.accumulate(map(len, self._lines))
            self.lost += sum(line != _END and end > written for line, end in zip(self._lines, ends, strict=True))
            if not isinstance(failure, DiskFull):
                self._give_up()
                raise failure from error
            if not self._full:
                log.warning("metrics %s; lines are lost until there is room", failure)
            self._full = True
            # Half a line is ended before the next one, as one that a killed process left.
            torn = content[written - 1 : written] != _END if written else content.startswith(_END)
            self._lines = [_END] if torn else []
            return
        self._full = False
        self._lines.clear()
        self._rotate()

    def _rotate(self) -> None:
        """Begin another file where this one is large enough."""
        if self._descriptor is None or os.fstat(self._descriptor).st_size < self._file_bytes_max:
            return
        try:
            for number in range(OLDER_MAX, 0, -1):
                younger = _older(self.path, number - 1)
                if younger.exists():
                    younger.replace(_older(self.path, number))
            descriptor = _opened(self.path)
        except OSError as error:
            failure = self._error(error)
            self._give_up()
            raise failure from error
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _give_up(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None
        self._lines.clear()

    def _error(self, error: OSError) -> StorageError:
        return storage_error(error, f"cannot write {self.path}", self.path.parent)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a run that are kept, oldest first, of a finished run or one still going on.

    Lines that are no records (a writer was killed, a card lost a block) are skipped, and counted in the log.

    Yields:
        Mappings with at least ``event`` (str) and ``elapsed_s`` (float).

    Raises:
        StorageError: the file cannot be opened or read.
    """
    skipped = 0
    try:
        for one in (_older(path, number) for number in range(OLDER_MAX, -1, -1)):
            if one != path and not one.exists():
                continue
            with one.open("rb") as file:
                while line := file.readline(LINE_BYTES_MAX):
                    record = _record(line)
                    if record is not None:
                        yield record
                    elif line.endswith(b"\n"):  # else it is still being written
                        skipped += 1
    except OSError as error:
        raise storage_error(error, f"cannot read {path}", path.parent) from error
    if skipped:
        log.warning("metrics path=%s lines_skipped=%d", path, skipped)


def _older(path: Path, number: int) -> Path:
    """The file that was begun so many files before the present one."""
    return path.with_name(f"{path.name}.{number}") if number else path


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line, parse_constant=lambda _name: None, parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    elapsed_s = record.get("elapsed_s")
    if isinstance(elapsed_s, bool) or not isinstance(elapsed_s, int | float):
        return None
    return record if 0 <= elapsed_s < _ELAPSED_MAX_S else None


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise ValueError(digits)
    return int(digits)


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
