"""What a simulation measures and trains with, from a task's name.

Boards share one trainer: it has no state between jobs, and a simulation does one thing at a time. In local mode each
has one of its own for an equal part of the rows, in the file's order, or, with `dirichlet`, for a part whose mixture of
classes is its own (`training.partitions`). Here alone torch is loaded, for tasks that need it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hermes_iot.config import RunConfig
from hermes_iot.domain import stable_int
from hermes_iot.errors import UsageError
from hermes_iot.protocol.messages import TaskInfo
from hermes_iot.runtime.simulation.shelf import Shards
from hermes_iot.runtime.trainers import Bench, for_coordinator
from hermes_iot.training import tasks
from hermes_iot.training.base import Trainer

if TYPE_CHECKING:
    from hermes_iot.training.sampling import ShardLookup
    from hermes_iot.training.torch_trainer import TorchTrainer

#: The task that trains nothing, see `training.cost`.
COST: Final = "cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """A coordinator's bench, and what each board trains with, by its number."""

    bench: Bench
    trainer_of: Callable[[int], Trainer]


def equipment_of(
    config: RunConfig, *, devices: int, data_dir: Path | None, dirichlet: float | None = None
) -> Equipment:
    """Load task and data, for so many boards.

    Args:
        config: the run's settings.
        devices: how many boards.
        data_dir: where the task's files are.
        dirichlet: alpha of a split by class, in local mode only: small = every board knows few classes. None = equal
            parts in the file's order.

    Raises:
        UsageError: unknown task, data not to be had, a mode the task does not know, or rows that cannot be split so.
    """
    if dirichlet is not None and config.data_mode != "local":
        raise UsageError(
            f"rows that are {config.data_mode} cannot be skewed", why="no board owns them", mend="Use --data local"
        )
    if config.task == COST:
        return _of_cost(config)
    bench = for_coordinator(config, data_dir=data_dir)
    if dirichlet is not None:
        return Equipment(bench=bench, trainer_of=_skewed_parts(config, bench, devices, dirichlet))
    if config.data_mode == "local":
        return Equipment(bench=bench, trainer_of=_own_parts(bench, devices))
    if bench.shard_of is None:
        return Equipment(bench=bench, trainer_of=lambda _number: bench.trainer)
    shards = Shards(bench.shard_of)
    trainer = _trained_by(config, data_dir, shards.arrays)
    return Equipment(bench=replace(bench, shard_of=shards.encode), trainer_of=lambda _number: trainer)


def _of_cost(config: RunConfig) -> Equipment:
    from hermes_iot.training.cost import CostTrainer  # noqa: PLC0415 - numpy

    if config.data_mode != "indexed":
        raise UsageError(f"task {COST!r} has no rows that could be {config.data_mode}", mend="Use --data indexed")
    trainer = CostTrainer(seed=config.seed)
    bench = Bench(
        trainer=trainer,
        task=TaskInfo(name=COST, source_sha256="0" * 64),
        defaults=tasks.TaskDefaults(samples=256, batch=16, epochs=5, learning_rate=0.1),
        data_sha256="0" * 64,
        rows=trainer.train_rows,
        shard_of=None,
    )
    return Equipment(bench=bench, trainer_of=lambda _number: trainer)


def _own_parts(bench: Bench, devices: int) -> Callable[[int], Trainer]:
    """Parts as equal as can be, of what is not held out; together they are all of it."""
    import numpy as np  # noqa: PLC0415 - after the command line is checked

    whole = _whole(bench)
    if whole.train_rows < devices:
        raise UsageError(f"{whole.train_rows} rows are not enough for {devices} boards")
    parts = np.array_split(np.arange(whole.train_rows), devices)
    return functools.cache(lambda number: whole.sharing(pool=parts[number]))


def _skewed_parts(config: RunConfig, bench: Bench, devices: int, alpha: float) -> Callable[[int], Trainer]:
    """Every row is one board's; the boards share the bench's model and differ in their rows."""
    import numpy as np  # noqa: PLC0415 - after the command line is checked

    from hermes_iot.training.partitions import dirichlet  # noqa: PLC0415 - numpy

    whole = _whole(bench)
    chance = np.random.default_rng([config.seed, stable_int("dirichlet")])
    trainers = [whole.sharing(pool=rows) for rows in dirichlet(whole.targets, devices, alpha, chance)]
    return trainers.__getitem__


def _whole(bench: Bench) -> TorchTrainer:
    from hermes_iot.training.torch_trainer import TorchTrainer  # noqa: PLC0415 - torch

    assert isinstance(bench.trainer, TorchTrainer)  # noqa: S101 - `for_coordinator` builds no other
    return bench.trainer


def _trained_by(config: RunConfig, data_dir: Path | None, shards: ShardLookup) -> Trainer:
    """A device's trainer where rows are shipped: it holds no data of its own."""
    from hermes_iot.training.torch_trainer import TorchTrainer  # noqa: PLC0415 - torch

    task = tasks.resolve(config.task, data_dir=data_dir)
    return TorchTrainer(task, None, seed=config.seed, validation_fraction=config.validation_fraction, shards=shards)
