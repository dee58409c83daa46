"""What a board remembers over a restart, in one small file and one directory of shipped shards.

By the durability contract a device needs little: its session counter, the last seq, the allocation version and run it
obeys. The session counter is what names its updates for ever, so no session may be used twice, whatever happens to
the file: `open` writes the new session into the file *and* its backup before anybody sees it. Falling back to the
backup therefore never repeats a session. Where both copies are lost the count starts again, which the coordinator can
tell by the fresh `instance`, a random name made once per state file; a caller that learns of a later session of its
own (its retained birth or ack) raises the counter with `save`.

The newest update is a file of its own, ``update.bin``, written once when it is pushed: it names its session and seq, so
`device.json` need not be written besides, and `open` goes by whichever of the two is newer. It has no backup, for a
lost update costs a push and not a run, and it is not removed when it was handled: a card is worn out by writing.

A board must come back by itself after a power cut, so damage that can be rebuilt is reported, never raised. Only what
a person must mend is an error: no permission, a full disk, a newer version's file, or another live process on the same
state - that is the same device twice, hence `IdConflict`.

Shards are addressed by their hash, so they need no framing. Their order of use is kept in the files' modification
times, as a counter rather than a clock: boards have no RTC, and a lost order costs a transfer, not correctness.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from hermes_iot.errors import IdConflict, ProtocolError, StorageError, UsageError
from hermes_iot.storage import atomic
from hermes_iot.storage.disk import disk
from hermes_iot.storage.locks import HeldLock, hold

FORMAT_VERSION = 1
MEMORY_BYTES_MAX = 64 * 1024
UPDATE_BYTES_MAX = 1024**3
COUNTER_MAX = 2**63 - 1

# A counter in the shape of a modification time; FAT cards know none before 1980 and count in steps of 2 s.
_CLOCK_START_NS = 10**18
_CLOCK_STEP_NS = 2 * 10**9

_NAMES = struct.Struct("<QQ")  # what precedes an update: session, seq
_INSTANCE = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What must survive on a board.

    Attributes:
        session: counts the starts of this device, from 1.
        run: the run last taken part in, empty before the first.
        seq: number of the last update published in that run and the session it was saved in.
        allocation_version: the newest allocation obeyed in that run.
        instance: 32 hex digits drawn when this memory began.
    """

    session: int
    run: str
    seq: int
    allocation_version: int
    instance: str

    def __post_init__(self) -> None:
        for name, least in (("session", 1), ("seq", 0), ("allocation_version", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= COUNTER_MAX:
                raise ValueError(f"{name} is {value!r}, it must be a whole number from {least}")
        if not (isinstance(self.run, str) and isinstance(self.instance, str) and _INSTANCE.fullmatch(self.instance)):
            raise ValueError("run must be text and instance 32 hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A board's memory at its start.

    Attributes:
        memory: with this start's session; the rest as saved last.
        fresh: there was no memory that could be used, everything begins anew.
        update: what `save_update` was given last, as it was; None where there is none that can be used.
        warning: a sentence for the person when a file was damaged, else empty.
    """

    memory: DeviceMemory
    fresh: bool
    warning: str
    update: bytes | None = None


class DeviceStateStore:
    """The state directory of one device."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "device.json"
        self._update_path = directory / "update.bin"
        self._lock: HeldLock | None = None
        self._session = 0

    def open(self) -> Opened:
        """Take the directory, and begin a new session on disk.

        Raises:
            IdConflict: another process has this directory.
            StorageError: not permitted, disk full, or written by a newer version.
        """
        lock = hold(
            self._directory / "lock",
            thing=f"the device state in {self._directory}",
            mend="Stop that process, or give this one another device id or state directory",
            error=IdConflict,
        )
        try:
            atomic.sweep(self._directory)
            found, warning = self._recall()
            update, lost = self._recall_update()
            memory = found or DeviceMemory(
                session=1, run="", seq=0, allocation_version=0, instance=disk().random_hex(16)
            )
            if update is not None and update[0] >= memory.session:
                newest = max((memory.session, memory.seq), update[:2])
                memory = replace(memory, session=newest[0], seq=newest[1])
            if found is not None or update is not None:
                memory = replace(memory, session=memory.session + 1)
            if warning:
                atomic.set_aside(self._path)
            if lost:
                atomic.set_aside(self._update_path)
            self._session = 0
            self._write(memory)
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        return Opened(
            memory=memory,
            fresh=found is None,
            warning="; ".join(one for one in (warning, lost) if one),
            update=update[2] if update is not None else None,
        )

    def save(self, memory: DeviceMemory) -> None:
        """Replace what is remembered; durable on return.

        Raises:
            StorageError: it could not be written (the memory before stands), or the store is not open.
            ValueError: the session would go backwards.
        """
        if self._lock is None:
            raise StorageError(f"the device state in {self._directory} is not open")
        if memory.session < self._session:
            raise ValueError(f"session {memory.session} is before {self._session}, which is in use")
        self._write(memory)

    def save_update(self, session: int, seq: int, update: bytes) -> None:
        """Replace the newest update, which is called (session, seq); durable on return.

        Raises:
            StorageError: it could not be written (the update before stands), or the store is not open.
        """
        if self._lock is None:
            raise StorageError(f"the device state in {self._directory} is not open")
        payload = _NAMES.pack(session, seq) + update
        atomic.write_checked(
            self._update_path, payload, kind="device-update", version=FORMAT_VERSION, bytes_max=UPDATE_BYTES_MAX
        )

    def close(self) -> None:
        """Give the directory back; harmless when repeated."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recall(self) -> tuple[DeviceMemory | None, str]:
        try:
            return atomic.read_newest(self._path, load_memory)
        except atomic.Damaged as damage:
            return None, f"{damage.what}: {damage.why}; no copy can be used, the device starts over as a new instance"

    def _recall_update(self) -> tuple[tuple[int, int, bytes] | None, str]:
        try:
            return load_update(self._update_path), ""
        except atomic.Damaged as damage:
            return None, f"{damage.what}: {damage.why}; the update in it is lost"

    def _write(self, memory: DeviceMemory) -> None:
        payload = json.dumps(asdict(memory), indent=1).encode()
        # Twice for a new session: the second write makes the first one the backup, see the module's header.
        for _ in range(1 if memory.session == self._session else 2):
            atomic.write_checked(
                self._path, payload, kind="device-state", version=FORMAT_VERSION, backup=True, document=True
            )
        self._session = memory.session


class ShardCache:
    """Shards the coordinator shipped, by SHA-256; the least recently used go first when space is short.

    For one thread of one process, the owner of the state directory around it.

    Args:
        directory: created at the first `put`.
        bytes_max: of all shards together.

    Raises:
        StorageError: the directory cannot be read or written.
    """

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        atomic.sweep(directory)
        entries = []
        try:
            for name, size, used_ns in disk().files(directory):
                if _SHA256.fullmatch(name):
                    entries.append((used_ns, name, size))
        except OSError as error:
            raise atomic.storage_error(error, f"cannot read {directory}", directory) from error
        # Least recently used first.
        self._sizes = {name: size for _, name, size in sorted(entries)}
        self._clock_ns = max((used for used, _, _ in entries), default=_CLOCK_START_NS)
        self._evict(bytes_max)

    @property
    def bytes_used(self) -> int:
        """Size of all shards kept."""
        return sum(self._sizes.values())

    def put(self, sha256: str, data: bytes) -> None:
        """Keep a shard, dropping others if needed.

        Raises:
            ProtocolError: `sha256` is not the hex digest of `data`: what the peer sent is not what it announced.
            StorageError: larger than the whole cache, or it could not be written.
        """
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ProtocolError("shard_hash", f"a shard of {len(data)} bytes does not have the hash {sha256[:64]!r}")
        if len(data) > self._bytes_max:
            raise StorageError(
                f"a shard of {len(data)} bytes cannot be kept",
                why=f"the shard cache may hold {self._bytes_max} bytes",
                mend="Raise the cache's limit or allot fewer samples to this device",
            )
        if self.get(sha256) is not None:
            return
        self._evict(self._bytes_max - len(data))
        atomic.make_directory(self._directory)
        atomic.write_atomic(self._directory / sha256, data)
        self._sizes[sha256] = len(data)
        self._touch(sha256)

    def get(self, sha256: str) -> bytes | None:
        """A shard's bytes; None when it is not here, or was damaged (then it is dropped, to be fetched again).

        Raises:
            StorageError: the file cannot be read for another reason than damage.
        """
        if sha256 not in self._sizes:
            return None
        try:
            data = atomic.read_bounded(self._directory / sha256, self._bytes_max)
        except atomic.Damaged:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            self._drop(sha256)
            return None
        self._touch(sha256)
        return data

    def _evict(self, bytes_max: int) -> None:
        used = self.bytes_used
        for name in list(self._sizes):
            if used <= bytes_max:
                return
            used -= self._sizes[name]
            self._drop(name)

    def _drop(self, name: str) -> None:
        try:
            disk().unlink(self._directory / name)
        except OSError as error:
            raise atomic.storage_error(error, f"cannot remove shard {name}", self._directory) from error
        self._sizes.pop(name, None)

    def _touch(self, name: str) -> None:
        self._clock_ns += _CLOCK_STEP_NS
        # A card that turned read-only must not keep the board from data it has.
        with contextlib.suppress(OSError):
            disk().touch(self._directory / name, self._clock_ns)
        self._sizes[name] = self._sizes.pop(name)


def state_directory(fleet: str, device: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Where a device keeps its state unless told otherwise.

    ``$HERMES_STATE_DIR``, else ``$XDG_STATE_HOME/hermes-iot``, else ``~/.local/state/hermes-iot``; then fleet and device.

    Raises:
        UsageError: fleet or device is no valid id.
        StorageError: there is no home directory to put it in.
    """
    for word, value in (("fleet", fleet), ("device", device)):
        if not _ID.fullmatch(value):
            raise UsageError(f"{value!r} is no {word} id", mend="Use 1 to 64 letters, digits, '-' and '_'")
    if environment.get("HERMES_STATE_DIR"):
        base = Path(environment["HERMES_STATE_DIR"])
    elif Path(environment.get("XDG_STATE_HOME", "")).is_absolute():  # the standard has relative ones ignored
        base = Path(environment["XDG_STATE_HOME"]) / "hermes-iot"
    elif environment.get("HOME"):
        base = Path(environment["HOME"]) / ".local" / "state" / "hermes-iot"
    else:
        raise StorageError("there is no place for the device's state", mend="Set HERMES_STATE_DIR to a directory")
    return base / fleet / device


def load_update(path: Path) -> tuple[int, int, bytes] | None:
    """Session, seq and content of an update that was saved; None when there is no such file.

    Raises:
        Damaged: not what was written.
        StorageError: a newer version's, or unreadable.
    """
    payload = atomic.read_checked(path, kind="device-update", version=FORMAT_VERSION, bytes_max=UPDATE_BYTES_MAX)
    if payload is None:
        return None
    if len(payload) < _NAMES.size:
        raise atomic.damaged(path, "it names no session")
    session, seq = _NAMES.unpack_from(payload)
    if not (1 <= session < COUNTER_MAX and seq <= COUNTER_MAX):
        raise atomic.damaged(path, f"its session is {session} and its number {seq}")
    return session, seq, payload[_NAMES.size :]


def load_memory(path: Path) -> DeviceMemory | None:
    """What one copy of a board's memory holds; None when there is no such file.

    Raises:
        Damaged: not what was written.
        StorageError: a newer version's, or unreadable.
    """
    payload = atomic.read_checked(path, kind="device-state", version=FORMAT_VERSION, bytes_max=MEMORY_BYTES_MAX)
    if payload is None:
        return None
    try:
        fields: Any = json.loads(payload)
        memory = DeviceMemory(**fields)
    except (ValueError, TypeError, RecursionError) as error:
        raise atomic.damaged(path, str(error)) from error
    if memory.session == COUNTER_MAX:
        raise atomic.damaged(path, "its session counter is used up")
    return memory
