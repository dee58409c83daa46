"""Builds trainers: the coordinator's from a run's settings, a device's from the run's manifest.

torch is loaded in here and not before, so a device is connected before it pays for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_iot.config import RunConfig
from hermes_iot.core.allotment import ShardOf
from hermes_iot.domain import DataMode, Ranges
from hermes_iot.errors import Incompatible, UsageError
from hermes_iot.protocol.messages import RunManifest, TaskInfo
from hermes_iot.runtime.workshop import TrainerOf
from hermes_iot.training import tasks
from hermes_iot.training.base import Trainer

if TYPE_CHECKING:
    from hermes_iot.training.data import TaskData
    from hermes_iot.training.tasks import Task, TaskDefaults


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the coordinator trains nothing with, but measures and ships with.

    Attributes:
        data_sha256: digest of the training set; "" where devices bring their own.
        rows: training rows that can be allotted; 0 in local mode.
        shard_of: encodes rows, in shipped mode.
    """

    trainer: Trainer
    task: TaskInfo
    defaults: TaskDefaults
    data_sha256: str
    rows: int
    shard_of: ShardOf | None


def check_source(task: str) -> None:
    """Whether a task that a person named is there, as far as can be told without running its code.

    Raises:
        UsageError: it is not.
    """
    if task.endswith(".py") or os.sep in task:
        if not Path(task).expanduser().exists():
            raise UsageError(f"there is no task file {task}", mend="Check the path given with --task")
    elif task not in tasks.task_names() and "." not in task:
        tasks.resolve(task)


def for_coordinator(config: RunConfig, *, data_dir: Path | None) -> Bench:
    """Load task and data.

    Raises:
        UsageError: unknown task, data not to be had, or a model that does not take its data.
    """
    task = tasks.resolve(config.task, data_dir=data_dir)
    data = task.load_data()
    trainer = _torch_trainer(task, data, seed=config.seed, validation_fraction=config.validation_fraction)
    return Bench(
        trainer=trainer,
        task=TaskInfo(name=task.name, source_sha256=task.source_sha256),
        defaults=task.defaults,
        data_sha256=_sha256(data) if config.data_mode == "indexed" else "",
        rows=0 if config.data_mode == "local" else trainer.train_rows,
        shard_of=_shard_of(data, config) if config.data_mode == "shipped" else None,
    )


def for_device(*, task: str | None, data_dir: Path | None, rows: slice | None) -> TrainerOf:
    """How this device builds the trainer of whatever run it meets.

    Args:
        task: path or module of a task of the person's own; None = what the manifest names.
        data_dir: where the task's files are.
        rows: in local mode, the part of the set this device shall believe to be its own.
    """

    def build(manifest: RunManifest, shards: Callable[[str], Any]) -> Trainer:
        mode = manifest.data.mode
        found = tasks.resolve(task or manifest.task.name, data_dir=data_dir, trusted=task is not None)
        if found.source_sha256 != manifest.task.source_sha256:
            raise Incompatible(
                f"task {found.name!r} here is not the coordinator's",
                why="its source hashes to another value",
                mend="Copy the coordinator's file, or install the same version of the package that brings it",
            )
        data = None if mode == "shipped" else found.load_data()
        trainer = _torch_trainer(
            found,
            data,
            seed=manifest.seed,
            # Rows of one's own files are all one's own; a part of the common set must leave out what is held out.
            validation_fraction=0.0 if mode == "local" and rows is None else manifest.data.validation_fraction,
            rows=rows if mode == "local" else None,
            shards=shards,
        )
        if data is not None:
            _check_data(manifest, mode, data, trainer)
        return trainer

    return build


def _check_data(manifest: RunManifest, mode: DataMode, data: TaskData, trainer: Trainer) -> None:
    if mode != "indexed":
        return
    if _sha256(data) != manifest.data.sha256 or trainer.train_rows != manifest.data.rows:
        raise Incompatible(
            f"the data of task {manifest.task.name!r} here is not the coordinator's",
            why=f"{trainer.train_rows} rows here, {manifest.data.rows} there, or other contents",
            mend="Give the same files with --data-dir, or run the coordinator with --data local or --data shipped",
        )


def _torch_trainer(task: Task, data: TaskData | None, **options: Any) -> Trainer:
    from hermes_iot.training.torch_trainer import TorchTrainer  # noqa: PLC0415 - torch: a second or two of import

    return TorchTrainer(task, data, **options)


def _sha256(data: TaskData) -> str:
    from hermes_iot.training.data import sha256  # noqa: PLC0415 - numpy

    return sha256(data)


def _shard_of(data: TaskData, config: RunConfig) -> ShardOf:
    from hermes_iot.training.data import lay_out  # noqa: PLC0415 - numpy
    from hermes_iot.training.shards import encode_shard  # noqa: PLC0415 - numpy

    layout = lay_out(data, seed=config.seed, validation_fraction=config.validation_fraction)

    def shard_of(ranges: Ranges) -> bytes:
        part = data.train.take(layout.allotted(ranges))
        return encode_shard(part.x, part.y)

    return shard_of
