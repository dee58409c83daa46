"""The seam between a machine's messages and a transport's bytes, shared by both roles.

A transport refuses what its queue has no room for. Here is where that is waited out: the loop that produces more than
the broker takes is slowed down to what it takes, instead of losing an allocation or the middle of a model. The wait
is bounded, and without a connection there is none: the machines publish again when it is back.

Messages of many chunks do not wait there but in a line of their own, one behind the other, and are handed over in
portions as the broker takes them (`feed`). So what is urgent - an ack, a state, a farewell - has never more than one
portion before it, the loop goes on meanwhile, and a slow link has no more under way than it can carry between two
keep-alives. A message waits uncut and unencoded, so a fleet's answers of one version cost one body; those of many
versions, and shards, cost one each, and the line (`line`) takes only so many bytes of them. Whatever replaces an older one
of its kind takes its place. With the connection the line is gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

from hermes_iot.algorithms.compression import body_bytes_max
from hermes_iot.algorithms.split import split_of
from hermes_iot.core.effects import Resend
from hermes_iot.errors import AccessDenied, BrokerError, UsageError
from hermes_iot.protocol.chunks import unpack_parts
from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT, PACKET_OVERHEAD_BYTES
from hermes_iot.protocol.messages import Message, Model, RunManifest, TensorMessage, Update
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Missing, Packet, Received, Wire
from hermes_iot.runtime.line import Line, Stream
from hermes_iot.transport.base import Connected, Delivery, Refused, Transport
from hermes_iot.transport.rules import publish_packet_bytes

log = logging.getLogger(__name__)

#: A full queue is waited for in small steps, and so many of them: 3 s in all, well within a drain's 10 s.
_PAUSE_S: Final = 0.05
_PAUSES_MAX: Final = 60

#: What is handed over at one time of a message of many chunks: so many bytes, but two chunks at least, or each would wait
#: for the answer to the one before, and no more chunks than leave room for what is urgent. A chunk of the default size
#: takes a link of 64 kbit/s 15 s, which is less than a keep-alive.
_PORTION_BYTES: Final = 256 * 1024
_PORTION_CHUNKS: Final = (2, 128)

#: No even slices of a message are smaller: a run's chunks have twice as many bytes at least.
_SLICE_BYTES_MIN: Final = 512

#: A tensor message's fields beside its body.
_HEADER_BYTES: Final = 1024

#: What is asked for parts with, beside the bitmap of them: topic, names and packet header at their longest.
_ASKING_BYTES: Final = 1024

#: What every run says fits: topic, header and the smallest chunk, a reported state, a birth, a request for a few shards, each
#: with the longest names. A run whose manifest needs more says so when it is first told.
PACKET_BYTES_MIN: Final = 2048


class Link:
    """Encodes what goes out, decodes what comes in, and counts payload bytes that the transport accepted."""

    def __init__(self, topics: Topics, transport: Transport, *, chunk_bytes: int = CHUNK_BYTES_DEFAULT) -> None:
        self.topics = topics
        self.transport = transport
        self.wire = Wire(topics, resumes=True)
        self._connected = False
        self._line = Line()
        self._flowed = False
        self._chunk_bytes = chunk_bytes
        self._packet_bytes_max: int | None = None
        self._stalled = False
        self._fit()

    def take_part(self, manifest: RunManifest) -> None:
        """In a run: its chunks are no larger than it wants them, and no body is longer than one of its model can be."""
        self.use_chunks_of(manifest.chunk_bytes)
        expect_models_of(manifest, self.wire)

    def use_chunks_of(self, chunk_bytes: int) -> None:
        """Chunks are no larger than the run wants them, nor than the broker takes."""
        self._chunk_bytes = chunk_bytes
        self._fit()

    def connected(self, event: Connected) -> None:
        """A connection is up; its broker may have other limits than the one before.

        Raises:
            BrokerError: it takes no packet of a useful size.
        """
        limit = event.packet_bytes_max
        if limit is not None and limit < PACKET_BYTES_MIN:
            raise BrokerError(
                f"the broker takes packets of at most {limit} bytes",
                why=f"hermes-iot needs {PACKET_BYTES_MIN} at least",
                mend="Raise its maximum packet size (Mosquitto: max_packet_size)",
            )
        self._packet_bytes_max = limit
        self._connected, self._stalled = True, False
        self._fit()

    def disconnected(self) -> None:
        """There is no connection: nothing is worth waiting for."""
        self._connected, self._stalled, self._flowed = False, True, False
        self._line.clear()

    def send(self, message: Message, *, device: str = "", reminder: bool = False) -> int:
        """Publish one message, or with `reminder` the last of its parts; the payload bytes handed over by now.

        Raises:
            UsageError: it is larger than the broker or a peer takes.
        """
        if not isinstance(message, TensorMessage):
            return self._publish(self.wire.document(message, device=device))
        return self._enqueue(message, device, self._parts(message, device, reminder=reminder))

    def feed(self) -> int:
        """Hand over what there is room for of the messages in line; the payload bytes.

        Raises:
            UsageError: one is larger than the broker or a peer takes.
        """
        fewest, most = _PORTION_CHUNKS
        portion, total = min(most, max(fewest, _PORTION_BYTES // self.wire.chunk_bytes)), 0
        while (stream := self._line.first) is not None and self.transport.room(messages=portion):
            try:
                packet = next(stream.packets, None)
            except UsageError:
                self._line.pop()
                raise
            if packet is None:
                self._line.pop()
                continue
            sent = self._publish(packet)
            if not sent:  # nothing gets through; the machines say it again
                self._line.clear()
                break
            total, self._flowed = total + sent, True
            self._carried(stream.message, sent)
        return total

    @property
    def bounded(self) -> dict[str, tuple[int, int]]:
        """What waits here, by name: how much, and how much at most (reliability.md, I8)."""
        return {"bytes in line": (self._line.bytes_held, self._line.bytes_most)}

    @property
    def flowing(self) -> bool:
        """Whether a message in line is not with the broker yet, all of it."""
        self._flowed = bool(self._line) or (self._flowed and not self.transport.room(messages=1))
        return self._flowed

    def flush(self, *, timeout_s: float) -> bool:
        """Wait until the broker has everything, what stands in line included; False when time ran out."""
        until = time.monotonic() + timeout_s
        self.feed()
        while self._line and time.monotonic() < until:
            self.transport.flush(timeout_s=_PAUSE_S)
            self.feed()
        return self.transport.flush(timeout_s=max(0.0, until - time.monotonic())) and not self._line

    def resend(self, wanted: Resend) -> int:
        """Publish some parts of a message once more; the payload bytes handed over.

        None where it would not be what the other side has parts of: another message by now, encoded anew by another
        version, or cut for a broker that took larger packets, or in slices that nobody cuts: they would be mostly headers.
        Whoever needs it then asks for the whole.
        """
        if self._line.carries(wanted.message, wanted.device):
            return 0  # it is still being sent
        cut = self.wire.cut(wanted.message, parts=wanted.parts)
        fits = cut.slice_bytes <= self.wire.chunk_bytes and cut.total // cut.parts >= _SLICE_BYTES_MIN
        if cut.id.hex() != wanted.transfer or not fits:
            log.debug("not resent transfer=%s parts=%d", wanted.transfer[:12], wanted.parts)
            return 0
        return self._enqueue(wanted.message, wanted.device, self._again(wanted))

    def gaps(self, *, now: float) -> list[Missing]:
        """What of half-received messages is to be asked for now; nothing while nobody could be asked.

        Into how many parts a message is cut is its sender's word. Parts that not even fit a packet when they are named are
        not asked for: the whole comes again, or is dropped at its deadline.
        """
        return [gap for gap in self.wire.gaps(now=now) if self._can_name(gap)] if self._connected else []

    def next_deadline(self) -> float | None:
        """When half-received messages next need something done."""
        return self.wire.next_deadline(asking=self._connected)

    def expire(self, *, now: float) -> None:
        """Drop what has been half received for too long."""
        if late := self.wire.expire(now=now):
            log.warning("dropped half-received messages=%d, all in all %d", late, self.wire.half_received.expired)

    def _can_name(self, gap: Missing) -> bool:
        limit = self._packet_bytes_max
        return limit is None or -(-len(gap.missing) // 3) * 4 + _ASKING_BYTES <= limit  # in base64

    def _enqueue(self, message: TensorMessage, device: str, packets: Iterator[Packet]) -> int:
        """Put a message in line, if it has room and is not there yet; one that fits a packet goes at once."""
        if len(message.body) + _HEADER_BYTES <= self.wire.chunk_bytes:
            sent = sum(self._publish(packet) for packet in packets)
            self._carried(message, sent)
            return sent
        if not self._line.join(Stream(message, device, packets)):
            log.debug("not in line kind=%s device=%s", type(message).__name__, device)
        return self.feed()

    def _parts(self, message: TensorMessage, device: str, *, reminder: bool) -> Iterator[Packet]:
        """Cut when its turn comes."""
        cut = self.wire.cut(message)
        if cut.parts > 1:
            self._sending(message, device, cut.id.hex())
        parts = range(cut.parts - 1, cut.parts) if reminder else None
        yield from self.wire.packets(message, cut, device=device, parts=parts)

    def _again(self, wanted: Resend) -> Iterator[Packet]:
        """Cut when its turn comes, as it was cut before."""
        cut = self.wire.cut(wanted.message, parts=wanted.parts)
        parts = unpack_parts(wanted.missing, wanted.parts)
        yield from self.wire.packets(wanted.message, cut, device=wanted.device, parts=parts)

    def _carried(self, message: TensorMessage, sent: int) -> None:
        """So many payload bytes of a tensor message were handed over."""

    def _sending(self, message: TensorMessage, device: str, transfer: str) -> None:
        """A message goes out in parts, under this id."""

    def send_keyframe(self, model: Model, *, parts_before: int = 0) -> tuple[int, int, int]:
        """Publish keyframe chunks, then the head; retained chunks beyond the new end are cleared.

        Returns:
            Payload bytes of the chunks, of the head, and how many chunks the broker may hold now.
        """
        cut, head = self.wire.keyframe_cut(model)
        sent = [self._publish(self.wire.keyframe_packet(cut, part)) for part in range(cut.parts)]
        parts = max(parts_before, cut.parts)
        if not all(sent):
            return sum(sent), 0, parts  # a head must not point at chunks that are not there
        head_bytes = self.send(head)
        surplus = [Packet(topic=self.topics.model_part(part), payload=b"", qos=1, retain=True) for part in range(parts)]
        cleared = [self._hand_over(packet) for packet in surplus[cut.parts :]]
        return sum(sent), head_bytes, cut.parts if all(cleared) else parts

    def decode(self, delivery: Delivery, *, now: float) -> Received | None:
        """The message in a delivery, None when it is not complete or not for us.

        Raises:
            ProtocolError: it breaks the rules.
        """
        return self.wire.incoming(delivery.topic, delivery.payload, now=now)

    def _fit(self) -> None:
        allowed = self._chunk_bytes
        if self._packet_bytes_max is not None:
            room = max(self._packet_bytes_max - PACKET_OVERHEAD_BYTES, self._packet_bytes_max // 2)
            allowed = min(allowed, room)
        self.wire.chunk_bytes = allowed

    def _publish(self, packet: Packet) -> int:
        if self._packet_bytes_max is not None:
            size = publish_packet_bytes(packet.topic, packet.payload, qos=packet.qos, expiry_s=packet.expiry_s)
            if size > self._packet_bytes_max:
                raise UsageError(
                    f"a message on {packet.topic} is too large for the broker",
                    why=f"{size} bytes, it takes {self._packet_bytes_max}",
                    mend="Raise the broker's maximum packet size (Mosquitto: max_packet_size)",
                )
        if self._hand_over(packet):
            return len(packet.payload)
        log.debug("not sent topic=%s bytes=%d", packet.topic, len(packet.payload))
        return 0

    def _hand_over(self, packet: Packet) -> bool:
        """Publish, waiting for room in the transport's queue; False when nothing gets through.

        A connection may be gone, with messages on it that stay pending until the next one, before we were told so: that
        the queue is not empty is then no reason to wait.
        """
        pauses, free = 0, False
        while not self.transport.publish(
            packet.topic, packet.payload, qos=packet.qos, retain=packet.retain, expiry_s=packet.expiry_s
        ):
            # What is refused although there is room is refused because there is no connection.
            if self._stalled or free or pauses == _PAUSES_MAX:
                self._stalled = True
                return False
            free = self.transport.room(messages=1) or self.transport.flush(timeout_s=_PAUSE_S)
            pauses += 1
        self._stalled = False
        return True


def expect_models_of(manifest: RunManifest, wire: Wire) -> None:
    """From now on `wire` takes no body that is longer than one of the run's model in any codec.

    In any, because an update in another than the run's is refused in words, and its sender told so.
    """
    longest = body_bytes_max(manifest.model.parameters, split_of(manifest.model.tensors, manifest.fine))
    for kind in (Update, Model):
        wire.expect(kind, body_bytes_max=longest)


def check_refusal(event: Refused) -> None:
    """What an access list refuses today it refuses tomorrow: a person must mend it.

    Raises:
        AccessDenied: the broker said that we are not authorized.
    """
    if "authorized" not in event.reason.lower():
        log.error("refused topic=%s reason=%s", event.topic, event.reason)
        return
    raise AccessDenied(
        f"the broker refuses topic {event.topic}",
        why=event.reason,
        mend="Give this user the right to it in the broker's access list",
    )
