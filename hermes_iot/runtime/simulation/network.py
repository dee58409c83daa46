"""Links between boards and the broker: what is published arrives later, one thing after another.

A board's publish waits until what it sent before is on the wire, takes ``bytes * 8 / bandwidth``, and reaches the
broker's memory (`transport.memory`) after the latency; a delivery comes back likewise on a line of its own. The bytes
that take time are those of the MQTT packet, framing included. CONNECT, SUBSCRIBE, acks and pings take the latency and
keep their place in the order, and weigh nothing.

The coordinator sits beside the broker: its messages take no time. What is on its way when a connection ends is lost,
which is more than a real TCP connection loses; the machines ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np

from hermes_iot.runtime.simulation.clock import Timer, VirtualClock
from hermes_iot.runtime.simulation.ledger import Ledger
from hermes_iot.runtime.simulation.profiles import LinkProfile
from hermes_iot.transport.base import Connected, Delivery, Disconnected, OnEvent, TransportEvent, Will
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from hermes_iot.transport.rules import publish_packet_bytes

#: Payload of a TCP segment on Ethernet and Wi-Fi.
SEGMENT_BYTES: Final = 1460
_BITS: Final = 8
_MEGA: Final = 1e6


class Line:
    """One direction of a link. Mutable: it is busy until `free_at`.

    Args:
        mbit: 10^6 bits a second.
        latency_s: of every packet, on top of its time on the wire.
        loss: chance that a segment must be sent again. Each time costs a round trip, in which the receiver waits for
            the missing segment as TCP keeps the order, and the segment's time on the wire once more.
        chance: draws the losses.
    """

    __slots__ = ("_bytes_per_s", "_chance", "_latency_s", "_loss", "free_at")

    def __init__(self, mbit: float, *, latency_s: float, loss: float, chance: np.random.Generator | None) -> None:
        self.free_at = 0.0
        self._bytes_per_s = mbit * _MEGA / _BITS
        self._latency_s = latency_s
        self._loss = loss
        self._chance = chance

    def transfer(self, size: int, *, now: float) -> float:
        """Send so many bytes, behind those before; when they have arrived."""
        wire_s = size / self._bytes_per_s
        if self._loss and size and self._chance is not None:
            segments = -(-size // SEGMENT_BYTES)
            again = int(self._chance.negative_binomial(segments, 1 - self._loss))
            wire_s += again * (2 * self._latency_s + min(size, SEGMENT_BYTES) / self._bytes_per_s)
        self.free_at = max(now, self.free_at) + wire_s
        return self.free_at + self._latency_s


class Network:
    """The broker and what it needs of the simulation: its clock, its timer, and the ledger.

    Attributes:
        broker: the memory of all that is retained.
    """

    def __init__(self, clock: VirtualClock, ledger: Ledger) -> None:
        self.clock = clock
        self.ledger = ledger
        self.broker = MemoryBroker(clock=clock)
        self._timer = Timer(clock, self._expire)
        self._weighed: tuple[str, bytes, int] = ("", b"", 0)

    def weight_of(self, delivery: Delivery) -> int:
        """Bytes of a delivery's packet. One said to everybody is weighed once."""
        topic, payload, size = self._weighed
        if payload is not delivery.payload or topic != delivery.topic:
            size = publish_packet_bytes(delivery.topic, delivery.payload, qos=1, expiry_s=None)
            self._weighed = delivery.topic, delivery.payload, size
        return size

    def beside(self, client_id: str, will: Will) -> MemoryTransport:
        """A client on the broker's own machine."""
        return MemoryTransport(self.broker, client_id=client_id, will=will)

    def over(self, link: LinkProfile, client_id: str, will: Will, chance: np.random.Generator | None) -> LinkTransport:
        """A client at the other end of a link."""
        return LinkTransport(self, link, client_id, will, chance)

    def settle(self) -> None:
        """Somebody has gone: wills and sessions may be due at another time than before."""
        self._timer.set(self.broker.next_deadline())

    def _expire(self) -> None:
        self.broker.expire()
        self.settle()


class LinkTransport:
    """One client behind a link; implements `Transport`."""

    def __init__(
        self, network: Network, link: LinkProfile, client_id: str, will: Will, chance: np.random.Generator | None
    ) -> None:
        self._network = network
        self._clock = network.clock
        self._inner = MemoryTransport(network.broker, client_id=client_id, will=will)
        self._up = Line(link.up_mbit, latency_s=link.latency_s, loss=link.loss, chance=chance)
        self._down = Line(link.down_mbit, latency_s=link.latency_s, loss=link.loss, chance=chance)
        self._notice_s = link.notice_s
        self._bytes = network.ledger.link(client_id)
        self._on_event: OnEvent | None = None
        self._started = self._connected = False
        self._powered = True

    def start(self, on_event: OnEvent, *, timeout_s: float) -> None:  # noqa: ARG002 - Transport's signature
        """Dial; `Connected` comes a round trip later."""
        self._on_event = on_event
        self._started = True
        self._send(0, self._dial)

    def reconnect(self) -> None:
        """Dial again."""
        self._send(0, self._inner.reconnect)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Put one message on the line. False where there is no connection."""
        if not self._connected:
            return False
        size = publish_packet_bytes(topic, payload, qos=qos, expiry_s=expiry_s)
        self._send(size, partial(self._arrived, topic, payload, size, qos=qos, retain=retain, expiry_s=expiry_s))
        return True

    def room(self, *, messages: int) -> bool:
        """Always: how long what is accepted takes is the link's business."""
        return messages > 0

    def subscribe(self, topics: tuple[str, ...]) -> None:
        """Subscribe, in order with what is published."""
        self._in_order(partial(self._inner.subscribe, topics))

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Unsubscribe, in order with what is published."""
        self._in_order(partial(self._inner.unsubscribe, topics))

    def acknowledge(self, receipts: Sequence[int]) -> None:
        """The broker may forget these deliveries."""
        self._in_order(partial(self._inner.acknowledge, receipts))

    def flush(self, *, timeout_s: float) -> bool:  # noqa: ARG002 - Transport's signature
        """What was accepted is on its way; nobody waits for it here."""
        return True

    def close(self) -> None:
        """Say goodbye behind what was sent before; nothing is heard from now on."""
        self._on_event, self._connected = None, False
        self._send(0, self._goodbye)

    def cut(self) -> None:
        """Power is gone: what is on its way is lost, and the broker finds out by itself after a while."""
        self._on_event, self._connected = None, False
        self._powered = False
        self._clock.at(self._clock.now + self._notice_s, self._found_dead)

    def _in_order(self, call: Callable[[], None]) -> None:
        if self._started:
            self._send(0, call)
        else:
            call()  # remembered for the connection that is still to come

    def _send(self, size: int, call: Callable[[], None]) -> None:
        self._clock.at(self._up.transfer(size, now=self._clock.now), partial(self._if_powered, call))

    def _if_powered(self, call: Callable[[], None]) -> None:
        if self._powered:
            call()

    def _dial(self) -> None:
        self._inner.start(self._deliver, timeout_s=0.0)

    def _arrived(self, topic: str, payload: bytes, size: int, *, qos: int, retain: bool, expiry_s: int | None) -> None:
        self._network.ledger.came_up(self._bytes, topic, len(payload), size)
        self._inner.publish(topic, payload, qos=qos, retain=retain, expiry_s=expiry_s)

    def _deliver(self, event: TransportEvent) -> None:
        """The broker has something for this client: it is on its way."""
        size = self._network.weight_of(event) if isinstance(event, Delivery) else 0
        self._clock.at(self._down.transfer(size, now=self._clock.now), partial(self._come, event, size))

    def _come(self, event: TransportEvent, size: int) -> None:
        if self._on_event is None:
            return
        if isinstance(event, Delivery):
            self._network.ledger.came_down(self._bytes, event.topic, len(event.payload), size)
        elif isinstance(event, Connected | Disconnected):
            self._connected = isinstance(event, Connected)
        self._on_event(event)

    def _goodbye(self) -> None:
        self._inner.close()
        self._network.settle()

    def _found_dead(self) -> None:
        self._inner.vanish()
        self._network.settle()
