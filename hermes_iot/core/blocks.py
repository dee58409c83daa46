"""Who walks over which rows: the run's permutation cut into blocks, each the property of at most one device.

Shares of a fleet's data change with every change of a speed, so a share is made of whole blocks and a change moves
only the difference: whoever shrinks gives up its last blocks, whoever grows is given free ones, lowest first. Where
rows are shipped a block is a piece that travels once and is kept in the device's cache.

Blocks stay disjoint while there are any left. A device that comes when all are taken borrows one of somebody else's
until the next change frees one: to be measured it needs some rows, and for so long two devices may train on the same.
Blocks of a device that is gone or silent are free; should it train on meanwhile, unheard, two may train on them as well,
until it is heard of and allotted anew.

Every operation costs what it moves, not what there is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

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

    def restore(self, held: Mapping[DeviceId, tuple[Ranges, float]]) -> None:
        """What an earlier process gave: everybody's ranges, and the rows it wants, above 0.

        A block that several hold was borrowed. It goes to the one that has least of what it wants so far.
        """
        holders: dict[int, list[DeviceId]] = {}
        for device, (ranges, _) in held.items():
            for one in self.within(ranges):
                holders.setdefault(one, []).append(device)
        self._owned = {device: [] for device in held}
        self._free = [one for one in range(self.count) if one not in holders]
        for one in sorted(holders, key=lambda one: (len(holders[one]) > 1, one)):  # first those of one device alone
            poorest = min(holders[one], key=lambda device: len(self._owned[device]) / held[device][1])
            self._owned[poorest].append(one)
        for own in self._owned.values():
            own.sort()

    def whole(self, device: DeviceId, ranges: Ranges) -> bool:
        """Whether all the blocks in these ranges are the device's, or none: one that has none has borrowed."""
        own = self._owned.get(device)
        return not own or own == self.within(ranges)

    def within(self, ranges: Ranges) -> list[int]:
        """The blocks that these ranges are made of."""
        most = self.count
        return [one for start, stop in ranges for one in range(start // self.block, min(most, -(-stop // self.block)))]

    def ranges(self, blocks: Iterable[int]) -> Ranges:
        """The rows of some blocks."""
        return merged((one * self.block, min(self.rows, (one + 1) * self.block)) for one in blocks)
