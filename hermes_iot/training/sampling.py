"""Which rows one iteration trains on, which its gate's evidence is taken on, and in what order: for every trainer.

The paper (arXiv 2410.20495) draws n samples afresh each iteration and splits them 85/15; on a device's own rows that
makes the gate read sampling noise, so a fixed slice is the other choice (see `domain.GateSplit`).

The fixed slice is picked by a rank per row that depends on `slice_key` only. When an allotment grows or shrinks by a
few rows, all but a few of the slice's rows therefore stay what they were: out of the training rows.

In a walk (see `walk`) nothing is kept aside: its probe is made on rows that are trained on next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from hermes_iot.domain import Ranges, TrainJob
from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.training.data import Array, Dataset, Rows, positions, shuffled
from hermes_iot.training.walk import Walk

#: Share of an iteration's rows that the gate's loss is taken on (the paper's 85/15).
GATE_FRACTION: Final = 0.15


#: Finds a shipped shard's arrays (x, y) by its digest.
ShardLookup: TypeAlias = Callable[[str], tuple[Array, Array]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """One iteration's rows: `train` shape (a,), `gate` shape (g,), disjoint unless one row is all there is.

    In a walk `train` is in the order of the walk, so a row can be in it twice, and `gate` is the probe's rows: empty
    without a probe, or where none are left for it.

    `samples` counts the rows used, the gate's included; in a walk those of `train`.
    """

    train: Rows
    gate: Rows
    samples: int


class RowSource:
    """Where a job's rows come from: the pool of a training set held here, or pieces that were shipped.

    Args:
        train: the training set; None on a device that has no data of its own.
        pool: indices into it that can be allotted, shape (train_rows,).
        shards: finds a shipped shard or piece; those of the last job stay in memory.
        check: called once with each that arrives; raises UsageError when the model does not take it.
    """

    def __init__(
        self,
        train: Dataset | None,
        pool: Rows,
        shards: ShardLookup | None,
        check: Callable[[Dataset], None] | None = None,
    ) -> None:
        self._train = train
        self._pool = pool
        self._shards = shards
        self._check = check
        self._pieces: dict[str, Dataset] = {}
        self._joined: tuple[tuple[str, ...], Dataset] | None = None
        self._walk = Walk()

    def draw(self, job: TrainJob) -> tuple[Dataset, Draw]:
        """A data set and the indices into it that the job works on.

        Raises:
            ProtocolError: the shard, the pieces, the ranges or the steps do not fit what is held here. Shipped rows are
                all the job's: `rows` then names positions of the coordinator's set and is not read.
        """
        digests = job.shards or ((job.shard,) if job.shard else ())
        if digests:
            shipped = self._shipped(digests)
            return shipped, self._drawn(replace(job, rows=()), np.arange(shipped.rows))
        if self._train is None:
            raise ProtocolError("rows", "a job without a shard came, but this device holds no data of its own")
        return self._train, self._drawn(job, self._pool)

    def sharing(
        self, pool: Rows, shards: ShardLookup | None, check: Callable[[Dataset], None] | None = None
    ) -> RowSource:
        """Another device's: of the same training set with a pool of its own; without a lookup, by the same lookup."""
        return RowSource(self._train, pool, shards or self._shards, check)

    def _drawn(self, job: TrainJob, pool: Rows) -> Draw:
        if job.sampling != "walk":
            rows = draw(job, rows=pool.size)
            return replace(rows, train=pool[rows.train], gate=pool[rows.gate])
        visible = _visible(job.rows, pool)
        train = self._walk.trained(job, visible.size)
        return Draw(train=visible[train], gate=visible[self._walk.probed(job, visible.size)], samples=train.size)

    def _shipped(self, digests: tuple[str, ...]) -> Dataset:
        """The pieces one after the other. They are kept as parts of the whole, so that no row is in memory twice."""
        if self._shards is None:
            raise ProtocolError("shard", "a shipped shard is named, but nothing was shipped to this device")
        if self._joined is not None and self._joined[0] == digests:
            return self._joined[1]
        pieces = [self._pieces.get(digest) or self._arrived(*self._shards(digest)) for digest in digests]
        whole = _join(pieces)
        self._pieces, start = {}, 0
        for digest, piece in zip(digests, pieces, strict=True):
            stop = start + piece.rows
            self._pieces[digest] = Dataset(x=whole.x[start:stop], y=whole.y[start:stop])
            start = stop
        self._joined = (digests, whole)
        return whole

    def _arrived(self, x: Array, y: Array) -> Dataset:
        piece = Dataset(x=x, y=y)
        try:
            if self._check is not None:
                self._check(piece)
        except UsageError as error:
            raise ProtocolError("shard", str(error)) from error
        return piece


def draw(job: TrainJob, *, rows: int) -> Draw:
    """Choose a fresh or kept iteration's rows, as positions in the pool.

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

    In a walk: one pass in the order given, in `steps` equal parts.

    Args:
        job: `sampling`, `batch`, `epochs` and `key` are read, in a walk `steps`.
        train: rows to walk, shape (a,).
        drop_single: leave out a last batch of one row when the pass has others (batch normalisation needs two).
    """
    if job.sampling == "walk":
        yield from train.reshape(job.steps, -1)
        return
    for epoch in range(job.epochs):
        order = train[shuffled((*job.key, epoch), "epoch", train.size)]
        for start in range(0, order.size, job.batch):
            batch = order[start : start + job.batch]
            if not (drop_single and start and batch.size == 1 < job.batch):
                yield batch


def _visible(ranges: Ranges, pool: Rows) -> Rows:
    return pool[positions(ranges, pool.size)] if ranges else pool


def _join(pieces: list[Dataset]) -> Dataset:
    first = pieces[0]
    if len(pieces) == 1:
        return first
    for piece in pieces[1:]:
        for one, other in ((first.x, piece.x), (first.y, piece.y)):
            if one.dtype != other.dtype or one.shape[1:] != other.shape[1:]:
                what = f"{one.dtype} {one.shape[1:]} and {other.dtype} {other.shape[1:]}"
                raise ProtocolError("shard", f"shipped pieces of one job hold rows of different kinds: {what}")
    return Dataset(x=np.concatenate([piece.x for piece in pieces]), y=np.concatenate([piece.y for piece in pieces]))


def _sample(job: TrainJob, seen: Rows, count: int) -> Rows:
    return seen[shuffled(job.key, "draw", seen.size)[:count]]


def _gate_count(rows: int) -> int:
    return max(1, round(GATE_FRACTION * rows))
