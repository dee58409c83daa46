"""Rows that boards keep: each class is spread over them by a draw from a Dirichlet distribution, see `partitions`.

The parts are laid one after the other in the training set, so a board's own rows are a slice of it, as they are on a
real one (``--rows``), and the rows held out to measure on are those of the whole set.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hermes_iot.config import RunConfig
from hermes_iot.domain import stable_int
from hermes_iot.protocol.messages import TaskInfo
from hermes_iot.runtime.simulation.benches import Equipment
from hermes_iot.runtime.trainers import Bench
from hermes_iot.training import tasks
from hermes_iot.training.partitions import dirichlet

#: A board has at least so many rows: of those, some are held out to measure on.
_ROWS_MIN: Final = 32


def equipment_of(config: RunConfig, *, data_dir: Path | None, boards: int, concentration: float) -> Equipment:
    """As `simulation.benches.equipment_of`, each board with rows of its own.

    Raises:
        UsageError: see there; or the rows cannot be spread by class over so many boards.
    """
    from hermes_iot.training.torch_trainer import TorchTrainer  # noqa: PLC0415 - torch

    task = tasks.resolve(config.task, data_dir=data_dir)
    data = task.load_data()
    chance = np.random.default_rng([config.seed, stable_int("dirichlet")])
    parts = dirichlet(data.train.y, boards, concentration, chance, rows_min=_ROWS_MIN)
    data = replace(data, train=data.train.take(np.concatenate(parts)))
    ends = [int(end) for end in np.cumsum([part.size for part in parts])]
    options: dict[str, Any] = {"seed": config.seed, "validation_fraction": config.validation_fraction}
    trainers = [
        TorchTrainer(task, data, rows=slice(end - part.size, end), **options)
        for part, end in zip(parts, ends, strict=True)
    ]
    bench = Bench(
        trainer=TorchTrainer(task, data, **options),
        task=TaskInfo(name=task.name, source_sha256=task.source_sha256),
        defaults=task.defaults,
        data_sha256="",
        rows=0,
        shard_of=None,
    )
    return Equipment(bench=bench, trainer_of=lambda number: trainers[number])
