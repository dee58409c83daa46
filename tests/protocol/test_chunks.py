"""Slices in any order, twice, mixed, forged or missing: the original bytes or nothing, in bounded memory (F11, F29)."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.chunks import parts_for, split
from hermes_iot.protocol.limits import TRANSFER_BYTES, TRANSFER_PART_BYTES, Limits
from hermes_iot.protocol.messages import Chunk
from hermes_iot.protocol.reassembly import Reassembler
from tests.protocol.strategies import steady

LIMITS = Limits()
MIB = 1024 * 1024


def content(size, seed=0):
    """`size` bytes that differ for every seed."""
    block = hashlib.sha256(str(seed).encode()).digest()
    return (block * (size // 32 + 1))[:size]


def slices(whole, parts):
    return list(split(whole, chunk_bytes=max(1, len(whole)), parts=parts))


def cost(total, parts):
    return total + parts * TRANSFER_PART_BYTES + TRANSFER_BYTES


def claim(total, parts, *, seed=0, part=0):
    """The opening slice of a transfer that claims `total` bytes, and no more than that slice in memory."""
    start, stop = part * total // parts, (part + 1) * total // parts
    digest = hashlib.sha256(f"{seed}/{total}/{parts}".encode()).digest()
    return Chunk(id=digest, part=part, parts=parts, total=total, body=bytes(stop - start))


def refused(reassembler, sender, chunk, *, now=0.0):
    with pytest.raises(ProtocolError) as caught:
        reassembler.add(sender, chunk, now=now)
    return caught.value.reason


# --- splitting ---------------------------------------------------------------------------------------------------


@steady
@given(st.binary(min_size=1, max_size=2000), st.integers(1, 2100), st.integers(0, 40))
def test_slices_are_even_cover_the_whole_and_keep_the_size(whole, chunk_bytes, more):
    parts = min(parts_for(len(whole), chunk_bytes=chunk_bytes) + more, len(whole))
    cut = list(split(whole, chunk_bytes=chunk_bytes, parts=parts))
    sizes = [len(chunk.body) for chunk in cut]
    assert b"".join(chunk.body for chunk in cut) == whole
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= max(sizes) <= chunk_bytes
    assert [chunk.part for chunk in cut] == list(range(parts))
    assert {(chunk.id, chunk.parts, chunk.total) for chunk in cut} == {
        (hashlib.sha256(whole).digest(), parts, len(whole))
    }


@pytest.mark.parametrize(("total", "parts"), [(1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (201, 3)])
def test_no_more_slices_than_needed(total, parts):
    assert parts_for(total, chunk_bytes=100) == parts
    assert len(list(split(bytes(total), chunk_bytes=100))) == parts


# --- putting together --------------------------------------------------------------------------------------------


@steady
@given(st.data())
def test_the_original_bytes_come_out_whatever_the_order_and_however_often_slices_repeat(data):
    whole = data.draw(st.binary(min_size=1, max_size=400))
    cut = slices(whole, data.draw(st.integers(1, min(len(whole), 12))))
    before_last = data.draw(st.lists(st.sampled_from(cut), max_size=30))
    last = data.draw(st.sampled_from(cut))
    arrivals = [*(c for c in before_last if c != last), *data.draw(st.permutations([c for c in cut if c != last]))]
    reassembler = Reassembler(LIMITS)
    if len(cut) > 1:
        seen = set()
        for chunk in arrivals:
            assert reassembler.add("pi-01", chunk, now=0.0) is None
            seen.add(chunk.part)
        assert seen == {chunk.part for chunk in cut if chunk != last}
    assert reassembler.add("pi-01", last, now=0.0) == whole
    assert reassembler.open_transfers == 0
    assert reassembler._reserved_bytes == 0


@steady
@given(st.data())
def test_senders_and_transfers_do_not_mix(data):
    senders = [f"pi-{i}" for i in range(3)]
    wholes = {(s, n): content(90 + n, n) for s in senders for n in range(data.draw(st.integers(1, 4)))}
    arrivals = [(key, chunk) for key, whole in wholes.items() for chunk in slices(whole, 5)]
    reassembler, done = Reassembler(LIMITS), {}
    for key, chunk in data.draw(st.permutations(arrivals)):
        whole = reassembler.add(key[0], chunk, now=0.0)
        if whole is not None:
            assert key not in done
            done[key] = whole
    assert done == wholes
    assert reassembler.open_transfers == 0


def test_a_message_of_one_slice_passes_through_and_nothing_is_kept():
    reassembler = Reassembler(Limits(transfers_bytes_max=0))
    [only] = split(b"whole", chunk_bytes=5)
    assert reassembler.add("pi-01", only, now=0.0) == b"whole"
    assert reassembler.open_transfers == 0


def test_another_senders_slices_never_complete_mine():
    first, second = slices(content(64), 2)
    reassembler = Reassembler(LIMITS)
    assert reassembler.add("pi-01", first, now=0.0) is None
    assert reassembler.add("pi-02", second, now=0.0) is None
    assert reassembler.open_transfers == 2


def test_the_same_message_is_put_together_again_when_it_is_sent_again():
    whole = content(64)
    reassembler = Reassembler(LIMITS)
    for _ in range(3):
        results = [reassembler.add("pi-01", chunk, now=0.0) for chunk in slices(whole, 4)]
        assert results == [None, None, None, whole]


# --- loss and deadlines ------------------------------------------------------------------------------------------


def test_a_lost_slice_gives_nothing_and_the_rest_is_dropped_at_its_deadline():
    reassembler = Reassembler(Limits(transfer_deadline_s=120.0))
    for chunk in slices(content(64), 4)[1:]:
        assert reassembler.add("pi-01", chunk, now=10.0) is None
    assert reassembler.next_deadline() == 130.0
    assert reassembler.expire(now=129.99) == 0
    assert reassembler.open_transfers == 1
    assert reassembler.expire(now=130.0) == 1
    assert reassembler.open_transfers == 0
    assert reassembler.next_deadline() is None


def test_only_a_new_slice_puts_the_deadline_off():
    first, second, _ = slices(content(60), 3)
    reassembler = Reassembler(Limits(transfer_deadline_s=120.0, transfer_bytes_per_s_min=0.1))
    reassembler.add("pi-01", first, now=0.0)
    reassembler.add("pi-01", first, now=50.0)
    assert reassembler.next_deadline() == 120.0, "a repeated slice is no progress"
    assert refused(reassembler, "pi-01", replace(second, total=59, body=content(19)), now=60.0) == "parts"
    assert reassembler.next_deadline() == 120.0, "a refused slice is no progress"
    reassembler.add("pi-01", second, now=100.0)
    assert reassembler.next_deadline() == 220.0


def test_who_brings_a_slice_now_and_then_is_dropped_all_the_same():
    """Three slices of 20 bytes at 0.5 bytes a second: the second puts the deadline off by 20 more, not by 120."""
    reassembler = Reassembler(Limits(transfer_deadline_s=120.0, transfer_bytes_per_s_min=0.5))
    cut = slices(content(80), 4)
    reassembler.add("pi-01", cut[0], now=0.0)
    assert reassembler.next_deadline() == 120.0
    reassembler.add("pi-01", cut[1], now=119.0)
    assert reassembler.next_deadline() == 120.0 + 40 / 0.5
    reassembler.add("pi-01", cut[2], now=199.0)
    assert reassembler.next_deadline() == 120.0 + 60 / 0.5
    assert (reassembler.expire(now=240.0), reassembler.expired) == (1, 1)


def test_the_next_deadline_is_that_of_whoever_has_stood_still_longest():
    reassembler = Reassembler(Limits(transfer_deadline_s=120.0, transfer_bytes_per_s_min=1.0))
    cuts = {name: slices(content(60, name), 3) for name in ("a", "b", "c")}
    for now, name, part in [(0.0, "a", 0), (1.0, "b", 0), (2.0, "c", 0), (3.0, "a", 1), (4.0, "c", 1)]:
        reassembler.add(name, cuts[name][part], now=now)
    assert reassembler.next_deadline() == 121.0
    assert reassembler.expire(now=123.0) == 2
    assert reassembler.next_deadline() == 124.0
    assert reassembler.add("c", cuts["c"][2], now=123.0) is not None
    assert reassembler.next_deadline() is None


def test_a_slice_that_comes_after_the_deadline_begins_anew():
    first, second = slices(content(64), 2)
    reassembler = Reassembler(LIMITS)
    reassembler.add("pi-01", first, now=0.0)
    reassembler.expire(now=1e6)
    assert reassembler.add("pi-01", second, now=1e6) is None
    assert reassembler.add("pi-01", first, now=1e6) == content(64)


# --- forged slices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param({"parts": 3, "body": content(20)}, id="another number of parts"),
        pytest.param({"total": 62, "body": content(15)}, id="another length"),
        pytest.param({"body": b""}, id="empty"),
        pytest.param({"body": content(14)}, id="a byte short"),
        pytest.param({"body": content(16)}, id="a byte long"),
        pytest.param({"body": content(60)}, id="the whole in one slice"),
        pytest.param({"part": 4}, id="beyond the end"),
    ],
)
def test_a_slice_that_contradicts_its_place_or_its_transfer_is_refused_and_the_transfer_lives(forged):
    whole = content(60)
    cut = slices(whole, 4)
    reassembler = Reassembler(LIMITS)
    reassembler.add("pi-01", cut[0], now=0.0)
    assert refused(reassembler, "pi-01", replace(cut[1], **forged)) == "parts"
    assert [reassembler.add("pi-01", chunk, now=0.0) for chunk in cut[1:]] == [None, None, whole]


def test_slices_of_one_byte_cannot_stand_for_a_large_whole():
    reassembler = Reassembler(LIMITS)
    trickle = replace(claim(MIB, 16_384), body=b"x")
    assert refused(reassembler, "pi-01", trickle) == "parts"
    assert reassembler.open_transfers == 0


def test_a_whole_that_does_not_hash_to_its_id_is_refused_and_forgotten():
    cut = slices(content(60), 3)
    reassembler = Reassembler(LIMITS)
    reassembler.add("pi-01", cut[0], now=0.0)
    reassembler.add("pi-01", replace(cut[1], body=content(20, "forged")), now=0.0)
    assert refused(reassembler, "pi-01", cut[2]) == "checksum"
    assert reassembler.open_transfers == 0
    assert reassembler._reserved_bytes == 0
    assert [reassembler.add("pi-01", chunk, now=0.0) for chunk in cut] == [None, None, content(60)]


def test_a_single_slice_is_checked_too():
    [only] = split(b"whole", chunk_bytes=100)
    assert refused(Reassembler(LIMITS), "pi-01", replace(only, body=b"wrong")) == "checksum"
    assert refused(Reassembler(LIMITS), "pi-01", replace(only, total=6)) == "parts"


# --- memory ------------------------------------------------------------------------------------------------------


def test_a_senders_oldest_transfer_gives_way_to_its_newest():
    reassembler = Reassembler(Limits(transfers_per_device_max=2))
    cuts = [slices(content(60, n), 3) for n in range(3)]
    reassembler.add("pi-02", cuts[0][0], now=0.0)
    reassembler.add("pi-01", cuts[0][0], now=0.0)
    reassembler.add("pi-01", cuts[1][0], now=1.0)
    reassembler.add("pi-01", cuts[0][1], now=2.0)
    assert reassembler.displaced == 0
    reassembler.add("pi-01", cuts[2][0], now=3.0)
    assert reassembler.displaced == 1
    assert reassembler.open_transfers == 3, "two of pi-01, and the one of pi-02 untouched"
    assert [reassembler.add("pi-01", chunk, now=4.0) for chunk in cuts[1][1:]] == [None, content(60, 1)]
    assert [reassembler.add("pi-01", chunk, now=4.0) for chunk in cuts[2][1:]] == [None, content(60, 2)]
    assert reassembler.add("pi-01", cuts[0][2], now=4.0) is None, "the oldest was dropped and begins anew"


def test_one_sender_holds_at_most_half_of_the_memory():
    limits = Limits(transfers_bytes_max=2 * cost(3000, 3))
    reassembler = Reassembler(limits)
    assert refused(reassembler, "pi-01", claim(3003, 3)) == "memory"
    assert refused(reassembler, "pi-01", claim(3000, 4)) == "memory"
    assert reassembler.open_transfers == 0
    assert reassembler.add("pi-01", claim(3000, 3), now=0.0) is None
    assert reassembler.add("pi-01", claim(300, 3), now=0.0) is None
    assert (reassembler.open_transfers, reassembler.displaced) == (1, 1), "its own older one gave way"


def test_the_default_takes_the_largest_message_in_the_most_parts_from_two_senders():
    reassembler = Reassembler(LIMITS)
    for sender in ("pi-01", "pi-02"):
        assert reassembler.add(sender, claim(LIMITS.message_bytes_max, LIMITS.parts_max), now=0.0) is None
    assert (reassembler.open_transfers, reassembler.displaced) == (2, 0)


def test_empty_claims_cannot_lock_anybody_out():
    """Two devices claim all there is with one slice each; a third one's message comes through."""
    reassembler = Reassembler(LIMITS)
    for sender in ("evil-1", "evil-2"):
        reassembler.add(sender, claim(LIMITS.message_bytes_max, LIMITS.parts_max), now=0.0)
    whole = content(16 * MIB)
    cut = slices(whole, 140)
    for now, chunk in enumerate(cut[:-1]):
        assert reassembler.add("pi-01", chunk, now=float(now)) is None
        for sender in ("evil-1", "evil-2"):
            again = claim(LIMITS.message_bytes_max, LIMITS.parts_max, seed=now)
            try:
                reassembler.add(sender, again, now=float(now))
            except ProtocolError as error:
                if error.reason != "memory":
                    raise
    assert reassembler.add("pi-01", cut[-1], now=200.0) == whole


def test_what_is_nearly_complete_is_never_lost_to_somebody_elses_claim():
    limits = Limits(transfers_bytes_max=4 * cost(3000, 30))
    reassembler = Reassembler(limits)
    nearly = slices(content(3000), 30)
    for chunk in nearly[:-1]:
        reassembler.add("pi-01", chunk, now=0.0)
    outcomes = []
    for n in range(50):
        try:
            reassembler.add(f"evil-{n}", claim(3000, 30, seed=n), now=1.0)
        except ProtocolError as error:
            outcomes.append(error.reason)
    assert outcomes == ["memory"] * 47, "three found room, nobody was displaced for an equal claim"
    assert reassembler.add("pi-01", nearly[-1], now=2.0) == content(3000)


def test_when_more_comes_than_fits_the_early_ones_finish():
    """Ten honest senders at once, room for three: had everybody been given a little, nobody would ever finish."""
    limits = Limits(transfers_bytes_max=3 * cost(3000, 30))
    reassembler = Reassembler(limits)
    cuts = {f"pi-{n}": slices(content(3000, n), 30) for n in range(10)}
    done, rounds = set(), 0
    while len(done) < len(cuts):
        rounds += 1
        before = len(done)
        for part in range(30):
            for sender in sorted(cuts.keys() - done):
                try:
                    if reassembler.add(sender, cuts[sender][part], now=float(rounds)) is not None:
                        done.add(sender)
                except ProtocolError as error:
                    if error.reason != "memory":
                        raise
        assert len(done) > before, "each round of sending brings somebody home"
    assert rounds <= 4


def test_a_refused_newcomer_costs_nobody_anything():
    limits = Limits(transfers_bytes_max=2 * cost(3000, 3))
    reassembler = Reassembler(limits)
    reassembler.add("pi-01", claim(3000, 3), now=0.0)
    reassembler.add("pi-02", claim(2997, 3), now=0.0)
    assert refused(reassembler, "pi-03", claim(3000, 3, seed=3)) == "memory"
    assert (reassembler.open_transfers, reassembler.displaced) == (2, 0)


def test_the_emptiest_promise_gives_way_first_and_no_more_than_needed():
    limits = Limits(transfers_bytes_max=2 * cost(3000, 3))
    reassembler = Reassembler(limits)
    for sender, total in (("a", 1200), ("b", 2400), ("c", 600)):
        reassembler.add(sender, claim(total, 3), now=0.0)
    assert reassembler.displaced == 0
    reassembler.add("d", claim(900, 3), now=0.0)
    assert {sender for sender, _ in reassembler._transfers} == {"a", "c", "d"}
    assert reassembler.displaced == 1


# --- accounting --------------------------------------------------------------------------------------------------


class Accounting(RuleBasedStateMachine):
    """Any arrivals at all: what is reserved is what is open, within every bound, and only originals come out."""

    LIMITS = Limits(transfers_per_device_max=2, transfers_bytes_max=2 * cost(600, 6), transfer_deadline_s=10.0)
    SENDERS = ("a", "b", "c", "d")
    CUTS = tuple(
        slices(content(size, n), parts) for n, (size, parts) in enumerate([(60, 6), (600, 6), (300, 2), (9, 9)])
    )

    def __init__(self):
        super().__init__()
        self.reassembler = Reassembler(self.LIMITS)
        self.now = 0.0

    def arrives(self, sender, chunk):
        others = [t for t in self.reassembler._transfers.values() if t.sender != sender]
        safe = [t for t in others if t.missing <= chunk.total - len(chunk.body)]
        try:
            whole = self.reassembler.add(sender, chunk, now=self.now)
        except ProtocolError as error:
            if error.reason not in {"parts", "memory", "checksum"}:
                raise
        else:
            assert whole is None or hashlib.sha256(whole).digest() == chunk.id
        left = {id(t) for t in self.reassembler._transfers.values()}
        assert all(id(t) in left for t in safe), "lost to a claim with more to come"

    @rule(sender=st.sampled_from(SENDERS), cut=st.sampled_from(CUTS), part=st.integers(0, 8))
    def an_honest_slice(self, sender, cut, part):
        self.arrives(sender, cut[part % len(cut)])

    @rule(sender=st.sampled_from(SENDERS), cut=st.sampled_from(CUTS))
    def a_whole_message_but_one_slice(self, sender, cut):
        for chunk in cut[1:]:
            self.arrives(sender, chunk)

    @rule(sender=st.sampled_from(SENDERS), cut=st.sampled_from(CUTS), part=st.integers(0, 8))
    def a_slice_with_a_wrong_body(self, sender, cut, part):
        chunk = cut[part % len(cut)]
        self.arrives(sender, replace(chunk, body=bytes(len(chunk.body))))

    @rule(
        sender=st.sampled_from(SENDERS),
        chunk=st.builds(
            Chunk,
            id=st.sampled_from([cut[0].id for cut in CUTS]),
            part=st.integers(0, 9),
            parts=st.integers(1, 9),
            total=st.integers(1, 700),
            body=st.integers(0, 400).map(bytes),
        ),
    )
    def a_forged_slice(self, sender, chunk):
        self.arrives(sender, chunk)

    @rule(sender=st.sampled_from(SENDERS), total=st.integers(2, 700), parts=st.integers(2, 9), seed=st.integers(0, 9))
    def an_empty_claim(self, sender, total, parts, seed):
        self.arrives(sender, claim(max(total, parts), parts, seed=seed))

    @rule(seconds=st.floats(0.0, 12.0))
    def time_passes(self, seconds):
        self.now += seconds
        late = sum(transfer.deadline <= self.now for transfer in self.reassembler._transfers.values())
        assert self.reassembler.expire(now=self.now) == late

    @invariant()
    def the_books_are_right(self):
        transfers = list(self.reassembler._transfers.values())
        reserved = [transfer.cost for transfer in transfers]
        assert self.reassembler._reserved_bytes == sum(reserved)
        assert 0 <= sum(reserved) <= self.LIMITS.transfers_bytes_max
        assert self.reassembler.open_transfers == len(transfers)
        for sender in self.SENDERS:
            mine = [transfer for transfer in transfers if transfer.sender == sender]
            assert len(mine) <= self.LIMITS.transfers_per_device_max
            assert sum(transfer.cost for transfer in mine) <= self.LIMITS.transfers_bytes_max // 2
            assert set(self.reassembler._by_sender.get(sender, {})) == {transfer.id for transfer in mine}
        for transfer in transfers:
            here = [part for part in range(transfer.parts) if transfer.here[part]]
            held = sum(
                (part + 1) * transfer.total // transfer.parts - part * transfer.total // transfer.parts for part in here
            )
            assert transfer.held == held <= transfer.total
            assert 0 < transfer.held_parts == len(here) < transfer.parts

    @invariant()
    def the_next_deadline_is_the_earliest(self):
        deadlines = [transfer.deadline for transfer in self.reassembler._transfers.values()]
        assert self.reassembler.next_deadline() == min(deadlines, default=None)


Accounting.TestCase.settings = settings(steady, max_examples=150, stateful_step_count=40)
TestAccounting = Accounting.TestCase
