"""The one update a device has under way: kept until it was handled, repeated with a growing interval.

At most one update is outstanding and a newer one replaces it: a device that could not be heard for an hour has one
thing to say, not sixty. Two facts end the waiting, and they may come in either order or not at all: the ack (the
update was handled) and the answer (here is the model that came of it). While the answer is missing the device asks
again: with the update itself until it is acked, with a request for the model after that.

An answer names the update it answers; one to a request names none. The latter counts only after a request was made
for this very update: a late repetition of an older one holds a model from before the update was merged, and taking it
while the update is not even acked would leave the update unrepeated.

An update of an earlier life that was never acked is taken up again under the id it had, so whether or not it had
arrived it counts once. Where the ack turns out to have been there all along, nothing is under way: what came of the
update is in the model that this life begins with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hermes_iot.core.retry import Retry
from hermes_iot.protocol.messages import Update

#: A slow link's speed: an update and its answer are given this much time before it is asked again, or a large model on
#: such a link would be sent twice for nothing.
BYTES_PER_S: Final = 32_000

#: What an answer to a request has in place of (session, seq).
TO_REQUEST = (0, 0)


@dataclass(slots=True, kw_only=True)
class Outbox:
    """Mutable, owned by one `Device`.

    Attributes:
        retry: when to ask again.
        update: sent but not acked; None when there is none.
        awaiting: (session, seq) whose answer has not come; None when nothing is awaited.
        since: when the awaited update was first sent, seconds.
        sent: `update` was handed over at least once.
        hurried: it is repeated before its time, because the way has just opened again: what was sent may have arrived.
    """

    retry: Retry
    update: Update | None = None
    awaiting: tuple[int, int] | None = None
    since: float = 0.0
    sent: bool = False
    hurried: bool = False
    _requested: bool = False
    _unsaid: bool = False  # it is of an earlier life, and this one has not sent it yet

    def put(self, update: Update, *, now: float) -> None:
        """A new update replaces whatever was under way."""
        self.update = update
        self.awaiting = (update.session, update.seq)
        self.since = now
        self._requested = self._unsaid = self.sent = self.hurried = False
        self.retry.start(now=now, allow_s=len(update.body) / BYTES_PER_S)

    def take_up(self, update: Update, *, now: float) -> None:
        """What an earlier life had under way. It is sent when it is due: a retained ack may be quicker."""
        self.put(update, now=now)
        self._unsaid = True

    def acked(self, session: int, seq: int) -> None:
        """The update (session, seq), and every earlier one, was handled."""
        if self.update is not None and (session, seq) >= (self.update.session, self.update.seq):
            if self._unsaid:
                self.clear()
            self.update = None

    def answered(self, session: int, seq: int) -> bool:
        """A model came as the answer to (session, seq); whether that is the awaited one.

        An answer to an update proves that it was handled, so it acks as well.
        """
        mark = (session, seq)
        if mark == TO_REQUEST:
            expected = self.awaiting is not None and self._requested
        else:
            self.acked(session, seq)
            expected = mark == self.awaiting
        if expected:
            self.clear()
        return expected

    def clear(self) -> None:
        """Nothing is under way any more."""
        self.update = None
        self.awaiting = None
        self._requested = self._unsaid = False
        self.retry.stop()

    def hasten(self, *, now: float) -> None:
        """Ask again at once."""
        self.retry.hasten(now=now)
        self.hurried = True

    def handed_over(self) -> bool:
        """The update is sent now; whether a reminder of it will do."""
        reminder = self.sent and self.hurried
        self.sent, self.hurried = True, False
        return reminder

    def asked_for(self, share: float, *, now: float) -> None:
        """A part of the update is sent again, because the other side has the rest."""
        if self.update is not None:
            self.hurried = False
            self.retry.start(now=now, allow_s=share * len(self.update.body) / BYTES_PER_S)

    def due(self, *, now: float) -> bool:
        """Whether to ask again now: with `update`, or, where that is None, with a request for the model."""
        due = self.retry.due(now=now)
        if due:
            self._unsaid = False
            self._requested = self._requested or self.update is None
        return due
