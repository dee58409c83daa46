"""What a transport promises: it moves bytes between topics and knows no messages.

Everything a transport has to say arrives through one callback as a frozen event, on whatever thread the transport
has. The callback must only enqueue: it must not block, publish or raise (an exception inside paho's thread would
end it, slow work there makes the broker drop the connection).

Promises every transport keeps, held by one contract suite:

- `publish` never blocks. It answers False when the message was not accepted (not connected, queue full); the
  caller owns the retry. Nothing is queued while disconnected: the machines publish again on `Connected`.
- Messages of one publisher on one topic arrive in order; QoS 1 may repeat them.
- `subscribe` is remembered and renewed after every reconnect, before `Connected` is reported a second time.
- Retained messages arrive with ``retain=True`` after each subscribe; live ones with ``retain=False``.
- The will is published by the broker when the connection ends without `close`.
- A transport made with `manual_ack` leaves it to its owner to say which deliveries are safe with him. What he has not
  said it of when the connection or the process ends is delivered again, if the session goes on.
- After `close` returns no event is delivered any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """A message the broker publishes (QoS 1, retained) when we vanish; `delay_s` after the loss was noticed."""

    topic: str
    payload: bytes
    delay_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A (re)connection is up and all remembered subscriptions were sent.

    Attributes:
        packet_bytes_max: the broker's Maximum Packet Size from CONNACK, None when it states none.
    """

    packet_bytes_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The connection is gone. The transport goes on trying by itself unless `taken_over` is set.

    Attributes:
        reason: one phrase for a person.
        taken_over: another client connected under our client id; the transport does not fight for it and waits
            for `Transport.reconnect`.
    """

    reason: str
    taken_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The broker refused a publish or a subscription (access list)."""

    topic: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message. `payload` is empty where a retained message was cleared.

    Attributes:
        receipt: what `Transport.acknowledge` takes; 0 where there is nothing to acknowledge.
    """

    topic: str
    payload: bytes
    retain: bool = False
    receipt: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Room:
    """There is room now where `Transport.room` said that there was none."""


TransportEvent: TypeAlias = Connected | Disconnected | Refused | Delivery | Room
OnEvent: TypeAlias = Callable[[TransportEvent], None]


class Transport(Protocol):
    """One client connection."""

    def start(self, on_event: OnEvent, *, timeout_s: float) -> None:
        """Connect, waiting at most `timeout_s` for the first CONNACK.

        Raises:
            BrokerError: unreachable, refused, bad TLS or credentials.
        """

    def reconnect(self) -> None:
        """Dial now: after a take-over, which ends the transport's own tries, or instead of waiting for the next one.

        Returns at once; `Connected` tells when it worked. Does nothing while connected.
        """

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Hand over one message. False when it was not accepted."""

    def room(self, *, messages: int) -> bool:
        """Whether fewer than so many messages are accepted and not yet answered by the broker.

        If not, a `Room` tells when half of them are: whoever has much to say hands it over in portions, and what is
        urgent never waits behind more than one. Asked again, the newest question counts.
        """

    def subscribe(self, topics: tuple[str, ...]) -> None:
        """Subscribe with QoS 1; `+` and `#` are allowed."""

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Forget subscriptions."""

    def acknowledge(self, receipts: Sequence[int]) -> None:
        """The broker may forget these deliveries; those of an earlier connection are passed over."""

    def flush(self, *, timeout_s: float) -> bool:
        """Wait until the broker has acknowledged everything accepted so far. False when time ran out."""

    def close(self) -> None:
        """Disconnect cleanly (no will) and stop all threads."""
