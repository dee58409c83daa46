"""Runs, devices and allocations: what the coordinator must find again after a restart. The only home of TinyDB.

TinyDB's stock storage rewrites its file in place; measured, SIGKILL, a full disk and a second writer each left corrupt
JSON, and 3,000 inserts took 24 s because each reads and writes everything. So TinyDB sits on a storage class of ours:
the tables are read once and held in memory (the lock makes us the only writer), every write is atomic and checksummed
with the previous version as backup, and a batch of changes costs one write. Each record is one line, so that `grep`
and `diff` work on the file.

Only small and rare facts live here - joins, leaves, allocations, checkpoints. Updates go to the journal, tensors to
checkpoint files. A write costs time in proportion to all records, hence `batch` for a burst of events, and hence the
limits: past `RUNS_DETAILED_MAX` runs the devices and allocations of an older, ended run are forgotten, past `RUNS_MAX`
the run itself. Runs are ordered by when they were recorded, never by their clock's idea of the time.

A write that fails (disk full) raises and leaves memory and file as they were before the batch.
"""

from __future__ import annotations

import copy
import json
import math
import numbers
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, TypedDict, cast

from tinydb import Query, TinyDB, where
from tinydb.storages import Storage
from tinydb.table import Table

from hermes_iot.domain import Ranges
from hermes_iot.errors import ProtocolError, StorageError
from hermes_iot.protocol.schema import Count, Name, from_mapping
from hermes_iot.storage import atomic
from hermes_iot.storage.locks import HeldLock, hold

#: Layout of the records below; a file with a higher number is refused.
SCHEMA_VERSION = 1
RUNS_MAX = 100
RUNS_DETAILED_MAX = 8

RunEnd = Literal["finished", "stopped"]
Tables: TypeAlias = dict[str, dict[str, dict[str, Any]]]
#: By (run, device); the device is empty for a run's own record.
Changes: TypeAlias = dict[tuple[str, str], dict[str, Any]]

#: Fields that keep the value they were first given.
_ONCE: Final = frozenset({"first_session"})
_ENCODE: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class RunRecord(TypedDict):
    """One run. `state` is running, finished or stopped; `reason` and `summary` are empty while it runs."""

    run: Name
    fleet: Name
    task: str
    strategy: str
    config: dict[str, Any]
    created_at: str
    state: str
    reason: str
    summary: dict[str, Any]


class DeviceRecord(TypedDict):
    """One device in one run: its first and last session, and the last (session, seq) handled."""

    run: Name
    device: Name
    first_session: Count
    session: Count
    seq: Count
    counters: dict[str, int]
    status: str
    extra: dict[str, Any]


class AllocationRecord(TypedDict):
    """What one device of a run was told to train on last."""

    run: Name
    device: Name
    version: Count
    samples: Count
    batch: Count
    ranges: Ranges
    shard: str
    extra: dict[str, Any]


_KINDS: Final[Mapping[str, type]] = {"runs": RunRecord, "devices": DeviceRecord, "allocations": AllocationRecord}
#: Of a device nobody has heard an update of.
_UNSAID: Final[Mapping[str, Any]] = {"seq": 0, "counters": {}, "extra": {}}


class CheckedStorage(Storage):
    """TinyDB's tables in memory; saved whole when the registry says so: atomic, checksummed, with a backup."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found, self.warning = atomic.read_newest(path, load_tables)
        self._tables, self._saved = found or ({}, b"")

    def read(self) -> Tables:
        """The tables themselves; the registry copies what it hands out."""
        return self._tables

    def write(self, data: Tables) -> None:
        """Take new tables; TinyDB calls this after each of its operations."""
        self._tables = data

    def save(self) -> None:
        """Write the file if anything changed.

        Raises:
            StorageError: it could not be written.
        """
        payload = _render(self._tables)
        if payload != self._saved:
            atomic.write_checked(
                self._path, payload, kind="registry", version=SCHEMA_VERSION, backup=True, document=True
            )
            self._saved = payload

    def revert(self) -> None:
        """Go back to the last save."""
        self._tables = json.loads(self._saved) if self._saved else {}


class Registry:
    """The runs of one coordinator's directory, with their devices and allocations.

    Args:
        path: the registry file; created at the first write.
        read_only: look at it while a coordinator owns it: takes no lock, sees the state at opening.

    Raises:
        StorageError: another process owns it, both copies are damaged, or a newer version wrote it.

    Attributes:
        warning: a sentence for the person when the backup had to be used, else empty.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._lock: HeldLock | None = None
        if not read_only:
            self._lock = hold(
                path.with_name(f"{path.name}.lock"),
                thing=f"the registry {path}",
                mend="Stop the other coordinator first, or choose another directory",
            )
        try:
            self._storage = CheckedStorage(path)
            if not read_only:
                atomic.sweep(path.parent, path.name)
                if self._storage.warning:
                    atomic.set_aside(path)
        except BaseException:
            self.close()
            raise
        self.warning = self._storage.warning
        self._database = TinyDB(storage=lambda: self._storage)
        self._pending: dict[str, Changes] = {}
        self._depth = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Everything recorded inside is one write at the end, or nothing at all when the block or the write fails.

        A batch inside a batch joins it.

        Raises:
            StorageError: the file could not be written, or the registry is closed or open for reading only.
        """
        if self._lock is None:
            raise StorageError(f"the registry {self._path} is not open for writing")
        self._depth += 1
        try:
            yield
            if self._depth == 1:
                self._apply()
                self._storage.save()
        except BaseException:
            if self._depth == 1:
                self._pending.clear()
                self._storage.revert()
            raise
        finally:
            self._depth -= 1

    def run_started(
        self, run: str, *, fleet: str, task: str, strategy: str, config: Mapping[str, object], created_at: str
    ) -> None:
        """Record a new run, or that a known one goes on (then only its state changes).

        Args:
            run: its id.
            fleet: whose run it is.
            task: the task's name.
            strategy: the strategy's name.
            config: JSON-able; numbers that are not finite become null.
            created_at: ISO 8601, from the caller's clock.
        """
        about: dict[str, object] = {"state": "running", "reason": "", "summary": {}}
        known = self.run(run) is not None
        if not known:
            about |= {"fleet": fleet, "task": task, "strategy": strategy}
            about |= {"config": plain(config), "created_at": created_at}
        with self.batch():
            self._record("runs", run, about)
            if not known:
                self._forget_old()

    def run_finished(self, run: str, *, state: RunEnd, reason: str, summary: Mapping[str, object]) -> None:
        """Record how a run ended; `summary` is JSON-able, numbers that are not finite become null.

        Raises:
            ValueError: no such run was started.
        """
        if not self.run(run):
            raise ValueError(f"run {run!r} was never started")
        self._record("runs", run, {"state": state, "reason": reason, "summary": plain(summary)})

    def remember_device(
        self,
        run: str,
        device: str,
        *,
        session: int,
        status: str,
        seq: int | None = None,
        counters: Mapping[str, int] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Record what is known of a device; what is None stays as it was.

        Args:
            run: its run.
            device: its id.
            session: the newest seen; that of the first call stays its `first_session`.
            status: one word, e.g. online.
            seq: of the newest update handled, in that session.
            counters: totals by name.
            extra: anything else, JSON-able.
        """
        known = {"session": session, "status": status, "seq": seq, "counters": plain(counters), "extra": plain(extra)}
        given = {name: value for name, value in known.items() if value is not None}
        self._record("devices", run, {"device": device, "first_session": session, **given})

    def remember_allocation(
        self,
        run: str,
        device: str,
        *,
        version: int,
        samples: int,
        batch: int,
        ranges: Ranges,
        shard: str,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Record the allocation a device was given last; `shard` is a hex digest or empty, `extra` as above."""
        sizes = {"version": version, "samples": samples, "batch": batch, "ranges": plain(ranges), "shard": shard}
        self._record("allocations", run, {"device": device, **sizes, "extra": plain(extra or {})})

    def run(self, run: str) -> RunRecord | None:
        """One run, None when unknown."""
        found = self._rows("runs", run=run)
        return cast("RunRecord", found[0]) if found else None

    def runs(self, fleet: str | None = None) -> list[RunRecord]:
        """All runs kept, in the order they were started; of one fleet, if given."""
        return cast("list[RunRecord]", self._rows("runs", **({} if fleet is None else {"fleet": fleet})))

    def unfinished(self, fleet: str) -> list[RunRecord]:
        """The fleet's runs that were started and not ended, oldest first: after a crash, what can go on."""
        return cast("list[RunRecord]", self._rows("runs", fleet=fleet, state="running"))

    def devices_of(self, run: str) -> dict[str, DeviceRecord]:
        """The devices of a run by their id, in the order they joined."""
        found = self._rows("devices", run=run)
        return {row["device"]: cast("DeviceRecord", {**copy.deepcopy(dict(_UNSAID)), **row}) for row in found}

    def allocations_of(self, run: str) -> dict[str, AllocationRecord]:
        """The allocations of a run by device id."""
        found = self._rows("allocations", run=run)
        for row in found:
            row["ranges"] = tuple((start, stop) for start, stop in row["ranges"])
        return {row["device"]: cast("AllocationRecord", row) for row in found}

    def close(self) -> None:
        """Give the lock back. Nothing is left to be written: every change was saved when it was made."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _record(self, table: str, run: str, fields: Mapping[str, object]) -> None:
        record = {"run": run, **fields}
        with self.batch():
            before = self._pending.setdefault(table, {}).setdefault(_key(record), {})
            before |= {name: value for name, value in record.items() if name not in _ONCE or name not in before}

    def _apply(self) -> None:
        for name, changes in self._pending.items():
            _merge(self._table(name), changes)
        self._pending.clear()

    def _table(self, name: str) -> Table:
        # No query cache: it would outlive a batch that was taken back.
        return self._database.table(name, cache_size=0)

    def _rows(self, table: str, **fields: str) -> list[dict[str, Any]]:
        self._apply()
        return [copy.deepcopy(dict(row)) for row in self._table(table).search(Query().fragment(fields))]

    def _forget_old(self) -> None:
        runs = self._rows("runs")
        gone = [row["run"] for row in runs[:-RUNS_MAX]]
        bare = gone + [row["run"] for row in runs if row["state"] != "running"][:-RUNS_DETAILED_MAX]
        for name, old in (("runs", gone), ("devices", bare), ("allocations", bare)):
            if old:
                self._table(name).remove(where("run").one_of(old))


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["run"], record.get("device", "")


def _merge(table: Table, changes: Changes) -> None:
    """Hand changes to TinyDB in two passes over the table, however many they are; uses `changes` up."""

    def refresh(record: MutableMapping[str, Any]) -> None:
        change = changes.pop(_key(record))
        record.update({name: value for name, value in change.items() if name not in _ONCE})

    table.update(refresh, lambda record: _key(record) in changes)
    table.insert_multiple(changes.values())


def plain(value: object) -> Any:
    """A copy made of what JSON knows: mappings, lists, text, finite numbers, booleans and null.

    Numbers that are not finite become null (a diverged run must still be recordable), numpy's scalars ordinary ones.

    Raises:
        TypeError: something else is inside.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"{type(value).__name__} cannot be recorded")


def load_tables(path: Path) -> tuple[Tables, bytes] | None:
    """The tables in one copy of a registry, and their bytes as they lie in it; None when there is no such file.

    Raises:
        Damaged: not what was written.
        StorageError: a newer version's, or unreadable.
    """
    payload = atomic.read_checked(path, kind="registry", version=SCHEMA_VERSION)
    if payload is None:
        return None
    try:
        tables = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise atomic.damaged(path, "its body is not JSON") from error
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise atomic.damaged(path, "its body has no tables")
    for name, table in tables.items():
        for number, record in table.items():
            _check(path, name, number, record)
    return tables, payload


def rebuild(path: Path, record: Mapping[str, object]) -> None:
    """Write a registry that knows one run and none of its devices, which are recorded again when they come.

    Args:
        path: the file; nothing that can be used may be there. Its lock is the caller's.
        record: as `Registry.run` gave it.

    Raises:
        StorageError: it could not be written.
    """
    atomic.write_checked(
        path, _render({"runs": {"1": dict(record)}}), kind="registry", version=SCHEMA_VERSION, document=True
    )


def _check(path: Path, table: str, number: str, record: object) -> None:
    """Whether a record is one of ours: the sum over the file says only that it is as somebody wrote it."""
    if not (number.isdecimal() and isinstance(record, dict) and isinstance(record.get("run"), str)):
        raise atomic.damaged(path, f"record {number!r} has no run")
    kind = _KINDS.get(table)
    if kind is None:
        return
    try:
        from_mapping({**_UNSAID, **record} if kind is DeviceRecord else record, kind)
    except ProtocolError as error:
        raise atomic.damaged(path, f"record {number!r} of its {table} cannot be used ({error})") from error


def _render(tables: Tables) -> bytes:
    """JSON with one line per record."""
    rendered = []
    for name, table in tables.items():
        lines = (f'"{number}": {_ENCODE(record)}' for number, record in table.items())
        rendered.append(f"{_ENCODE(name)}: {{\n" + ",\n".join(lines) + "\n}")
    return ("{\n" + ",\n".join(rendered) + "\n}").encode()
