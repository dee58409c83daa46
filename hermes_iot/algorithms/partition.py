"""Which rows of the run's permutation each device trains on.

The paper (arXiv 2410.20495) sizes devices but sends a device its whole data set anew at every size. Here a resize
moves only the difference: shrinking gives up the tail, growing adds. Devices get disjoint rows while there are rows
left; beyond that rows are shared, those held by the fewest devices first, so no row is used much more than another.

A row is a position in the permutation that all sides derive from the run's seed, so neighbouring positions are
unrelated samples and a range is as good as a random draw. Everything works on ranges: the effort grows with the
number of ranges, not of rows (10,000 devices on a million rows: tens of milliseconds).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import DeviceId, Ranges


def resize(held: Mapping[DeviceId, Ranges], device: DeviceId, samples: int, total: int) -> Ranges:
    """New ranges for `device` alone: exactly min(samples, total) rows, keeping as many of its rows as possible.

    Args:
        held: what every device holds now, each sorted and without overlap in itself; `device` may be missing.
        device: whose share changes.
        samples: how many rows it shall hold.
        total: rows in the permutation.

    Returns:
        Sorted ranges that neither touch nor overlap.

    Raises:
        ValueError: `samples` or `total` is negative.
    """
    if samples < 0 or total < 0:
        raise ValueError(f"{samples} of {total} rows cannot be held")
    wanted = min(samples, total)
    own = merged((start, min(stop, total)) for start, stop in held.get(device, ()))
    missing = wanted - rows_of(own)
    if missing <= 0:
        return _first(own, wanted)
    others = [one for holder, ranges in held.items() if holder != device for one in ranges]
    return merged((*own, *_cheapest(own, others, missing, total)))


def rows_of(ranges: Ranges) -> int:
    """How many rows there are in ranges that do not overlap."""
    return sum(stop - start for start, stop in ranges)


def positions(ranges: Ranges) -> NDArray[np.int64]:
    """Every position in the ranges, in their order, shape (rows,)."""
    if not ranges:
        return np.empty(0, dtype=np.int64)
    return np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in ranges])


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same rows as sorted ranges that neither touch nor overlap; empty ranges vanish."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)


def _first(ranges: Ranges, wanted: int) -> Ranges:
    kept: list[tuple[int, int]] = []
    for start, stop in ranges:
        if wanted <= 0:
            break
        kept.append((start, min(stop, start + wanted)))
        wanted -= stop - start
    return tuple(kept)


def _cheapest(own: Ranges, others: list[tuple[int, int]], missing: int, total: int) -> list[tuple[int, int]]:
    """`missing` rows outside `own`: those with the fewest holders first, among equals the lowest position."""
    theirs = np.array(others, dtype=np.int64).reshape(-1, 2).clip(0, total)
    ours = np.array(own, dtype=np.int64).reshape(-1, 2)
    # Cut [0, total) at every border; the holders of each piece are the borders opened minus those closed up to it.
    borders = np.unique(np.concatenate([[0, total], theirs.ravel(), ours.ravel()]))
    starts, stops = borders[:-1], borders[1:]
    holders = _opened(theirs, starts)
    outside = _opened(ours, starts) == 0
    starts, stops, holders = starts[outside], stops[outside], holders[outside]
    order = np.argsort(holders, kind="stable")
    starts, lengths = starts[order], (stops - starts)[order]
    before = np.cumsum(lengths) - lengths
    used = before < missing
    taken = np.minimum(lengths[used], missing - before[used])
    return list(zip(starts[used].tolist(), (starts[used] + taken).tolist(), strict=True))


def _opened(ranges: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the ranges hold the piece that begins at each of `starts`."""
    begun = np.searchsorted(np.sort(ranges[:, 0]), starts, side="right")
    ended = np.searchsorted(np.sort(ranges[:, 1]), starts, side="right")
    return (begun - ended).astype(np.int64)
