"""When to ask again: after a pause that doubles up to a cap, pulled like every timer here.

Nothing on the wire is repeated by itself (the broker may lose, and a full inbox drops), so whoever needs something
asks until it has it. The doubling keeps a fleet whose coordinator is away from talking to nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Retry:
    """Mutable. Runs from `start` to `stop`.

    Attributes:
        first_s, most_s: the first and the longest pause.
        deadline: when to ask next; None while nothing is wanted.
    """

    first_s: float
    most_s: float
    deadline: float | None = None
    _pause_s: float = 0.0

    def start(self, *, now: float, allow_s: float = 0.0) -> None:
        """Something has just been asked for: wait the first pause, and `allow_s` for what it takes on its way."""
        self._pause_s = self.first_s
        self.deadline = now + self._pause_s + allow_s

    def stop(self) -> None:
        """Nothing is wanted any more."""
        self.deadline = None

    def hasten(self, *, now: float) -> None:
        """Ask again at once, and patiently from the beginning: the way to the other side has just opened."""
        if self.deadline is not None:
            self._pause_s = self.first_s
            self.deadline = now

    def postpone(self, until: float) -> None:
        """What was asked for is on its way: not before so long after it should have come."""
        if self.deadline is not None and until != math.inf:
            self.deadline = max(self.deadline, until + self.first_s)

    def due(self, *, now: float) -> bool:
        """Whether it is time to ask again; the next time is then twice as far away, up to the cap."""
        if self.deadline is None or now < self.deadline:
            return False
        self._pause_s = min(2 * self._pause_s, self.most_s)
        self.deadline = now + self._pause_s
        return True
