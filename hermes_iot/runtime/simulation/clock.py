"""Virtual time: a queue of calls, and timers that follow a machine's deadline.

Calls of one moment run in the order they were asked for, so the order of everything follows from the order of the
calls, never from a hash or an address.

A broadcast reaches a fleet's idle links at one moment, so the queue is one of moments, each with its calls: the heap
is as long as there are different times, and a thousand calls of one time are one entry of it.

A machine's deadline moves with nearly every event, mostly to later. Taking it out of a heap each time would cost the
heap's length; a `Timer` leaves its entry where it is and, when that comes up too early, asks again. An event costs
O(log events), whatever the fleet's size.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from hermes_iot.errors import HermesError

#: A timer that rings so often without time going on belongs to a machine that would spin in the field, too.
_RINGS_MAX: Final = 1_000


class VirtualClock:
    """Mutable.

    Attributes:
        now: seconds since the simulation began.
        handled: calls made so far.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.handled = 0
        self._moments: list[float] = []  # a heap; each has its calls below
        self._calls: dict[float, list[Callable[[], None]]] = {}
        self._made = 0  # of the first moment's calls

    def __call__(self) -> float:
        """Seconds since the beginning."""
        return self.now

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Make this call at that time; at once, but behind what is due already, where it has passed."""
        moment = max(time_s, self.now)
        calls = self._calls.get(moment)
        if calls is None:
            self._calls[moment] = [call]
            heapq.heappush(self._moments, moment)
        else:
            calls.append(call)

    def step(self) -> bool:
        """Go on to the next call and make it; False when there is none."""
        if not self._moments:
            return False
        self.now = now = self._moments[0]
        calls, made = self._calls[now], self._made
        call = calls[made]
        made += 1
        if made == len(calls):  # what is asked for now from here on makes a moment anew, behind this last call
            made = 0
            del self._calls[now]
            heapq.heappop(self._moments)
        self._made = made
        self.handled += 1
        call()
        return True


class Timer:
    """Rings at a deadline that may be moved as often as one likes."""

    __slots__ = ("_armed", "_clock", "_due", "_rang_at", "_ring", "_rings")

    def __init__(self, clock: VirtualClock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._due: float | None = None
        self._armed: float | None = None  # when our entry in the clock's queue comes up
        self._rang_at = -1.0
        self._rings = 0

    def set(self, deadline: float | None) -> None:
        """Ring then and not before; None = not at all."""
        self._due = deadline
        if deadline is not None and (self._armed is None or deadline < self._armed):
            self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        self._armed = max(deadline, self._clock.now)
        self._clock.at(self._armed, self._came)

    def _came(self) -> None:
        now, due = self._clock.now, self._due
        if self._armed != now:
            return  # an entry that an earlier deadline overtook
        self._armed = None
        if due is None:
            return
        if due > now:
            self._arm(due)
            return
        self._count(now)
        self._due = None
        self._ring()

    def _count(self, now: float) -> None:
        self._rings = self._rings + 1 if now == self._rang_at else 1
        self._rang_at = now
        if self._rings > _RINGS_MAX:
            raise HermesError(
                f"a machine asks to be woken at {now:g} s for ever", why="it would spin in the field as well"
            )
