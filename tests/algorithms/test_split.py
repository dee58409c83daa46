"""Which tensors a coarse codec is kept away from, the body that comes of it, and a net that needs it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.algorithms.compression import CODINGS, pack, pack_with_feedback, unpack
from hermes_iot.algorithms.split import FINE_MAX, fine_for, split_of
from hermes_iot.errors import ProtocolError

repeatable = settings(derandomize=True, deadline=None)
NET = (("0.weight", (2, 3)), ("0.bias", (2,)), ("1.running_var", (2,)), ("2.weight", (1, 2)), ("steps", ()))
COARSE = sorted(codec for codec, coding in CODINGS.items() if not coding.exact)
layouts = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=8).map(
    lambda shapes: tuple((f"t{number}", shape) for number, shape in enumerate(shapes))
)


def vector(*values):
    return np.array(values, dtype=np.float32)


def entries(tensors):
    return sum(int(np.prod(shape)) for _, shape in tensors)


def test_vectors_and_scalars_are_fine_and_neighbours_are_one_range():
    split = split_of(NET, "vectors")
    assert split.fine == ((6, 10), (12, 13))
    assert split.coarse == ((0, 6), (10, 12))
    assert (split.fine_size, split.coarse_size) == (5, 8)


def test_nothing_is_split_where_nobody_asks_or_nothing_is_fine():
    assert split_of(NET, "none") is None
    assert split_of((("w", (3, 4)), ("v", (2, 2))), "vectors") is None


def test_a_long_vector_is_no_tiny_tensor():
    assert split_of((("w", (FINE_MAX + 1,)),), "vectors") is None
    assert split_of((("w", (FINE_MAX,)),), "vectors").fine == ((0, FINE_MAX),)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["0.weight", "0.bias"], "none"),
        (["0.weight", "1.running_mean"], "vectors"),
        (["running_var"], "vectors"),
        (["my_running_var"], "none"),
    ],
)
def test_running_statistics_ask_for_it(names, wanted):
    assert fine_for([(name, (4,)) for name in names]) == wanted


def test_the_bytes_by_hand():
    # scale 14 / 7 = 2 for the eight coarse ones, two to a byte; then five halves
    sent = vector(14, 2, -2, 4, 0, 6, 1000, -0.5, 1, 2, 8, -14, 65504)
    body = pack(sent, "int4", split_of(NET, "vectors"))
    assert body.hex(" ") == "00 00 00 40 17 2f 30 94 d0 63 00 b8 00 3c 00 40 ff 7b"
    assert unpack(body, "int4", 13, split_of(NET, "vectors")).tolist() == sent.tolist()


@repeatable
@given(tensors=layouts)
def test_the_ranges_cover_the_vector_once_and_in_order(tensors):
    split = split_of(tensors, "vectors")
    if split is None:
        assert not any(len(shape) < 2 and 0 not in shape for _, shape in tensors)
        return
    places = [list(itertools.chain(*(range(*one) for one in ranges))) for ranges in (split.coarse, split.fine)]
    assert sorted(places[0] + places[1]) == list(range(entries(tensors)))
    assert (len(places[0]), len(places[1])) == (split.coarse_size, split.fine_size)
    assert all(
        before[1] < after[0] for ranges in (split.coarse, split.fine) for before, after in itertools.pairwise(ranges)
    )


@repeatable
@given(tensors=layouts, codec=st.sampled_from(sorted(CODINGS)), seed=st.integers(0, 99))
def test_coarse_entries_come_back_as_the_codec_has_them_and_fine_ones_as_halves(tensors, codec, seed):
    size, split = entries(tensors), split_of(tensors, "vectors")
    sent = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    body = pack(sent, codec, split)
    received = unpack(body, codec, size, split)
    assert received.shape == (size,)
    if split is None or CODINGS[codec].exact:
        assert body == pack(sent, codec)
        return
    coarse, fine = split.apart(sent)
    assert split.together(coarse, fine).tolist() == sent.tolist()
    assert split.apart(received)[0].tolist() == unpack(pack(coarse, codec), codec, coarse.size).tolist()
    assert split.apart(received)[1].tolist() == unpack(pack(fine, "fp16"), "fp16", fine.size).tolist()
    assert len(body) == len(pack(coarse, codec)) + 2 * fine.size


@pytest.mark.parametrize("codec", COARSE)
def test_a_body_of_an_impossible_length_is_refused_before_anything_is_allocated(codec):
    split, coding = split_of(NET, "vectors"), CODINGS[codec]
    least, most = coding.lengths(8)
    for length in (0, 9, least + 9, most + 11):
        with pytest.raises(ProtocolError) as caught:
            unpack(bytes(length), codec, 13, split)
        assert caught.value.reason == "size"


@pytest.mark.parametrize("codec", COARSE)
def test_hostile_bytes_give_a_finite_vector_or_a_protocol_error(codec):
    split = split_of(NET, "vectors")
    body = pack(np.arange(13, dtype=np.float32), codec, split)
    for at, mask in itertools.product(range(len(body)), (0x01, 0x80, 0xFF)):
        bent = bytearray(body)
        bent[at] ^= mask
        reason = ""
        try:
            received = unpack(bent, codec, 13, split)
        except ProtocolError as error:
            reason = error.reason
        assert reason in {"schema", "finite"} or np.isfinite(received).all()


def test_an_infinite_half_is_refused_though_the_codec_knows_none():
    split = split_of(NET, "vectors")
    body = pack(np.ones(13, np.float32), "int8", split)
    with pytest.raises(ProtocolError) as caught:
        unpack(body[:-2] + bytes.fromhex("007c"), "int8", 13, split)
    assert caught.value.reason == "finite"


def test_what_the_halves_cut_off_is_carried_over_too():
    split = split_of(NET, "vectors")
    sent = np.random.default_rng(3).standard_normal((30, 13)).astype(np.float32)
    total, residual = np.zeros(13), None
    for each in sent:
        body, residual = pack_with_feedback(each, residual, "topk10", split)
        total += unpack(body, "topk10", 13, split)
    assert np.allclose(total + residual, sent.sum(axis=0, dtype=np.float64), atol=1e-5)


def test_a_model_of_vectors_only_is_all_halves():
    tensors = (("w", (5,)), ("b", ()))
    for codec in COARSE:
        sent = np.arange(6, dtype=np.float32)
        body = pack(sent, codec, split_of(tensors, "vectors"))
        assert body == pack(sent, "fp16")
        assert unpack(body, codec, 6, split_of(tensors, "vectors")).tolist() == sent.tolist()
