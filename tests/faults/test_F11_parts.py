"""F11: slices out of order, repeated, interleaved, lost. The original bytes or nothing, and only what is missing again."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.domain import Sizing
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import Cut, unpack_parts
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Command, Request
from hermes_iot.protocol.reassembly import Reassembler
from tests.core.peers import LEADER, TOPICS, Fleet, manifest

LIMITS = Limits(resume_after_s=1.0, transfer_deadline_s=60.0)
UPDATE, MODEL, DATA = (
    TOPICS.up("d0", "update"),
    TOPICS.down("d0", "model"),
    TOPICS.down("d0", "data"),
)


# --- any way the network may treat slices -----------------------------------------------------------------------------


@st.composite
def exchanges(draw):
    """Messages of several senders, and for every slice in each round of sending how many copies of it arrive."""
    senders = draw(st.integers(1, 3))
    wholes = [random.Random(n).randbytes(draw(st.integers(20, 400))) for n in range(senders)]
    parts = [draw(st.integers(2, 12)) for _ in wholes]
    fates = draw(st.lists(st.sampled_from([0, 0, 1, 1, 1, 2]), min_size=8, max_size=60))
    return wholes, parts, fates, draw(st.randoms(use_true_random=False))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(exchanges())
def test_F11_any_loss_repetition_and_order_gives_the_original_or_nothing(exchange):
    wholes, parts, fates, chance = exchange
    cuts = {f"pi-{n}": Cut.of((whole,), parts=many) for n, (whole, many) in enumerate(zip(wholes, parts, strict=True))}
    reassembler, done, came, asked, turn, now = Reassembler(LIMITS), set(), set(), Counter(), 0, 0.0
    arriving = [(sender, part) for sender, cut in cuts.items() for part in range(cut.parts)]
    while True:
        delivered = []
        for one in arriving:
            delivered += [one] * fates[turn % len(fates)]
            turn += 1
        chance.shuffle(delivered)
        for sender, part in delivered:
            now += 0.001
            whole = reassembler.add(sender, cuts[sender].chunk(part), now=now, resumable=True)
            if whole is not None:
                assert bytes(whole) == b"".join(cuts[sender].pieces), "never anything but the original"
                done.add(sender)
            came.add(sender)
        due = reassembler.next_deadline()
        if due is None:
            break
        now = max(now, due)
        reassembler.expire(now=now)
        arriving = []
        for gap in reassembler.gaps(now=now):
            missing = unpack_parts(gap.missing, gap.parts)
            assert gap.missing_bytes == sum(len(cuts[gap.sender].chunk(part).body) for part in missing)
            arriving += [(gap.sender, part) for part in missing]
            asked[gap.sender] += 1
    assert (reassembler.open_transfers, reassembler.reserved_bytes) == (0, 0)
    for sender, cut in cuts.items():
        assert asked[sender] <= cut.parts * LIMITS.resumes_max, "no asking without end"
        assert sender in done or sender not in came or reassembler.expired, "dropped at its deadline"


# --- whole machines ---------------------------------------------------------------------------------------------------


class Watched:
    """A fleet of one device, every packet published to or by it, and the slices that shall be lost once."""

    def __init__(self, about=None, **options):
        settings = CoordinatorSettings(first=Sizing(samples=48, batch=8), checkpoint_interval_s=2.0)
        self.fleet = Fleet(about, settings=settings, chunk_bytes=options.pop("chunk_bytes", 40), latency_s=0.003)
        self.published = []
        publish = self.fleet.broker.publish

        def noted(topic, payload, *, retain):
            self.published.append((topic, payload))
            publish(topic, payload, retain=retain)

        self.fleet.broker.publish = noted
        self.fleet.lead()
        self.fleet.join("d0", speed=options.pop("speed", 0.2))

    def chunks(self, topic, transfer=None):
        found = [codec.decode_chunk(payload, Limits()) for name, payload in self.published if name == topic]
        return [chunk for chunk in found if transfer in (None, chunk.id)]

    def lose(self, topic, parts):
        """Once each, of the next transfer on this topic: its id is known afterwards."""
        lost = {}

        def fault(_client, name, payload):
            if name != topic:
                return 1
            chunk = codec.decode_chunk(payload, Limits())
            left = lost.setdefault("left", set(parts))
            if lost.setdefault("id", chunk.id) == chunk.id and chunk.part in left:
                left.discard(chunk.part)
                return 0
            return 1

        self.fleet.fault = fault
        return lost

    def asked(self, topic, kind):
        found = [codec.decode_json(payload, kind, Limits()) for name, payload in self.published if name == topic]
        return [one for one in found if one.transfer]


@pytest.mark.parametrize("lost", [[0], [3], [2, 5, 6], "last", "all but one"])
def test_F11_an_update_that_lost_parts_is_completed_by_exactly_these(lost):
    watched = Watched()
    watched.fleet.run_until(lambda: watched.fleet.applied("d0") >= 1)
    parts = watched.chunks(UPDATE)[-1].parts
    gone = (
        {"last": [parts - 1], "all but one": list(range(1, parts))}.get(lost, lost) if isinstance(lost, str) else lost
    )
    seen = watched.lose(UPDATE, gone)
    applied = watched.fleet.applied("d0")
    watched.fleet.run_until(lambda: watched.fleet.applied("d0") > applied and "id" in seen, within=60.0)
    sent = Counter(chunk.part for chunk in watched.chunks(UPDATE, seen["id"]))
    assert sent == Counter(range(parts)) + Counter(gone), "every part once, and the lost ones once more"
    [order] = watched.asked(TOPICS.down("d0", "cmd"), Command)
    assert unpack_parts(order.missing, order.parts) == tuple(gone)


@pytest.mark.parametrize("lost", [[0], [2, 4], "last"])
def test_F11_an_answer_that_lost_parts_is_completed_by_exactly_these(lost):
    watched = Watched()
    watched.fleet.run_until(lambda: watched.fleet.applied("d0") >= 1)
    watched.fleet.run(1.0)
    parts = watched.chunks(MODEL)[-1].parts
    gone = [parts - 1] if lost == "last" else lost
    seen = watched.lose(MODEL, gone)
    watched.fleet.run_until(lambda: "id" in seen and not seen["left"], within=60.0)
    version = watched.fleet.devices["d0"].machine.learner.base_version
    watched.fleet.run_until(lambda: watched.fleet.devices["d0"].machine.learner.base_version > version, within=60.0)
    sent = Counter(chunk.part for chunk in watched.chunks(MODEL, seen["id"]))
    assert sent == Counter(range(parts)) + Counter(gone)
    [request] = watched.asked(TOPICS.up("d0", "request"), Request)
    assert unpack_parts(request.missing, request.parts) == tuple(gone)


def test_F11_a_shard_that_lost_parts_is_completed_by_exactly_these():
    watched = Watched(manifest(data_mode="shipped"), chunk_bytes=100)
    gone = [1, 2]
    seen = watched.lose(DATA, gone)
    watched.fleet.run_until(lambda: watched.fleet.applied("d0") >= 1, within=60.0)
    parts = watched.chunks(DATA, seen["id"])[0].parts
    assert Counter(chunk.part for chunk in watched.chunks(DATA, seen["id"])) == Counter(range(parts)) + Counter(gone)


def test_F11_after_the_coordinators_line_was_cut_half_an_update_is_completed():
    """It has some of the parts when its line goes, and the device is at its next iteration when it is back."""
    watched = Watched(speed=2.0)
    watched.fleet.run_until(lambda: watched.fleet.applied("d0") >= 1)
    leader = watched.fleet.leader
    watched.fleet.run_until(lambda: leader.wire.half_received.open_transfers == 1)
    [transfer] = leader.wire.half_received._transfers.values()
    here, parts = transfer.held_parts, transfer.parts
    assert 0 < here < parts
    leader.disconnect()
    watched.fleet.run(5.0)
    leader.reconnect()
    applied = watched.fleet.applied("d0")
    watched.fleet.run_until(lambda: watched.fleet.applied("d0") > applied, within=5.0)
    sent = Counter(chunk.part for chunk in watched.chunks(UPDATE, transfer.id))
    assert sent == Counter(range(parts)) + Counter([*range(here, parts), parts - 1]), "the missing, after one reminder"


def test_F11_after_the_devices_line_was_cut_half_an_answer_is_completed():
    watched = Watched()
    watched.fleet.run_until(lambda: watched.fleet.applied("d0") >= 1)
    device = watched.fleet.devices["d0"]
    watched.fleet.run_until(lambda: any(name == MODEL for _, _, name, _ in device.client.inbox))
    watched.fleet.run_until(lambda: bool(device.wire.half_received.arriving()))
    [transfer] = device.wire.half_received._transfers.values()
    here, parts = transfer.held_parts, transfer.parts
    device.disconnect()
    watched.fleet.run(5.0)
    version = device.machine.learner.base_version
    device.reconnect()
    watched.fleet.run_until(lambda: device.machine.learner.base_version > version, within=30.0)
    sent = Counter(chunk.part for chunk in watched.chunks(MODEL, transfer.id))
    assert sent == Counter(range(parts)) + Counter(range(here, parts))


def test_F11_what_the_coordinator_has_no_more_comes_whole_and_anew():
    watched = Watched()
    watched.fleet.run_until(lambda: watched.fleet.applied("d0") >= 1)
    watched.fleet.run(1.0)
    seen = watched.lose(MODEL, [3])
    watched.fleet.run_until(lambda: "id" in seen and not seen["left"], within=60.0)
    watched.fleet.leader.machine._shipped._drop("d0", seen["id"].hex())
    version = watched.fleet.devices["d0"].machine.learner.base_version
    watched.fleet.run_until(lambda: watched.fleet.devices["d0"].machine.learner.base_version > version, within=60.0)
    assert len(watched.asked(TOPICS.up("d0", "request"), Request)) == 1
    assert watched.chunks(MODEL)[-1].id != seen["id"]


@pytest.mark.parametrize("seed", range(6))
def test_F11_a_fleet_whose_slices_are_lost_repeated_and_late_goes_on(seed):
    """One in eight lost, one in eight twice; the audit holds at every event, and everybody contributes."""
    chance = random.Random(seed)
    watched = Watched(chunk_bytes=60)
    made = watched.fleet
    made.join("d1", speed=0.3)

    def fault(client, topic, _payload):
        if topic.rpartition("/")[2] not in {"update", "model", "data"} or client not in {LEADER, "d0", "d1"}:
            return 1
        return chance.choice((0, 1, 1, 1, 1, 1, 1, 2))

    made.fault = fault
    made.run(120.0)
    assert min(made.applied("d0"), made.applied("d1")) > 8
    assert made.leader.wire.half_received.asked > 0
