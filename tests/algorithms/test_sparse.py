from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms.compression import CODINGS, pack, unpack
from hermes_iot.algorithms.sparse import _largest as largest
from hermes_iot.algorithms.sparse import kept, longest_topk, shortest_topk
from hermes_iot.errors import ProtocolError

repeatable = settings(derandomize=True, deadline=None)
PERCENT = {"topk1": 1, "topk5": 5, "topk10": 10}
both = pytest.mark.parametrize("codec", sorted(PERCENT))
ONE = struct.pack("<f", 1.0)


def sparse(size, entries):
    sent = np.zeros(size, np.float32)
    for at, value in entries.items():
        sent[at] = value
    return sent


def there_and_back(sent, codec):
    return unpack(pack(sent, codec), codec, sent.size)


def refused(body, codec, size):
    with pytest.raises(ProtocolError) as caught:
        unpack(body, codec, size)
    return caught.value.reason


def test_the_bytes_by_hand():
    # 2 of 40 are kept: scale 254 / 127 = 2, codes 127 and -5; 3 entries are skipped before the first, 32 between
    sent = sparse(40, {3: 254, 36: -10, 39: 9.9, 0: 1})
    assert pack(sent, "topk5") == struct.pack("<f", 2.0) + bytes([127, 0xFB, 3, 32])
    assert np.flatnonzero(there_and_back(sent, "topk5")).tolist() == [3, 36]
    assert there_and_back(sent, "topk5")[[3, 36]].tolist() == [254.0, -10.0]


@pytest.mark.parametrize(
    ("at", "gaps"),
    [
        (0, "00 fffffa"),
        (254, "fe fffb"),
        (255, "ff00 fffa"),
        (256, "ff01 fff9"),
        (510, "ffff00 fa"),
        (760, "fffffa 00"),
    ],
)
def test_a_gap_goes_on_after_each_255(at, gaps):
    # kept are 40: one that wanders through 761 entries, and the last 39
    sent = sparse(800, {at: 127} | dict.fromkeys(range(761, 800), 127))
    body = pack(sent, "topk5")
    assert body[4 + 40 :] == bytes.fromhex(gaps) + bytes(38)
    assert unpack(body, "topk5", 800).tolist() == sent.tolist()


@pytest.mark.parametrize(
    ("size", "one", "five", "ten"),
    [
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (10, 1, 1, 1),
        (11, 1, 1, 2),
        (20, 1, 1, 2),
        (21, 1, 2, 3),
        (101, 2, 6, 11),
        (109_386, 1094, 5470, 10_939),
    ],
)
def test_how_many_are_kept_is_rounded_up(size, one, five, ten):
    assert (kept(size, 1), kept(size, 5), kept(size, 10)) == (one, five, ten)
    sent = np.arange(1, size + 1, dtype=np.float32)
    assert np.count_nonzero(there_and_back(sent, "topk1")) == one
    assert np.count_nonzero(there_and_back(sent, "topk5")) == five
    assert np.count_nonzero(there_and_back(sent, "topk10")) == ten


@both
def test_a_single_parameter_is_kept(codec):
    assert there_and_back(np.float32([-127]), codec).tolist() == [-127.0]


def test_of_equal_magnitudes_the_first_are_kept():
    sent = np.full(60, -2.0, np.float32)
    sent[::2] = 2.0
    sent[50] = 3.0
    # 3 are kept: the largest and, of the 59 others, the first two
    assert np.flatnonzero(there_and_back(sent, "topk5")).tolist() == [0, 1, 50]


def test_a_vector_with_fewer_entries_than_are_kept_is_filled_up_with_the_first_zeros():
    assert pack(sparse(60, {1: 127}), "topk5") == ONE + bytes([0, 127, 0]) + bytes([0, 0, 0])
    assert there_and_back(sparse(60, {1: 127}), "topk5").tolist() == sparse(60, {1: 127}).tolist()


@both
@repeatable
@given(
    sent=hnp.arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([-3.0, -1.0, 0.0, 1.0, 2.0, 3.0, 1e38])),
)
def test_the_selection_is_that_of_a_stable_sort(codec, sent):
    count = kept(sent.size, PERCENT[codec])
    chosen = np.sort(np.argsort(-np.abs(sent), kind="stable")[:count])
    body = pack(sent, codec)
    # scale 1 and distinct values in place of the entries, so that the decoded vector says where they were
    shown = unpack(ONE + bytes(range(1, count + 1)) + body[4 + count :], codec, sent.size)
    assert np.flatnonzero(shown).tolist() == chosen.tolist()


def normal(size):
    return np.random.default_rng(size).standard_normal(size).astype(np.float32)


def few_levels(size):
    return np.random.default_rng(size).integers(0, 4, size).astype(np.float32)


def rising(size):
    return np.arange(size, dtype=np.float32)


def mostly_zero(size):
    return normal(size) * (np.random.default_rng(1).random(size) < 0.02)


def large_where_the_sample_looks(size):
    # a guess from the sample alone is far too high: 1 entry in 61 is as large
    sent = normal(size) / 1000
    sent[::61] += 100
    return sent


def large_where_it_does_not(size):
    sent = normal(size) + 100
    sent[::61] = 0
    return sent


@both
@pytest.mark.parametrize("size", [(1 << 14) - 1, 1 << 14, 40_001])
@pytest.mark.parametrize(
    "made",
    [normal, few_levels, rising, mostly_zero, large_where_the_sample_looks, large_where_it_does_not, np.zeros, np.ones],
)
def test_a_threshold_guessed_from_a_sample_selects_what_a_stable_sort_does(codec, size, made):
    sent = made(size).astype(np.float32)
    chosen = np.sort(np.argsort(-np.abs(sent), kind="stable")[: kept(size, PERCENT[codec])])
    assert largest(np.abs(sent), chosen.size).tolist() == chosen.tolist()


@both
@pytest.mark.parametrize("size", [1, 3, 999, 21_000, 50_000])
def test_kept_entries_come_back_within_half_their_scale_and_the_others_as_zero(codec, size):
    sent = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    count = kept(size, PERCENT[codec])
    chosen = np.sort(np.argsort(-np.abs(sent), kind="stable")[:count])
    body = pack(sent, codec)
    scales = np.repeat(np.frombuffer(body, "<f4", count=-(-count // 1024)), 1024)[:count]
    received = unpack(body, codec, size)
    assert np.all(np.abs(received[chosen] - sent[chosen]) <= scales * 0.5 * (1 + 1e-4))
    assert np.count_nonzero(received) == count
    assert not np.delete(received, chosen).any()


@both
@repeatable
@given(data=st.data(), size=st.integers(0, 3000))
def test_a_body_lies_between_the_shortest_and_the_longest(codec, data, size):
    percent = PERCENT[codec]
    sent = np.zeros(size, np.float32)
    if size:
        starts = data.draw(st.lists(st.integers(0, size - 1), max_size=3))
        for at in starts:
            sent[at : at + kept(size, percent) // len(starts) + 1] = 1
    assert shortest_topk(size, percent) <= len(pack(sent, codec)) <= longest_topk(size, percent)
    assert there_and_back(sent, codec).shape == (size,)


def test_both_lengths_are_reached():
    # 100 of 2000: 4 + 100 + 100 bytes, and 1900 skipped in one gap take 7 bytes more
    assert (shortest_topk(2000, 5), longest_topk(2000, 5)) == (204, 211)
    assert len(pack(np.tile(sparse(20, {0: 1}), 100), "topk5")) == 204
    assert len(pack(sparse(2000, dict.fromkeys(range(1900, 2000), 1)), "topk5")) == 211


@both
def test_a_body_of_an_impossible_length_is_refused_before_anything_is_allocated(codec):
    coding = CODINGS[codec]
    for length in (coding.least_bytes(2000) - 1, coding.body_bytes(2000) + 1, 0):
        assert refused(bytes(length), codec, 2000) == "size"
    assert refused(bytes(100), codec, 2**60) == "size"


def body_of_40(*, codes=(127, 5), gaps):
    """A body of 40 entries, of which topk5 keeps two."""
    return ONE + bytes(codes) + bytes(gaps)


def test_an_index_beyond_the_vector_is_refused():
    assert unpack(body_of_40(gaps=[0, 38]), "topk5", 40)[39] == 5.0
    assert refused(body_of_40(gaps=[0, 39]), "topk5", 40) == "schema"
    assert refused(body_of_40(gaps=[254, 254]), "topk5", 40) == "schema"


@pytest.mark.parametrize("gaps", [[3, 255], [255, 3], [255, 255]])
def test_another_number_of_gaps_than_entries_are_kept_is_refused(gaps):
    assert refused(body_of_40(gaps=gaps), "topk5", 40) == "schema"


def test_a_gap_that_is_left_open_or_one_too_many_is_refused():
    sent = sparse(2000, dict.fromkeys(range(1900, 2000), 1))
    body = pack(sent, "topk5")
    assert body[-107:] == b"\xff" * 7 + bytes([115]) + bytes(99)
    assert refused(body[:-1] + b"\xff", "topk5", 2000) == "schema"
    assert refused(body[:-107] + bytes(107), "topk5", 2000) == "schema"
    # as many gaps as are kept, and then one that never ends
    assert refused(body[:-107] + bytes(100) + b"\xff" * 7, "topk5", 2000) == "schema"


def test_a_scale_or_code_that_is_never_written_is_refused():
    assert refused(body_of_40(codes=(127, 0x80), gaps=[0, 0]), "topk5", 40) == "schema"
    assert refused(bytes(4) + body_of_40(gaps=[0, 0])[4:], "topk5", 40) == "schema"


def test_what_was_decoded_once_travels_without_further_loss_within_one_block_of_kept_entries():
    sent = np.random.default_rng(5).standard_normal(20_000).astype(np.float32)
    once = there_and_back(sent, "topk5")
    assert there_and_back(once, "topk5").tobytes() == once.tobytes()
