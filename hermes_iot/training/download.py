"""Finds a data set's files here, or fetches them once from where the set's publishers put them.

Looked up in the data directory (and the folders a set is usually unpacked to inside it), then in a cache directory;
only then is an address tried. What is fetched is checked against a published digest before it gets its name, so a file
in the cache is whole. A process that is killed leaves a temporary file behind, never half a data set.

`urllib` is enough: a handful of files, once, with the proxy settings of the environment.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeAlias

from hermes_iot.errors import DataUnavailable, StorageError, UsageError

#: Told while a file comes in: its name, the bytes so far, and how many there will be (None when nobody said).
Progress: TypeAlias = Callable[[str, int, int | None], None]

#: Seconds without a byte after which an address is given up.
TIMEOUT_S: Final = 30.0

_BLOCK_BYTES: Final = 1 << 20

_progress: ContextVar[Progress | None] = ContextVar("hermes_iot_download_progress", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file on the net.

    Attributes:
        urls: addresses in the order they are tried.
        algorithm: "sha256" or "md5", whichever the set's publishers give (against damage; not against an attacker).
        digest: hex digest of the file as it travels.
        bytes_max: more than this is refused.
    """

    urls: tuple[str, ...]
    algorithm: str
    digest: str
    bytes_max: int


@contextlib.contextmanager
def reporting(progress: Progress) -> Iterator[None]:
    """Within this block, downloads of this thread tell `progress` how far they are."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def cache_dir(task: str) -> Path:
    """Where a task's downloads are kept (XDG base directories); need not exist yet.

    Raises:
        DataUnavailable: this user has no home directory and `XDG_CACHE_HOME` is not set.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the standard: a relative path is to be ignored
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            mend = "Set XDG_CACHE_HOME, or give the files with --data-dir"
            raise DataUnavailable(f"no place to keep the files of task {task}", why=str(error), mend=mend) from error
    return base / "hermes-iot" / task


def folders(task: str, data_dir: Path | None, *, also: Iterable[str] = ()) -> tuple[Path, ...]:
    """Where a task's files may lie, likeliest first: `data_dir`, folders inside it that are usual, the cache."""
    here = () if data_dir is None else (data_dir, data_dir / task, *(data_dir / name for name in also))
    return (*here, cache_dir(task))


def find(names: Iterable[str], places: Iterable[Path]) -> Path | None:
    """The first file that bears one of the names in one of the places."""
    candidates = list(names)
    for place in places:
        for name in candidates:
            if (place / name).is_file():
                return place / name
    return None


def fetch(source: Source, target: Path, *, looked_in: Iterable[Path] = (), timeout_s: float = TIMEOUT_S) -> Path:
    """Download a file, check it, and only then give it its name.

    Args:
        source: where it is and what it must be.
        target: the file to make; its folder is made too.
        looked_in: for the message when it cannot be had.
        timeout_s: seconds without a byte after which the next address is tried.

    Raises:
        DataUnavailable: no address gave the right bytes; says where we looked, what was tried, what to do.
        StorageError: the folder cannot be written.
    """
    failures = []
    for url in source.urls:
        try:
            return _fetch_one(source, url, target, timeout_s)
        except (_Refused, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            failures.append(f"{url} ({_reason(error)})")
    looked = ", ".join(str(place) for place in looked_in)
    raise DataUnavailable(
        f"{target.name} is not at hand and could not be downloaded",
        why=f"{f'looked in {looked}; ' if looked else ''}tried {'; '.join(failures)}",
        mend="Copy the file into one of these places, or point --data-dir (HERMES_DATA_DIR) at a folder that has it",
    )


def read_bounded(path: Path, *, bytes_max: int) -> bytearray:
    """A file's content, gunzipped when it is a gzip file, refused beyond a limit.

    Raises:
        UsageError: it cannot be read, is damaged, or is larger than `bytes_max` once unpacked.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = bytearray()
            with gzip.GzipFile(fileobj=file) if packed else contextlib.nullcontext(file) as stream:
                while block := stream.read(min(_BLOCK_BYTES, bytes_max + 1 - len(content))):
                    content += block
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read", why=_reason(error), mend="Fetch it again") from error
    if len(content) > bytes_max:
        raise UsageError(f"{path} is larger than expected", why=f"the limit is {bytes_max} bytes")
    return content


class _Refused(Exception):
    """The bytes that came are not the file we want."""


def _fetch_one(source: Source, url: str, target: Path, timeout_s: float) -> Path:
    if not url.startswith(("https://", "http://")):
        raise _Refused("not an http(s) address")
    request = urllib.request.Request(url, headers={"User-Agent": "hermes-iot"})  # noqa: S310 - http(s) only, see above
    # An opener of its own: the common one remembers the proxies of the process's first download.
    opener = urllib.request.build_opener()
    with opener.open(request, timeout=timeout_s) as response, temporary(target) as file:
        _stream(source, response, file, target.name)
    return target


def _stream(source: Source, response: http.client.HTTPResponse, file: IO[bytes], name: str) -> None:
    declared = response.headers.get("Content-Length", "")
    total = int(declared) if declared.isascii() and declared.isdigit() else None
    if total is not None and total > source.bytes_max:
        raise _Refused(f"it announces {total} bytes, the limit is {source.bytes_max}")
    digest = hashlib.new(source.algorithm, usedforsecurity=False)
    report, done = _progress.get(), 0
    while block := response.read(_BLOCK_BYTES):
        done += len(block)
        if done > source.bytes_max:
            raise _Refused(f"it sends more than the limit of {source.bytes_max} bytes")
        digest.update(block)
        try:
            file.write(block)
        except OSError as error:
            raise StorageError(f"{name} cannot be written", why=_reason(error)) from error
        if report is not None:
            report(name, done, total)
    if digest.hexdigest() != source.digest:
        raise _Refused(f"{done} bytes came with {source.algorithm} {digest.hexdigest()}, expected {source.digest}")


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[IO[bytes]]:
    """A file to write that becomes `target` in one step when the block ends well, and vanishes when it does not.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        mend = "Set XDG_CACHE_HOME to a folder that can be written"
        raise StorageError(f"{target.parent} cannot be written", why=_reason(error), mend=mend) from error
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            try:
                file.flush()
                os.fsync(handle)
                path.replace(target)
            except OSError as error:
                raise StorageError(f"{target} cannot be written", why=_reason(error)) from error
    finally:
        path.unlink(missing_ok=True)  # gone already when all went well


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason if isinstance(error.reason, BaseException) else error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
