"""Where a message goes and how: topic, quality of service, retention, expiry, one table for both directions.

`Wire` is the pure middle between machines that speak in messages and a transport that moves bytes. It refuses to send
what no peer would take: an oversize packet would make the client reconnect and resend for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from hermes_iot.domain import DeviceId
from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import Cut, parts_for, unpack_parts
from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT, INTEGER_MAX, PACKET_OVERHEAD_BYTES, Limits
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
from hermes_iot.protocol.reassembly import Gap, Reassembler
from hermes_iot.protocol.topics import Address, Topics, check_name


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
M = TypeVar("M")

_TENSORS: Final = (Update, Model, Shard)
#: What a coordinator says for itself; a shard is named by its content, whoever sends it.
_LEADS: Final = (CoordinatorStatus, RunManifest, ModelHead, Allocation, Ack, Command, Model)
#: A keyframe's fields beside its body are never longer, however large its counters grow.
_KEYFRAME_HEADER_BYTES: Final = 512
#: Topics kept in mind: three for each of ten thousand devices.
_TOPICS_REMEMBERED_MAX: Final = 1 << 15
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
    """One decoded message, the device its topic names ("" under ``all``), and whether it came as tensors in chunks."""

    message: Message
    device: DeviceId
    tensor: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Parts that do not come: of a message on this channel of this device.

    Attributes:
        transfer, parts, missing: as `Request` and `Command` name them.
        missing_bytes: what they weigh together.
        patient_until: when they are asked for again if nothing comes; infinite when no more.
    """

    device: DeviceId
    channel: str
    transfer: str
    parts: int
    missing: bytes
    missing_bytes: int
    patient_until: float


class Wire:
    """Encodes and decodes for one fleet; holds only half-received transfers.

    Args:
        topics: of the fleet.
        limits: on what peers may send.
        chunk_bytes: longest slice of a tensor message.
        resumes: whether whoever owns this asks for what is missing (`gaps`); a listener does not.

    Attributes:
        epoch: of the coordinator that speaks here; 0 where none does.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        limits: Limits | None = None,
        chunk_bytes: int = CHUNK_BYTES_DEFAULT,
        resumes: bool = False,
    ) -> None:
        self.topics = topics
        self.epoch = 0
        self.resumes = resumes
        self.limits = limits or Limits()
        self.chunk_bytes = chunk_bytes
        self._reassembler = Reassembler(self.limits)
        self._limits_of: dict[type[TensorMessage], Limits] = {}
        self._topics_of: dict[tuple[str, str], str] = {}

    def expect(self, kind: type[TensorMessage], *, body_bytes_max: int | None) -> None:
        """Messages of this kind that come from now on have no longer body; None = as long as any may be."""
        if body_bytes_max is None:
            self._limits_of.pop(kind, None)
        else:
            self._limits_of[kind] = self.limits.with_bodies_of(body_bytes_max)

    def outgoing(self, message: Message, *, device: str = "") -> Iterator[Packet]:
        """The publishes that carry `message`; `device` names the topic's device where there is one.

        Raises:
            UsageError: `device` is no name, or the message is larger than a peer takes or a packet holds.
        """
        if isinstance(message, _TENSORS):
            return self.packets(message, self.cut(message), device=device)
        return iter((self.document(message, device=device),))

    def document(self, message: Message, *, device: str = "") -> Packet:
        """The one publish that carries a message without tensors.

        Raises:
            UsageError: as `outgoing`.
        """
        route = ROUTES[type(message)]
        return _packet(route, self._topic(route, device), self._document(self._led(message)))

    def cut(self, message: TensorMessage, *, parts: int = 0) -> Cut:
        """A tensor message as it travels: in as few slices as the broker's packets allow, or in `parts` as once before.

        Raises:
            UsageError: it is larger than a peer takes.
        """
        return self._cut(message, codec.encode_pieces(self._led(message)), parts)

    def _led(self, message: M) -> M:
        """With the epoch of the coordinator that says it."""
        return replace(message, epoch=self.epoch) if self.epoch and isinstance(message, _LEADS) else message

    def packets(
        self, message: TensorMessage, cut: Cut, *, device: str, parts: Iterable[int] | None = None
    ) -> Iterator[Packet]:
        """The publishes that carry these parts of it, all where none are named.

        Raises:
            UsageError: `device` is no name.
        """
        route = ROUTES[type(message)]
        topic = self._topic(route, device)
        wanted = range(cut.parts) if parts is None else parts
        return (_packet(route, topic, codec.encode_chunk(cut.chunk(part))) for part in wanted)

    def keyframe(self, model: Model) -> tuple[list[Packet], ModelHead]:
        """The retained chunks of a keyframe and the head that points at them, to be published after them.

        Raises:
            UsageError: the model is larger than a peer takes.
        """
        cut, head = self.keyframe_cut(model)
        return [self.keyframe_packet(cut, part) for part in range(cut.parts)], head

    def keyframe_cut(self, model: Model) -> tuple[Cut, ModelHead]:
        """A keyframe as it travels, for who does not want all its chunks at once, and its head.

        Never zstd-compressed, and cut as if its header were as long as one can be: its number of retained topics
        depends on the length of the body alone, so a new keyframe overwrites all of the old one.

        Raises:
            UsageError: the model is larger than a peer takes.
        """
        least = parts_for(len(model.body) + _KEYFRAME_HEADER_BYTES, chunk_bytes=self.chunk_bytes)
        cut = self._cut(model, codec.encode_pieces(self._led(model), compress=False), 0, least)
        head = ModelHead(run=model.run, version=model.version, sha256=cut.id.hex(), bytes=cut.total, parts=cut.parts)
        return cut, head

    def keyframe_packet(self, cut: Cut, part: int) -> Packet:
        """One retained chunk of a keyframe."""
        payload = codec.encode_chunk(cut.chunk(part))
        return Packet(topic=self.topics.model_part(part), payload=payload, qos=1, retain=True)

    def incoming(self, topic: str, payload: bytes, *, now: float) -> Received | None:
        """The message in one delivery; None for a foreign topic, a cleared retained one or a slice of more to come.

        Raises:
            ProtocolError: what came breaks the rules; drop it and count its reason.
        """
        address = self.topics.parse(topic)
        if address is None or not payload:
            return None
        if address.channel == "model_part":
            return self._tensor("keyframe", payload, Model, address, now)
        kind = _KINDS[(address.direction, address.channel)]
        if kind in _TENSORS:
            sender = f"{address.direction}/{address.device}/{address.channel}"
            return self._tensor(sender, payload, kind, address, now)
        message = codec.decode_json(payload, kind, self.limits)
        if isinstance(message, Allocation):
            _check_allocation(message, address.device)
        elif isinstance(message, ModelHead):
            _check_head(message, self.limits)
        elif isinstance(message, Request | Command):
            _check_parts(message, self.limits)
        return Received(message=message, device=address.device, tensor=False)

    def expire(self, *, now: float) -> int:
        """Forget half-received messages past their deadline; how many."""
        return self._reassembler.expire(now=now)

    def gaps(self, *, now: float) -> list[Missing]:
        """What of half-received messages is to be asked for now, because it does not come by itself."""
        return [_missing(gap) for gap in self._reassembler.gaps(now=now)]

    def hasten(self, *, now: float) -> None:
        """A connection is up: what was lost with the one before is asked for soon."""
        self._reassembler.hasten(now=now)

    def next_deadline(self, *, asking: bool = True) -> float | None:
        """When `expire` or, with `asking`, `gaps` next has something to do."""
        return self._reassembler.next_deadline(asking=asking)

    def arriving(self) -> dict[str, float]:
        """Channels on which a message is half received, and until when the rest is waited for before it is asked for."""
        return {sender.rpartition("/")[2]: until for sender, until in self._reassembler.arriving().items()}

    @property
    def awaited_until(self) -> float | None:
        """After a delivery that was a new part of a message which is not whole yet: how long to wait for more of it."""
        return self._reassembler.grew

    @property
    def half_received(self) -> Reassembler:
        """What is half received, and the counters of it."""
        return self._reassembler

    @property
    def displaced(self) -> int:
        """How many half-received messages have given way to others so far."""
        return self._reassembler.displaced

    def _tensor(
        self, sender: str, payload: bytes, kind: type[TensorMessage], address: Address, now: float
    ) -> Received | None:
        limits = self._limits_of.get(kind, self.limits)
        chunk = codec.decode_chunk(payload, limits)
        if address.channel == "model_part" and chunk.part != address.part:
            raise ProtocolError("parts", f"part {chunk.part} of a keyframe on the topic of part {address.part}")
        named = address.channel != "model_part"
        # A device has one update under way, and awaits one answer.
        most = 1 if named and kind is not Shard else None
        whole = self._reassembler.add(sender, chunk, now=now, resumable=named and self.resumes, most=most)
        if whole is None:
            return None
        message = codec.decode_tensors(whole, kind, limits)
        if isinstance(message, Update) and message.device not in {"", address.device}:
            raise ProtocolError("identity", f"update of {message.device} on the topic of {address.device}")
        return Received(message=message, device=address.device, tensor=True)

    def _document(self, message: Message) -> bytes:
        payload = codec.encode_json(message)
        # A run may want smaller chunks than the broker does: what every named broker takes is never refused here.
        packet = max(self.chunk_bytes, CHUNK_BYTES_DEFAULT) + PACKET_OVERHEAD_BYTES // 2
        most = min(self.limits.json_bytes_max, packet)
        if len(payload) > most:
            raise _too_large(message, f"{len(payload)} bytes, at most {most} fit one packet")
        return payload

    def _cut(self, message: TensorMessage, pieces: tuple[bytes, bytes], parts: int, least: int = 1) -> Cut:
        total = sum(map(len, pieces))
        parts = min(parts, total) or min(max(least, parts_for(total, chunk_bytes=self.chunk_bytes)), total)
        if total > self.limits.message_bytes_max:
            raise _too_large(message, f"{total} bytes, at most {self.limits.message_bytes_max}")
        if parts > self.limits.parts_max:
            raise _too_large(message, f"{parts} parts of {self.chunk_bytes} bytes, at most {self.limits.parts_max}")
        return Cut.of(pieces, parts=parts)

    def _topic(self, route: Route, device: str) -> str:
        if route.direction == "all":
            return self.topics.all(route.channel)
        known = self._topics_of.get((route.channel, device))  # no channel is both up and down
        if known is not None:
            return known
        check_name("device", device)
        topic = (self.topics.down if route.direction == "down" else self.topics.up)(device, route.channel)
        if len(self._topics_of) >= _TOPICS_REMEMBERED_MAX:
            self._topics_of.clear()
        self._topics_of[route.channel, device] = topic
        return topic


def _missing(gap: Gap) -> Missing:
    _, device, channel = gap.sender.split("/")
    return Missing(
        device=DeviceId(device),
        channel=channel,
        transfer=gap.id.hex(),
        parts=gap.parts,
        missing=gap.missing,
        missing_bytes=gap.missing_bytes,
        patient_until=gap.patient_until,
    )


def _packet(route: Route, topic: str, payload: bytes) -> Packet:
    return Packet(topic=topic, payload=payload, qos=route.qos, retain=route.retain, expiry_s=route.expiry_s)


def _check_parts(wanted: Request | Command, limits: Limits) -> None:
    """Who asks for parts must name a transfer and some of its parts, and nobody else may."""
    if not wanted.transfer:
        if wanted.parts or wanted.missing:
            raise ProtocolError("bitmap", "parts of no transfer")
        return
    if not 1 < wanted.parts <= limits.parts_max:
        raise ProtocolError("parts", f"a transfer of {wanted.parts} parts")
    unpack_parts(wanted.missing, wanted.parts)


def _check_allocation(allocation: Allocation, device: DeviceId) -> None:
    if allocation.device != device:
        raise ProtocolError("identity", f"allocation for {allocation.device} on the topic of {device}")
    end = 0
    for start, stop in allocation.rows:
        if not end <= start < stop <= INTEGER_MAX:
            raise ProtocolError("schema", f"rows {start} to {stop} after row {end}: ranges must rise and not overlap")
        end = stop


def _check_head(head: ModelHead, limits: Limits) -> None:
    # A device subscribes to as many topics as the head names parts.
    if head.bytes > limits.message_bytes_max:
        raise ProtocolError("size", f"keyframe of {head.bytes} bytes, at most {limits.message_bytes_max}")
    if head.parts > min(limits.parts_max, head.bytes):
        raise ProtocolError("parts", f"keyframe of {head.bytes} bytes in {head.parts} parts")


def _too_large(message: Message, why: str) -> UsageError:
    return UsageError(
        f"{type(message).__name__} is too large to send",
        why=why,
        mend="Train a smaller model, or allow larger packets at the broker",
    )
