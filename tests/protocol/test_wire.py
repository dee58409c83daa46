"""Topic, service level and life of each message, and what `Wire` makes of anything a broker may hand it (F20, F23-F25)."""

import hashlib
from dataclasses import replace
from itertools import product

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import split
from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT, INTEGER_MAX, PACKET_OVERHEAD_BYTES, Limits
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    Chunk,
    Command,
    CoordinatorStatus,
    DeviceState,
    DeviceStatus,
    Metrics,
    Model,
    ModelHead,
    Request,
    Response,
    RunManifest,
    Shard,
    Update,
)
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import ROUTES, Received, Wire
from tests.protocol.bending import bent, by_name
from tests.protocol.samples import BODY, SAMPLES
from tests.protocol.strategies import KINDS, TENSOR_KINDS, device_of, messages, names, steady

TOPICS = Topics("lab-1")
#: A chunk's payload is at most this much longer than its body.
CHUNK_HEADER_BYTES = 96
#: The smallest packet among the brokers of protocol.md: AWS IoT Core.
AWS_PACKET_BYTES = 128 * 1024

# protocol.md in one table: what a broker keeps, how sure it is to arrive, and for how long it may lie there.
TABLE = [
    # message           topic                    qos retain expiry_s
    (CoordinatorStatus, "all/coordinator", 1, True, None),
    (RunManifest, "all/run", 1, True, None),
    (ModelHead, "all/model", 1, True, None),
    (Allocation, "down/pi-01/alloc", 1, True, None),
    (Ack, "down/pi-01/ack", 1, True, None),
    (Model, "down/pi-01/model", 1, False, 300),
    (Shard, "down/pi-01/data", 1, False, 300),
    (Command, "down/pi-01/cmd", 1, False, 60),
    (DeviceStatus, "up/pi-01/status", 1, True, None),
    (DeviceState, "up/pi-01/state", 1, True, None),
    (Update, "up/pi-01/update", 1, False, 300),
    (Request, "up/pi-01/request", 1, False, 60),
    (Metrics, "up/pi-01/metrics", 0, False, None),
    (Response, "up/pi-01/rsp", 1, False, 60),
]


def wire(**options):
    return Wire(TOPICS, **options)


def received(receiver, packets, *, now=0.0):
    """The only message in these packets."""
    results = [receiver.incoming(packet.topic, packet.payload, now=now) for packet in packets]
    [one] = [result for result in results if result is not None]
    return one


def refused(topic, payload, *, receiver=None):
    with pytest.raises(ProtocolError) as caught:
        (receiver or wire()).incoming(topic, payload, now=0.0)
    return caught.value.reason


# --- routes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "topic", "qos", "retain", "expiry_s"), TABLE, ids=[row[0].__name__ for row in TABLE])
def test_a_message_travels_as_the_table_says(kind, topic, qos, retain, expiry_s):
    [packet] = wire().outgoing(SAMPLES[kind], device="pi-01")
    assert packet.topic == f"hermes/v1/lab-1/{topic}"
    assert (packet.qos, packet.retain, packet.expiry_s) == (qos, retain, expiry_s)


def test_the_table_is_complete_and_nothing_is_both_retained_and_short_lived():
    assert {row[0] for row in TABLE} == set(ROUTES)
    assert not [kind for kind, route in ROUTES.items() if route.retain and route.expiry_s is not None]
    assert not [kind for kind, route in ROUTES.items() if route.qos not in {0, 1}]


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_what_one_wire_sends_another_receives(kind):
    @settings(steady, max_examples=50)
    @given(messages(kind), st.integers(64, 400))
    def exchange(message, chunk_bytes):
        device = device_of(message)
        size = chunk_bytes if kind in TENSOR_KINDS else CHUNK_BYTES_DEFAULT
        packets = list(wire(chunk_bytes=size).outgoing(message, device=device))
        assert received(wire(), packets) == Received(message=message, device=device, tensor=kind in TENSOR_KINDS)

    exchange()


@pytest.mark.parametrize("device", ["", "+", "#", "a/b", "x" * 65])
@pytest.mark.parametrize("kind", [Ack, Update, Model], ids=by_name)
def test_nothing_is_sent_to_what_is_no_device(kind, device):
    with pytest.raises(UsageError, match="cannot be part of a topic"):
        list(wire().outgoing(SAMPLES[kind], device=device))


# --- sizes: F25 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1024, 4000, CHUNK_BYTES_DEFAULT])
def test_no_packet_is_larger_than_the_chunk_and_its_header(chunk_bytes):
    big = replace(SAMPLES[Update], body=hashlib.shake_256(b"incompressible").digest(2_300_000))
    packets = list(wire(chunk_bytes=chunk_bytes).outgoing(big, device="pi-01"))
    assert len(packets) == -(-len(codec.encode_tensors(big)) // chunk_bytes)
    assert max(len(packet.payload) for packet in packets) <= chunk_bytes + CHUNK_HEADER_BYTES
    assert received(wire(), packets).message == big


def test_the_stated_header_bound_holds_for_the_largest_numbers():
    largest = codec.Chunk(id=bytes(32), part=2**53 - 2, parts=2**53 - 1, total=2**53 - 1, body=bytes(70_000))
    assert len(codec.encode_chunk(largest)) - 70_000 <= CHUNK_HEADER_BYTES < PACKET_OVERHEAD_BYTES


def test_the_default_chunk_fits_every_broker_with_the_longest_topic():
    longest = Topics("f" * 64, prefix="p" * 64).up("d" * 64, "update")
    header = 5 + 2 + len(longest) + 2 + 16
    assert CHUNK_BYTES_DEFAULT + CHUNK_HEADER_BYTES + header <= AWS_PACKET_BYTES
    assert CHUNK_HEADER_BYTES + header <= PACKET_OVERHEAD_BYTES // 2


def wide_manifest(tensors):
    model = replace(SAMPLES[RunManifest].model, tensors=tuple((f"layers.{i}.weight", (64, 64)) for i in range(tensors)))
    return replace(SAMPLES[RunManifest], model=model)


def test_a_json_message_that_fits_no_packet_is_refused_at_its_sender():
    manifest = wide_manifest(5_000)
    size = len(codec.encode_json(manifest))
    exactly = wire(chunk_bytes=size - PACKET_OVERHEAD_BYTES // 2)
    assert received(wire(), exactly.outgoing(manifest)).message == manifest
    one_less = wire(chunk_bytes=size - PACKET_OVERHEAD_BYTES // 2 - 1)
    with pytest.raises(UsageError, match=r"RunManifest is too large to send.*allow larger packets"):
        list(one_less.outgoing(manifest))


def test_small_chunks_do_not_forbid_a_document_that_every_broker_takes():
    manifest = wide_manifest(1_000)
    [packet] = wire(chunk_bytes=1024).outgoing(manifest)
    assert 1024 + PACKET_OVERHEAD_BYTES < len(packet.payload) < AWS_PACKET_BYTES


def test_a_json_message_no_peer_takes_is_refused_at_its_sender():
    with pytest.raises(UsageError, match="too large"):
        list(wire(chunk_bytes=2**28).outgoing(wide_manifest(9_000)))


def test_a_model_of_a_thousand_tensors_fits_the_default():
    assert received(wire(), wire().outgoing(wide_manifest(1_000))).message == wide_manifest(1_000)


def test_tensors_no_peer_takes_are_refused_at_their_sender():
    update = replace(SAMPLES[Update], body=hashlib.shake_256(b"incompressible").digest(2_000))
    size = len(codec.encode_tensors(update))
    assert list(wire(limits=Limits(message_bytes_max=size)).outgoing(update, device="pi-01"))
    with pytest.raises(UsageError, match="too large"):
        list(wire(limits=Limits(message_bytes_max=size - 1)).outgoing(update, device="pi-01"))
    assert list(wire(limits=Limits(parts_max=size), chunk_bytes=1).outgoing(update, device="pi-01"))
    with pytest.raises(UsageError, match="too large"):
        list(wire(limits=Limits(parts_max=size - 1), chunk_bytes=1).outgoing(update, device="pi-01"))
    with pytest.raises(UsageError, match="too large"):
        wire(limits=Limits(message_bytes_max=2_000)).keyframe(replace(SAMPLES[Model], body=bytes(2_000)))


def test_a_wire_that_knows_its_run_takes_its_longest_body_and_not_a_byte_more():
    receiver = wire()
    receiver.expect(Update, body_bytes_max=2000)
    noise = hashlib.shake_256(b"incompressible")
    for compressible in (False, True):
        longest = replace(SAMPLES[Update], body=bytes(2000) if compressible else noise.digest(2000))
        assert received(receiver, wire().outgoing(longest, device="pi-01")).message == longest
        longer = replace(longest, body=bytes(2001) if compressible else noise.digest(2001))
        with pytest.raises(ProtocolError) as caught:
            received(receiver, wire().outgoing(longer, device="pi-01"))
        assert caught.value.reason == "inflate"


def test_a_claim_beyond_the_runs_model_is_refused_before_a_byte_is_kept():
    receiver = wire()
    receiver.expect(Update, body_bytes_max=2000)
    for total in (2000 + 4096 + 1, 2**28, Limits().message_bytes_max):
        payload = codec.encode_chunk(Chunk(id=b"x" * 32, part=0, parts=3, total=total, body=b"x"))
        with pytest.raises(ProtocolError) as caught:
            receiver.incoming(TOPICS.up("pi-01", "update"), payload, now=0.0)
        assert caught.value.reason == "size"
        assert receiver.half_received.reserved_bytes == 0


def test_what_is_known_of_one_kind_says_nothing_about_another():
    receiver = wire()
    receiver.expect(Update, body_bytes_max=10)
    shard = replace(SAMPLES[Shard], body=bytes(5000))
    assert received(receiver, wire().outgoing(shard, device="pi-01")).message == shard
    receiver.expect(Update, body_bytes_max=None)
    update = replace(SAMPLES[Update], body=bytes(5000))
    assert received(receiver, wire().outgoing(update, device="pi-01")).message == update


def test_a_run_makes_no_limit_larger():
    limits = Limits(message_bytes_max=5000, inflated_bytes_max=3000)
    assert limits.with_bodies_of(10**12) == limits
    assert limits.with_bodies_of(100) == replace(limits, message_bytes_max=4196, inflated_bytes_max=100)


# --- keyframes ---------------------------------------------------------------------------------------------------


def keyframe_of(size, **changes):
    body = hashlib.shake_256(b"model").digest(size)
    return replace(SAMPLES[Model], **({"session": 0, "seq": 0, "body": body} | changes))


@pytest.mark.parametrize(("size", "chunk_bytes"), [(0, 4096), (1, 1024), (10_000, 1024), (444_000, 120_000)])
def test_a_keyframe_and_its_head_agree(size, chunk_bytes):
    model = keyframe_of(size)
    packets, head = wire(chunk_bytes=chunk_bytes).keyframe(model)
    assert [packet.topic for packet in packets] == [f"hermes/v1/lab-1/all/model/{part}" for part in range(head.parts)]
    assert {(packet.qos, packet.retain, packet.expiry_s) for packet in packets} == {(1, True, None)}
    assert max(len(packet.payload) for packet in packets) <= chunk_bytes + CHUNK_HEADER_BYTES
    chunks = [codec.decode_chunk(packet.payload, Limits()) for packet in packets]
    whole = b"".join(chunk.body for chunk in chunks)
    assert (head.run, head.version) == (model.run, model.version)
    assert (head.bytes, head.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert {(chunk.id.hex(), chunk.parts, chunk.total) for chunk in chunks} == {(head.sha256, head.parts, head.bytes)}
    assert received(wire(), reversed(packets)) == Received(message=model, device="", tensor=True)
    assert received(wire(), wire().outgoing(head)).message == head


@steady
@given(st.integers(0, 6_000), st.integers(1024, 3_000), names, st.integers(0, INTEGER_MAX), st.sampled_from([0, 255]))
def test_every_keyframe_of_a_model_has_the_same_number_of_parts(size, chunk_bytes, run, version, fill):
    """Else a shorter one would leave a retained part of a longer one behind."""
    sender = wire(chunk_bytes=chunk_bytes)
    early = keyframe_of(size, run="r", version=0)
    late = keyframe_of(size, run=run, version=version, body=bytes([fill]) * size)
    assert sender.keyframe(early)[1].parts == sender.keyframe(late)[1].parts


def test_the_longest_header_of_a_keyframe_is_within_its_allowance():
    """At the edge where one more header byte would mean one more part, for every size around it."""
    longest = {"run": "r" * 64, "version": INTEGER_MAX, "session": INTEGER_MAX, "seq": INTEGER_MAX}
    sender = wire(chunk_bytes=1024)
    for size in range(1024 - 512 - 300, 1024 + 5):
        model = keyframe_of(size, **longest, parameters=INTEGER_MAX)
        assert sender.keyframe(model)[1].parts == sender.keyframe(keyframe_of(size, run="r", version=0))[1].parts


def test_a_keyframe_part_on_the_topic_of_another_is_refused():
    packets, _ = wire(chunk_bytes=1024).keyframe(keyframe_of(3_000))
    assert refused(packets[1].topic, packets[2].payload) == "parts"


def test_a_part_left_behind_by_an_older_keyframe_does_not_disturb_the_new_one():
    old, _ = wire(chunk_bytes=1024).keyframe(keyframe_of(9_000, version=1))
    new, head = wire(chunk_bytes=1024).keyframe(keyframe_of(5_000, version=2))
    mixed = [packet for pair in zip(new, old, strict=False) for packet in pair] + old[head.parts :][:-1]
    receiver = wire()
    results = [receiver.incoming(packet.topic, packet.payload, now=0.0) for packet in mixed]
    [one] = [result for result in results if result is not None]
    assert one.message.version == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parts": 16_385}, "parts"),
        ({"parts": INTEGER_MAX}, "parts"),
        ({"parts": 3, "bytes": 2}, "parts"),
        ({"bytes": 256 * 1024 * 1024 + 1}, "size"),
    ],
    ids=str,
)
def test_a_head_that_would_make_a_device_subscribe_without_end_is_refused(changes, reason):
    assert refused(TOPICS.all("model"), bent(ModelHead, **changes)) == reason


# --- what comes in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_a_cleared_retained_message_is_nothing(kind):
    [packet] = wire().outgoing(SAMPLES[kind], device="pi-01")
    assert wire().incoming(packet.topic, b"", now=0.0) is None
    assert wire().incoming(TOPICS.model_part(0), b"", now=0.0) is None


@pytest.mark.parametrize("topic", ["", "hermes/v1/lab-2/all/run", "hermes/v2/lab-1/all/run", "$SYS/broker/uptime"])
def test_a_foreign_topic_is_nothing_whatever_it_carries(topic):
    assert wire().incoming(topic, b"\xff" * 100, now=0.0) is None


@pytest.mark.parametrize(("said", "reason"), [("pi-01", ""), ("", ""), ("pi-02", "identity")])
def test_an_update_of_another_device_is_refused(said, reason):
    [packet] = wire().outgoing(replace(SAMPLES[Update], device=said), device="pi-01")
    if reason:
        assert refused(packet.topic, packet.payload) == reason
    else:
        assert wire().incoming(packet.topic, packet.payload, now=0.0).message.device == said


def test_an_allocation_for_another_device_is_refused():
    payload = codec.encode_json(SAMPLES[Allocation])
    assert wire().incoming(TOPICS.down("pi-01", "alloc"), payload, now=0.0) is not None
    assert refused(TOPICS.down("pi-02", "alloc"), payload) == "identity"


@pytest.mark.parametrize(
    "rows",
    [[[-1, 5]], [[5, 5]], [[5, 4]], [[0, 5], [4, 9]], [[5, 9], [0, 4]], [[0, 2**53]]],
    ids=str,
)
def test_rows_that_do_not_rise_are_refused(rows):
    assert refused(TOPICS.down("pi-01", "alloc"), bent(Allocation, rows=rows)) == "schema"


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_a_message_on_the_topic_of_another_kind_is_refused(kind):
    payloads = {other: next(iter(wire().outgoing(SAMPLES[other], device="pi-01"))).payload for other in KINDS}
    for other in set(KINDS) - {kind}:
        [packet] = wire().outgoing(SAMPLES[kind], device="pi-01")
        assert refused(packet.topic, payloads[other]) in {"schema", "json", "msgpack", "version"}


@pytest.mark.parametrize("kind", TENSOR_KINDS, ids=by_name)
def test_every_single_flipped_bit_of_a_tensor_message_is_noticed(kind):
    [packet] = wire().outgoing(replace(SAMPLES[kind], body=BODY), device="pi-01")
    for position, bit in product(range(len(packet.payload)), range(8)):
        damaged = bytearray(packet.payload)
        damaged[position] ^= 1 << bit
        assert refused(packet.topic, bytes(damaged)) in {"msgpack", "schema", "version", "parts", "size", "checksum"}


@pytest.mark.parametrize("kind", TENSOR_KINDS, ids=by_name)
@pytest.mark.parametrize("level", ["chunk", "message"])
def test_another_version_is_refused_at_both_levels(kind, level):
    [packet] = wire().outgoing(SAMPLES[kind], device="pi-01")
    if level == "chunk":
        foreign = msgpack.packb(msgpack.unpackb(packet.payload) | {"v": 2})
    else:
        [chunk] = split(bent(kind, v=2), chunk_bytes=10_000)
        foreign = codec.encode_chunk(chunk)
    assert refused(packet.topic, foreign) == "version"


def test_half_received_messages_expire_through_the_wire():
    receiver = wire(limits=Limits(transfer_deadline_s=5.0, transfers_per_device_max=1))
    half = list(wire(chunk_bytes=64).outgoing(SAMPLES[Update], device="pi-01"))[:-1]
    for packet in half:
        assert receiver.incoming(packet.topic, packet.payload, now=1.0) is None
    assert receiver.next_deadline() == 6.0
    newer = next(iter(wire(chunk_bytes=64).outgoing(replace(SAMPLES[Update], seq=10), device="pi-01")))
    assert receiver.incoming(newer.topic, newer.payload, now=2.0) is None
    assert (receiver.displaced, receiver.next_deadline()) == (1, 7.0)
    assert receiver.expire(now=7.0) == 1
    assert receiver.next_deadline() is None


def test_every_word_of_a_coordinator_carries_its_epoch_and_nobody_elses_does():
    leads = (CoordinatorStatus, RunManifest, ModelHead, Allocation, Ack, Command, Model)
    wire, peer = Wire(TOPICS), Wire(TOPICS)
    wire.epoch = 7
    for kind, message in SAMPLES.items():
        if kind not in ROUTES:
            continue
        received = [
            peer.incoming(packet.topic, packet.payload, now=0.0)
            for packet in wire.outgoing(message, device=device_of(message))
        ]
        expected = replace(message, epoch=7) if kind in leads else message
        assert received[-1].message == expected
    packets, _ = wire.keyframe(SAMPLES[Model])
    received = [peer.incoming(packet.topic, packet.payload, now=0.0) for packet in packets]
    assert received[-1].message.epoch == 7
