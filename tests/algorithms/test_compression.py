from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms.compression import CODINGS, body_bytes_max, pack, pack_with_feedback, unpack
from hermes_iot.domain import Codec
from hermes_iot.errors import ProtocolError

repeatable = settings(derandomize=True, deadline=None)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = hnp.arrays(np.float32, st.integers(0, 30), elements=finite32)
codecs = st.sampled_from(sorted(CODINGS))


def vector(*values):
    return np.array(values, dtype=np.float32)


def test_every_codec_of_the_domain_has_a_coding_and_no_other_has():
    assert set(CODINGS) == set(get_args(Codec))


def test_the_bytes_are_frozen():
    tiny = vector(1.0, -2.0, 0.1, -0.0, 1e6)
    assert pack(tiny, "fp32").hex(" ", 4) == "0000803f 000000c0 cdcccc3d 00000080 00247449"
    assert pack(tiny, "fp16").hex(" ", 2) == "003c 00c0 662e 0080 ff7b"


@repeatable
@given(sent=vectors)
def test_fp32_gives_back_every_bit(sent):
    assert unpack(pack(sent, "fp32"), "fp32", sent.size).tobytes() == sent.tobytes()


@repeatable
@given(sent=vectors, codec=codecs.filter(lambda codec: codec != "deadzone"))  # whose step follows the spread
def test_what_was_decoded_once_travels_without_further_loss(sent, codec):
    once = unpack(pack(sent, codec), codec, sent.size)
    assert unpack(pack(once, codec), codec, sent.size).tobytes() == once.tobytes()


@repeatable
@given(sent=vectors, codec=codecs)
def test_a_body_is_as_long_as_its_coding_says(sent, codec):
    # so short a vector has no gap that takes two bytes
    assert len(pack(sent, codec)) == CODINGS[codec].body_bytes(sent.size)


@pytest.mark.parametrize("codec", sorted(CODINGS))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_never_packed(codec, bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack(vector(1, bad), codec)


def test_only_flat_float32_vectors_are_packed():
    for wrong in (np.zeros(2), np.zeros((1, 2), np.float32), np.zeros(2, ">f4")):
        with pytest.raises(ValueError, match="flat float32"):
            pack(wrong, "fp32")


@pytest.mark.parametrize(("codec", "length"), [("fp32", 11), ("fp32", 16), ("fp32", 0), ("fp16", 5), ("fp16", 12)])
def test_a_body_of_another_length_is_refused(codec, length):
    with pytest.raises(ProtocolError) as caught:
        unpack(bytes(length), codec, 3)
    assert caught.value.reason == "size"


def test_a_huge_claimed_size_is_refused_before_anything_is_allocated():
    with pytest.raises(ProtocolError) as caught:
        unpack(b"\0" * 8, "fp32", 2**60)
    assert caught.value.reason == "size"


def test_an_unknown_codec_is_refused():
    with pytest.raises(ProtocolError) as caught:
        unpack(b"", "fp8" * 1000, 0)
    assert caught.value.reason == "codec"
    assert len(str(caught.value)) < 80


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        ("fp16", "007c"),
        ("fp16", "017e"),
        ("bf16", "80ff"),
        ("bf16", "c17f"),
        ("fp32", "0000807f"),
        ("fp32", "0000c0ff"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_unless_allowed(codec, body):
    with pytest.raises(ProtocolError) as caught:
        unpack(bytes.fromhex(body), codec, 1)
    assert caught.value.reason == "finite"
    assert not np.isfinite(unpack(bytes.fromhex(body), codec, 1, allow_nonfinite=True)).any()


@pytest.mark.parametrize("codec", sorted(CODINGS))
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_decoded_vector_is_writable_and_its_own_whatever_holds_the_body(codec, kind):
    body = kind(pack(vector(2, 2), codec))
    first = unpack(body, codec, 2)
    before = first.tolist()
    first[0] = 9
    assert first.dtype == np.float32
    assert unpack(body, codec, 2).tolist() == before != first.tolist()


@repeatable
@given(body=st.binary(max_size=40), codec=codecs, size=st.integers(0, 20))
def test_hostile_bytes_give_a_finite_vector_or_a_protocol_error(body, codec, size):
    reason = None
    try:
        received = unpack(body, codec, size)
    except ProtocolError as error:
        reason = error.reason
    if len(body) != CODINGS[codec].body_bytes(size):
        assert reason == "size"
    else:
        assert reason in {"finite", "schema"} or (received.shape == (size,) and np.isfinite(received).all())


def outcome(body, codec, size):
    """Why the body is refused, or whether a finite vector of that size came out; anything else is raised."""
    try:
        received = unpack(body, codec, size)
    except ProtocolError as error:
        return error.reason
    return received.shape == (size,) and bool(np.isfinite(received).all())


@pytest.mark.parametrize("codec", sorted(CODINGS))
@pytest.mark.parametrize("size", [1, 9, 30, 700])
def test_no_flipped_or_missing_byte_lets_anything_but_a_protocol_error_escape(codec, size):
    body = pack(np.random.default_rng(size).standard_normal(size).astype(np.float32), codec)
    for at in range(len(body)):
        for mask in (0x01, 0x80, 0xFF):
            bent = bytearray(body)
            bent[at] ^= mask
            assert outcome(bent, codec, size) in {True, "finite", "schema"}
        assert outcome(body[:at], codec, size) in {"size", "schema"}


@pytest.mark.parametrize("codec", sorted(CODINGS))
def test_a_vector_longer_than_the_codec_can_mean_is_refused_by_its_length(codec):
    body = pack(np.ones(700, np.float32), codec)
    for size in (0, 1, 350, 2000, 2**60):
        with pytest.raises(ProtocolError) as caught:
            unpack(body, codec, size)
        assert caught.value.reason == "size"


def test_feedback_by_hand():
    # scale 7 / 7 = 1: 2.25 is sent as 2 and 0.25 are left, which make 0.375 the next 0.625, sent as 1
    body, left = pack_with_feedback(vector(7, 2.25), None, "int4")
    assert body == pack(vector(7, 2), "int4")
    assert left.tolist() == [0.0, 0.25]
    body, left = pack_with_feedback(vector(7, 0.375), left, "int4")
    assert body == pack(vector(7, 1), "int4")
    assert left.tolist() == [0.0, -0.375]


@pytest.mark.parametrize("codec", sorted(CODINGS))
def test_the_decoded_bodies_and_the_last_residual_add_up_to_all_that_was_sent(codec):
    rng = np.random.default_rng(6)
    sent = rng.standard_normal((40, 3000)).astype(np.float32)
    total, residual = np.zeros(3000), None
    for each in sent:
        body, residual = pack_with_feedback(each, residual, codec)
        total += unpack(body, codec, 3000)
    assert np.allclose(total + residual, sent.sum(axis=0, dtype=np.float64), atol=1e-4)


@repeatable
@given(sent=vectors)
def test_fp32_leaves_no_residual(sent):
    body, left = pack_with_feedback(sent, None, "fp32")
    assert body == pack(sent, "fp32")
    assert left.tobytes() == bytes(4 * sent.size)


def test_what_top_k_drops_travels_once_it_has_grown():
    steps = np.float32([1.0, 0.4] + [0.0] * 18)
    residual, arrived = None, []
    for _ in range(5):
        body, residual = pack_with_feedback(steps, residual, "topk5")
        arrived.append(int(np.flatnonzero(unpack(body, "topk5", 20))[0]))
    # the second entry waits with 0.4, 0.8 and 1.2
    assert arrived == [0, 0, 1, 0, 0]


def test_feedback_leaves_its_arguments_as_they_were():
    sent, residual = vector(1, 0.3), vector(0.25, -0.1)
    pack_with_feedback(sent, residual, "int4")
    assert (sent.tolist(), residual.tolist()) == (vector(1, 0.3).tolist(), vector(0.25, -0.1).tolist())


@pytest.mark.parametrize("wrong", [np.zeros(1, np.float32), np.zeros(2), np.zeros((2, 1), np.float32)])
def test_a_residual_of_another_shape_or_type_is_refused(wrong):
    with pytest.raises(ValueError, match="residual"):
        pack_with_feedback(vector(1, 2), wrong, "int8")


def test_a_sum_that_overflows_is_refused_and_not_sent():
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack_with_feedback(vector(3e38), vector(3e38), "int8")


@pytest.mark.parametrize("size", [1, 2, 7, 100, 610, 5000])
@pytest.mark.parametrize("codec", CODINGS)
def test_no_body_of_any_codec_is_longer_than_is_said_before(codec, size):
    chance = np.random.default_rng(size)
    for vector in (chance.standard_normal(size), np.zeros(size), np.full(size, 3e38)):
        assert len(pack(vector.astype(np.float32), codec)) <= body_bytes_max(size)


def test_the_longest_body_is_four_bytes_an_entry_where_entries_are_many():
    assert body_bytes_max(610) == 4 * 610
    assert body_bytes_max(25_000_000) == 100_000_000
