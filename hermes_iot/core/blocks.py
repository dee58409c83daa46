"""Who walks over which rows: the run's permutation cut into blocks, each the property of at most one device.

Shares of a fleet's data change with every change of a speed, so a share is made of whole blocks and a change moves
only the difference: whoever shrinks gives up its last blocks, whoever grows is given free ones, lowest first. Where
rows are shipped a block is a piece that travels once and is kept in the device's cache.

Blocks stay disjoint while there are any left. A device that comes when all are taken borrows one of somebody else's
until the next change frees one: to be measured it needs some rows, and for so long two devices may train on the same.

Every operation costs what it moves, not what there is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from hermes_iot.algorithms.partition import merged
from hermes_iot.domain import DeviceId, Ranges


class Blocks:
    """Mutable, owned by one `Allotment`.

    Args:
        rows: length of the permutation.
        block: rows in one block; the last may have fewer.
    """

    def __init__(self, rows: int, block: int) -> None:
        self.rows = rows
        self.block = block
        self.count = -(-rows // block)
        self._free = list(range(self.count))
        self._owned: dict[DeviceId, list[int]] = {}
        self._borrowed: dict[DeviceId, int] = {}
        self._lent = 0

    def hold(self, device: DeviceId, rows: int) -> list[int]:
        """Give `device` about so many rows, keeping what it has; its blocks, at least one."""
        self._borrowed.pop(device, None)
        own = self._owned.setdefault(device, [])
        wanted = self.count if rows >= self.rows else max(1, round(rows / self.block))
        while len(own) > wanted:
            heapq.heappush(self._free, own.pop())
        while len(own) < wanted and self._free:
            own.append(heapq.heappop(self._free))
        if own:
            return sorted(own)
        self._borrowed[device] = self._lent % self.count
        self._lent += 1
        return [self._borrowed[device]]

    def release(self, device: DeviceId) -> bool:
        """The device is gone and its blocks are free; whether it had any."""
        self._borrowed.pop(device, None)
        own = self._owned.pop(device, [])
        for one in own:
            heapq.heappush(self._free, one)
        return bool(own)

    def take(self, device: DeviceId, ranges: Ranges) -> None:
        """What an earlier process gave: the blocks in these ranges, as far as they are free."""
        free = set(self._free)
        own = [one for one in self.within(ranges) if one in free]
        self._free = sorted(free - set(own))
        self._owned[device] = own

    def within(self, ranges: Ranges) -> list[int]:
        """The blocks that these ranges are made of."""
        return [one for start, stop in ranges for one in range(start // self.block, -(-stop // self.block))]

    def ranges(self, blocks: Iterable[int]) -> Ranges:
        """The rows of some blocks."""
        return merged((one * self.block, min(self.rows, (one + 1) * self.block)) for one in blocks)
