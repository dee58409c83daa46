"""Connections that break as real ones do, between runners and the broker in memory, in virtual time.

A client's messages travel in order, each with the latency of the moment. When a connection breaks, what is on its way
is lost in both directions; the client and the broker find out, each after a time of its own (a cable pulled in between
tells neither). What the client had sent and the broker had not confirmed is sent again with the next connection, as
QoS 1 demands, so what arrived without its confirmation arrives twice.

What goes wrong besides is asked of `Weather` message by message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from hermes_iot.errors import BrokerError
from hermes_iot.runtime.simulation.clock import Timer, VirtualClock
from hermes_iot.transport.base import Connected, Delivery, Disconnected, OnEvent, TransportEvent, Will
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport

#: Publishes the broker may have yet to confirm, as in `transport.mqtt`.
WINDOW: Final = 20
#: Seconds from one try to connect to the next.
REDIAL_S: Final = 0.5


class Weather(Protocol):
    """What may happen to a message; `client` is whose connection it is on."""

    def latency_s(self, client: str) -> float:
        """Seconds one way, now."""

    def copies_up(self, client: str, topic: str) -> int:
        """How often a message of the client reaches the broker."""

    def copies_down(self, client: str, topic: str, payload: bytes) -> int:
        """How often a message of the broker reaches the client."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Line:
    """Between one client and the broker, whatever process uses it."""

    down_since: float | None = None
    transport: FaultyTransport | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Sent:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    expiry_s: int | None


@dataclass(slots=True, kw_only=True, eq=False)
class _Lane:
    """One direction: nothing overtakes. Mutable."""

    free_at: float = 0.0

    def arrival(self, now: float, latency_s: float) -> float:
        """When what is sent now arrives."""
        self.free_at = max(self.free_at, now + latency_s)
        return self.free_at


class FaultyNetwork:
    """The broker, and the lines to it. Mutable.

    Attributes:
        up: whether the broker runs.
    """

    def __init__(self, clock: VirtualClock, weather: Weather, *, queued_messages_max: int) -> None:
        self.clock = clock
        self.weather = weather
        self.broker = MemoryBroker(clock=clock, queued_messages_max=queued_messages_max)
        self.up = True
        self._lines: dict[str, _Line] = {}
        self._timer = Timer(clock, self._expire)

    def line(self, client_id: str) -> _Line:
        """The one of this client."""
        return self._lines.setdefault(client_id, _Line())

    def look(self, client_id: str) -> MemoryTransport:
        """A short look beside the broker, without any line.

        Raises:
            BrokerError: the broker is away.
        """
        self.check(client_id)
        return MemoryTransport(self.broker, client_id=client_id)

    def check(self, client_id: str) -> None:
        """Whether it can be reached.

        Raises:
            BrokerError: it cannot.
        """
        if not self.up or self.line(client_id).down_since is not None:
            raise BrokerError("the broker cannot be reached")

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def break_line(self, client_id: str, *, for_s: float, noticed_s: float, missed_s: float) -> None:
        """A line is down for a while; its client notices after `noticed_s`, the broker after `missed_s`."""
        line = self.line(client_id)
        if line.down_since is not None:
            return
        line.down_since = self.clock.now
        transport = line.transport
        if transport is not None:
            transport.broken(noticed_s=noticed_s)
            self.clock.at(self.clock.now + missed_s, partial(self._missed, client_id, transport))
        self.clock.at(self.clock.now + for_s, partial(self._mended, line))

    def crash_broker(self, retained: dict[str, bytes], *, for_s: float) -> None:
        """The broker dies and comes back with so much of what it had retained."""
        if not self.up:
            return
        self.up = False
        self.broker.crash(retained)
        for line in self._lines.values():
            if line.transport is not None:
                line.transport.broken(noticed_s=0.0)
        self.clock.at(self.clock.now + for_s, self._back)

    def again(self, client_id: str, topic: str, payload: bytes) -> None:
        """Something old is delivered to a client once more, if it is there."""
        transport = self.line(client_id).transport
        if transport is not None:
            transport.again(topic, payload)

    def heal(self) -> None:
        """Everything that is broken is mended."""
        self.up = True
        for line in self._lines.values():
            line.down_since = None

    def settle(self) -> None:
        """Somebody has gone: wills and sessions may be due at another time than before."""
        self._timer.set(self.broker.next_deadline())

    def _missed(self, client_id: str, transport: FaultyTransport) -> None:
        """The broker gives a silent connection up, unless the client has come back meanwhile."""
        if transport.is_up or self.line(client_id).transport is not transport:
            return
        self.broker.drop(client_id)
        self.settle()

    @staticmethod
    def _mended(line: _Line) -> None:
        line.down_since = None

    def _back(self) -> None:
        self.up = True

    def _expire(self) -> None:
        self.broker.expire()
        self.settle()


class FaultyTransport:
    """One client's connection, over all its breaks; implements `Transport`.

    Args:
        network: the broker's.
        client_id: who we are.
        will: said by the broker when we vanish.
        session_expiry_s, manual_ack: see `transport.memory`.
        before_send: called with topic and payload before anything is sent; it may raise to end the process there.
        heard: called after every event.
    """

    def __init__(
        self,
        network: FaultyNetwork,
        *,
        client_id: str,
        will: Will,
        session_expiry_s: int = 0,
        manual_ack: bool = False,
        before_send: Callable[[str, bytes], None] = lambda _topic, _payload: None,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._network = network
        self._clock = network.clock
        self._client = client_id
        self._before_send = before_send
        self._heard = heard
        self._inner = MemoryTransport(
            network.broker, client_id=client_id, will=will, session_expiry_s=session_expiry_s, manual_ack=manual_ack
        )
        self._up, self._down = _Lane(), _Lane()
        self._window: deque[_Sent] = deque()
        self._connection = 0
        self._connected = False  # as the client sees it
        self._on_event: OnEvent | None = None
        self.is_up = False

    # --- Transport --------------------------------------------------------------------------------------------------

    def start(self, on_event: OnEvent, *, timeout_s: float) -> None:  # noqa: ARG002 - Transport's signature
        """Connect.

        Raises:
            BrokerError: the broker or the line is away.
        """
        self._network.check(self._client)
        line = self._network.line(self._client)
        if line.transport is not None:
            line.transport.replaced()
        line.transport = self
        self._on_event = on_event
        self.is_up = True
        self._network.broker.restore(self._client)
        self._inner.start(self._from_broker, timeout_s=0.0)
        self._network.settle()

    def reconnect(self) -> None:
        """The transport goes on trying by itself."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Send one message on its way. False where there is no connection."""
        if not self._connected:
            return False
        self._before_send(topic, payload)
        sent = _Sent(topic=topic, payload=payload, qos=qos, retain=retain, expiry_s=expiry_s)
        if qos:
            self._window.append(sent)
        self._send(sent)
        return True

    def subscribe(self, topics: tuple[str, ...]) -> None:
        """Subscribe, in order with what is published; remembered for every connection to come."""
        self._in_order(partial(self._inner.subscribe, topics))

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Unsubscribe likewise."""
        self._in_order(partial(self._inner.unsubscribe, topics))

    def room(self, *, messages: int) -> bool:  # noqa: ARG002 - Transport's signature
        """A line of this kind takes whatever it is given."""
        return True

    def acknowledge(self, receipts: Sequence[int]) -> None:
        """The broker may forget these deliveries."""
        if self._connected:
            self._in_order(partial(self._inner.acknowledge, receipts))

    def flush(self, *, timeout_s: float) -> bool:  # noqa: ARG002 - Transport's signature
        """Nobody waits in virtual time: what was accepted is on its way."""
        return True

    def close(self) -> None:
        """Say goodbye behind what was sent before; nothing is heard from now on."""
        self._on_event, self._connected = None, False
        self._at(self._up, self._goodbye)

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def broken(self, *, noticed_s: float) -> None:
        """The connection is gone, and what was on its way with it."""
        if not self.is_up:
            return
        self.is_up = False
        self._connection += 1
        self._clock.at(self._clock.now + noticed_s, partial(self._notice, self._connection))

    def killed(self, *, missed_s: float) -> None:
        """The process is gone without a word. What it had handed to the kernel is lost; the broker finds out later."""
        self._forget()
        self._clock.at(self._clock.now + missed_s, self._vanish)

    def replaced(self) -> None:
        """Another process has come under our name: the broker ends our connection."""
        self._forget()
        self._vanish()

    def _forget(self) -> None:
        self._on_event, self._connected = None, False
        self._connection += 1
        self.is_up = False

    def _vanish(self) -> None:
        self._inner.vanish()
        self._network.settle()

    def _goodbye(self) -> None:
        self._inner.close()
        self.is_up = False
        self._network.settle()

    def _notice(self, connection: int) -> None:
        if connection != self._connection or self._on_event is None:
            return
        self._connected = False
        self._tell(Disconnected(reason="connection lost"))
        self._clock.at(self._clock.now + REDIAL_S, self._redial)

    def _redial(self) -> None:
        if self._on_event is None or self.is_up:
            return
        try:
            self._network.check(self._client)
        except BrokerError:
            self._clock.at(self._clock.now + REDIAL_S, self._redial)
            return
        self.is_up = True
        self._network.broker.drop(self._client)  # where it had not noticed yet: we take our own place
        self._network.broker.restore(self._client)
        self._network.settle()

    # --- on the way -------------------------------------------------------------------------------------------------

    def _in_order(self, call: Callable[[], None]) -> None:
        if self.is_up:
            self._at(self._up, call)
        else:
            call()  # remembered for the connection that is still to come

    def _at(self, lane: _Lane, call: Callable[[], None]) -> None:
        arrival = lane.arrival(self._clock.now, self._network.weather.latency_s(self._client))
        self._clock.at(arrival, partial(self._if_still, self._connection, call))

    def _if_still(self, connection: int, call: Callable[[], None]) -> None:
        if connection == self._connection:
            call()

    def _send(self, sent: _Sent) -> None:
        self._at(self._up, partial(self._arrived, sent))

    def _arrived(self, sent: _Sent) -> None:
        for _ in range(self._network.weather.copies_up(self._client, sent.topic)):
            self._inner.publish(sent.topic, sent.payload, qos=sent.qos, retain=sent.retain, expiry_s=sent.expiry_s)
        if sent.qos:
            self._at(self._down, partial(self._confirmed, sent))

    def _confirmed(self, sent: _Sent) -> None:
        if sent in self._window:
            self._window.remove(sent)

    def _from_broker(self, event: TransportEvent) -> None:
        """The broker has something for this client: it is on its way."""
        match event:
            case Delivery(topic=topic, payload=payload) if self.is_up:
                for _ in range(self._network.weather.copies_down(self._client, topic, payload)):
                    self._at(self._down, partial(self._come, event))
            case Connected():
                self._at(self._down, partial(self._come, event))
            case Disconnected() if event.taken_over:
                self._at(self._down, partial(self._come, event))

    def again(self, topic: str, payload: bytes) -> None:
        """Something old is delivered once more."""
        if self.is_up:
            self._at(self._down, partial(self._come, Delivery(topic=topic, payload=payload)))

    def _come(self, event: TransportEvent) -> None:
        if isinstance(event, Connected):
            self._connected = True
            again = list(self._window)[:WINDOW]
            self._window = deque(again)
            for sent in again:
                self._send(sent)
        self._tell(event)

    def _tell(self, event: TransportEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
            self._heard()
