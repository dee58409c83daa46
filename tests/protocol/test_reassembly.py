"""What of a half-received message is asked for, when, how often, and when no more."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import Cut, pack_parts, split, unpack_parts
from hermes_iot.protocol.limits import SLOW_LINK_BYTES_PER_S, Limits
from hermes_iot.protocol.messages import Command, Request, Update
from hermes_iot.protocol.reassembly import Reassembler
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire
from tests.protocol.samples import SAMPLES
from tests.protocol.strategies import steady

LIMITS = Limits(resume_after_s=2.0, resumes_max=3, transfer_deadline_s=1e6)


def slices(size, parts, seed=0):
    return list(split(hashlib.sha256(str(seed).encode()).digest() * (size // 32), chunk_bytes=size, parts=parts))


def receiving(chunks, *, at=0.0, limits=LIMITS, sender="pi-01"):
    reassembler = Reassembler(limits)
    for now, chunk in enumerate(chunks):
        assert reassembler.add(sender, chunk, now=at + now, resumable=True) is None
    return reassembler


def asked(reassembler, now):
    return [unpack_parts(gap.missing, gap.parts) for gap in reassembler.gaps(now=now)]


# --- bitmaps ----------------------------------------------------------------------------------------------------------


@steady
@given(st.integers(1, 16_384), st.data())
def test_a_bitmap_says_which_parts_are_missing(parts, data):
    missing = data.draw(st.sets(st.integers(0, parts - 1), min_size=1, max_size=40))
    bitmap = pack_parts(missing, parts)
    assert unpack_parts(bitmap, parts) == tuple(sorted(missing))
    assert len(bitmap) == -(-parts // 8) <= 2048


def test_part_0_is_the_highest_bit():
    assert pack_parts([0, 9], 11) == b"\x80\x40"


@pytest.mark.parametrize(
    ("bitmap", "parts"),
    [
        pytest.param(b"", 1, id="empty"),
        pytest.param(b"\x80\x00", 8, id="too long"),
        pytest.param(b"\x80", 9, id="too short"),
        pytest.param(b"\x00\x00", 11, id="nothing missing"),
        pytest.param(b"\x80\x10", 11, id="a part beyond the last"),
        pytest.param(bytes(2048) + b"\x80", 3, id="longer than any transfer needs"),
    ],
)
def test_a_bitmap_that_does_not_fit_is_refused(bitmap, parts):
    with pytest.raises(ProtocolError) as caught:
        unpack_parts(bitmap, parts)
    assert caught.value.reason == "bitmap"


@pytest.mark.parametrize("kind", [Request, Command])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"missing": bytes(2049)}, "schema", id="longer than any bitmap"),
        pytest.param({"missing": b"\x00\x00"}, "bitmap", id="nothing missing"),
        pytest.param({"missing": b"\x00\x01"}, "bitmap", id="a part beyond the last"),
        pytest.param({"parts": 16_385, "missing": bytes(2048)}, "parts", id="more parts than there can be"),
        pytest.param({"parts": 1, "missing": b"\x80"}, "parts", id="the only part"),
        pytest.param({"transfer": ""}, "bitmap", id="parts of nothing"),
    ],
)
def test_who_asks_for_what_cannot_be_is_refused_before_anybody_acts(kind, changes, reason):
    wire, fields = Wire(Topics("lab")), codec.encode_json(SAMPLES[kind])
    topic = wire.topics.up("pi", "request") if kind is Request else wire.topics.down("pi", "cmd")
    bent = {**codec.decode_json(fields, dict, Limits()), **{k: _plain(v) for k, v in changes.items()}}
    with pytest.raises(ProtocolError) as caught:
        wire.incoming(topic, codec.encode_json(bent), now=0.0)
    assert caught.value.reason == reason


def _plain(value):
    return codec.decode_json(codec.encode_json(value), str, Limits()) if isinstance(value, bytes) else value


# --- when -------------------------------------------------------------------------------------------------------------


def test_when_the_last_part_is_here_the_others_are_asked_for_shortly_after():
    cut = slices(960, 6)
    reassembler = receiving([cut[0], cut[2], cut[5]])
    assert reassembler.next_deadline() == 4.0
    assert asked(reassembler, 3.9) == []
    [gap] = reassembler.gaps(now=4.0)
    assert (gap.sender, gap.id, gap.parts, gap.missing_bytes) == ("pi-01", cut[0].id, 6, 3 * 160)
    assert unpack_parts(gap.missing, gap.parts) == (1, 3, 4)


def test_where_more_may_come_the_senders_own_pace_is_waited_for():
    cut = slices(960, 6)
    reassembler = Reassembler(LIMITS)
    for now, part in ((0.0, 0), (10.0, 1), (13.0, 2)):
        reassembler.add("pi-01", cut[part], now=now, resumable=True)
    assert reassembler.next_deadline() == 13.0 + 2.0 + 2 * 10.0


def test_the_second_part_is_waited_for_as_a_slow_link_needs():
    cut = slices(960_000, 8)
    assert receiving(cut[:1]).next_deadline() == pytest.approx(2.0 + 2 * 120_000 / SLOW_LINK_BYTES_PER_S)


def test_it_is_asked_for_ever_more_patiently_and_then_no_more():
    cut = slices(960, 6)
    reassembler = receiving([cut[5]])
    pace_s = 2 * 160 / SLOW_LINK_BYTES_PER_S
    at, found = 0.0, []
    while (due := reassembler.next_deadline()) < 1e6:
        found.append(due - at)
        at = due
        assert asked(reassembler, at) == [(0, 1, 2, 3, 4)]
    assert found == pytest.approx([2.0, 2 * (2.0 + pace_s), 4 * (2.0 + pace_s)])
    assert reassembler.asked == 3


def test_what_comes_makes_it_worth_asking_again():
    cut = slices(960, 6)
    reassembler = receiving([cut[5]])
    while reassembler.next_deadline() < 1e6:
        reassembler.gaps(now=reassembler.next_deadline())
    reassembler.add("pi-01", cut[1], now=100.0, resumable=True)
    assert asked(reassembler, 102.0) == [(0, 2, 3, 4)]


def test_a_repeated_part_means_that_the_sender_wants_to_know_what_is_lacking():
    cut = slices(960_000, 8)
    reassembler = receiving(cut[:1])
    reassembler.add("pi-01", cut[0], now=5.0, resumable=True)
    assert asked(reassembler, 7.0) == [tuple(range(1, 8))]


def test_a_new_connection_is_a_reason_to_ask_soon():
    reassembler = receiving(slices(960_000, 8)[:1])
    reassembler.hasten(now=5.0)
    assert reassembler.arriving() == {"pi-01": 7.0}
    assert asked(reassembler, 7.0) == [tuple(range(1, 8))]


# --- when not ---------------------------------------------------------------------------------------------------------


def test_a_listener_asks_for_nothing():
    reassembler = Reassembler(LIMITS)
    reassembler.add("pi-01", slices(960, 6)[5], now=0.0)
    assert reassembler.next_deadline() == 1e6
    assert asked(reassembler, 1e5) == []


def test_a_part_of_a_message_that_was_complete_is_never_asked_about():
    """QoS 1 repeats parts; that must not bring the whole again. A whole that is sent again is taken."""
    cut = slices(960, 3)
    reassembler = receiving(cut[:2])
    whole = reassembler.add("pi-01", cut[2], now=2.0, resumable=True)
    assert reassembler.add("pi-01", cut[2], now=3.0, resumable=True) is None
    assert asked(reassembler, 1e5) == []
    assert [reassembler.add("pi-01", chunk, now=1e5, resumable=True) for chunk in cut[:2]] == [None, whole]


def test_a_repeated_part_of_an_old_message_does_not_displace_the_one_under_way():
    old, new = slices(960, 3, "old"), slices(960, 3, "new")
    reassembler = Reassembler(LIMITS)
    for chunk in (*old, new[0], old[1], new[1]):
        reassembler.add("pi-01", chunk, now=0.0, resumable=True, most=1)
    assert (reassembler.displaced, reassembler.repeated) == (0, 1)
    assert reassembler.add("pi-01", new[2], now=0.0, resumable=True, most=1) is not None


def test_what_has_given_way_to_a_newer_one_does_not_come_back_for_it():
    old, new = slices(960, 3, "old"), slices(960, 3, "new")
    reassembler = Reassembler(LIMITS)
    for chunk in (old[0], new[0], old[1], old[2]):
        assert reassembler.add("pi-01", chunk, now=0.0, resumable=True, most=1) is None
    assert (reassembler.displaced, reassembler.repeated, reassembler.open_transfers) == (1, 2, 1)


def test_what_was_pushed_out_by_something_late_comes_back_and_is_asked_for():
    """A coordinator that begins has not seen the old one end: a slice of it, redelivered, pushes out the live one."""
    live, late = slices(960, 3, "live"), slices(960, 3, "late")
    reassembler = Reassembler(LIMITS)
    reassembler.add("pi-01", live[2], now=0.0, resumable=True, most=1)
    reassembler.add("pi-01", late[0], now=1.0, resumable=True, most=1)
    patient_until = 1.0 + 2.0 + 2 * len(late[0].body) / SLOW_LINK_BYTES_PER_S
    reassembler.add("pi-01", live[0], now=patient_until - 0.01, resumable=True, most=1)
    assert (reassembler.displaced, reassembler.repeated) == (1, 1), "the late one might still grow"
    reassembler.add("pi-01", live[1], now=patient_until, resumable=True, most=1)
    reassembler.add("pi-01", live[2], now=patient_until, resumable=True, most=1)
    assert (reassembler.displaced, reassembler.repeated, reassembler.open_transfers) == (2, 1, 1)
    assert asked(reassembler, patient_until + 2.0) == [(0,)]
    assert reassembler.add("pi-01", live[0], now=9.0, resumable=True, most=1) is not None


def test_how_many_messages_are_remembered_as_over_is_bounded():
    reassembler = Reassembler(Limits(transfers_remembered_max=2))
    for seed in range(3):
        for chunk in slices(960, 2, seed):
            reassembler.add("pi-01", chunk, now=0.0)
    assert len(reassembler._over) == 2
    reassembler.add("pi-01", slices(960, 2, 0)[1], now=0.0, resumable=True)
    assert asked(reassembler, 2.0) == [(0,)], "forgotten, so taken for news"


def test_the_queue_of_deadlines_does_not_grow_with_the_slices():
    chunks = slices(32 * 4_000, 4_000)
    assert len(receiving(chunks[:-1])._due) < 600


# --- cutting ----------------------------------------------------------------------------------------------------------


@steady
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.data())
def test_pieces_are_cut_as_if_they_were_one(pieces, data):
    whole = b"".join(pieces)
    parts = data.draw(st.integers(1, max(1, len(whole))))
    cut = Cut.of(pieces, parts=parts)
    assert [cut.chunk(part) for part in range(parts)] == list(split(whole, chunk_bytes=max(1, len(whole)), parts=parts))
    assert cut.slice_bytes == max(len(cut.chunk(part).body) for part in range(parts))


@pytest.mark.parametrize("compress", [False, True])
def test_a_large_message_in_a_buffer_is_read_as_it_was_written(compress):
    body = bytes(range(256)) * 2000
    message = SAMPLES[Update].__class__(**{**_fields(SAMPLES[Update]), "body": body, "parameters": len(body) // 4})
    whole = codec.encode_tensors(message, compress=compress)
    assert codec.decode_tensors(memoryview(bytearray(whole)), Update, Limits()) == message
    for broken in (whole[:-1], whole + b"\0", whole.replace(b"\xa4body", b"\xa4bodY")):
        with pytest.raises(ProtocolError):
            codec.decode_tensors(memoryview(broken), Update, Limits())


def _fields(message):
    return {name: getattr(message, name) for name in message.__dataclass_fields__}
