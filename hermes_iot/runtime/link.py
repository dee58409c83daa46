"""The seam between a machine's messages and a transport's bytes, shared by both roles."""

from __future__ import annotations

import logging

from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT, PACKET_OVERHEAD_BYTES
from hermes_iot.protocol.messages import Message, Model
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Packet, Received, Wire
from hermes_iot.transport.base import Delivery, Transport

log = logging.getLogger(__name__)


class Link:
    """Encodes what goes out, decodes what comes in, and counts payload bytes that the transport accepted."""

    def __init__(self, topics: Topics, transport: Transport) -> None:
        self.topics = topics
        self.transport = transport
        self.wire = Wire(topics)
        self._chunk_bytes = CHUNK_BYTES_DEFAULT
        self._packet_bytes_max: int | None = None

    def limit(self, *, chunk_bytes: int | None = None, packet_bytes_max: int | None = None) -> None:
        """Chunks are as small as the run's profile and the broker both want."""
        self._chunk_bytes = chunk_bytes or self._chunk_bytes
        self._packet_bytes_max = packet_bytes_max or self._packet_bytes_max
        allowed = self._chunk_bytes
        if self._packet_bytes_max is not None:
            allowed = min(allowed, max(1, self._packet_bytes_max - PACKET_OVERHEAD_BYTES))
        self.wire.chunk_bytes = allowed

    def send(self, message: Message, *, device: str = "") -> int:
        """Publish one message; the payload bytes handed over."""
        return sum(self._publish(packet) for packet in self.wire.outgoing(message, device=device))

    def send_keyframe(self, model: Model, *, parts_before: int = 0) -> tuple[int, int, int]:
        """Publish keyframe chunks, then the head; retained chunks beyond the new end are cleared.

        Returns:
            Payload bytes of the chunks, of the head, and the number of chunks.
        """
        packets, head = self.wire.keyframe(model)
        tensor_bytes = sum(self._publish(packet) for packet in packets)
        head_bytes = self.send(head)
        for part in range(len(packets), parts_before):
            self.transport.publish(self.topics.model_part(part), b"", retain=True)
        return tensor_bytes, head_bytes, len(packets)

    def decode(self, delivery: Delivery, *, now: float) -> Received | None:
        """The message in a delivery, None when it is not complete or not for us.

        Raises:
            ProtocolError: it breaks the rules.
        """
        return self.wire.incoming(delivery.topic, delivery.payload, now=now)

    def _publish(self, packet: Packet) -> int:
        accepted = self.transport.publish(
            packet.topic, packet.payload, qos=packet.qos, retain=packet.retain, expiry_s=packet.expiry_s
        )
        if not accepted:
            log.debug("not sent topic=%s bytes=%d", packet.topic, len(packet.payload))
        return len(packet.payload) if accepted else 0
