"""Which rows one iteration trains on, which its gate's loss is taken on, and in what order: shared by every trainer.

The paper (arXiv 2410.20495) draws n samples afresh each iteration and splits them 85/15; on a device's own rows that
makes the gate read sampling noise, so a fixed slice is the other choice (see `domain.GateSplit`).

The fixed slice is picked by a rank per row that depends on `slice_key` only. When an allotment grows or shrinks by a
few rows, all but a few of the slice's rows therefore stay what they were: out of the training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from hermes_iot.domain import TrainJob
from hermes_iot.errors import ProtocolError
from hermes_iot.training.data import Array, Dataset, Rows, positions, shuffled

#: Share of an iteration's rows that the gate's loss is taken on (the paper's 85/15).
GATE_FRACTION: Final = 0.15


#: Finds a shipped shard's arrays (x, y) by its digest.
ShardLookup: TypeAlias = Callable[[str], tuple[Array, Array]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """One iteration's rows: `train` shape (a,), `gate` shape (g,), disjoint unless one row is all there is.

    `samples` counts the rows used, the gate's included.
    """

    train: Rows
    gate: Rows
    samples: int


class RowSource:
    """Where a job's rows come from: the pool of a training set held here, or a shard that was shipped.

    Args:
        train: the training set; None on a device that has no data of its own.
        pool: indices into it that can be allotted, shape (train_rows,).
        shards: finds a shipped shard; the last one stays in memory.
    """

    def __init__(self, train: Dataset | None, pool: Rows, shards: ShardLookup | None) -> None:
        self._train = train
        self._pool = pool
        self._shards = shards
        self._shipped: tuple[str, Dataset] | None = None

    def draw(self, job: TrainJob) -> tuple[Dataset, Draw]:
        """A data set and the indices into it that the job works on.

        Raises:
            ProtocolError: the shard or the ranges do not fit what is held here. A shard's rows are all the job's:
                `rows` then names positions of the coordinator's set and is not read.
        """
        if job.shard:
            shard = self._shard(job.shard)
            return shard, draw(replace(job, rows=()), rows=shard.rows)
        if self._train is None:
            raise ProtocolError("rows", "a job without a shard came, but this device holds no data of its own")
        rows = draw(job, rows=self._pool.size)
        return self._train, replace(rows, train=self._pool[rows.train], gate=self._pool[rows.gate])

    def _shard(self, digest: str) -> Dataset:
        if self._shards is None:
            raise ProtocolError("shard", "a shipped shard is named, but nothing was shipped to this device")
        if self._shipped is None or self._shipped[0] != digest:
            x, y = self._shards(digest)
            self._shipped = (digest, Dataset(x=x, y=y))
        return self._shipped[1]


def draw(job: TrainJob, *, rows: int) -> Draw:
    """Choose an iteration's rows, as positions in the pool.

    Args:
        job: `samples`, `sampling`, `gate_split`, `rows`, `key` and `slice_key` are read.
        rows: length of the pool that `job.rows` counts in.

    Raises:
        ProtocolError: `job.rows` does not fit the pool or names nothing.
    """
    seen = positions(job.rows, rows)
    count = max(1, min(job.samples, seen.size))
    if seen.size == 1:
        return Draw(train=seen, gate=seen, samples=1)
    gate_count = _gate_count(count)
    if job.gate_split == "fixed":
        rank = np.empty(rows, dtype=np.intp)
        rank[shuffled(job.slice_key, "slice", rows)] = np.arange(rows)
        kept_aside = seen[np.argsort(rank[seen])[: _gate_count(seen.size)]]
        free = seen[~np.isin(seen, kept_aside)]
        wanted = max(1, count - gate_count)
        chosen = free[:wanted] if job.sampling == "kept" else _sample(job, free, wanted)
        gate = kept_aside[:gate_count]
        return Draw(train=chosen, gate=gate, samples=chosen.size + gate.size)
    chosen = seen[:count] if job.sampling == "kept" else _sample(job, seen, count)
    if count == 1:
        return Draw(train=chosen, gate=chosen, samples=1)
    split = chosen[shuffled(job.key, "split", count)]
    return Draw(train=split[gate_count:], gate=split[:gate_count], samples=count)


def mini_batches(job: TrainJob, train: Rows, *, drop_single: bool = False) -> Iterator[Rows]:
    """The rows of each SGD step: `epochs` passes, reshuffled every pass, a smaller last batch kept.

    Args:
        job: `batch`, `epochs` and `key` are read.
        train: rows to walk, shape (a,).
        drop_single: leave out a last batch of one row when the pass has others (batch normalisation needs two).
    """
    for epoch in range(job.epochs):
        order = train[shuffled((*job.key, epoch), "epoch", train.size)]
        for start in range(0, order.size, job.batch):
            batch = order[start : start + job.batch]
            if not (drop_single and start and batch.size == 1 < job.batch):
                yield batch


def _sample(job: TrainJob, seen: Rows, count: int) -> Rows:
    return seen[shuffled(job.key, "draw", seen.size)[:count]]


def _gate_count(rows: int) -> int:
    return max(1, round(GATE_FRACTION * rows))
