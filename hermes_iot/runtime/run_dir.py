"""One run on disk: which run to go on with, its registry, its checkpoints, its model.

::

    runs/<run>/registry.json      runs, devices, allocations (TinyDB, atomic, checksummed)
               checkpoints/       the newest two, safetensors
               journal/           what was decided since the older of them
               metrics.jsonl      one line per event
               summary.json       written at the end
               model.safetensors  the global model under its own tensor names
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import Restored
from hermes_iot.core.effects import Checkpoint, Remember
from hermes_iot.core.redo import Entry
from hermes_iot.domain import ModelSignature, Params
from hermes_iot.errors import HermesError, ProtocolError, StorageError, UsageError
from hermes_iot.protocol.messages import Allocation
from hermes_iot.protocol.schema import from_mapping
from hermes_iot.runtime import redo_log
from hermes_iot.storage.atomic import make_directory
from hermes_iot.storage.checkpoints import KEEP_MIN, CheckpointStore, export_model
from hermes_iot.storage.journal import Journal, segments
from hermes_iot.storage.registry import AllocationRecord, Registry, plain

log = logging.getLogger(__name__)

#: Of an allocation, what the registry has no column for. Without them a device that fetches its rows ahead would
#: find itself on a shard that the resumed run knows nothing of.
_ALLOCATION_EXTRA: Final = (
    "shard_bytes",
    "next_shard",
    "next_shard_bytes",
    "reason",
    "codec",
    "steps",
    "share",
    "shards",
)


def unfinished(base: Path, fleet: str, task: str, strategy: str) -> Path | None:
    """The newest run of this fleet, task and strategy under `base` that has not ended."""
    found: list[tuple[str, Path]] = []
    for path in base.glob("*/registry.json"):
        try:
            with Registry(path, read_only=True) as registry:
                found += [
                    (run["created_at"], path.parent)
                    for run in registry.unfinished(fleet)
                    if (Path(run["task"]).name, Path(run["strategy"]).name) == (Path(task).name, Path(strategy).name)
                ]
        except HermesError as error:
            # Somebody else's damaged run does not keep this one from starting, but it may have been this one's.
            log.warning("skipped %s: %s", path.parent, error)
    return max(found)[1] if found else None


class RunDir:
    """The directory of one run, locked while it is open."""

    def __init__(self, path: Path) -> None:
        make_directory(path)
        self.path = path
        self.registry = Registry(path / "registry.json")
        self.checkpoints = CheckpointStore(path / "checkpoints")
        try:
            self._miss_no_journal()
            self.journal = Journal(path / "journal")
        except BaseException:
            self.registry.close()
            raise
        if self.journal.torn_bytes:
            log.warning("cut %d bytes off the journal in %s: they were never whole", self.journal.torn_bytes, path)
        self._newest: tuple[int, int] | None = None  # the checkpoint written here last, and the first entry after it

    def _miss_no_journal(self) -> None:
        """A journal's first segment is on disk before there is a checkpoint: where it is not, it was taken away."""
        if self.checkpoints.versions and not segments(self.path / "journal"):
            raise StorageError(
                f"the journal in {self.path} is missing",
                why="there are checkpoints, and what was decided after them was in it",
                mend=f"Put {self.path / 'journal'} back, or go on from the newest checkpoint alone:"
                f" hermes-iot repair {self.path} --forget-journal --yes",
            )

    def unfinished(self, fleet: str, config: RunConfig) -> str | None:
        """The id of the run in here that has not ended; None in a fresh directory.

        Raises:
            UsageError: the run in here has ended, is another fleet's, or was begun with other settings: nobody wants
                half a run of each. When it stops may change.
            StorageError: what is recorded was written by another version.
        """
        runs = self.registry.runs()
        if not runs:
            return None
        run = runs[-1]["run"]
        if runs[-1]["fleet"] != fleet or runs[-1]["state"] != "running":
            raise UsageError(
                f"{self.path} holds run {run} of fleet {runs[-1]['fleet']!r}, which is {runs[-1]['state']:.40}",
                mend="Give each run its own --run-dir",
            )
        try:
            stored = from_mapping(runs[-1]["config"], RunConfig)
        except ProtocolError as error:
            raise StorageError(
                f"the settings of run {run} in {self.path} cannot be read",
                why=str(error),
                mend="Go on with the version of hermes-iot that began it, or give another --run-dir",
            ) from error
        _check_same(run, stored, from_mapping(plain(asdict(config)), RunConfig))
        return str(run)

    def begin(self, run: str, *, fleet: str, config: RunConfig, created_at: str) -> None:
        """Record that a run starts, or goes on."""
        self.registry.run_started(
            run,
            fleet=fleet,
            task=config.task,
            strategy=config.strategy,
            config=asdict(config),
            created_at=created_at,
        )

    def restored(self, run: str) -> Restored | None:
        """The run as it was left; None when it has no checkpoint yet.

        Raises:
            StorageError: there are checkpoints and none can be used.
        """
        found = self.checkpoints.latest()
        if found is None:
            return None
        if found.metadata.get("run") != run:
            raise StorageError(
                f"the checkpoint in {self.path} belongs to run {found.metadata.get('run')!r}",
                why=f"the registry says {run!r}",
                mend="Give each run its own --run-dir",
            )
        try:
            allocations = {
                device: _allocation_of(run, row) for device, row in self.registry.allocations_of(run).items()
            }
            first = int(found.metadata["journal"])
            scalars = dict(found.metadata["scalars"])
        except (ProtocolError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise StorageError(
                f"what is recorded of run {run} in {self.path} cannot be read",
                why=f"it is intact, but not as this version writes it ({error!r:.200})",
                mend="Go on with the version of hermes-iot that wrote it, or give another --run-dir",
            ) from error
        for skipped in found.skipped:
            log.warning("passed over: %s", skipped)
        return Restored(
            version=found.version,
            arrays=found.arrays,
            scalars=scalars,
            allocations=allocations,
            entries=redo_log.read(self.journal, first),
        )

    def log(self, entries: Iterable[Entry]) -> None:
        """Take entries of the redo log; they are safe after the next `sync`."""
        redo_log.append(self.journal, entries)

    @property
    def unsynced(self) -> bool:
        """Whether entries were taken that a crash would forget."""
        return self.journal.unsynced_bytes > 0

    def sync(self) -> None:
        """Every entry taken is on disk."""
        self.journal.sync()

    def save(self, run: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and cut off what of the journal no checkpoint needs any more."""
        self.journal.sync()
        first = self.journal.next_index
        # With the run's record the registry can be made again from a checkpoint, should both its copies be lost.
        metadata = {
            "run": run,
            "journal": first,
            "scalars": checkpoint.scalars,
            "record": plain(self.registry.run(run)),
        }
        self.checkpoints.save(checkpoint.version, dict(checkpoint.arrays), metadata)
        before, self._newest = self._newest, (checkpoint.version, first)
        self.journal.roll()
        # Of an earlier process's checkpoint it is not known here where it goes on; it is gone after the next one.
        if (
            before is not None
            and len(self.checkpoints.versions) + self.checkpoints.repeated(checkpoint.version) == KEEP_MIN
        ):
            self.journal.cut(before[1])

    def remember(self, run: str, changes: Sequence[Remember]) -> None:
        """Write what changed about devices, in one go."""
        with self.registry.batch():
            for change in changes:
                for device, row in change.devices.items():
                    self.registry.remember_device(run, device, **row)
                for device, allocation in change.allocations.items():
                    self._remember_allocation(run, device, allocation)

    def _remember_allocation(self, run: str, device: str, allocation: Allocation) -> None:
        self.registry.remember_allocation(
            run,
            device,
            version=allocation.version,
            samples=allocation.samples,
            batch=allocation.batch,
            ranges=allocation.rows,
            shard=allocation.shard,
            extra={name: getattr(allocation, name) for name in _ALLOCATION_EXTRA},
        )

    def end(
        self,
        run: str,
        *,
        reason: str,
        summary: Mapping[str, Any],
        model: Params,
        signature: ModelSignature,
        about: Mapping[str, object],
    ) -> None:
        """Write the model and record how the run ended."""
        export_model(self.path / "model.safetensors", model, signature, about)
        self.registry.run_finished(run, state="finished", reason=reason, summary=summary)

    def close(self) -> None:
        """Give the lock back."""
        self.journal.close()
        self.registry.close()


def _allocation_of(run: str, row: AllocationRecord) -> Allocation:
    """As it was given.

    Raises:
        ProtocolError: another version wrote what the registry has no column for.
    """
    given = {"run": run, "device": row["device"], "rows": row["ranges"], **row["extra"]}
    given |= {"version": row["version"], "samples": row["samples"], "batch": row["batch"], "shard": row["shard"]}
    return from_mapping(given, Allocation)


def _check_same(run: str, stored: RunConfig, given: RunConfig) -> None:
    for name in (one.name for one in fields(RunConfig) if one.name != "rules"):
        before, now = getattr(stored, name), getattr(given, name)
        if name in {"task", "strategy"}:  # the same file may be named from elsewhere
            before, now = Path(before).name, Path(now).name
        if before != now:
            raise UsageError(
                f"run {run} was begun with {name.replace('_', ' ')} {before!r:.200}, not {now!r:.200}",
                mend="Give the options it was begun with, or begin another run with --new or another --run-dir",
            )
