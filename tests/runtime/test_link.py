"""Nothing larger than the broker takes is sent, nothing that has no room is lost, and no wait is endless."""

import hashlib
import random
from dataclasses import replace

import pytest

from hermes_iot.core.effects import Resend
from hermes_iot.core.shelf import PIECES_UNDER_WAY
from hermes_iot.errors import AccessDenied, BrokerError, UsageError
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import pack_parts
from hermes_iot.protocol.limits import INTEGER_MAX, Limits
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    Chunk,
    Command,
    CoordinatorStatus,
    DeviceState,
    DeviceStatus,
    Model,
    ModelHead,
    Request,
    Response,
)
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire
from hermes_iot.runtime.link import PACKET_BYTES_MIN, Link, check_refusal
from hermes_iot.transport.base import Connected, Delivery, Refused
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from hermes_iot.transport.rules import publish_packet_bytes

LONGEST = "x" * 64
BIG = INTEGER_MAX


def model(size, version=1):
    body = random.Random(version).randbytes(size)  # nothing that zstd could make smaller
    return Model(run=LONGEST, version=version, model="0" * 64, codec="fp32", parameters=size // 4, body=body)


class Peer:
    """Another client of the broker, with the fleet's decoder."""

    def __init__(self, broker, topics, *filters):
        self.topics, self.deliveries = topics, []
        self.transport = MemoryTransport(broker, client_id="peer")
        self.transport.subscribe(filters)
        self.transport.start(self._on_event, timeout_s=1)
        self.link = Link(topics, self.transport)

    def _on_event(self, event):
        if isinstance(event, Delivery):
            self.deliveries.append(event)

    def messages(self):
        received = [self.link.decode(delivery, now=0.0) for delivery in self.deliveries]
        self.deliveries.clear()
        return [one.message for one in received if one is not None]


@pytest.fixture
def topics():
    return Topics(LONGEST, prefix=LONGEST)


def connected(broker, topics, **options):
    transport = MemoryTransport(broker, client_id="us")
    link = Link(topics, transport, **options)
    transport.start(lambda event: link.connected(event) if isinstance(event, Connected) else None, timeout_s=1)
    return link


@pytest.mark.parametrize("packet_bytes_max", [None, 2048, 3000, 5000, 16_384, 131_072, 268_435_460])
def test_chunks_fit_whatever_packets_the_broker_takes(topics, packet_bytes_max):
    broker = MemoryBroker(packet_bytes_max=packet_bytes_max)
    link, peer = connected(broker, topics), Peer(broker, topics, topics.down(LONGEST, "model"))
    message = model(300_000)
    assert link.send(message, device=LONGEST) > len(message.body)
    if packet_bytes_max is not None:
        sizes = [publish_packet_bytes(one.topic, one.payload, qos=1, expiry_s=300) for one in peer.deliveries]
        assert max(sizes) <= packet_bytes_max
        assert max(sizes) > min(packet_bytes_max, 120_000) / 2, "chunks are far smaller than they could be"
    assert peer.messages() == [message]


def test_a_run_may_want_smaller_chunks_than_the_broker_does(topics):
    broker = MemoryBroker(packet_bytes_max=131_072)
    link, peer = connected(broker, topics, chunk_bytes=1024), Peer(broker, topics, topics.down("pi", "model"))
    link.send(model(10_240), device="pi")
    assert len(peer.deliveries) == 11
    link.use_chunks_of(100_000)
    link.send(model(10_240, version=2), device="pi")
    assert len(peer.deliveries) == 12


def test_a_reconnect_to_a_broker_without_a_limit_lifts_the_limit(topics):
    link = connected(MemoryBroker(packet_bytes_max=4096), topics)
    assert link.wire.chunk_bytes < 4096
    link.connected(Connected())
    assert link.wire.chunk_bytes == 120_000


def test_a_broker_that_takes_only_tiny_packets_is_named(topics):
    with pytest.raises(BrokerError, match=r"at most 1000 bytes.*max_packet_size"):
        connected(MemoryBroker(), topics).connected(Connected(packet_bytes_max=1000))


def test_a_document_larger_than_a_packet_is_an_error_and_not_a_silence(topics):
    link = connected(MemoryBroker(packet_bytes_max=4096), topics)
    rows = tuple((start, start + 1) for start in range(0, 4000, 2))
    assert link.send(Allocation(run="r", device="pi", version=1, samples=9, batch=1, rows=rows[:9]), device="pi") > 0
    allocation = Allocation(run="r", device="pi", version=2, samples=2000, batch=1, rows=rows)
    with pytest.raises(UsageError, match=r"down/pi/alloc is too large for the broker.*it takes 4096"):
        link.send(allocation, device="pi")


#: What a machine says of its own accord, each word as long as it can be.
SAID = [
    Ack(run=LONGEST, session=BIG, seq=BIG, outcome="duplicate", reason="model_mismatch", epoch=BIG, newest=BIG),
    CoordinatorStatus(
        state="offline",
        session=LONGEST,
        run=LONGEST,
        model_version=BIG,
        devices_online=BIG,
        updates_applied=BIG,
        loss=-1.2345678901234567e-300,
        accuracy=0.12345678901234567,
        elapsed_s=12345678.901234567,
        host="\N{GRINNING FACE}" * 64,
        software="1.22.333.dev4444",
        epoch=BIG,
        reason="No space left on device: " + "x" * 200,
    ),
    DeviceStatus(
        state="offline",
        session=BIG,
        instance="f" * 32,
        host="\N{GRINNING FACE}" * 64,
        software="1.22.333.dev4444",
        slowdown=12345.678901234567,
        rows=BIG,
        memory_rows_max=BIG,
        reason="\N{GRINNING FACE}" * 200,
    ),
    DeviceState(
        run=LONGEST,
        phase="training",
        gate="superseded",
        shard="ab" * 32,
        **dict.fromkeys(("session", "seq", "allocation_version", "model_version", "iterations", "published"), BIG),
        **dict.fromkeys(("samples", "batch", "mini_batches", "diverged", "dropped", "bytes_up", "bytes_down"), BIG),
        **dict.fromkeys(("iteration_s", "batch_s"), 12345678.901234567),
        **dict.fromkeys(("loss", "z", "threshold"), -1.2345678901234567e-300),
    ),
    Request(run=LONGEST, session=BIG, want="shard", shards=("ab" * 32,) * PIECES_UNDER_WAY),
    Response(id=LONGEST, status="error", detail="training"),
    ModelHead(run=LONGEST, version=BIG, sha256="ab" * 32, bytes=BIG, parts=BIG, epoch=BIG),
]


@pytest.mark.parametrize("message", SAID, ids=lambda message: type(message).__name__)
def test_the_smallest_packets_allowed_carry_whatever_a_machine_says_of_its_own_accord(topics, message):
    link = connected(MemoryBroker(packet_bytes_max=PACKET_BYTES_MIN), topics)
    assert link.send(message, device=LONGEST) > 0


@pytest.mark.parametrize("limit", [2048, 2500, 3000, 3800, 5000, None])
def test_a_message_in_ever_so_many_parts_does_not_make_us_ask_with_more_than_a_packet_takes(topics, limit):
    link = connected(MemoryBroker(packet_bytes_max=limit), topics)
    asked = []
    for parts in (2, 100, 4000, 8000, 16_384):
        chunk = Chunk(id=hashlib.sha256(b"%d" % parts).digest(), part=parts - 1, parts=parts, total=parts, body=b"x")
        link.decode(Delivery(topic=topics.up(LONGEST, "update"), payload=codec.encode_chunk(chunk)), now=0.0)
        for gap in link.gaps(now=100.0):
            asked.append(gap.parts)
            named = {"transfer": gap.transfer, "parts": gap.parts, "missing": gap.missing}
            order = Command(id=LONGEST, name="resend", epoch=BIG, **named)
            request = Request(run=LONGEST, session=BIG, want="model", **named)
            assert link.send(order, device=LONGEST) > 0
            assert link.send(request, device=LONGEST) > 0
    assert asked == {2048: [2, 100, 4000], 2500: [2, 100, 4000, 8000], 3000: [2, 100, 4000, 8000]}.get(
        limit, [2, 100, 4000, 8000, 16_384]
    )


class Narrow:
    """A transport whose queue has `places` for messages and is emptied by `flush`, unless it is stuck or cut."""

    def __init__(self, places):
        self.places, self.queue, self.sent, self.flushes = places, [], [], 0
        self.stuck = self.cut = False

    def publish(self, topic, payload, **_options):
        if self.cut or len(self.queue) >= self.places:
            return False
        self.queue.append((topic, payload))
        return True

    def room(self, *, messages):
        return self.cut or len(self.queue) < messages

    def flush(self, *, timeout_s):
        assert timeout_s < 1, "the loop must not stand still for long"
        self.flushes += 1
        if self.stuck:
            return False
        self.sent += self.queue
        self.queue.clear()
        return True


def test_a_full_queue_slows_the_sender_down_and_loses_nothing(topics):
    transport = Narrow(places=3)
    link = Link(topics, transport, chunk_bytes=1024)
    assert link.send(model(20_480), device="pi") > 20_480
    transport.flush(timeout_s=0)
    parts = [link.decode(Delivery(topic=topic, payload=payload), now=0.0) for topic, payload in transport.sent]
    assert len(parts) > 20
    assert [one.message.version for one in parts if one is not None] == [1]


def test_allocations_for_a_thousand_devices_all_get_through_a_small_queue(topics):
    transport = Narrow(places=16)
    link = Link(topics, transport)
    for number in range(1000):
        allocation = Allocation(run="r", device=f"pi-{number}", version=1, samples=1, batch=1)
        assert link.send(allocation, device=f"pi-{number}")
    transport.flush(timeout_s=0)
    assert len({topic for topic, _ in transport.sent}) == 1000


def test_without_a_connection_nothing_is_waited_for(topics):
    transport = Narrow(places=3)
    transport.cut = True
    link = Link(topics, transport)
    for _ in range(10):
        assert link.send(Command(id="a", name="ping"), device="pi") == 0
    link.connected(Connected())
    link.disconnected()
    link.send(Command(id="a", name="ping"), device="pi")
    assert transport.flushes == 0


def test_what_was_on_its_way_when_the_connection_broke_is_not_waited_for(topics):
    """paho keeps it for the next connection; the loop, which is not told of the end yet, has better things to do."""
    transport = Narrow(places=3)
    link = Link(topics, transport)
    link.connected(Connected())
    assert link.send(Command(id="a", name="ping"), device="pi") > 0
    transport.cut = transport.stuck = True
    assert link.send(Command(id="b", name="ping"), device="pi") == 0
    assert transport.flushes == 0


def test_a_broker_that_answers_nothing_is_waited_for_only_once_and_only_so_long(topics):
    transport = Narrow(places=1)
    transport.stuck = True
    link = Link(topics, transport)
    assert link.send(Command(id="a", name="ping"), device="pi") > 0
    assert link.send(Command(id="b", name="ping"), device="pi") == 0
    waited = transport.flushes
    assert 10 <= waited <= 100
    assert link.send(Command(id="c", name="ping"), device="pi") == 0
    assert transport.flushes == waited
    transport.queue.clear()
    assert link.send(Command(id="d", name="ping"), device="pi") > 0
    assert link.send(Command(id="e", name="ping"), device="pi") == 0
    assert transport.flushes > waited, "it took something again, so it is worth waiting again"


def parts_on(broker, topics):
    return sorted(
        int(topic.rsplit("/", 1)[1]) for topic in broker.retained if topic.startswith(topics.model_part(0)[:-1])
    )


def test_a_smaller_keyframe_clears_the_chunks_it_does_not_overwrite(topics):
    broker = MemoryBroker()
    link = connected(broker, topics, chunk_bytes=1024)
    *_, parts = link.send_keyframe(model(10_240))
    assert parts_on(broker, topics) == list(range(parts))
    *_, fewer = link.send_keyframe(model(2048, version=2), parts_before=parts)
    assert fewer < parts
    assert parts_on(broker, topics) == list(range(fewer))


def test_chunks_that_could_not_be_cleared_are_remembered(topics):
    broker = MemoryBroker()
    link = connected(broker, topics, chunk_bytes=1024)
    *_, parts = link.send_keyframe(model(10_240))
    broker.drop("us")
    assert link.send_keyframe(model(2048, version=2), parts_before=parts) == (0, 0, parts)
    broker.restore("us")
    *_, fewer = link.send_keyframe(model(2048, version=2), parts_before=parts)
    assert parts_on(broker, topics) == list(range(fewer))


def test_no_head_points_at_chunks_that_did_not_get_through(topics):
    transport = Narrow(places=5)
    transport.stuck = True
    tensors, head, parts = Link(topics, transport, chunk_bytes=1024).send_keyframe(model(10_240))
    assert tensors > 0
    assert head == 0
    assert parts == 11
    assert topics.all("model") not in {topic for topic, _ in transport.queue}


def test_a_refusal_of_the_access_list_names_topic_and_remedy():
    with pytest.raises(AccessDenied, match=r"refuses topic a/b: Not authorized\. .*access list") as caught:
        check_refusal(Refused(topic="a/b", reason="Not authorized"))
    assert caught.value.exit_code == 5


def test_another_refusal_is_only_reported(caplog):
    check_refusal(Refused(topic="a/b", reason="Quota exceeded"))
    assert "refused topic=a/b reason=Quota exceeded" in caplog.text


class Acknowledging(Narrow):
    """Messages stay in its queue until the test takes them out, and it notes who asked to be told of room."""

    def __init__(self):
        super().__init__(places=256)
        self.stuck = True

    def take(self, count):
        self.sent += self.queue[:count]
        del self.queue[:count]

    @property
    def topics(self):
        return [topic for topic, _ in self.sent + self.queue]


def test_what_is_urgent_waits_behind_one_portion_and_not_behind_a_model(topics):
    transport = Acknowledging()
    link = Link(topics, transport)
    link.send(model(2_400_000), device="pi")
    assert len(transport.queue) == 2
    link.send(Command(id="a", name="ping"), device="pi")
    assert transport.queue[2][0] == topics.down("pi", "cmd")
    assert transport.flushes == 0, "the loop does not stand still meanwhile"


def test_a_model_in_line_goes_on_as_the_broker_takes_it_and_arrives_whole(topics):
    transport, whole = Acknowledging(), model(2_400_000)
    link = Link(topics, transport)
    handed = link.send(whole, device="pi")
    while link.flowing:
        assert len(transport.queue) <= 2
        transport.take(1)
        handed += link.feed()
    assert handed == sum(len(payload) for _, payload in transport.sent) > 2_400_000
    receiver = Wire(topics)
    came = [receiver.incoming(topic, payload, now=0.0) for topic, payload in transport.sent]
    assert [one.message for one in came if one is not None] == [whole]


def test_small_chunks_are_handed_over_by_the_hundred_but_leave_room(topics):
    transport = Acknowledging()
    Link(topics, transport, chunk_bytes=1024).send(model(1_000_000), device="pi")
    assert len(transport.queue) == 128


def test_a_newer_answer_takes_the_place_of_an_older_one_in_line(topics):
    transport = Acknowledging()
    link = Link(topics, transport)
    for version in (1, 2, 3):
        link.send(model(600_000, version), device="pi")
    link.send(model(600_000, 9), device="other")
    while link.flowing:
        transport.take(1)
        link.feed()
    receiver = Wire(topics)
    came = [receiver.incoming(topic, payload, now=0.0) for topic, payload in transport.sent]
    assert [one.message.version for one in came if one is not None] == [3, 9]
    assert len(transport.sent) == 2 + 6 + 6, "of the first what was under way, of the second nothing"


def test_without_the_connection_the_line_is_gone(topics):
    transport = Acknowledging()
    link = Link(topics, transport)
    link.send(model(2_400_000), device="pi")
    link.disconnected()
    assert not link.flowing
    transport.queue.clear()
    assert link.feed() == 0


def test_a_farewell_waits_for_what_stands_in_line_and_not_for_ever(topics):
    transport = Narrow(places=256)
    link = Link(topics, transport)
    transport.stuck = True
    link.send(model(2_400_000), device="pi")
    assert not link.flush(timeout_s=0.5)
    transport.stuck = False
    assert link.flush(timeout_s=0.5)
    assert len(transport.sent) > 20


def test_parts_are_asked_for_and_sent_again_as_they_were_cut(topics):
    transport, whole = Acknowledging(), model(600_000)
    link = Link(topics, transport)
    cut = link.wire.cut(whole)
    missing = pack_parts([1, 4], cut.parts)
    wanted = Resend(message=whole, device="pi", transfer=cut.id.hex(), parts=cut.parts, missing=missing)
    assert link.resend(wanted) > 2 * 90_000
    assert [codec.decode_chunk(payload, Limits()) for _, payload in transport.queue] == [cut.chunk(1), cut.chunk(4)]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"transfer": "ab" * 32}, id="another transfer"),
        pytest.param({"message": model(600_000, 2)}, id="another message"),
        pytest.param({"parts": 16_000, "missing": pack_parts([1], 16_000)}, id="in slices that are mostly headers"),
        pytest.param({"parts": 2, "missing": b"\x40"}, id="in slices larger than a packet"),
    ],
)
def test_parts_of_what_was_never_sent_so_are_not_sent(topics, changed):
    transport, whole = Acknowledging(), model(600_000)
    link = Link(topics, transport)
    cut = link.wire.cut(whole)
    wanted = Resend(message=whole, device="pi", transfer=cut.id.hex(), parts=cut.parts, missing=b"\x40")
    assert link.resend(replace(wanted, **changed)) == 0
    assert transport.queue == []
