"""An endless walk over a device's rows: where each of its iterations goes, and which rows a probe at its end may use.

Pass after pass over the rows, each in an order of its own. An iteration is the next stretch of it, across a pass's end
if need be, so every row is trained on equally often however long iterations are, and the walk's position is all that
has to be remembered between them.

Orders depend on `slice_key`, the pass and the number of rows. When that number changes, position p is another row than
it was: the walk goes on from the same position in other orders.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hermes_iot.domain import TrainJob
from hermes_iot.errors import ProtocolError
from hermes_iot.training.data import Rows, shuffled

#: A probe that leaves out everything trained on since some time needs this many rows, or its answer is noise.
HELD_OUT_MIN: Final = 32

#: A stretch of one pass's length lies in two passes, and a probe looks into a third.
_ORDERS_KEPT: Final = 3


class Walk:
    """Stretches of walks, as positions among the rows walked over. Remembers the orders of the last few passes."""

    def __init__(self) -> None:
        self._orders: dict[tuple[tuple[int, ...], int], Rows] = {}

    def trained(self, job: TrainJob, rows: int) -> Rows:
        """What an iteration trains on, in order, shape (steps * min(batch, rows),).

        Args:
            job: `steps`, `batch`, `walked` and `slice_key` are read.
            rows: how many rows are walked over, at least 1.

        Raises:
            ProtocolError: the job asks for no step, or begins before the walk does.
        """
        if job.steps < 1 or job.walked < 0:
            raise ProtocolError("steps", f"{job.steps} mini-batches from position {job.walked} of a walk")
        return self._stretch(job.slice_key, rows, job.walked, _end(job, rows))

    def probed(self, job: TrainJob, rows: int) -> Rows:
        """What the iteration's probe is made on: the next rows of the walk, each once, shape (m,), m may be 0.

        Left out are rows of this very iteration and, where the probe says `since`, those walked from there on; in that
        case there are `HELD_OUT_MIN` rows left or the answer is empty. One whole pass is looked ahead: whenever there
        is a row this iteration did not use, that is far enough to meet one.
        """
        if job.probe is None:
            return np.arange(0)
        end = _end(job, rows)
        begin = job.walked if job.probe.since is None else max(0, min(job.probe.since, job.walked))
        if end - begin > 2 * rows:  # holds a whole pass: nothing is left
            return np.arange(0)
        seen = np.zeros(rows, dtype=np.bool_)
        seen[self._stretch(job.slice_key, rows, begin, end)] = True
        ahead = self._stretch(job.slice_key, rows, end, end + rows)
        _, first = np.unique(ahead, return_index=True)
        ahead = ahead[np.sort(first)]  # over a pass's end a row can come again
        free = ahead[~seen[ahead]]
        if job.probe.since is not None and free.size < HELD_OUT_MIN:
            return np.arange(0)
        return free[: job.probe.rows]

    def _stretch(self, key: tuple[int, ...], rows: int, start: int, stop: int) -> Rows:
        """Positions `start` to `stop` of the walk, `stop` excluded."""
        parts = [
            self._order((*key, number), rows)[max(0, start - number * rows) : stop - number * rows]
            for number in range(start // rows, -(-stop // rows))
        ]
        return np.concatenate(parts)

    def _order(self, key: tuple[int, ...], rows: int) -> Rows:
        order = self._orders.pop((key, rows), None)
        if order is None:
            order = shuffled(key, "walk", rows)
            while len(self._orders) >= _ORDERS_KEPT:
                del self._orders[next(iter(self._orders))]
        self._orders[key, rows] = order  # at the end: the oldest goes first
        return order


def _end(job: TrainJob, rows: int) -> int:
    return job.walked + job.steps * min(job.batch, rows)
