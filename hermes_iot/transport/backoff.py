"""How long to wait before the next try to connect: exponential, capped, jittered.

paho doubles its delay but has no jitter, so a fleet that lost its broker together comes back together. Half of each
wait is fixed, so that a broken broker is left in peace, and half is drawn, so that a fleet spreads out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The waits between tries.

    Attributes:
        base_s: ceiling of the first wait; it doubles with every try.
        cap_s: ceiling of all later waits.
        stable_s: a connection that held this long was a good one, and counting starts again. A shorter one was not:
            a broker that accepts and drops at once must not be dialled at full speed.
    """

    base_s: float = 1.0
    cap_s: float = 60.0
    stable_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0.0 < self.base_s <= self.cap_s:
            raise ValueError("back-off needs 0 < base_s <= cap_s")
        if self.stable_s < 0.0:
            raise ValueError("back-off needs stable_s >= 0")

    def wait_s(self, failures: int, chance: float) -> float:
        """Seconds to wait after `failures` (1, 2, ...) tries in a row went wrong; `chance` is drawn from [0, 1)."""
        doublings = min(max(failures, 1) - 1, 62)  # 2**62 seconds are past any cap; no overflow after weeks offline
        ceiling_s = min(self.cap_s, self.base_s * 2.0**doublings)
        return ceiling_s / 2 + ceiling_s / 2 * chance
