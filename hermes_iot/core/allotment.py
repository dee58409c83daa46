"""Gives a size its rows: which positions, which shard, which version.

In `indexed` mode the allocation names rows; in `local` mode only how many of its own a device may use; in `shipped`
mode rows become a shard named by its digest, and in the fresh regime the next one is named along with it so that it
can be fetched while the present one is trained on. Two devices may be given the same rows and so the same shard: it
is forgotten only when no allocation names it any more. A walk goes over blocks (`blocks`), each of them a shard.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from hermes_iot.algorithms.partition import merged, resize, rows_of
from hermes_iot.algorithms.shares import BLOCKS_LEAST
from hermes_iot.core.blocks import Blocks
from hermes_iot.domain import DeviceId, Ranges, Sizing
from hermes_iot.protocol.messages import Allocation, DataInfo

#: In a walk the data are cut into no more than about so many blocks, and a block that is shipped is no larger than so
#: many bytes: one chunk, or a little more.
BLOCKS_MAX: Final = 1024
BLOCK_BYTES: Final = 100_000

#: Encodes the rows at some positions as a shard's bytes; the same rows always give the same bytes.
ShardOf: TypeAlias = Callable[[Ranges], bytes]


class Allotment:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        cursor: in the fresh shipped regime, where the next shard begins in the permutation.
    """

    def __init__(self, run: str, data: DataInfo, shard_of: ShardOf | None, *, cursor: int = 0) -> None:
        self.cursor = cursor
        self._run = run
        self._data = data
        self._shard_of = shard_of
        self._shards: dict[str, Ranges] = {}
        self._users: Counter[str] = Counter()  # how many allocations name a shard; blocks are never forgotten
        self._blocks = self._cut() if data.sampling == "walk" and data.rows else None
        self._pieces: dict[int, tuple[str, int]] = {}  # name and length of each block

    def allot(
        self, device: DeviceId, size: Sizing, held: Mapping[DeviceId, Allocation], *, above: int = 0, reason: str
    ) -> Allocation:
        """The next allocation of `device`.

        Args:
            device: whose.
            size: rows and mini-batch, no more than there are.
            held: the present ones of all devices; looked up one by one unless rows are divided among all.
            above: a version the device has obeyed already.
            reason: for a person.
        """
        present = held.get(device)
        version = max(above, present.version if present is not None else 0) + 1
        if self._blocks is not None:
            return self._walk(self._blocks, device, size, version, reason)
        rows = self._rows(device, size, held)
        shard, shard_bytes = self._name(rows)
        next_shard, next_bytes = self._following(shard, size)
        allocation = Allocation(
            run=self._run,
            device=device,
            version=version,
            samples=size.samples,
            batch=size.batch,
            steps=size.steps,
            share=size.share,
            rows=() if shard else rows,
            shard=shard,
            shard_bytes=shard_bytes,
            next_shard=next_shard,
            next_shard_bytes=next_bytes,
            reason=reason,
        )
        self._replace(present, allocation)
        return allocation

    def rotate(self, present: Allocation) -> Allocation:
        """The device has moved on to its prefetched shard: name the one after it."""
        size = Sizing(samples=present.samples, batch=present.batch)
        next_shard, next_bytes = self._following(present.next_shard, size)
        allocation = Allocation(
            run=self._run,
            device=present.device,
            version=present.version + 1,
            samples=present.samples,
            batch=present.batch,
            shard=present.next_shard,
            shard_bytes=present.next_shard_bytes,
            next_shard=next_shard,
            next_shard_bytes=next_bytes,
            reason="next shard",
        )
        self._replace(present, allocation)
        return allocation

    def serves(self, allocation: Allocation) -> bool:
        """Whether this allocation can be said again as it is: complete, every shard it names known here, its rows its own.

        One from another process may not be: the registry and the checkpoint are not written at the same moment.
        """
        if self._blocks is not None:
            known = self._shard_of is None or allocation.shards == self._names(self._blocks.within(allocation.rows))
            return bool(allocation.rows) and known and self._blocks.whole(DeviceId(allocation.device), allocation.rows)
        if not allocation.shard:
            return True
        complete = allocation.shard_bytes > 0 and (bool(allocation.next_shard) or not self._rotates)
        return complete and {allocation.shard, allocation.next_shard} - {""} <= self._shards.keys()

    def body(self, sha256: str) -> bytes | None:
        """A shard's bytes, made again from its rows; None for one that nobody has been given."""
        ranges = self._shards.get(sha256)
        return self._shard_of(ranges) if ranges is not None and self._shard_of is not None else None

    def shards(self) -> dict[str, Ranges]:
        """Which rows each named shard holds, for a checkpoint."""
        return dict(self._shards)

    def release(self, device: DeviceId) -> bool:
        """A device of a walk is gone: others may have its rows. Whether it had any."""
        return self._blocks is not None and self._blocks.release(device)

    def restore(self, cursor: int, shards: Mapping[str, Ranges], held: Mapping[DeviceId, Allocation]) -> None:
        """The inverse of `cursor` and `shards`, with what every device was allotted."""
        self.cursor = cursor
        self._shards.update(shards)
        if self._blocks is not None:
            self._blocks.restore({device: (one.rows, self._wanted(one)) for device, one in held.items()})
            return
        for allocation in held.values():
            self._users.update(_named(allocation))
        self._shards = {name: ranges for name, ranges in self._shards.items() if self._users[name]}

    def _wanted(self, allocation: Allocation) -> float:
        """Rows that a device shall have: its share of all, or as many as it was given."""
        return max(1.0, allocation.share * self._data.rows or float(allocation.samples))

    def _cut(self) -> Blocks:
        """Blocks as large as one chunk carries, but enough of them to share out; where nothing is shipped, small ones."""
        rows = self._data.rows
        block = -(-rows // BLOCKS_MAX)
        if self._shard_of is not None and rows > 1:
            # Two samples, so that what every shard has once is not taken for a row's.
            few = min(rows, 65)
            row_bytes = (len(self._shard_of(((0, few),))) - len(self._shard_of(((0, 1),)))) / (few - 1)
            block = max(block, min(rows // BLOCKS_LEAST, int(BLOCK_BYTES / max(1.0, row_bytes))))
        return Blocks(rows, max(1, block))

    def _walk(self, blocks: Blocks, device: DeviceId, size: Sizing, version: int, reason: str) -> Allocation:
        own = blocks.hold(device, size.samples)
        rows = blocks.ranges(own)
        shards = self._names(own) if self._shard_of is not None else ()
        return Allocation(
            run=self._run,
            device=device,
            version=version,
            samples=rows_of(rows),
            batch=size.batch,
            steps=size.steps,
            share=size.share,
            rows=rows,
            shards=shards,
            shard_bytes=max((self._pieces[one][1] for one in own), default=0) if shards else 0,
            reason=reason,
        )

    def _names(self, blocks: list[int]) -> tuple[str, ...]:
        """The digests of blocks; each is encoded once to know its name."""
        assert self._blocks is not None  # noqa: S101 - whoever has blocks has them from there
        for one in blocks:
            if one not in self._pieces:
                self._pieces[one] = self._name(self._blocks.ranges([one]))
        return tuple(self._pieces[one][0] for one in blocks)

    @property
    def _rotates(self) -> bool:
        return self._shard_of is not None and self._data.sampling == "fresh"

    def _rows(self, device: DeviceId, size: Sizing, held: Mapping[DeviceId, Allocation]) -> Ranges:
        if self._data.mode == "local":
            return ()
        if self._rotates:
            return self._window(size)
        if self._data.sampling == "fresh":
            return ((0, self._data.rows),)
        ranges = {one: allocation.rows or self._shards.get(allocation.shard, ()) for one, allocation in held.items()}
        return resize(ranges, device, size.samples, self._data.rows)

    def _window(self, size: Sizing) -> Ranges:
        """The next rows of the permutation, beginning again at its end."""
        start = self.cursor % self._data.rows
        stop = start + size.samples
        self.cursor = stop % self._data.rows
        return merged([(start, min(stop, self._data.rows)), (0, max(0, stop - self._data.rows))])

    def _following(self, shard: str, size: Sizing) -> tuple[str, int]:
        """The shard to prefetch; none where it would be the same again, as when a shard is the whole set."""
        if not self._rotates:
            return "", 0
        name, length = self._name(self._window(size))
        return (name, length) if name != shard else ("", 0)

    def _name(self, rows: Ranges) -> tuple[str, int]:
        if self._shard_of is None:
            return "", 0
        body = self._shard_of(rows)
        sha256 = hashlib.sha256(body).hexdigest()
        self._shards[sha256] = rows
        return sha256, len(body)

    def _replace(self, before: Allocation | None, after: Allocation) -> None:
        """One allocation takes the place of another: forget the shards that no other names."""
        self._users.update(_named(after))
        for name in _named(before) if before is not None else ():
            self._users[name] -= 1
            if self._users[name] <= 0:
                del self._users[name]
                self._shards.pop(name, None)


def _named(allocation: Allocation) -> set[str]:
    return {allocation.shard, allocation.next_shard} - {""}
