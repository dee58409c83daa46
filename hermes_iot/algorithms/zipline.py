"""ZipLine: how many iterations each device makes so that all of them end as nearly together as possible.

Source: Xing Zhao, Manos Papagelis, Aijun An, Bao Xin Chen, Junfeng Liu, Yonggang Hu, "Elastic Bulk Synchronous Parallel
Model for Distributed Deep Learning" (ICDM 2019, arXiv 2001.01347): predict for every device the ends of its next R
iterations, then choose one end of each so that the latest is as little later than the earliest as possible. The faster
ones then wait least at the barrier.

One pass over all predicted ends in the order of time: whoever holds the earliest end moves on to its next one, until
one of them has none left. Every best choice begins at some device's end and takes each other device's first end from
there on, and the pass looks at all of these: N*R steps of log N, the order that the authors' later ZipLineOpt has too
(Machine Learning 2021, doi 10.1007/s10994-021-06064-w). Among equally good choices the earliest is taken: it
synchronises most often.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from hermes_iot.domain import DeviceId


def iterations_to_barrier(seconds: Mapping[DeviceId, float], most: int) -> dict[DeviceId, int]:
    """Iterations until the barrier, 1 to `most` each, of devices that all begin now.

    Args:
        seconds: of one iteration of each device, above 0 and finite.
        most: R, at least 1.
    """
    names = sorted(seconds)
    if not names:
        return {}
    counts = [1] * len(names)
    ends = [(seconds[name], at) for at, name in enumerate(names)]
    heapq.heapify(ends)
    latest = max(seconds.values())
    # The best choice is kept as the moves made up to it: copying it at every improvement would cost N each time.
    moves: list[int] = []
    best_moves, best_spread = 0, latest - ends[0][0]
    while counts[(at := ends[0][1])] < most:
        counts[at] += 1
        moves.append(at)
        end = counts[at] * seconds[names[at]]
        heapq.heapreplace(ends, (end, at))
        latest = max(latest, end)
        if latest - ends[0][0] < best_spread:
            best_moves, best_spread = len(moves), latest - ends[0][0]
    chosen = [1] * len(names)
    for at in moves[:best_moves]:
        chosen[at] += 1
    return dict(zip(names, chosen, strict=True))
