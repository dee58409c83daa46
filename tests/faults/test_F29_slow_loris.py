"""F29: a device that sends next to nothing, for ever, or asks for everything, again and again. It is alone with it."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.quota import Quota
from hermes_iot.core.shipped import Shipped
from hermes_iot.domain import Sizing
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import pack_parts
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Chunk, Model, Request
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire
from tests.core.peers import TOPICS, Fleet

MIB = 1024 * 1024


def slices(total, parts, seed=0):
    """Of a message whose whole nobody ever sees."""
    digest = hashlib.sha256(f"{seed}".encode()).digest()
    return (
        Chunk(
            id=digest,
            part=part,
            parts=parts,
            total=total,
            body=bytes((part + 1) * total // parts - part * total // parts),
        )
        for part in range(parts)
    )


def trickle(wire, device, chunk, now):
    wire.incoming(wire.topics.up(device, "update"), codec.encode_chunk(chunk), now=now)


def test_F29_one_slice_a_minute_holds_memory_for_minutes_and_not_for_days():
    """64 MiB in 600 slices, one each 100 s: never 120 s without growth, so only the deadline on the whole ends it."""
    wire, now = Wire(Topics("lab"), resumes=True), 0.0
    for chunk in slices(64 * MIB, 600):
        trickle(wire, "slow", chunk, now)
        if wire.half_received.expired or wire.expire(now=now):
            break
        now += 100.0
    assert wire.half_received.expired == 1
    assert now <= 300.0
    assert wire.half_received.reserved_bytes == 0 or wire.half_received.open_transfers == 1


def test_F29_it_holds_one_partial_transfer_however_many_it_begins():
    wire = Wire(Topics("lab"), resumes=True)
    for seed in range(50):
        trickle(wire, "slow", next(iter(slices(8 * MIB, 80, seed))), float(seed))
    assert (wire.half_received.open_transfers, wire.half_received.displaced) == (1, 49)
    assert wire.half_received.reserved_bytes < 8 * MIB + 4096


def test_F29_many_of_them_hold_no_more_than_the_limit_together_and_an_honest_one_gets_through():
    limits = Limits(transfers_bytes_max=64 * MIB)
    wire = Wire(Topics("lab"), limits=limits, resumes=True)
    refused = Counter()
    for n in range(200):
        try:
            trickle(wire, f"slow-{n}", next(iter(slices(16 * MIB, 160, n))), 0.0)
        except codec.ProtocolError as error:
            refused[error.reason] += 1
        assert wire.half_received.reserved_bytes <= limits.transfers_bytes_max
    assert refused == {"memory": 197}
    honest = Wire(Topics("lab"), chunk_bytes=100_000)
    body = hashlib.sha256(b"honest").digest() * (8 * MIB // 32)
    update = Model(run="r", version=1, model="0" * 64, codec="fp32", parameters=len(body) // 4, body=body)
    cut = honest.cut(update)
    got = None
    for part in range(cut.parts):
        got = wire.incoming(wire.topics.down("pi", "model"), codec.encode_chunk(cut.chunk(part)), now=1.0)
    assert got is not None
    assert got.message == update


def test_F29_who_stops_is_asked_a_few_times_and_then_dropped():
    """Asked after 2 s, then (2 + 2 x 1) s x 2, x 4, x 8: at 2, 10, 26 and 58 s. The fifth would come after the deadline."""
    wire = Wire(Topics("lab"), resumes=True)
    trickle(wire, "slow", list(slices(64_000, 8))[7], 0.0)
    now, asked = 0.0, 0
    while (due := wire.next_deadline()) is not None:
        now = due
        asked += len(wire.gaps(now=now))
        wire.expire(now=now)
    assert asked == 4 <= wire.limits.resumes_max
    assert now == wire.limits.transfer_deadline_s
    assert wire.half_received.expired == 1


def fleet():
    settings = CoordinatorSettings(first=Sizing(samples=48, batch=8))
    made = Fleet(settings=settings, chunk_bytes=40, latency_s=0.003)
    made.lead()
    made.join("d0", speed=0.05)
    made.join("evil", speed=10.0)
    made.run_until(lambda: made.applied("d0") >= 1)
    return made


@pytest.mark.parametrize("known", [False, True], ids=["of nothing", "of what it was sent"])
def test_F29_a_flood_of_requests_brings_no_more_than_its_quota(known):
    """A request of two hundred bytes could bring a whole model each time."""
    made = fleet()
    sent = []
    publish = made.broker.publish

    def noted(topic, payload, *, retain):
        if topic == TOPICS.down("evil", "model"):
            sent.append(payload)
        publish(topic, payload, retain=retain)

    made.broker.publish = noted
    made.say(Request(run=made.manifest.run, session=1, want="model"), "evil")
    made.run(0.1)
    [first, *_] = {codec.decode_chunk(one, Limits()).id: one for one in sent}
    parts = codec.decode_chunk(sent[0], Limits()).parts
    sent.clear()
    transfer = first.hex() if known else "ab" * 32
    wanted = Request(
        run=made.manifest.run,
        session=1,
        want="model",
        transfer=transfer,
        parts=parts,
        missing=pack_parts(range(parts), parts),
    )
    begun = made.now
    for _ in range(300):
        made.say(wanted, "evil")
        made.run(0.01)
    quota = Quota()
    most = quota.burst + (made.now - begun) / quota.interval_s + 1
    assert 0 < len(sent) <= most * (parts + 1)
    refused = [one for one in made.events("refused") if (one["device"], one["reason"]) == ("evil", "rate")]
    assert len(refused) >= 300 - most
    applied = made.applied("d0")
    made.run_until(lambda: made.applied("d0") > applied + 2, within=20.0)


def test_F29_a_quota_is_a_burst_and_then_one_each_interval():
    quota = Quota(burst=3, interval_s=2.0)
    assert [quota.take(now=10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [quota.take(now=11.9), quota.take(now=12.0), quota.take(now=12.0)] == [False, True, False]
    assert [quota.take(now=1000.0) for _ in range(4)] == [True, True, True, False]
    assert quota.refused == 5


def model(n, body):
    return Model(run="r", version=n, model="0" * 64, codec="fp32", parameters=max(1, len(body) // 4), body=body)


def test_F29_what_was_shipped_is_kept_within_bounds_and_shared():
    shipped, body = Shipped(bytes_max=1000, messages_max=50), bytes(600)
    for n in range(40):
        shipped.put(f"d{n}", f"t{n}", model(n, body))
    assert (len(shipped), shipped.bytes_held) == (40, 600), "one body, forty devices"
    shipped.put("d0", "u0", model(100, bytes(500)))
    assert shipped.bytes_held <= 1000
    assert shipped.find("d0", "t0") is None, "an answer replaces the one before it"
    assert shipped.find("d0", "u0") is not None
    for n in range(200):
        shipped.put(f"e{n}", f"v{n}", model(n, bytes(10)))
    assert len(shipped) <= 50
    assert shipped.bytes_held == sum(
        len(body) for body in {id(m.body): m.body for m in shipped._kept.values()}.values()
    )
    shipped.put("big", "b", model(1, bytes(2000)))
    assert (len(shipped), shipped.bytes_held) == (0, 0)
