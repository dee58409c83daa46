"""One run on disk: which run to go on with, its registry, its checkpoints, its model.

::

    runs/<run>/registry.json      runs, devices, allocations (TinyDB, atomic, checksummed)
               checkpoints/       the newest two, safetensors
               metrics.jsonl      one line per event
               summary.json       written at the end
               model.safetensors  the global model under its own tensor names
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import Restored
from hermes_iot.core.effects import Checkpoint, Remember
from hermes_iot.domain import ModelSignature, Params
from hermes_iot.errors import HermesError, StorageError
from hermes_iot.protocol.messages import Allocation
from hermes_iot.protocol.schema import from_mapping
from hermes_iot.storage.atomic import make_directory
from hermes_iot.storage.checkpoints import CheckpointStore, export_model
from hermes_iot.storage.registry import Registry


def unfinished(base: Path, fleet: str, task: str, strategy: str) -> Path | None:
    """The newest run of this fleet, task and strategy under `base` that has not ended."""
    found: list[tuple[str, Path]] = []
    for path in base.glob("*/registry.json"):
        try:
            with Registry(path, read_only=True) as registry:
                found += [
                    (run["created_at"], path.parent)
                    for run in registry.unfinished(fleet)
                    if run["task"] == task and run["strategy"] == strategy
                ]
        except HermesError:
            continue  # somebody else's damaged run does not keep this one from starting
    return max(found)[1] if found else None


class RunDir:
    """The directory of one run, locked while it is open."""

    def __init__(self, path: Path) -> None:
        make_directory(path)
        self.path = path
        self.registry = Registry(path / "registry.json")
        self.checkpoints = CheckpointStore(path / "checkpoints")

    def unfinished(self, fleet: str) -> tuple[str, RunConfig] | None:
        """The id and settings of the run in here that has not ended, if there is one."""
        runs = self.registry.unfinished(fleet)
        if not runs:
            return None
        return runs[-1]["run"], from_mapping(runs[-1]["config"], RunConfig)

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
        allocations = {
            device: Allocation(
                run=run,
                device=device,
                version=row["version"],
                samples=row["samples"],
                batch=row["batch"],
                rows=row["ranges"],
                shard=row["shard"],
            )
            for device, row in self.registry.allocations_of(run).items()
        }
        scalars = found.metadata["scalars"]
        return Restored(version=found.version, arrays=found.arrays, scalars=scalars, allocations=allocations)

    def save(self, run: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint."""
        metadata = {"run": run, "scalars": checkpoint.scalars}
        self.checkpoints.save(checkpoint.version, dict(checkpoint.arrays), metadata)

    def remember(self, run: str, change: Remember) -> None:
        """Write what changed about devices, in one go."""
        with self.registry.batch():
            for device, row in change.devices.items():
                self.registry.remember_device(run, device, **row)
            for device, allocation in change.allocations.items():
                self.registry.remember_allocation(
                    run,
                    device,
                    version=allocation.version,
                    samples=allocation.samples,
                    batch=allocation.batch,
                    ranges=allocation.rows,
                    shard=allocation.shard,
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
        self.registry.close()
