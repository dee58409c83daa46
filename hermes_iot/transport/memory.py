"""An MQTT broker in this process, for tests and for the virtual-time simulator.

It keeps what the machines rely on - retained messages, wills, take-over, sessions, packet limit - and nothing else.
No thread and no socket: `publish` delivers before it returns.

Decisions:

- *No callback under the lock.* An operation changes state and appends events to one queue under the lock; then the
  queue is emptied outside it by one thread at a time. So a callback may take any lock of its own, and whoever
  publishes while another thread is delivering leaves the event to that thread. With one thread (the simulator) all
  is synchronous and the order is that of the calls; subscribers of one message are served exact filters first, then
  wildcards, each in the order of subscription.
- *Time is the caller's.* Message expiry is judged against the injected clock at delivery. Delayed wills and ending
  sessions are timers that are pulled, as in the machines: `next_deadline()`, `expire()`. The default clock stands
  still: nothing expires and a delayed will stays pending until its session is replaced.
- *One copy.* A client whose filters overlap gets a live message once.
- *Take-over* follows section 3.1.2.5 of MQTT 5.0: an undelayed will is published; a delayed one is dropped when the
  session goes on and published when a clean start ends it. Mosquitto 2.0.11 publishes it only where the old session
  had no expiry (measured), so nothing may be built on a will at a take-over.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hermes_iot.errors import BrokerError
from hermes_iot.transport import rules
from hermes_iot.transport.base import Connected, Delivery, Disconnected, OnEvent, TransportEvent, Will

_log = logging.getLogger(__name__)

#: Topics whose matching wildcards are remembered; beyond it, it begins anew.
_TOPICS_REMEMBERED_MAX: Final = 200_000


@dataclass(slots=True, kw_only=True)
class _Message:
    """A message at rest: retained, or queued for a client that is away. Never changed; to freeze it costs too much."""

    topic: str
    payload: bytes
    expires_at: float | None

    def alive(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


@dataclass(slots=True, kw_only=True, eq=False)
class _Link:
    """The client's end, from `start` to `close`: it remembers, and comes back after a loss."""

    client_id: str
    on_event: OnEvent
    will: Will | None
    session_expiry_s: int
    filters: dict[str, None]
    manual_ack: bool = False
    forgotten: dict[str, None] = field(default_factory=dict)
    connected: bool = False
    closed: bool = False
    warned: bool = False

    def emit(self, event: TransportEvent) -> None:
        try:
            self.on_event(event)
        except Exception:  # noqa: BLE001 - a subscriber's fault is not the publisher's
            _log.exception("event=callback_failed client=%s on=%s", self.client_id, type(event).__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class _Session:
    """The broker's end: what it knows of one client id."""

    expiry_s: int
    link: _Link | None = None
    filters: dict[str, None] = field(default_factory=dict)
    queue: deque[_Message] = field(default_factory=deque)
    unacknowledged: dict[int, _Message] = field(default_factory=dict)  # receipt -> message, oldest first
    will: Will | None = None
    will_at: float | None = None
    ends_at: float | None = None


class _Subscriptions:
    """Who wants a topic. Ten thousand devices subscribe to exact topics: those are looked up, not searched.

    Filters with wildcards are few and long-lived, so which of them match a topic is remembered.
    """

    def __init__(self) -> None:
        self._exact: dict[str, dict[_Session, None]] = {}
        self._wildcard: dict[str, dict[_Session, None]] = {}
        self._matching: dict[str, tuple[str, ...]] = {}

    def add(self, session: _Session, topic_filter: str) -> None:
        session.filters[topic_filter] = None
        table = self._table(topic_filter)
        if topic_filter not in table:
            table[topic_filter] = {}
            self._changed(table)
        table[topic_filter][session] = None

    def remove(self, session: _Session, topic_filter: str) -> None:
        if session.filters.pop(topic_filter, self) is self:
            return
        table = self._table(topic_filter)
        del table[topic_filter][session]
        if not table[topic_filter]:
            del table[topic_filter]
            self._changed(table)

    def wanting(self, topic: str) -> list[_Session]:
        exact = self._exact.get(topic, {})
        filters = self._matching.get(topic)
        if filters is None:
            if len(self._matching) >= _TOPICS_REMEMBERED_MAX:
                self._matching.clear()
            filters = tuple(one for one in self._wildcard if rules.matches(one, topic))
            self._matching[topic] = filters
        if not filters:
            return list(exact)
        if not exact and len(filters) == 1:
            return list(self._wildcard[filters[0]])
        found = dict(exact)
        for topic_filter in filters:
            found.update(self._wildcard[topic_filter])
        return list(found)

    def _changed(self, table: dict[str, dict[_Session, None]]) -> None:
        if table is self._wildcard:
            self._matching.clear()

    def _table(self, topic_filter: str) -> dict[str, dict[_Session, None]]:
        return self._wildcard if rules.has_wildcard(topic_filter) else self._exact


class MemoryBroker:
    """The broker. Tests and the simulator use `drop`, `restore`, `retained` and the timers; the rest is for clients.

    Args:
        packet_bytes_max: Maximum Packet Size told to clients; None for no limit.
        queued_messages_max: messages kept for one absent client; later ones are dropped and counted, as Mosquitto
            does, while publishers see success.
        clock: seconds, monotonic. The default stands still.

    Attributes:
        dropped: messages that found a full queue.
    """

    def __init__(
        self,
        *,
        packet_bytes_max: int | None = None,
        queued_messages_max: int = 1_000,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.dropped = 0
        self._packet_bytes_max = packet_bytes_max
        self._queued_messages_max = queued_messages_max
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        self._absent: dict[str, _Session] = {}
        self._subscriptions = _Subscriptions()
        self._retained: dict[str, _Message] = {}
        self._cut: set[str] = set()
        self._waiting: dict[str, _Link] = {}
        # (when, number, client): entries whose time is no longer the session's are skipped when they come up.
        self._timers: list[tuple[float, int, str]] = []
        self._timer_number = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._events: deque[tuple[_Link, TransportEvent]] = deque()
        self._deliverer: int | None = None
        self._receiving: _Link | None = None
        self._receipt = 0
        self._leaving = 0  # threads that wait for their last event to be over

    # Tests and the simulator

    @property
    def retained(self) -> Mapping[str, bytes]:
        """The retained messages now: topic -> payload."""
        with self._lock:
            now = self._clock()
            return {topic: message.payload for topic, message in self._retained.items() if message.alive(now)}

    def drop(self, client_id: str) -> None:
        """Cut this client's line: it hears `Disconnected`, its will goes out, and `start` fails until `restore`."""
        with self._lock:
            self._cut.add(client_id)
            session = self._sessions.get(client_id)
            if session is not None and session.link is not None:
                self._waiting[client_id] = session.link
                self._lose(client_id, session, Disconnected(reason="connection lost"))
        self._deliver()

    def restore(self, client_id: str) -> None:
        """Mend the line; a client that waits for it connects at once."""
        with self._lock:
            self._cut.discard(client_id)
            link = self._waiting.pop(client_id, None)
            if link is not None:
                self._join(link)
        self._deliver()

    def crash(self, retained: Mapping[str, bytes]) -> None:
        """Die and come back with so much of what was retained: no will goes out, no session and no queue is left.

        Every client hears `Disconnected`; each comes back with `restore`, and `start` fails until then.
        """
        with self._lock:
            for client_id, session in self._sessions.items():
                if session.link is not None:
                    self._cut.add(client_id)
                    self._waiting[client_id] = session.link
                    session.link.connected = False
                    self._events.append((session.link, Disconnected(reason="connection lost")))
            self._sessions.clear()
            self._absent.clear()
            self._timers.clear()
            self._subscriptions = _Subscriptions()
            self._retained = {
                topic: _Message(topic=topic, payload=payload, expires_at=None) for topic, payload in retained.items()
            }
        self._deliver()

    def next_deadline(self) -> float | None:
        """When `expire` has something to do next; None for never."""
        with self._lock:
            while self._timers and not self._is_due(self._timers[0]):
                heapq.heappop(self._timers)
            return self._timers[0][0] if self._timers else None

    def expire(self) -> None:
        """Publish the wills and end the sessions that are due by the clock, in the order they fell due."""
        with self._lock:
            self._expire()
        self._deliver()

    # Clients

    def connect(self, link: _Link) -> None:
        """A client dials.

        Raises:
            BrokerError: its line is cut.
        """
        with self._lock:
            if link.client_id in self._cut:
                raise BrokerError("the broker cannot be reached", why=f"the line of {link.client_id} is cut")
            if not link.connected:
                self._join(link)
        self._deliver()

    def reconnect(self, link: _Link) -> None:
        """A client that was taken over, or lost, dials again; with its line cut it waits for `restore`."""
        with self._lock:
            if link.client_id in self._cut:
                self._waiting[link.client_id] = link
            elif not link.connected:
                self._join(link)
        self._deliver()

    def leave(self, link: _Link) -> None:
        """A client disconnects cleanly: no will, and no event once this returns."""
        with self._lock:
            link.closed = True
            if self._waiting.get(link.client_id) is link:
                del self._waiting[link.client_id]
            if link.connected:
                session = self._sessions[link.client_id]
                session.will = None
                self._lose(link.client_id, session, None)
            if self._deliverer != threading.get_ident():
                self._leaving += 1
                self._changed.wait_for(lambda: self._receiving is not link)
                self._leaving -= 1
        self._deliver()

    def forsake(self, link: _Link) -> None:
        """A client is gone without a word, and for good: its will goes out, and it hears nothing any more."""
        with self._lock:
            link.closed = True
            if self._waiting.get(link.client_id) is link:
                del self._waiting[link.client_id]
            if link.connected:
                self._lose(link.client_id, self._sessions[link.client_id], None)
        self._deliver()

    def publish(self, link: _Link, topic: str, payload: bytes, *, qos: int, retain: bool, expiry_s: int | None) -> bool:
        """A client publishes; False when it is not connected or the packet is over the limit."""
        with self._lock:
            if not link.connected:
                return False
            if self._too_large(link, topic, payload, qos=qos, expiry_s=expiry_s):
                return False
            expires_at = None if expiry_s is None else self._clock() + expiry_s
            self._route(_Message(topic=topic, payload=payload, expires_at=expires_at), qos=qos, retain=retain)
        self._deliver()
        return True

    def _too_large(self, link: _Link, topic: str, payload: bytes, *, qos: int, expiry_s: int | None) -> bool:
        limit = self._packet_bytes_max
        if limit is None:
            return False
        packet_bytes = rules.publish_packet_bytes(topic, payload, qos=qos, expiry_s=expiry_s)
        if packet_bytes > limit and not link.warned:
            _log.error("event=too_large client=%s topic=%s bytes=%d", link.client_id, topic, packet_bytes)
            link.warned = True
        return packet_bytes > limit

    def acknowledge(self, link: _Link, receipts: Sequence[int]) -> None:
        """A client says that these deliveries are safe with it."""
        with self._lock:
            session = self._sessions.get(link.client_id)
            if session is not None and session.link is link:
                for receipt in receipts:
                    session.unacknowledged.pop(receipt, None)

    def subscribe(self, link: _Link, topics: tuple[str, ...]) -> None:
        """A client subscribes, now or as soon as it is connected."""
        with self._lock:
            for topic in topics:
                link.filters[topic] = None
                link.forgotten.pop(topic, None)
                if link.connected:
                    self._subscribe(self._sessions[link.client_id], link, topic)
        self._deliver()

    def unsubscribe(self, link: _Link, topics: tuple[str, ...]) -> None:
        """A client forgets subscriptions, now or as soon as it is connected."""
        with self._lock:
            for topic in topics:
                link.filters.pop(topic, None)
                if link.connected:
                    self._subscriptions.remove(self._sessions[link.client_id], topic)
                else:
                    link.forgotten[topic] = None

    # Under the lock

    def _join(self, link: _Link) -> None:
        """Connect a link: take over, resume or begin its session, then bring it up to date."""
        self._expire()
        client_id, now = link.client_id, self._clock()
        session = self._sessions.get(client_id)
        if session is not None and session.link is not None:
            self._lose(client_id, session, Disconnected(reason="session taken over", taken_over=True))
            session = self._sessions.get(client_id)
        if session is not None and link.session_expiry_s == 0:
            self._end(client_id, session)
            session = None
        if session is None:
            session = self._sessions[client_id] = _Session(expiry_s=link.session_expiry_s)
        self._absent.pop(client_id, None)
        session.link, session.will, session.expiry_s = link, link.will, link.session_expiry_s
        session.will_at = session.ends_at = None
        link.connected = True
        self._events.append((link, Connected(packet_bytes_max=self._packet_bytes_max)))
        for topic in link.forgotten:
            self._subscriptions.remove(session, topic)
        link.forgotten.clear()
        again, session.unacknowledged = session.unacknowledged, {}
        for message in again.values():  # whatever its age: it was delivered in time
            self._hand_on(session, link, message, qos=1)
        while session.queue:
            message = session.queue.popleft()
            if message.alive(now):
                self._hand_on(session, link, message, qos=1)
        for topic in link.filters:
            self._subscribe(session, link, topic)

    def _lose(self, client_id: str, session: _Session, event: Disconnected | None) -> None:
        """The network connection of a session ends; `event` tells the client, None when it asked for it."""
        link, now = session.link, self._clock()
        if link is None:
            return
        session.link = None
        link.connected = False
        self._absent[client_id] = session
        if event is not None:
            self._events.append((link, event))
        session.ends_at = now + session.expiry_s
        if session.will is not None:
            session.will_at = now + session.will.delay_s
            if session.will.delay_s == 0:
                self._publish_will(session)
            else:
                self._remind(client_id, session.will_at)
        if session.expiry_s == 0:
            self._end(client_id, session)
        else:
            self._remind(client_id, session.ends_at)

    def _end(self, client_id: str, session: _Session) -> None:
        self._publish_will(session)
        for topic in tuple(session.filters):
            self._subscriptions.remove(session, topic)
        del self._sessions[client_id]
        self._absent.pop(client_id, None)

    def _publish_will(self, session: _Session) -> None:
        will, session.will, session.will_at = session.will, None, None
        if will is not None:
            self._route(_Message(topic=will.topic, payload=will.payload, expires_at=None), qos=1, retain=True)

    def _route(self, message: _Message, *, qos: int, retain: bool) -> None:
        if retain and message.payload:
            self._retained[message.topic] = message
        elif retain:
            self._retained.pop(message.topic, None)
        live = Delivery(topic=message.topic, payload=message.payload)  # one for all who need not acknowledge theirs
        for session in self._subscriptions.wanting(message.topic):
            link = session.link
            if link is not None and not (link.manual_ack and qos):
                self._events.append((link, live))
            elif link is not None:
                self._hand_on(session, link, message, qos=qos)
            elif qos and len(session.queue) < self._queued_messages_max:
                session.queue.append(message)
            elif qos:
                self.dropped += 1

    def _hand_on(self, session: _Session, link: _Link, message: _Message, *, qos: int, retain: bool = False) -> None:
        receipt = 0
        if link.manual_ack and qos:
            self._receipt = receipt = self._receipt + 1
            session.unacknowledged[receipt] = message
        self._events.append(
            (link, Delivery(topic=message.topic, payload=message.payload, retain=retain, receipt=receipt))
        )

    def _subscribe(self, session: _Session, link: _Link, topic_filter: str) -> None:
        self._subscriptions.add(session, topic_filter)
        now = self._clock()
        exact = () if rules.has_wildcard(topic_filter) else (topic_filter,)
        for topic in exact or tuple(self._retained):
            message = self._retained.get(topic)
            if message is not None and message.alive(now) and rules.matches(topic_filter, topic):
                self._hand_on(session, link, message, qos=1, retain=True)

    def _expire(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)
            if not self._is_due(timer):
                continue
            client_id = timer[2]
            session = self._absent[client_id]
            self._publish_will(session)
            if session.ends_at is not None and session.ends_at <= now:
                self._end(client_id, session)

    def _remind(self, client_id: str, at: float) -> None:
        self._timer_number += 1
        heapq.heappush(self._timers, (at, self._timer_number, client_id))

    def _is_due(self, timer: tuple[float, int, str]) -> bool:
        """Whether it is still the time of a will or an end: the client may have come back, or gone anew."""
        at, _, client_id = timer
        session = self._absent.get(client_id)
        return session is not None and at in (session.will_at, session.ends_at)

    # Outside the lock

    def _deliver(self) -> None:
        """Run the callbacks of the queued events, oldest first, unless somebody (ourselves, even) is at it."""
        with self._lock:
            if self._deliverer is not None:
                return
            self._deliverer = threading.get_ident()
        try:
            while (waiting := self._next_event()) is not None:
                link, event = waiting
                link.emit(event)
        except BaseException:
            with self._lock:
                self._rest()
            raise

    def _next_event(self) -> tuple[_Link, TransportEvent] | None:
        """Take the oldest event whose receiver still listens; with the last one gone, delivering is over."""
        with self._lock:
            self._receiving = None
            if self._leaving:
                self._changed.notify_all()
            while self._events:
                link, event = self._events.popleft()
                if not link.closed:
                    self._receiving = link
                    return link, event
            self._rest()
            return None

    def _rest(self) -> None:
        self._deliverer = self._receiving = None
        if self._leaving:
            self._changed.notify_all()


class MemoryTransport:
    """One client of a `MemoryBroker`; implements `Transport`.

    Args:
        broker: the broker to connect to.
        client_id: who we are; a second client with the same id takes over.
        will: published by the broker when we vanish.
        session_expiry_s: seconds the broker keeps our subscriptions and queues QoS-1 messages while we are away;
            at least the will's delay.
        manual_ack: deliveries are acknowledged by `acknowledge` alone.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        *,
        client_id: str,
        will: Will | None = None,
        session_expiry_s: int = 0,
        manual_ack: bool = False,
    ) -> None:
        self._broker = broker
        self._manual_ack = manual_ack
        self._client_id = client_id
        self._will = will
        self._session_expiry_s = rules.session_lasts_s(session_expiry_s, will)
        self._filters: dict[str, None] = {}
        self._link: _Link | None = None
        self._closed = False

    def start(self, on_event: OnEvent, *, timeout_s: float) -> None:  # noqa: ARG002 - Transport's signature
        """Connect; `Connected` has been delivered when this returns. A transport lives once, as the one over MQTT does.

        Raises:
            BrokerError: the line of this client is cut.
        """
        if self._link is not None or self._closed:
            raise RuntimeError("a transport is started once")
        link = _Link(
            client_id=self._client_id,
            on_event=on_event,
            will=self._will,
            session_expiry_s=self._session_expiry_s,
            filters=self._filters,
            manual_ack=self._manual_ack,
        )
        self._broker.connect(link)
        self._link = link

    def reconnect(self) -> None:
        """Connect again after a take-over."""
        if self._link is not None:
            self._broker.reconnect(self._link)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Hand over one message; it is delivered before this returns. False when it was not accepted."""
        rules.check_publish(topic, qos=qos, expiry_s=expiry_s)
        if self._link is None:
            return False
        return self._broker.publish(self._link, topic, bytes(payload), qos=qos, retain=retain, expiry_s=expiry_s)

    def room(self, *, messages: int) -> bool:
        """Always: what is accepted has been delivered."""
        return messages > 0

    def subscribe(self, topics: tuple[str, ...]) -> None:
        """Subscribe, now or at the next connection."""
        for topic in topics:
            rules.check_filter(topic)
        if self._link is None:
            self._filters.update(dict.fromkeys(topics))
        else:
            self._broker.subscribe(self._link, topics)

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Forget subscriptions, now or at the next connection."""
        if self._link is None:
            for topic in topics:
                self._filters.pop(topic, None)
        else:
            self._broker.unsubscribe(self._link, topics)

    def acknowledge(self, receipts: Sequence[int]) -> None:
        """The broker may forget these deliveries."""
        if self._link is not None:
            self._broker.acknowledge(self._link, receipts)

    def flush(self, *, timeout_s: float) -> bool:  # noqa: ARG002 - Transport's signature
        """Nothing is ever outstanding here: a publish that was accepted was delivered."""
        return True

    def vanish(self) -> None:
        """End as a process without power does: the broker has found out, publishes the will, and never sees us again."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            self._broker.forsake(link)

    def close(self) -> None:
        """Disconnect cleanly; may be called twice."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            self._broker.leave(link)
