"""Who leads a fleet: looked up before a coordinator starts, and again before it speaks after every reconnect.

The retained word on ``all/coordinator`` says who led last, not who is alive: a power cut of the machine that runs
broker and coordinator leaves "online" behind and no will is ever published. A leader repeats its word every two
seconds, so one that is not heard is not there; its word is then taken back on its behalf.

Brokers tell a client that another one took over its id, but Mosquitto before 2.0.15 does not (its issue 2607): there
a coordinator that was pushed out only sees a lost connection. It would come back and push out the other in turn, for
ever. So after a reconnect it looks before it speaks: where the last word is another's, the fleet is another's.

Each coordinator's epoch is one above the last one's. What is heard of a lower one is the past's: we speak over it. One of
a higher one has taken over, whatever the broker says of it.

Unless the broker itself has been away: one that was killed comes back with what it saved some time ago, the last word
of an earlier process of ours for instance. A retained word is therefore believed only when it is not alone: somebody
who leads repeats it while we listen, or has said another the next time we look. Who has left leads nothing, and is
spoken over: of an equal epoch, too, for one that died before its first word has left none behind, only a will that may
be said long after.
"""

from __future__ import annotations

import logging
import queue
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from hermes_iot.errors import IdConflict, ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Command, CoordinatorStatus, ModelHead
from hermes_iot.protocol.topics import Topics
from hermes_iot.transport.base import Delivery, Refused, Transport, Will

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 15.0
#: How long our own word may take through the broker and back.
FENCE_S: Final = 5.0
#: A leader that says nothing for so long is dead; it speaks every 2 s, unless it is measuring a large model.
SILENT_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Legacy:
    """What the last coordinator left at the broker.

    Attributes:
        keyframe_parts: retained chunks of its model; those we do not overwrite must be cleared.
        epoch: its own; 0 where nobody led before.
    """

    keyframe_parts: int = 0
    epoch: int = 0


def look_for_leader(topics: Topics, connect: Callable[[str, Will | None], Transport], *, takeover: bool) -> Legacy:
    """Make sure that there is a broker and that nobody leads the fleet (somebody may when we are to take over).

    Under a client id of its own: connecting under the coordinator's would push the other one out.

    Raises:
        BrokerError: the broker cannot be reached.
        IdConflict: another coordinator is online.
    """
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    me = f"look-{secrets.token_hex(8)}"
    leader, head, fence = topics.all("coordinator"), topics.all("model"), topics.down(me, "cmd")
    transport = connect(me, None)
    seen: dict[str, bytes] = {}
    try:
        transport.subscribe((leader, head, fence))
        transport.start(events.put, timeout_s=CONNECT_TIMEOUT_S)
        # The broker answers in order: once our own word is back, the retained ones before it have been delivered.
        transport.publish(fence, ping(me))
        for delivery in _deliveries(events, FENCE_S):
            seen[delivery.topic] = delivery.payload
            if delivery.topic == fence:
                break
        status = _decoded(leader, seen.get(leader, b""), CoordinatorStatus)
        if status is not None and status.state == "online" and not takeover and _is_silent(events, topics):
            log.warning("leader is silent host=%s run=%s", status.host, status.run)
            transport.publish(leader, codec.encode_json(replace(status, state="offline")), retain=True)
            transport.flush(timeout_s=FENCE_S)
    finally:
        transport.close()
    left = _decoded(head, seen.get(head, b""), ModelHead)
    return Legacy(keyframe_parts=left.parts if left is not None else 0, epoch=status.epoch if status is not None else 0)


def _is_silent(events: queue.SimpleQueue[object], topics: Topics) -> bool:
    """Wait for a leader's next word; False when it says that it leaves.

    Raises:
        IdConflict: it lives.
    """
    leader = topics.all("coordinator")
    for delivery in _deliveries(events, SILENT_S):
        status = _decoded(leader, delivery.payload, CoordinatorStatus) if delivery.topic == leader else None
        if status is not None and status.state == "online":
            raise IdConflict(
                f"fleet {topics.fleet!r} is already led from host {status.host!r} (run {status.run!r})",
                mend="Stop that coordinator, use another --fleet, or take over with --takeover",
            )
        if status is not None:
            return False
    return True


class Leadership:
    """One coordinator's claim on its fleet, over its reconnects.

    Attributes:
        epoch: ours; known once it was looked who led before.
    """

    def __init__(self, topics: Topics, *, client_id: str, session: str) -> None:
        self.epoch = 0
        self._topics = topics
        self._session = session
        self._client_id = client_id
        self._leader = topics.all("coordinator")
        self._fence = topics.down(client_id, "cmd")
        self._spoken = False
        self._deadline: float | None = None
        self._rival = b""  # the word of another that lay there when we looked

    @property
    def filters(self) -> tuple[str, ...]:
        """What to subscribe to beside the devices' topics."""
        return self._leader, self._fence

    def connected(self, transport: Transport, *, now: float) -> bool:
        """Whether to speak at once: the first connection was looked into by `look_for_leader`, later ones were not."""
        if not self._spoken:
            return True
        transport.publish(self._fence, ping(self._client_id))
        self._deadline = now + FENCE_S
        return False

    def disconnected(self) -> None:
        """Whatever was waited for does not come any more."""
        self._deadline = None

    def concerns(self, delivery: Delivery) -> bool:
        """Whether `heard` must see this delivery, and nobody else."""
        return delivery.topic in self.filters

    def heard(self, delivery: Delivery, *, now: float) -> bool:
        """Take in one delivery; whether to speak now.

        Raises:
            IdConflict: another coordinator has spoken after us.
        """
        if delivery.topic == self._fence:
            return not self._rival and self._waiting_is_over()
        status = _decoded(self._leader, delivery.payload, CoordinatorStatus)
        if status is not None and status.session == self._session:
            self._spoken = True
        elif status is not None and self._spoken:
            if status.epoch > self.epoch:
                raise taken_over(self._topics.fleet, by=status.host)
            if status.epoch < self.epoch or status.state == "offline":
                return self._deadline is None
            self._doubt(delivery, status, now)
        return False

    def _doubt(self, delivery: Delivery, status: CoordinatorStatus, now: float) -> None:
        """Another's word, after ours: that it leads."""
        if not delivery.retain or self._rival not in (b"", delivery.payload):
            raise taken_over(self._topics.fleet, by=status.host)
        log.warning("another leader is remembered host=%s run=%s: listening for it", status.host, status.run)
        self._rival, self._deadline = delivery.payload, now + SILENT_S

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do."""
        return self._deadline

    def expire(self, *, now: float) -> bool:
        """An access list may keep our own word from us: then we speak without having looked. Whether to speak now."""
        if self._deadline is None or now < self._deadline:
            return False
        self._rival = b""
        return self._waiting_is_over()

    def _waiting_is_over(self) -> bool:
        waiting, self._deadline = self._deadline is not None, None
        return waiting


def taken_over(fleet: str, *, by: str = "") -> IdConflict:
    """Why a coordinator leaves that is not wanted any more."""
    return IdConflict(
        f"another coordinator took over fleet {fleet!r}",
        why=f"it runs on host {by!r}" if by else "",
        mend="Only one may lead; this one stops and its run can be resumed",
    )


def ping(who: str) -> bytes:
    """A message to oneself."""
    return codec.encode_json(Command(id=who[:64], name="ping"))


def _deliveries(events: queue.SimpleQueue[object], wait_s: float) -> Iterator[Delivery]:
    until = time.monotonic() + wait_s
    while (left_s := until - time.monotonic()) > 0:
        try:
            event = events.get(timeout=left_s)
        except queue.Empty:
            return
        if isinstance(event, Delivery):
            yield event
        elif isinstance(event, Refused):
            return  # what is refused does not come


def _decoded(topic: str, payload: bytes, kind: type[T]) -> T | None:
    if not payload:
        return None
    try:
        return codec.decode_json(payload, kind, Limits())
    except ProtocolError as error:
        log.warning("dropped topic=%s reason=%s", topic, error.reason)
        return None
