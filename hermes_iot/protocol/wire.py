"""Where a message goes and how: topic, quality of service, retention, expiry, one table for both directions.

`Wire` is the pure middle between machines that speak in messages and a transport that moves bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hermes_iot.domain import DeviceId
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import Reassembler, split
from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT, Limits
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    Command,
    CoordinatorStatus,
    DeviceState,
    DeviceStatus,
    Message,
    Metrics,
    Model,
    ModelHead,
    Request,
    Response,
    RunManifest,
    Shard,
    TensorMessage,
    Update,
)
from hermes_iot.protocol.topics import Topics


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one kind of message travels. `expiry_s` bounds what the broker keeps for somebody who is away."""

    direction: str
    channel: str
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None


ROUTES: Final[dict[type[Message], Route]] = {
    CoordinatorStatus: Route(direction="all", channel="coordinator", retain=True),
    RunManifest: Route(direction="all", channel="run", retain=True),
    ModelHead: Route(direction="all", channel="model", retain=True),
    Allocation: Route(direction="down", channel="alloc", retain=True),
    Ack: Route(direction="down", channel="ack", retain=True),
    Command: Route(direction="down", channel="cmd", expiry_s=60),
    Model: Route(direction="down", channel="model", expiry_s=300),
    Shard: Route(direction="down", channel="data", expiry_s=300),
    DeviceStatus: Route(direction="up", channel="status", retain=True),
    DeviceState: Route(direction="up", channel="state", retain=True),
    Update: Route(direction="up", channel="update", expiry_s=300),
    Request: Route(direction="up", channel="request", expiry_s=60),
    Metrics: Route(direction="up", channel="metrics", qos=0),
    Response: Route(direction="up", channel="rsp", expiry_s=60),
}
_TENSORS: Final = (Update, Model, Shard)
_KINDS: Final = {(route.direction, route.channel): kind for kind, route in ROUTES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One MQTT publish."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    expiry_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One decoded message, the device its topic names ("" under ``all``) and its size on the wire in bytes."""

    message: Message
    device: DeviceId
    tensor: bool


class Wire:
    """Encodes and decodes for one fleet; holds only half-received transfers."""

    def __init__(self, topics: Topics, *, limits: Limits | None = None, chunk_bytes: int = CHUNK_BYTES_DEFAULT) -> None:
        self.topics = topics
        self.limits = limits or Limits()
        self.chunk_bytes = chunk_bytes
        self._reassembler = Reassembler(self.limits)

    def outgoing(self, message: Message, *, device: str = "") -> Iterator[Packet]:
        """The publishes that carry `message`; `device` names the topic's device where there is one."""
        route = ROUTES[type(message)]
        topic = self._topic(route, device)
        for payload in self._chunks(message) if isinstance(message, _TENSORS) else (codec.encode_json(message),):
            yield Packet(topic=topic, payload=payload, qos=route.qos, retain=route.retain, expiry_s=route.expiry_s)

    def keyframe(self, model: Model) -> tuple[list[Packet], ModelHead]:
        """The retained chunks of a keyframe and the head that points at them, to be published after them.

        Never zstd-compressed: its size, and so its number of retained topics, depends on the model alone.
        """
        whole = codec.encode_tensors(model, compress=False)
        packets = [
            Packet(topic=self.topics.model_part(chunk.part), payload=codec.encode_chunk(chunk), qos=1, retain=True)
            for chunk in split(whole, chunk_bytes=self.chunk_bytes)
        ]
        digest = hashlib.sha256(whole).hexdigest()
        head = ModelHead(run=model.run, version=model.version, sha256=digest, bytes=len(whole), parts=len(packets))
        return packets, head

    def incoming(self, topic: str, payload: bytes, *, now: float) -> Received | None:
        """The message in one delivery; None for a foreign topic, a cleared retained one or a slice of more to come.

        Raises:
            ProtocolError: what came breaks the rules; drop it and count its reason.
        """
        address = self.topics.parse(topic)
        if address is None or not payload:
            return None
        if address.channel == "model_part":
            return self._tensor("keyframe", payload, Model, address.device, now)
        kind = _KINDS[(address.direction, address.channel)]
        if kind in _TENSORS:
            return self._tensor(
                f"{address.direction}/{address.device}/{address.channel}", payload, kind, address.device, now
            )
        message = codec.decode_json(payload, kind, self.limits)
        if isinstance(message, Allocation) and message.device != address.device:
            raise ProtocolError("identity", f"allocation for {message.device} on the topic of {address.device}")
        return Received(message=message, device=address.device, tensor=False)

    def expire(self, *, now: float) -> int:
        """Forget half-received messages past their deadline; how many."""
        return self._reassembler.expire(now=now)

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do."""
        return self._reassembler.next_deadline()

    def _tensor(
        self, sender: str, payload: bytes, kind: type[TensorMessage], device: DeviceId, now: float
    ) -> Received | None:
        whole = self._reassembler.add(sender, codec.decode_chunk(payload, self.limits), now=now)
        if whole is None:
            return None
        return Received(message=codec.decode_tensors(whole, kind, self.limits), device=device, tensor=True)

    def _chunks(self, message: TensorMessage) -> Iterator[bytes]:
        whole = codec.encode_tensors(message)
        return (codec.encode_chunk(chunk) for chunk in split(whole, chunk_bytes=self.chunk_bytes))

    def _topic(self, route: Route, device: str) -> str:
        match route.direction:
            case "all":
                return self.topics.all(route.channel)
            case "down":
                return self.topics.down(device, route.channel)
            case _:
                return self.topics.up(device, route.channel)
