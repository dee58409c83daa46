"""Which allocation a device obeys, and which shards it has, seeks or still needs.

A new allocation comes into force only once its rows are at hand; until then the old one serves, so a device that
waits for data keeps training on what it has. Only shards that an allocation here names are remembered: the cache on
disk knows what else there is.

A walk goes over many pieces, and comes into force with the first of them: the rest is fetched meanwhile, a few at a
time, so that a model on its way down never has more than those few before it.
"""

from __future__ import annotations

from typing import Final

from hermes_iot.protocol.messages import Allocation

#: Pieces that may be on their way at one time.
PIECES_UNDER_WAY: Final = 8


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
        self._absent: set[str] = set()
        self._asked: set[str] = set()

    @property
    def newest(self) -> int:
        """The highest version seen; 0 before the first."""
        known = (self.allocation, self._next, self._rejected)
        return max((one.version for one in known if one is not None), default=0)

    @property
    def known(self) -> tuple[int, int]:
        """How many shards are remembered, and how many the allocations here name."""
        return len(self._held | self._sought | self._absent | self._asked), len(self._named())

    @property
    def shard_bytes_max(self) -> int | None:
        """The longest of the shards named; None where there is none, or one whose length is not said."""
        lengths: list[int] = []
        for one in (self._next, self.allocation):
            if one is not None and (one.shard or one.shards):
                lengths.append(one.shard_bytes)
            if one is not None and one.next_shard:
                lengths.append(one.next_shard_bytes)
        return max(lengths) if lengths and all(lengths) else None

    def offer(self, allocation: Allocation) -> bool:
        """A newer allocation waits for its turn; False for one that is not newer (QoS 1 repeats)."""
        if allocation.version <= self.newest:
            return False
        self._next, self._rejected = allocation, None
        self._tidy()
        return True

    def advance(self) -> bool:
        """Put the waiting allocation in force if its rows are here; whether anything changed."""
        coming = self._next
        if coming is None or coming.shard not in {"", *self._held}:
            return False
        if coming.shards and self._held.isdisjoint(coming.shards):
            return False
        self.allocation, self._next = self._next, None
        self._tidy()
        return True

    def reject(self, shard: str) -> None:
        """The allocation in force could not be trained on; `shard` is what was tried, "" for the device's own rows.

        A shard's place in the cache may have been given to another: it has to be looked for again.
        """
        self._rejected, self.allocation = self.allocation, None
        for name in (shard, *(self._rejected.shards if self._rejected is not None else ())):
            self._held.discard(name)
            self._sought.discard(name)
            self._absent.discard(name)
            self._asked.discard(name)

    def retry(self) -> None:
        """What could not be trained on may have another try."""
        self._next, self._rejected = self._next or self._rejected, None

    def wanted(self) -> list[str]:
        """Shards to look for now, each named once."""
        named = self._named()
        if not named:
            return named
        new = [name for name in named if name not in self._held | self._sought]
        self._sought.update(new)
        return new

    def missing(self) -> list[str]:
        """Shards looked for but still not here: worth asking for again."""
        lacking = [name for name in self._named() if name in self._sought and name not in self._held]
        self._asked = set(lacking[:PIECES_UNDER_WAY])
        return lacking[:PIECES_UNDER_WAY]

    def not_found(self, sha256: str) -> None:
        """A shard was looked for and is not in the cache."""
        if sha256 in self._sought:
            self._absent.add(sha256)

    def to_ask_for(self) -> list[str]:
        """What to ask for now: the next few of what is absent, once at most half of the few before is outstanding."""
        outstanding = self._asked - self._held
        if len(outstanding) > PIECES_UNDER_WAY // 2:
            return []
        lacking = [name for name in self._named() if name in self._absent and name not in outstanding]
        asked = lacking[: PIECES_UNDER_WAY - len(outstanding)]
        self._asked = outstanding | set(asked)
        return asked

    def asked_for(self, sha256: str) -> bool:
        """Whether a shard that arrives was sought."""
        return sha256 in self._sought

    def stored(self, sha256: str) -> None:
        """A shard is at hand."""
        if sha256 in self._sought:
            self._held.add(sha256)
            self._absent.discard(sha256)

    def pieces(self) -> tuple[str, ...]:
        """The pieces to walk over: those of the allocation in force that are here, in its order."""
        if self.allocation is None or not self.allocation.shards:
            return ()
        return tuple(name for name in self.allocation.shards if name in self._held)

    def shard(self, *, prefer_next: bool) -> str:
        """The shard to train on: the prefetched one as soon as it is here when samples shall be fresh."""
        if self.allocation is None:
            return ""
        following = self.allocation.next_shard
        return following if prefer_next and following in self._held else self.allocation.shard

    def _named(self) -> list[str]:
        names = [self._next.shard, *self._next.shards] if self._next is not None else []
        if self.allocation is not None:
            names += [self.allocation.shard, self.allocation.next_shard, *self.allocation.shards]
        return [name for name in dict.fromkeys(names) if name] if any(names) else []

    def _tidy(self) -> None:
        named = set(self._named())
        self._held &= named
        self._sought &= named
        self._absent &= named
        self._asked &= named
