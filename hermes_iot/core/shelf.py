"""Which allocation a device obeys, and which shards it has, seeks or still needs.

A new allocation comes into force only once its rows are at hand; until then the old one serves, so a device that
waits for data keeps training on what it has. Only shards that an allocation here names are remembered: the cache on
disk knows what else there is.
"""

from __future__ import annotations

from hermes_iot.protocol.messages import Allocation


class Shelf:
    """Mutable, owned by one `Device`; one per run.

    Attributes:
        allocation: the one in force; None before the first and after one that could not be trained on.
    """

    def __init__(self) -> None:
        self.allocation: Allocation | None = None
        self._next: Allocation | None = None
        self._rejected: Allocation | None = None
        self._held: set[str] = set()
        self._sought: set[str] = set()

    @property
    def newest(self) -> int:
        """The highest version seen; 0 before the first."""
        known = (self.allocation, self._next, self._rejected)
        return max((one.version for one in known if one is not None), default=0)

    def offer(self, allocation: Allocation) -> bool:
        """A newer allocation waits for its turn; False for one that is not newer (QoS 1 repeats)."""
        if allocation.version <= self.newest:
            return False
        self._next, self._rejected = allocation, None
        self._tidy()
        return True

    def advance(self) -> bool:
        """Put the waiting allocation in force if its rows are here; whether anything changed."""
        if self._next is None or self._next.shard not in {"", *self._held}:
            return False
        self.allocation, self._next = self._next, None
        self._tidy()
        return True

    def reject(self, shard: str) -> None:
        """The allocation in force could not be trained on; `shard` is what was tried, "" for the device's own rows.

        A shard's place in the cache may have been given to another: it has to be looked for again.
        """
        self._rejected, self.allocation = self.allocation, None
        self._held.discard(shard)
        self._sought.discard(shard)

    def retry(self) -> None:
        """What could not be trained on may have another try."""
        self._next, self._rejected = self._next or self._rejected, None

    def wanted(self) -> list[str]:
        """Shards to look for now, each named once."""
        new = [name for name in self._named() if name not in self._held | self._sought]
        self._sought.update(new)
        return new

    def missing(self) -> list[str]:
        """Shards looked for but still not here: worth asking for again."""
        return sorted(self._sought - self._held)

    def asked_for(self, sha256: str) -> bool:
        """Whether a shard that arrives was sought."""
        return sha256 in self._sought

    def stored(self, sha256: str) -> None:
        """A shard is at hand."""
        if sha256 in self._sought:
            self._held.add(sha256)

    def shard(self, *, prefer_next: bool) -> str:
        """The shard to train on: the prefetched one as soon as it is here when samples shall be fresh."""
        if self.allocation is None:
            return ""
        following = self.allocation.next_shard
        return following if prefer_next and following in self._held else self.allocation.shard

    def _named(self) -> list[str]:
        names = [self._next.shard] if self._next is not None else []
        if self.allocation is not None:
            names += [self.allocation.shard, self.allocation.next_shard]
        return [name for name in dict.fromkeys(names) if name]

    def _tidy(self) -> None:
        named = set(self._named())
        self._held &= named
        self._sought &= named
