"""Prepared updates, published as fast as the broker takes them: what `benchmarks.ingest` feeds its receivers with.

Not paho: what the publisher costs would be taken from the receiver's two cores. Every PUBLISH is a finished packet
before the clock starts (MQTT 3.1.1, QoS 1), and one thread writes while another counts the answers.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from hermes_iot.algorithms.compression import pack
from hermes_iot.domain import Codec, RunId
from hermes_iot.protocol import codec
from hermes_iot.protocol.messages import DeviceStatus, Message, Update
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire

DEVICES: Final = 16
#: Different vectors, used in turn: encoding thousands would take minutes.
VECTORS: Final = 8
_CONNECT: Final = b"\x00\x04MQTT\x04\x02\x00\x00"  # 3.1.1, clean session, no keep-alive
_PUBLISH_QOS1: Final = 0x32  # and one more where it is to be retained
_PUBACK_BYTES: Final = 4
_DIGIT: Final = 128  # lengths are numbers of seven bits a byte
_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which updates, for whom.

    Attributes:
        run, model: as the receiving coordinator's manifest says.
        parameters: P.
        codec: of the updates.
        updates: how many.
        chunk_bytes: longest body of one packet.
    """

    run: str
    model: str
    parameters: int
    codec: Codec
    updates: int
    chunk_bytes: int


def births(topics: Topics) -> Iterator[tuple[str, bytes]]:
    """Every device comes online."""
    for device in names():
        yield topics.up(device, "status"), codec.encode_json(DeviceStatus(state="online", session=1))


def updates(topics: Topics, order: Order) -> Iterator[tuple[str, bytes]]:
    """Displacements of noise, from every device in turn, as devices send them: zstd over the body where it helps."""
    chance = np.random.default_rng([order.parameters, VECTORS])
    vectors = (np.float32(0.01) * chance.standard_normal(order.parameters, dtype=np.float32) for _ in range(VECTORS))
    bodies = [pack(vector, order.codec) for vector in vectors]
    wire = Wire(topics, chunk_bytes=order.chunk_bytes)
    for number in range(order.updates):
        device = names()[number % DEVICES]
        update = Update(
            run=RunId(order.run),
            session=1,
            seq=number // DEVICES + 1,
            base_version=0,
            model=order.model,
            parameters=order.parameters,
            codec=order.codec,
            loss=0.5,
            samples=256,
            batch=16,
            mini_batches=16,
            train_s=0.5,
            iterations=1,
            steps=16,
            body=bodies[number % VECTORS],
        )
        yield from published(wire, update, device)


def published(wire: Wire, message: Message, device: str) -> Iterator[tuple[str, bytes]]:
    """Topic and payload of each packet of a message."""
    for packet in wire.outgoing(message, device=device):
        yield packet.topic, packet.payload


def names() -> Sequence[str]:
    """The devices."""
    return [f"pi-{number:02}" for number in range(DEVICES)]


class Flood:
    """One connection that only publishes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        name = b"flood"
        body = _CONNECT + len(name).to_bytes(2, "big") + name
        self._socket.sendall(bytes([0x10, len(body)]) + body)
        if self._read(4)[3]:
            raise ConnectionError("the broker refused the publisher")
        self._mid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def packets(self, messages: Iterable[tuple[str, bytes]], *, retain: bool = False) -> list[bytes]:
        """PUBLISH packets, in order."""
        return [self._packet(topic, payload, retain=retain) for topic, payload in messages]

    def publish(self, packets: Sequence[bytes]) -> None:
        """Send them all; returns when the broker has acknowledged every one.

        Raises:
            OSError: the connection is lost, or the broker does not answer.
        """
        writer = threading.Thread(target=lambda: [self._socket.sendall(packet) for packet in packets], daemon=True)
        writer.start()
        self._read(_PUBACK_BYTES * len(packets))
        writer.join()

    def _packet(self, topic: str, payload: bytes, *, retain: bool) -> bytes:
        self._mid = self._mid % 65_535 + 1
        name = topic.encode()
        head = len(name).to_bytes(2, "big") + name + self._mid.to_bytes(2, "big")
        length, left = bytearray(), len(head) + len(payload)
        while left >= _DIGIT:
            length.append(left % _DIGIT + _DIGIT)
            left //= _DIGIT
        return bytes([_PUBLISH_QOS1 + retain, *length, left]) + head + payload

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise ConnectionError("the broker closed the publisher's connection")
            data += piece
        return bytes(data)
