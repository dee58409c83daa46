"""What the callers of the MQTT transport and its network thread share, all behind one lock.

A monitor: every method takes the lock, changes the state, wakes who waits for the change, and returns. Nothing is
called from inside - no callback, no paho - so no order of locks can ever go wrong. Callers wait on the condition;
the network thread, which waits in `select`, is woken through a socket pair.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from hermes_iot.errors import BrokerError
from hermes_iot.transport import rules
from hermes_iot.transport.outbox import Item, Outbox, Outgoing, SubscriptionChange

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a new connection has to begin with.

    Attributes:
        changes: subscriptions to forget and to renew, in this order.
        resend: whether the unacknowledged messages may be sent again as they are.
        too_large: those of them that this broker does not take any more.
    """

    changes: tuple[SubscriptionChange, ...]
    resend: bool
    too_large: tuple[Outgoing, ...]


class LinkState:
    """The state of one link, from `start` to `close`."""

    def __init__(self, *, messages_max: int, window: int) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._outbox = Outbox(messages_max=messages_max, window=window)
        self._window = window
        self._topics: dict[str, None] = {}
        self._forgotten: dict[str, None] = {}
        self._first_try: BrokerError | bool | None = None  # None until its outcome is known
        self._connected = False
        self._closing = False
        self._parked = False
        self._hurry = False
        self._packet_bytes_max = rules.PACKET_BYTES_MAX
        self._warned = False
        self._room_at: int | None = None  # pending messages at which somebody wants to be told
        self._wake: socket.socket | None = None
        self._rouser: socket.socket | None = None
        self._roused = False
        self._receipts: list[int] = []
        self._flushing = 0
        self._full = False

    @property
    def connected(self) -> bool:
        """Whether CONNACK came and the connection holds. A glance: by the time it is used it may have changed."""
        return self._connected

    @property
    def closing(self) -> bool:
        """Whether `close` was called; it stays so."""
        return self._closing

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the broker's answers. A glance, too."""
        return self._flushing > 0 or self._full

    # Callers

    def open(self) -> socket.socket:
        """Make the pair that wakes the network thread; the end for its selector is returned, `release` closes both."""
        wake, rouser = socket.socketpair()
        wake.setblocking(False)
        rouser.setblocking(False)
        with self._changed:
            self._wake, self._rouser = wake, rouser
        return wake

    def await_first_try(self, timeout_s: float) -> BrokerError | bool | None:
        """Wait for the first try to connect: True for success, None when time ran out."""
        with self._changed:
            self._changed.wait_for(lambda: self._first_try is not None, timeout_s)
            return self._first_try

    def accept(self, item: Outgoing) -> bool:
        """Queue a message; False when not connected, too large or full."""
        packet_bytes = item.packet_bytes
        with self._changed:
            if not self._connected:
                return False
            if packet_bytes > self._packet_bytes_max:
                if not self._warned:
                    limit = self._packet_bytes_max
                    _log.error("event=too_large topic=%s packet_bytes=%d limit=%d", item.topic, packet_bytes, limit)
                self._warned = True
                return False
            accepted = self._outbox.accept(item)
            self._full = not accepted
            self._rouse()
            return accepted

    def room(self, messages: int) -> bool:
        """Whether fewer than so many are pending; if not, `has_room` says so once half of them are."""
        with self._changed:
            free = not self._connected or self._outbox.pending < messages
            self._room_at = None if free else messages // 2
            return free

    def subscribe(self, topics: tuple[str, ...]) -> None:
        """Remember filters, and ask for them when there is a connection."""
        with self._changed:
            for topic in topics:
                self._topics[topic] = None
                self._forgotten.pop(topic, None)
            self._ask(SubscriptionChange(topics=topics, wanted=True))

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Forget filters; a session that is resumed later is told then, if it could not be told now."""
        with self._changed:
            for topic in topics:
                self._topics.pop(topic, None)
                self._forgotten[topic] = None
            self._ask(SubscriptionChange(topics=topics, wanted=False))

    def acknowledge(self, receipts: Sequence[int]) -> None:
        """Queue what the broker is to be told of."""
        with self._changed:
            if self._connected:
                self._receipts += receipts
                self._rouse()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all accepted so far is answered; False when time ran out or some of it was lost."""
        with self._changed:
            last, lost = self._outbox.last, self._outbox.lost

            def over() -> bool:
                return self._closing or self._outbox.lost != lost or self._outbox.settled(last)

            self._flushing += 1
            self._rouse()  # the thread may be resting beside answers that nobody waited for
            try:
                self._changed.wait_for(over, timeout_s)
            finally:
                self._flushing -= 1
            return self._outbox.lost == lost and self._outbox.settled(last)

    def hurry(self) -> None:
        """End the pause before the next try, now or, if the connection is only just being lost, in a moment."""
        with self._changed:
            self._hurry = not self._connected
            self._changed.notify_all()

    def close(self) -> None:
        """Tell the network thread to end."""
        with self._changed:
            self._closing = True
            self._connected = False
            self._changed.notify_all()
            self._rouse()

    # The network thread

    def opened(self, *, window: int | None, packet_bytes_max: int | None, session_present: bool) -> Renewal:
        """A connection is up; what callers hand over from now on is queued."""
        with self._changed:
            window = self._window if window is None else min(self._window, window)
            too_large = self._outbox.refit(window=window, packet_bytes_max=packet_bytes_max)
            if not session_present:
                self._forgotten.clear()
            self._packet_bytes_max = rules.PACKET_BYTES_MAX if packet_bytes_max is None else packet_bytes_max
            self._connected = not self._closing
            self._hurry = False
            return Renewal(
                changes=(
                    SubscriptionChange(topics=tuple(self._forgotten), wanted=False),
                    SubscriptionChange(topics=tuple(self._topics), wanted=True),
                ),
                resend=too_large is None,
                too_large=too_large or (),
            )

    def tried(self, outcome: BrokerError | bool) -> bool:  # noqa: FBT001 - an outcome, not a switch
        """Say how a try went. Returns whether it was the first, which somebody waits for."""
        with self._changed:
            first = self._first_try is None
            if first:
                self._first_try = outcome
                self._changed.notify_all()
            return first

    def next(self) -> tuple[int, Item] | None:
        """The next item to send; None when there is none, no room in the window, or no connection."""
        with self._changed:
            entry = self._outbox.next() if self._connected else None
            if entry is not None:
                self._changed.notify_all()  # what is never acknowledged is settled by being sent
            return entry

    def receipts(self) -> list[int]:
        """What was acknowledged since the last call."""
        if not self._receipts:  # a glance: what comes a moment later wakes the thread again
            return []
        with self._changed:
            taken, self._receipts = self._receipts, []
            return taken

    def acknowledged(self, number: int) -> Outgoing | None:
        """The broker answered for a message."""
        with self._changed:
            item = self._outbox.acknowledged(number)
            self._full = False
            self._changed.notify_all()
            return item

    def has_room(self) -> bool:
        """Whether somebody is to be told now that there is room; said once."""
        with self._changed:
            found = self._room_at is not None and self._outbox.pending <= self._room_at
            self._room_at = None if found else self._room_at
            return found

    def unsubscribed(self, topics: tuple[str, ...]) -> None:
        """The broker has forgotten these filters, too."""
        with self._changed:
            for topic in topics:
                self._forgotten.pop(topic, None)

    def lost(self, *, taken_over: bool) -> tuple[bool, int]:
        """The connection is over. Returns whether there was one, and how many messages were dropped."""
        with self._changed:
            was_connected, self._connected = self._connected, False
            self._parked = self._parked or taken_over
            self._receipts.clear()
            self._full = False
            dropped = self._outbox.connection_lost()
            self._room_at = None
            self._changed.notify_all()
            return was_connected, dropped

    def pause(self, wait_s: float) -> bool:
        """Wait before the next try, until `hurry` or `close`; after a take-over, for as long as it takes.

        Returns:
            Whether there is to be a next try.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._hurry, None if self._parked else wait_s)
            self._hurry = self._parked = False
            return not self._closing

    def woken(self) -> None:
        """Empty the socket that woke the thread, before looking for the reason."""
        with self._changed:
            self._roused = False
            if self._wake is not None:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(16)

    def release(self) -> None:
        """Close the sockets; the thread ends."""
        with self._changed:
            for end in (self._wake, self._rouser):
                if end is not None:
                    end.close()
            self._wake = self._rouser = None

    # Under the lock

    def _ask(self, change: SubscriptionChange) -> None:
        if self._connected and change.topics:
            self._outbox.accept(change)
            self._rouse()

    def _rouse(self) -> None:
        """One byte is enough until the thread has woken."""
        if self._rouser is not None and not self._roused:
            self._roused = True
            self._rouser.send(b"\0")
