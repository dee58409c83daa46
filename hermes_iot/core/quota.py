"""How often something may be had: so many at once, and one more after each interval (a token bucket).

A request of a hundred bytes can call for a hundred megabytes. Whoever may ask at all may therefore ask only so often,
and what is refused is asked for again by whoever needs it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Quota:
    """Mutable.

    Attributes:
        burst: how many at once.
        interval_s: after so long there is one more.
        used: of the burst, at `at`.
        refused: how many were too many.
    """

    burst: int = 6
    interval_s: float = 2.0
    used: float = 0.0
    at: float = 0.0
    refused: int = 0

    def take(self, *, now: float) -> bool:
        """Whether one more may be had now."""
        self.used = max(0.0, self.used - max(0.0, now - self.at) / self.interval_s)
        self.at = now
        if self.used + 1 > self.burst:
            self.refused += 1
            return False
        self.used += 1
        return True
