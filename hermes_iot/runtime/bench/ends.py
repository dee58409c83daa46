"""When a cell ends, and where other rules would have ended it.

Ours, the same for every strategy: no improvement of the validation loss by more than 0.1 % in 12 fleet rounds. A fleet
round is the fleet's work on as many rows as there are training rows, whoever did it. (Our design's first wording had a
round be |train|/N rows. One iteration of the paper's BSP on MNIST is 127,500 of them, 28 such rounds: the rule would
have ended BSP after its first barrier without progress.) Where a set is so small that the fleet passes it 12 times in
two seconds, iterations are longer than that; there a workload's `plateau_s` has the rule wait for at least so long.

The paper's (arXiv 2410.20495): N aggregations in a row without a new best validation loss. It is kept for comparison
with the paper's figures and compares nothing: a BSP aggregation is a whole round of the slowest board, an aggregation
of Hermes a single push.

Only validation rows decide about a strategy's end. That a cell also ends once its highest target was reached ends the
watching, and changes no number up to there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from hermes_iot.runtime.simulation.outcome import Point

FLEET_ROUNDS: Final = 12
IMPROVEMENT: Final = 0.001

#: target: the highest was reached. plateau: our stop rule. cap: the virtual time was over. run: the run ended itself.
EndKind = Literal["target", "plateau", "cap", "run"]


class Plateau:
    """Our stop rule over a growing curve.

    Args:
        train_rows: rows of a fleet round.
        least_s: virtual seconds without improvement, at least.

    Attributes:
        at: the first point at which it held.
    """

    __slots__ = ("_best", "_least_s", "_limit", "_since", "_since_s", "at")

    def __init__(self, train_rows: int, *, least_s: float = 0.0) -> None:
        self.at: Point | None = None
        self._best = math.inf
        self._least_s = least_s
        self._since = 0
        self._since_s = 0.0
        self._limit = FLEET_ROUNDS * train_rows

    def add(self, point: Point) -> None:
        """The next point."""
        loss = point.validation_loss
        if loss is not None and loss < self._best * (1 - IMPROVEMENT):
            self._best, self._since, self._since_s = loss, point.samples, point.t_s
        elif self.at is None and self._idle(point):
            self.at = point

    def _idle(self, point: Point) -> bool:
        return point.samples - self._since >= self._limit and point.t_s - self._since_s >= self._least_s


class Patience:
    """The paper's rule over the coordinator's merges.

    Args:
        limit: N, kept.

    Attributes:
        at_s: when it first held; None before.
    """

    __slots__ = ("_best", "_measured", "_since", "at_s", "limit")

    def __init__(self, limit: int) -> None:
        self.at_s: float | None = None
        self._best = math.inf
        self.limit = limit
        self._measured: float | None = None
        self._since = 0

    def merged(self, t_s: float, loss: float | None) -> None:
        """An update was applied; the model's validation loss as last measured.

        One that was not measured anew does not count: where measuring is rare, ten merges without a look at the model
        are no ten without a better loss.
        """
        if loss is None or loss == self._measured:
            return
        self._measured = loss
        self._since += 1
        if loss < self._best:
            self._best, self._since = loss, 0
        elif self.at_s is None and self._since >= self.limit:
            self.at_s = t_s


class Ending:
    """`outcome.Stop` of a cell: its purpose is fulfilled, or nothing more will come.

    Args:
        target: the highest.
        plateau, patience: the rules; this one feeds the first.
        await_patience: do not end before the paper's rule held. What is reached in the meantime, after our rule held,
            counts for nothing (`measure.numbers`): all are watched for as long.
        long: do not end at the target.

    Attributes:
        kind: why it ended; None while it has not.
    """

    def __init__(
        self, *, target: float, plateau: Plateau, patience: Patience, await_patience: bool, long: bool
    ) -> None:
        self.kind: EndKind | None = None
        self._target = target
        self._plateau = plateau
        self._patience = patience
        self._await_patience = await_patience
        self._long = long
        self._reached = False
        self._waited = False

    def __call__(self, curve: Sequence[Point]) -> str | None:
        """A reason, once there is one; where a cell ran on for the paper's rule that is part of it."""
        self._plateau.add(curve[-1])
        self._reached = self._reached or _twice(curve, self._target)
        reason = None
        if self._reached and not self._long:
            self.kind, reason = "target", f"test accuracy {self._target:g} reached"
        elif self._plateau.at is not None:
            self.kind, reason = "plateau", f"validation loss did not improve in {FLEET_ROUNDS} fleet rounds"
        if reason is not None and self._await_patience and self._patience.at_s is None:
            self.kind, self._waited = None, True
            return None
        also = f", later also no better loss in {self._patience.limit} aggregations" if self._waited else ""
        return f"{reason}{also}" if reason is not None else None


def _twice(curve: Sequence[Point], target: float) -> bool:
    return len(curve) > 1 and all(one.accuracy is not None and one.accuracy >= target for one in curve[-2:])
