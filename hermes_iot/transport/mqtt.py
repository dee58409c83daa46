"""The transport over a real broker: MQTT 5, QoS 0 and 1. The only home of paho-mqtt.

Decisions:

- *One thread owns paho.* It is ours, not `loop_start`: it drives paho's loop for callers with their own event loop
  (`loop_read`, `loop_write`, `loop_misc`) and calls paho from nowhere else. paho's own thread sleeps through its
  back-off (so closing waits for it), dies of any exception it did not foresee and never returns, and lets a publish
  of another thread overtake the re-sends of a new connection. Callers only touch the outbox, under one lock, which is
  never held while paho or the callback runs.
- *Nothing waits for a connection.* What was accepted but not sent is dropped when the connection goes; the window
  of sent, unacknowledged messages is sent again (outbox.py says why).
- *Nothing larger than the broker takes reaches paho*, or it would be re-sent and rejected for ever.
- *Back-off* is ours too (backoff.py). A connection that another client with our id took over (reason 0x8E) is not
  fought for: the thread rests until `reconnect`, or `close`.
- *We state no Maximum Packet Size of our own.* It would bound what a hostile publisher can make us buffer, but
  Mosquitto 2.0.11 does not drop what is too large for a client: it keeps it in that client's window, and once the
  window is full of it nothing is delivered any more (measured). The bound belongs into the broker's configuration.
- *A take-over looks like a loss* on Mosquitto before 2.0.15, which closes without giving the reason (its issue 2607).
  Then two clients with one id do fight, but ever more slowly: a short connection does not reset the back-off.
- *With `manual_ack`* the broker's window is what bounds our inbox, so we state one that is wide enough for a group
  commit to pay (Mosquitto's own is 20). Mosquitto 2.0.11 keeps to it once only: for every message acknowledged it sends
  a whole window more (its issue 2301; 512 MB of updates piled up here). So whoever has a window's worth that is not
  acknowledged, or too many bytes of it, does not read on: the rest waits in the broker. But not while our owner waits for
  the broker's answers to what he published (in `flush`, or to publish more), before which he acknowledges nothing; and for half a keep-alive at
  most, or the answers to our pings would not be read either: then all is read until enough is acknowledged.
  A receipt is a number of ours: paho's message ids begin anew with a connection.
- *A will's delay needs a session* as long (rules.py), so a transport with a delayed will resumes its session.
- A persistent session may hold subscriptions of an earlier process: the broker then delivers on topics that this one
  never asked for, right after `Connected`.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from random import SystemRandom
from typing import cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from hermes_iot.errors import BrokerError, UsageError
from hermes_iot.transport import refusals, rules
from hermes_iot.transport.address import BrokerAddress, TlsOptions
from hermes_iot.transport.backoff import Backoff
from hermes_iot.transport.base import Connected, Delivery, Disconnected, OnEvent, Refused, Room, TransportEvent, Will
from hermes_iot.transport.link_state import LinkState
from hermes_iot.transport.outbox import Outgoing, SubscriptionChange

__all__ = ["MqttTransport", "TlsOptions"]

_log = logging.getLogger(__name__)

_SESSION_TAKEN_OVER = 0x8E
_TICK_S = 1.0  # the grain of paho's keep-alive clock, which only runs when it is called
_GOODBYE_S = 1.0  # how long a DISCONNECT may wait behind a stalled socket
_FILTERS_PER_PACKET = 64
_UNACKNOWLEDGED_MAX = 256
_UNACKNOWLEDGED_BYTES_MAX = 32 * 1024 * 1024
_CHANCE = SystemRandom()


class MqttTransport:
    """One client connection to an MQTT 5 broker; implements `Transport`.

    Args:
        address: the broker.
        client_id: who we are, one word per process; a second client with it takes over.
        will: published by the broker when we vanish.
        session_expiry_s: seconds the broker keeps our subscriptions and queues messages while we are away; with 0
            every connection starts clean. At least the will's delay.
        keepalive_s: a silent connection is probed this often; a dead one is noticed after at most twice that.
        username: default: the one in the address.
        password: from a file or the environment, never from a command line.
        tls: files for an `mqtts` address; the system's authorities when None.
        max_queued_messages: messages accepted and not yet acknowledged, at most.
        manual_ack: deliveries are acknowledged by `acknowledge` alone.
        max_inflight: QoS-1 messages under way at once; a broker that states a smaller Receive Maximum gets that.
        connect_timeout_s: limit for one try: for TCP, for TLS and for the broker's answer, each; never more than
            `start` was given.
        backoff: the waits between tries.
        chance: draws from [0, 1) for the jitter.

    Raises:
        UsageError: TLS files for an address without TLS.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        will: Will | None = None,
        session_expiry_s: int = 0,
        keepalive_s: int = 20,
        username: str | None = None,
        password: str | None = None,
        tls: TlsOptions | None = None,
        manual_ack: bool = False,
        max_queued_messages: int = 256,
        max_inflight: int = 20,
        connect_timeout_s: float = 10.0,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = _CHANCE.random,
    ) -> None:
        if tls is not None and not address.tls:
            raise UsageError(f"TLS files were given for {address}", why="mqtt:// is not encrypted", mend="Use mqtts://")
        if will is not None:
            rules.check_topic(will.topic)
        self._address = address
        self._client_id = client_id
        self._will = will
        self._session_expiry_s = rules.session_lasts_s(session_expiry_s, will)
        self._keepalive_s = keepalive_s
        self._username = address.username if username is None else username
        self._password = password
        self._tls = TlsOptions() if tls is None else tls
        self._manual_ack = manual_ack
        self._connect_timeout_s = connect_timeout_s
        self._backoff = Backoff() if backoff is None else backoff
        self._chance = chance
        self._thread: threading.Thread | None = None
        self._state = LinkState(messages_max=max_queued_messages, window=max_inflight)
        # The network thread's alone:
        self._on_event: OnEvent = lambda _: None
        self._numbers: dict[int, int] = {}  # paho's message id -> the outbox's number
        self._asked: dict[int, SubscriptionChange] = {}
        self._receipts: dict[int, tuple[int, int]] = {}  # receipt -> paho's message id, bytes
        self._receipt = 0
        self._unacknowledged_bytes = 0
        self._sated_since: float | None = None
        self._failure: BrokerError | None = None
        self._connected_at: float | None = None
        self._errors = _LastError()

    # The caller's side

    def start(self, on_event: OnEvent, *, timeout_s: float) -> None:
        """Connect; `Connected` has been delivered when this returns. One try: whether to go on is the caller's choice.

        A transport lives once: after `close`, or when this raised, make another one.

        Raises:
            BrokerError: refused, unknown host, no answer, bad TLS or credentials, no MQTT 5.
            UsageError: a TLS file cannot be used.
        """
        if self._thread is not None or self._state.closing:
            raise RuntimeError("a transport is started once")
        self._on_event = on_event
        self._connect_timeout_s = min(timeout_s, self._connect_timeout_s)
        client = self._paho()
        args = (client, self._state.open())
        self._thread = threading.Thread(target=self._run, args=args, name=f"hermes-mqtt-{self._client_id}", daemon=True)
        del client, args  # paho's client is the thread's alone, and closes with it
        self._thread.start()
        try:
            outcome = self._state.await_first_try(timeout_s)
        except BaseException:  # Ctrl-C, mostly
            self._stop(wait_s=_GOODBYE_S)
            raise
        if outcome is not True:
            self._stop(wait_s=_GOODBYE_S)
            raise outcome or refusals.no_answer(self._address, timeout_s=timeout_s)

    def reconnect(self) -> None:
        """Dial now: after a take-over, or instead of waiting for the next try. Nothing while connected."""
        self._state.hurry()

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Hand over one message. False when not connected, full, or larger than the broker takes."""
        rules.check_publish(topic, qos=qos, expiry_s=expiry_s)
        return self._state.accept(Outgoing(topic=topic, payload=payload, qos=qos, retain=retain, expiry_s=expiry_s))

    def room(self, *, messages: int) -> bool:
        """Whether fewer than so many messages are accepted and unanswered; if not, `Room` tells when half of them are."""
        return self._state.room(messages)

    def subscribe(self, topics: tuple[str, ...]) -> None:
        """Subscribe with QoS 1, now or at the next connection."""
        for topic in topics:
            rules.check_filter(topic)
        self._state.subscribe(topics)

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Forget subscriptions, now or at the next connection."""
        self._state.unsubscribe(topics)

    def acknowledge(self, receipts: Sequence[int]) -> None:
        """The broker may forget these deliveries."""
        self._state.acknowledge(receipts)

    def flush(self, *, timeout_s: float) -> bool:
        """Wait until the broker has answered everything accepted so far.

        Returns:
            False when time ran out, or when a connection was lost and messages with it. A message the broker refused
            counts as answered; `Refused` tells of it.
        """
        return self._state.flush(timeout_s)

    def close(self) -> None:
        """Disconnect cleanly and wait for the thread; may be called twice. Unsent messages are dropped: flush first.

        Takes as long as a try to connect that is under way at that moment, at most about twice `connect_timeout_s`.
        """
        self._stop(wait_s=2 * self._connect_timeout_s + _GOODBYE_S)

    def _stop(self, *, wait_s: float) -> None:
        self._state.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait_s)
            if self._thread.is_alive():  # a name server that does not answer; the thread is silent, and ends after it
                _log.warning("event=thread_late client=%s waited_s=%.1f", self._client_id, wait_s)

    # The network thread's side

    def _run(self, client: Client, wake: socket.socket) -> None:
        failures = 0
        try:
            while True:
                held_s = self._one_connection(client, wake)
                failure = self._failure or BrokerError(f"the connection to {self._address} was lost")
                if self._state.tried(failure) or self._state.closing:
                    return
                failures = 1 if held_s >= self._backoff.stable_s else failures + 1
                wait_s = self._backoff.wait_s(failures, self._chance())
                _log.info(
                    "event=pause client=%s tries=%d wait_s=%.2f why=%s", self._client_id, failures, wait_s, failure
                )
                if not self._state.pause(wait_s):
                    return
        finally:
            # Without our methods in it nothing refers to paho's client any more, and its sockets close here and now.
            client.on_connect = client.on_disconnect = client.on_message = None
            client.on_publish = client.on_subscribe = client.on_unsubscribe = None
            self._state.release()

    def _one_connection(self, client: Client, wake: socket.socket) -> float:
        """Dial, and serve until the connection ends. Returns the seconds it held, 0 when it never came about."""
        self._failure = self._connected_at = None
        self._errors.text = ""
        try:
            # With this callback set paho leaves the writing to us, and we read first: a broker that rejected our
            # certificate has said so by now, and after a write that fails its word could not be read any more.
            client.on_socket_register_write = lambda *_: None
            client.reconnect()
            client.on_socket_register_write = None
            self._serve(client, wake)
        except OSError as error:
            self._failure = refusals.unreachable(self._address, error, timeout_s=self._connect_timeout_s)
        except Exception:  # noqa: BLE001 - a hole in paho ends this connection, not the board's last thread
            _log.exception("event=client_failed client=%s", self._client_id)
        _abort(client)
        self._lost("connection lost")
        return 0.0 if self._connected_at is None else time.monotonic() - self._connected_at

    def _serve(self, client: Client, wake: socket.socket) -> None:
        """Run paho's loop on one socket until paho lets go of it, or an end of ours comes first."""
        if client.socket() is None:
            return
        sock = cast("socket.socket", client.socket())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        give_up_at = time.monotonic() + self._connect_timeout_s
        leaving = False
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while client.socket() is sock:
                if self._state.closing and not leaving:
                    leaving = True
                    give_up_at = time.monotonic() + _GOODBYE_S
                    client.disconnect()
                    continue
                self._hand_over(client)
                left_s = _TICK_S if self._state.connected else give_up_at - time.monotonic()
                if left_s <= 0:
                    self._failure = refusals.no_answer(self._address, timeout_s=self._connect_timeout_s)
                    return
                if client.socket() is sock:
                    self._wait_and_work(client, sock, selector, min(left_s, _TICK_S))

    def _wait_and_work(
        self, client: Client, sock: socket.socket, selector: selectors.BaseSelector, timeout_s: float
    ) -> None:
        sated = self._sated()
        events = (0 if sated else selectors.EVENT_READ) | (selectors.EVENT_WRITE if client.want_write() else 0)
        key = selector.get_map().get(sock)
        if key is not None and key.events != events:
            selector.unregister(sock)
        if events and (key is None or key.events != events):
            selector.register(sock, events)
        # Decrypted already: select cannot see it.
        buffered = not sated and isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = {key.fileobj: events for key, events in selector.select(0 if buffered else timeout_s)}
        if len(ready) > (sock in ready):  # the other one is the wake-up socket
            self._state.woken()
        events = ready.get(sock, 0)
        if buffered or events & selectors.EVENT_READ:
            client.loop_read()
        if events & selectors.EVENT_WRITE:
            client.loop_write()
        client.loop_misc()

    def _sated(self) -> bool:
        """Whether what is not acknowledged is enough for now; see the module."""
        enough = len(self._receipts) >= _UNACKNOWLEDGED_MAX or self._unacknowledged_bytes >= _UNACKNOWLEDGED_BYTES_MAX
        if not enough or self._state.awaited:
            self._sated_since = None
            return False
        now = time.monotonic()
        if self._sated_since is None:
            self._sated_since = now
        return now - self._sated_since < self._keepalive_s / 2

    def _hand_over(self, client: Client) -> None:
        """Give paho what the window has room for; it gets nothing while it still has bytes to write."""
        for receipt in self._state.receipts():
            mid, size = self._receipts.pop(receipt, (None, 0))
            self._unacknowledged_bytes -= size
            if mid is not None:
                client.ack(mid, 1)
        while not client.want_write() and (entry := self._state.next()) is not None:
            number, item = entry
            if isinstance(item, SubscriptionChange):
                self._ask(client, item)
            else:
                self._send(client, number, item)

    def _send(self, client: Client, number: int, item: Outgoing) -> None:
        properties = None
        if item.expiry_s is not None:
            properties = _properties(PacketTypes.PUBLISH, MessageExpiryInterval=item.expiry_s)
        while True:
            info = client.publish(item.topic, item.payload, item.qos, item.retain, properties)
            if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # its id is still in use, 65,535 messages later: the next
                break
        if item.qos:
            self._numbers[info.mid] = number

    def _ask(self, client: Client, change: SubscriptionChange) -> None:
        for start in range(0, len(change.topics), _FILTERS_PER_PACKET):
            topics = change.topics[start : start + _FILTERS_PER_PACKET]
            if change.wanted:
                _, mid = client.subscribe([(topic, 1) for topic in topics])
            else:
                _, mid = client.unsubscribe(list(topics))
            if mid is not None:
                self._asked[mid] = SubscriptionChange(topics=topics, wanted=change.wanted)

    def _emit(self, event: TransportEvent) -> None:
        if self._state.closing:
            return
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - whatever the callback raises, this thread lives
            _log.exception("event=callback_failed client=%s on=%s", self._client_id, type(event).__name__)

    def _lost(self, reason: str, *, taken_over: bool = False) -> None:
        """The connection is over, or never was; said once."""
        was_connected, dropped = self._state.lost(taken_over=taken_over)
        if was_connected:
            _log.warning("event=disconnected client=%s reason=%s dropped=%d", self._client_id, reason, dropped)
            self._emit(Disconnected(reason=reason, taken_over=taken_over))
        elif self._connected_at is None and self._failure is None:
            self._failure = refusals.hung_up(self._address, why=self._errors.text)

    # paho's callbacks, in the network thread

    def _on_connect(
        self, client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._failure = refusals.refused(
                self._address, code=reason.value, name=str(reason), client_id=self._client_id
            )
            return
        limit = getattr(properties, "MaximumPacketSize", None)
        renewal = self._state.opened(
            window=getattr(properties, "ReceiveMaximum", None),
            packet_bytes_max=limit,
            session_present=flags.session_present,
        )
        self._connected_at = time.monotonic()
        self._asked.clear()
        self._receipts.clear()
        self._unacknowledged_bytes = 0
        for change in renewal.changes:
            self._ask(client, change)
        if not renewal.resend:  # paho would, after this callback; the outbox has them in line again
            client.drop_out_messages()
            self._numbers.clear()
        _log.info("event=connected client=%s broker=%s packet_bytes_max=%s", self._client_id, self._address, limit)
        self._emit(Connected(packet_bytes_max=limit))
        for item in renewal.too_large:
            self._emit(Refused(topic=item.topic, reason="larger than the broker takes since this connection"))
        self._state.tried(outcome=True)

    def _on_disconnect(
        self, _client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._lost(str(reason), taken_over=reason.value == _SESSION_TAKEN_OVER)
        elif self._errors.text:
            self._lost(f"connection lost: {self._errors.text}")
        else:
            self._lost("keep alive timeout" if reason == "Keep alive timeout" else "connection lost")

    def _on_message(self, client: Client, _: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            _log.warning("event=bad_topic client=%s", self._client_id)
            client.ack(message.mid, message.qos)
            return
        receipt = 0
        if self._manual_ack and message.qos:
            self._receipt = receipt = self._receipt + 1
            self._receipts[receipt] = message.mid, len(message.payload)
            self._unacknowledged_bytes += len(message.payload)
        self._emit(Delivery(topic=topic, payload=bytes(message.payload), retain=message.retain, receipt=receipt))

    def _on_publish(
        self, _client: Client, _: object, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        number = self._numbers.pop(mid, None)
        if number is None:
            return
        item = self._state.acknowledged(number)
        if item is not None and reason.is_failure:
            self._emit(Refused(topic=item.topic, reason=str(reason)))
        if self._state.has_room():
            self._emit(Room())

    def _on_subscribe(
        self, _client: Client, _: object, mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        change = self._asked.pop(mid, None)
        if change is not None:
            for topic, reason in zip(change.topics, reasons, strict=False):
                if reason.is_failure:
                    self._emit(Refused(topic=topic, reason=str(reason)))

    def _on_unsubscribe(
        self, _client: Client, _: object, mid: int, _reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        change = self._asked.pop(mid, None)
        if change is not None:
            self._state.unsubscribed(change.topics)

    # Making paho's client

    def _paho(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=self._manual_ack,
        )
        client.connect_timeout = self._connect_timeout_s
        client.max_inflight_messages_set(0)  # no window of paho's own: the outbox has one
        # Not in the tree of loggers: only we read it. Formatted when needed; paho's on_log formats every packet.
        logger = logging.Logger("paho", logging.WARNING)  # noqa: LOG001 - see above
        logger.addHandler(self._errors)
        client.enable_logger(logger)
        if self._username is not None or self._password is not None:
            client.username_pw_set(self._username, self._password)
        if self._address.tls:
            client.tls_set_context(_tls_context(self._tls))
        if self._will is not None:
            delay = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=self._will.delay_s)
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True, properties=delay)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.connect_async(
            self._address.host,
            self._address.port,
            keepalive=self._keepalive_s,
            clean_start=self._session_expiry_s == 0,
            properties=_properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=self._session_expiry_s,
                **({"ReceiveMaximum": _UNACKNOWLEDGED_MAX} if self._manual_ack else {}),
            ),
        )
        return client


class _LastError(logging.Handler):
    """Keeps the newest of paho's complaints: the only place where it says why a socket failed."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage().removeprefix("failed to receive on socket: ")


class _TlsSocket(ssl.SSLSocket):
    """A socket that does not outlive its handshake: paho forgets to close one that failed."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature of ssl
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _abort(client: Client) -> None:
    """Close the socket if paho still holds one. It has no public call for that which does not write first."""
    sock = client.socket()
    if sock is not None:
        sock.close()


def _properties(packet_type: int, **values: int) -> Properties:
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def _tls_context(options: TlsOptions) -> ssl.SSLContext:
    """The context of a client that checks whom it talks to.

    Raises:
        UsageError: a file is missing or is not what it should be.
    """
    file = options.ca_file
    try:
        context = ssl.create_default_context(cafile=file)
        context.sslsocket_class = _TlsSocket
        if options.cert_file is not None:
            file = options.cert_file
            # A pass phrase would be asked for on the terminal of a board that has none: an empty one fails instead.
            context.load_cert_chain(options.cert_file, options.key_file, password=lambda: "")
    except OSError as error:  # ssl.SSLError is one, too
        raise UsageError(
            f"TLS file {file} cannot be used", why=error.strerror or str(error), mend="Check its path, format and key"
        ) from error
    return context
