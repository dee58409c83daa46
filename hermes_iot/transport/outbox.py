"""What was accepted for sending: a bounded queue, and a window of messages the broker has yet to acknowledge.

paho can queue by itself, but it keeps the queue through a disconnection and re-sends all of it afterwards. After an
hour offline that is an hour of stale state in front of the first fresh message, and a full queue refuses the fresh
one. So paho only ever holds the window, and this holds the rest and is emptied when the connection goes: the
machines publish again on `Connected`. The window itself is kept and re-sent, as QoS 1 promises.

No lock inside: the owner brings one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from hermes_iot.transport.rules import publish_packet_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One message on its way out."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    expiry_s: int | None

    @property
    def packet_bytes(self) -> int:
        """Size of its PUBLISH packet."""
        return publish_packet_bytes(self.topic, self.payload, qos=self.qos, expiry_s=self.expiry_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChange:
    """Filters to subscribe to, or to forget; it waits in line with the messages, so their order is kept."""

    topics: tuple[str, ...]
    wanted: bool


Item: TypeAlias = Outgoing | SubscriptionChange


class Outbox:
    """First in, first out, numbered 1, 2, ... in order of acceptance.

    Attributes:
        last: number of the newest item ever accepted.
        lost: messages accepted and dropped when a connection went, ever.
        window: QoS-1 messages that may be unacknowledged at once.
    """

    def __init__(self, *, messages_max: int, window: int) -> None:
        if messages_max < 1 or window < 1:
            raise ValueError("an outbox needs room for a message and a window of one")
        self.last = 0
        self.lost = 0
        self.window = window
        self._messages_max = messages_max
        self._waiting: deque[tuple[int, Item]] = deque()
        self._unacknowledged: dict[int, Outgoing] = {}

    @property
    def pending(self) -> int:
        """Messages accepted and not yet answered."""
        return len(self._waiting) + len(self._unacknowledged)

    def accept(self, item: Item) -> bool:
        """Take an item in; False when full. Subscriptions always fit: there are few, and losing one is silent."""
        if isinstance(item, Outgoing) and len(self._waiting) + len(self._unacknowledged) >= self._messages_max:
            return False
        self.last += 1
        self._waiting.append((self.last, item))
        return True

    def next(self) -> tuple[int, Item] | None:
        """Hand out the next item with its number; None when there is none or the window is full."""
        if not self._waiting:
            return None
        number, item = self._waiting[0]
        if isinstance(item, Outgoing) and item.qos:
            if len(self._unacknowledged) >= self.window:
                return None
            self._unacknowledged[number] = item
        self._waiting.popleft()
        return number, item

    def acknowledged(self, number: int) -> Outgoing | None:
        """The broker answered for this message; None when it was none of ours."""
        return self._unacknowledged.pop(number, None)

    def settled(self, number: int) -> bool:
        """Whether everything up to this number has left and been answered."""
        waiting = self._waiting[0][0] if self._waiting else number + 1
        unanswered = min(self._unacknowledged, default=number + 1)
        return min(waiting, unanswered) > number

    def connection_lost(self) -> int:
        """Drop what has not been sent; what was sent stays for a second try. Returns the messages dropped."""
        dropped = sum(isinstance(item, Outgoing) for _, item in self._waiting)
        self._waiting.clear()
        self.lost += dropped
        return dropped

    def refit(self, *, window: int, packet_bytes_max: int | None) -> tuple[Outgoing, ...] | None:
        """Adopt the limits of a new connection, which may be tighter than those of the one before.

        Returns:
            None when the unacknowledged messages keep within them and may be sent again as they are. Otherwise all
            of them wait in line once more, except those too large for this broker, which are returned.
        """
        self.window = window

        def fits(item: Outgoing) -> bool:
            return packet_bytes_max is None or item.packet_bytes <= packet_bytes_max

        if len(self._unacknowledged) <= window and all(fits(item) for item in self._unacknowledged.values()):
            return None
        again = [(number, item) for number, item in self._unacknowledged.items() if fits(item)]
        too_large = tuple(item for item in self._unacknowledged.values() if not fits(item))
        self._unacknowledged.clear()
        self._waiting.extendleft(reversed(again))
        self.lost += len(too_large)
        return too_large
