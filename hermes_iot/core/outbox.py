"""The one update a device has under way: kept until it was handled, repeated with a growing interval.

At most one update is outstanding and a newer one replaces it: a device that could not be heard for an hour has one
thing to say, not sixty. Two facts end the waiting, and they may come in either order or not at all: the ack (the
update was handled) and the answer (here is the model that came of it). While the answer is missing the device asks
again: with the update itself until it is acked, with a request for the model after that.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_iot.protocol.messages import Update


@dataclass(slots=True, kw_only=True)
class Outbox:
    """Mutable, owned by one `Device`.

    Attributes:
        update: sent but not acked; None when there is none.
        awaiting: (session, seq) whose answer has not come; None when nothing is awaited.
        since: when the awaited update was first sent, seconds.
    """

    retry_s: float
    retry_max_s: float
    update: Update | None = None
    awaiting: tuple[int, int] | None = None
    since: float = 0.0
    _deadline: float = 0.0
    _interval_s: float = 0.0

    def put(self, update: Update, *, now: float) -> None:
        """A new update replaces whatever was under way."""
        self.update = update
        self.awaiting = (update.session, update.seq)
        self.since = now
        self._interval_s = self.retry_s
        self._deadline = now + self.retry_s

    def acked(self, session: int, seq: int) -> None:
        """The update (session, seq), and every earlier one, was handled."""
        if self.update is not None and (session, seq) >= (self.update.session, self.update.seq):
            self.update = None

    def answered(self, session: int, seq: int) -> bool:
        """A model came as the answer to (session, seq); whether that is the awaited one.

        An answer proves that the update was handled, so it acks as well. (0, 0) answers a request.
        """
        if (session, seq) != (0, 0):
            self.acked(session, seq)
        if self.awaiting is None or (session, seq) not in ((0, 0), self.awaiting):
            return False
        self.awaiting = None
        return True

    def clear(self) -> None:
        """Forget everything: another run has begun."""
        self.update = None
        self.awaiting = None

    def next_deadline(self) -> float | None:
        """When to ask again."""
        return None if self.awaiting is None else self._deadline

    def due(self, *, now: float) -> bool:
        """Whether it is time to ask again; the next time is then twice as far away, up to the cap."""
        if self.awaiting is None or now < self._deadline:
            return False
        self._interval_s = min(2 * self._interval_s, self.retry_max_s)
        self._deadline = now + self._interval_s
        return True

    def hasten(self, *, now: float) -> None:
        """Ask again at once: the way to the other side has just opened."""
        self._interval_s = self.retry_s
        self._deadline = now
