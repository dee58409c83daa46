"""Which allocation a device obeys, and which shards it has, seeks or still needs.

A new allocation comes into force only once its rows are at hand; until then the old one serves, so a device that
waits for data keeps training on what it has.
"""

from __future__ import annotations

from hermes_iot.protocol.messages import Allocation


class Shelf:
    """Mutable, owned by one `Device`; one per run."""

    def __init__(self) -> None:
        self.allocation: Allocation | None = None
        self._next: Allocation | None = None
        self._held: set[str] = set()
        self._sought: set[str] = set()

    def offer(self, allocation: Allocation) -> bool:
        """A newer allocation waits for its turn; False for one that is not newer (QoS 1 repeats)."""
        newest = self._next or self.allocation
        if newest is not None and allocation.version <= newest.version:
            return False
        self._next = allocation
        return True

    def advance(self) -> bool:
        """Put the waiting allocation in force if its rows are here; whether anything changed."""
        if self._next is None or self._next.shard not in {"", *self._held}:
            return False
        self.allocation, self._next = self._next, None
        return True

    def reject(self) -> None:
        """The allocation in force cannot be trained on; wait for another."""
        self.allocation = None

    def wanted(self) -> list[str]:
        """Shards to look for now, each named once."""
        names: list[str] = []
        if self._next is not None:
            names.append(self._next.shard)
        if self.allocation is not None:
            names.append(self.allocation.next_shard)
        new = [name for name in names if name and name not in self._held | self._sought]
        self._sought.update(new)
        return new

    def missing(self) -> list[str]:
        """Shards looked for but still not here: worth asking for again after a reconnect."""
        return sorted(self._sought - self._held)

    def asked_for(self, sha256: str) -> bool:
        """Whether a shard that arrives was sought."""
        return sha256 in self._sought

    def stored(self, sha256: str) -> None:
        """A shard is at hand."""
        self._held.add(sha256)

    def shard(self, *, prefer_next: bool) -> str:
        """The shard to train on: the prefetched one as soon as it is here when samples shall be fresh."""
        if self.allocation is None:
            return ""
        following = self.allocation.next_shard
        return following if prefer_next and following in self._held else self.allocation.shard
