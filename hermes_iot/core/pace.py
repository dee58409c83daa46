"""Something done at most so often: when it may be done next, pulled like every timer here."""

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
        """Whether it may be done now: by the very sum that `deadline` gives, so no rounding makes a timer spin."""
        return now >= self.deadline
