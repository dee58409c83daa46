"""Something done at most so often, and how long something has lasted: pulled like every timer here.

Each compares with the very sum that it gives as its deadline. Written as a difference, rounding could find the time
not quite come at the deadline itself, and whoever waits for it would spin.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Pace:
    """Mutable. `done_at` is when it was done last, or when counting began."""

    interval_s: float
    done_at: float

    @property
    def deadline(self) -> float:
        """When it may be done again."""
        return self.done_at + self.interval_s

    def due(self, *, now: float) -> bool:
        """Whether it may be done now."""
        return now >= self.deadline


@dataclass(slots=True, kw_only=True)
class Stopwatch:
    """Mutable. Counts from `started_at`; `limit_s` is the duration somebody waits for, None for nobody."""

    started_at: float
    limit_s: float | None

    @property
    def deadline(self) -> float | None:
        """When `limit_s` have passed."""
        return None if self.limit_s is None else self.started_at + self.limit_s

    def elapsed_s(self, *, now: float) -> float:
        """Seconds so far; at the deadline no less than `limit_s`."""
        elapsed_s = max(0.0, now - self.started_at)
        reached = self.limit_s is not None and now >= self.started_at + self.limit_s
        return max(elapsed_s, self.limit_s) if reached and self.limit_s is not None else elapsed_s
