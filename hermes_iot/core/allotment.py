"""Gives a size its rows: which positions, which shard, which version.

In `indexed` mode the allocation names rows; in `local` mode only how many of its own a device may use; in `shipped`
mode rows become a shard named by its digest, and in the fresh regime the next one is named along with it so that it
can be fetched while the present one is trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

from hermes_iot.algorithms.partition import merged, resize
from hermes_iot.domain import DeviceId, Ranges, Sizing
from hermes_iot.protocol.messages import Allocation, DataInfo

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

    def clamp(self, size: Sizing) -> Sizing:
        """No more rows than there are; a mini-batch no larger than its rows."""
        samples = min(size.samples, self._data.rows) if self._data.rows else size.samples
        samples = max(1, samples)
        return Sizing(samples=samples, batch=max(1, min(size.batch, samples)))

    def allot(self, device: DeviceId, size: Sizing, held: Mapping[DeviceId, Allocation], *, reason: str) -> Allocation:
        """The next allocation of `device`; `held` are the present ones of all devices."""
        size = self.clamp(size)
        present = held.get(device)
        version = present.version + 1 if present is not None else 1
        rows = self._rows(device, size, held)
        shard, shard_bytes = self._name(rows)
        next_shard, next_bytes = self._name(self._window(size)) if self._rotates else ("", 0)
        return Allocation(
            run=self._run,
            device=device,
            version=version,
            samples=size.samples,
            batch=size.batch,
            rows=() if shard else rows,
            shard=shard,
            shard_bytes=shard_bytes,
            next_shard=next_shard,
            next_shard_bytes=next_bytes,
            reason=reason,
        )

    def rotate(self, present: Allocation) -> Allocation:
        """The device has moved on to its prefetched shard: name the one after it."""
        size = Sizing(samples=present.samples, batch=present.batch)
        next_shard, next_bytes = self._name(self._window(size))
        self._shards.pop(present.shard, None)
        return Allocation(
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

    def body(self, sha256: str) -> bytes | None:
        """A shard's bytes, made again from its rows; None for one that nobody was given."""
        ranges = self._shards.get(sha256)
        return self._shard_of(ranges) if ranges is not None and self._shard_of is not None else None

    def shards(self) -> dict[str, Ranges]:
        """Which rows each named shard holds, for a checkpoint."""
        return dict(self._shards)

    def restore(self, shards: Mapping[str, Ranges]) -> None:
        """The inverse of `shards`."""
        self._shards.update(shards)

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

    def _name(self, rows: Ranges) -> tuple[str, int]:
        if self._shard_of is None:
            return "", 0
        body = self._shard_of(rows)
        sha256 = hashlib.sha256(body).hexdigest()
        self._shards[sha256] = rows
        return sha256, len(body)
