"""The rows that a coordinator ships, held once however many boards have them.

A board's card keeps names only, a gigabyte's worth as `runtime.workshop` does; a shard's bytes follow from its name,
for whoever encodes a shard here notes which rows it was made of. A fleet of a thousand boards that each keep a
gigabyte thereby costs as much memory as the arrays that were used last.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from hermes_iot.core.allotment import ShardOf
from hermes_iot.domain import Ranges
from hermes_iot.errors import ProtocolError
from hermes_iot.runtime.workshop import SHARD_CACHE_BYTES
from hermes_iot.training.data import Array
from hermes_iot.training.shards import decode_shard

#: Arrays kept ready to train on, all boards' together.
_READY_BYTES_MAX: Final = 512 * 1024 * 1024


class Shards:
    """Mutable, one for a simulation: what every shard is made of. `shard_of` is None where none are shipped."""

    def __init__(self, shard_of: ShardOf | None) -> None:
        self._shard_of = shard_of
        self._ranges: dict[str, Ranges] = {}
        self._ready: OrderedDict[str, tuple[Array, Array]] = OrderedDict()
        self._ready_bytes = 0

    def encode(self, ranges: Ranges) -> bytes:
        """A shard's bytes; `core.allotment.ShardOf` for the coordinator."""
        assert self._shard_of is not None  # noqa: S101 - asked only where rows are shipped
        body = self._shard_of(ranges)
        self._ranges[hashlib.sha256(body).hexdigest()] = ranges
        return body

    def arrays(self, sha256: str) -> tuple[Array, Array]:
        """A shard's x and y; `training.sampling.ShardLookup` for trainers.

        Raises:
            ProtocolError: nobody here has encoded it.
        """
        if sha256 in self._ready:
            self._ready.move_to_end(sha256)
            return self._ready[sha256]
        if sha256 not in self._ranges or self._shard_of is None:
            raise ProtocolError("shard", f"shard {sha256[:12]} was never shipped")
        x, y = decode_shard(self._shard_of(self._ranges[sha256]))
        self._ready[sha256] = x, y
        self._ready_bytes += x.nbytes + y.nbytes
        while self._ready_bytes > _READY_BYTES_MAX and len(self._ready) > 1:
            _, (old_x, old_y) = self._ready.popitem(last=False)
            self._ready_bytes -= old_x.nbytes + old_y.nbytes
        return x, y


class Card:
    """Mutable, one for a board: which shards it has kept; the least recently used go first."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0

    def has(self, sha256: str) -> bool:
        """Whether it is there; that counts as a use."""
        if sha256 in self._sizes:
            self._sizes.move_to_end(sha256)
            return True
        return False

    def put(self, sha256: str, size: int) -> None:
        """Keep it."""
        if self.has(sha256):
            return
        self._sizes[sha256] = size
        self._bytes += size
        while self._bytes > SHARD_CACHE_BYTES and len(self._sizes) > 1:
            self._bytes -= self._sizes.popitem(last=False)[1]
