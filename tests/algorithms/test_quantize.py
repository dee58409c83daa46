from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms.compression import pack, unpack
from hermes_iot.algorithms.quantize import BLOCK
from hermes_iot.errors import ProtocolError

repeatable = settings(derandomize=True, deadline=None)
LARGEST = {"int8": 127, "int4": 7}
TINY = float(np.finfo(np.float32).tiny)
MAX = float(np.finfo(np.float32).max)
NAN = float("nan")
INF = float("inf")

both = pytest.mark.parametrize("codec", sorted(LARGEST))
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def vector(*values):
    return np.array(values, dtype=np.float32)


def there_and_back(sent, codec):
    return unpack(pack(sent, codec), codec, sent.size)


def scales_of(body, blocks):
    return np.frombuffer(body, "<f4", count=blocks)


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def test_int8_bytes_by_hand():
    # scale 254 / 127 = 2; codes 127, -127, 0, 1.5 -> 2, 0.5 -> 0, -2.5 -> -2 (halves to even)
    assert pack(vector(254, -254, 0, 3, 1, -5), "int8") == floats(2.0) + bytes([127, 0x81, 0, 2, 0, 0xFE])
    assert there_and_back(vector(254, -254, 0, 3, 1, -5), "int8").tolist() == [254, -254, 0, 4, 0, -4]


def test_int4_bytes_by_hand():
    # scale 14 / 7 = 2; codes 7, -7, 1.5 -> 2, 0.5 -> 0, -2.5 -> -2; the lower nibble first, the last one padded
    assert pack(vector(14, -14, 3, 1, -5), "int4") == floats(2.0) + bytes([0x97, 0x02, 0x0E])
    assert there_and_back(vector(14, -14, 3, 1, -5), "int4").tolist() == [14, -14, 4, 0, -4]


def test_all_scales_come_first_and_the_last_block_is_shorter():
    sent = np.zeros(2 * BLOCK + 3, np.float32)
    sent[0], sent[BLOCK], sent[2 * BLOCK :] = 127, 254, (0, -381, 3)
    body = pack(sent, "int8")
    assert body[:12] == floats(1.0, 2.0, 3.0)
    assert body[12] == body[12 + BLOCK] == 127
    assert body[12 + 2 * BLOCK :] == bytes([0, 0x81, 1])
    assert unpack(body, "int8", sent.size).tolist() == sent.tolist()


@pytest.mark.parametrize(
    ("size", "int8", "int4"),
    [
        (0, 0, 0),
        (1, 5, 5),
        (2, 6, 5),
        (1023, 1027, 516),
        (1024, 1028, 516),
        (1025, 1033, 521),
        (109_386, 109_814, 55_121),
    ],
)
def test_a_body_is_half_a_byte_or_one_per_entry_and_four_bytes_per_block(size, int8, int4):
    sent = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    assert (len(pack(sent, "int8")), len(pack(sent, "int4"))) == (int8, int4)


@both
@pytest.mark.parametrize("size", [1, 2, 3, 1023, 1024, 1025, 3000])
def test_no_entry_moves_by_more_than_half_its_blocks_scale(codec, size):
    rng = np.random.default_rng(size)
    sent = (rng.standard_normal(size) * 10.0 ** rng.integers(-20, 20)).astype(np.float32)
    body = pack(sent, codec)
    scales = np.repeat(scales_of(body, -(-size // BLOCK)), BLOCK)[:size].astype(np.float64)
    moved = np.abs(unpack(body, codec, size).astype(np.float64) - sent)
    # the quotient is rounded to float32 before it is rounded to a code
    assert np.all(moved <= scales * 0.5 * (1 + 1e-4))
    assert moved.max() > 0.0 or size == 1


@both
@repeatable
@given(sent=hnp.arrays(np.float32, st.integers(0, 40), elements=finite32))
@example(sent=vector(MAX, -MAX, 1e38))
@example(sent=vector(TINY, -TINY, 0))
def test_what_was_decoded_once_travels_without_further_loss(codec, sent):
    once = there_and_back(sent, codec)
    assert np.isfinite(once).all()
    assert there_and_back(once, codec).tobytes() == once.tobytes()


@both
def test_no_largest_entry_is_decoded_to_one_that_gives_another_scale(codec):
    # a block of its own for every 4096th of the 2**23 mantissas, and for those at both ends
    mantissas = np.r_[0:256, 256 : 2**23 - 256 : 4096, 2**23 - 256 : 2**23].astype(np.uint32)
    sent = np.zeros((mantissas.size, BLOCK), np.float32)
    sent[:, 7] = (mantissas | np.float32(1.0).view(np.uint32)).view(np.float32)
    once = there_and_back(sent.reshape(-1), codec)
    assert there_and_back(once, codec).tobytes() == once.tobytes()
    assert np.allclose(once.reshape(sent.shape)[:, 7], sent[:, 7], rtol=2e-7, atol=0)


@both
def test_a_block_of_zeros_has_scale_1(codec):
    body = pack(vector(0, -0.0), codec)
    assert scales_of(body, 1).tolist() == [1.0]
    assert unpack(body, codec, 2).tobytes() == bytes(8)


@both
def test_a_block_whose_scale_would_be_denormal_is_sent_as_zeros(codec):
    smallest = LARGEST[codec] * TINY
    assert pack(vector(smallest, 0), codec)[:4] == floats(TINY)
    assert there_and_back(vector(smallest, 0), codec).tolist() == [smallest, 0.0]
    below = np.nextafter(np.float32(smallest), np.float32(0))
    for tiny in (below, TINY, 1e-45):
        assert pack(vector(tiny, -tiny), codec) == pack(vector(0, 0), codec)


@both
def test_the_largest_float32_comes_back_finite_and_to_the_last_digits(codec):
    received = there_and_back(vector(MAX, -MAX, MAX / 2), codec)
    assert np.isfinite(received).all()
    assert np.allclose(received[:2], [MAX, -MAX], rtol=3e-7, atol=0)


@both
def test_a_tiny_block_does_not_suffer_from_a_huge_neighbour(codec):
    sent = np.repeat(vector(1e30, 1e-30), BLOCK)
    assert np.allclose(there_and_back(sent, codec), sent, rtol=1e-6, atol=0)


@both
@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, 1e-45, TINY / 2, NAN, -NAN, INF, -INF, MAX, MAX / 6])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("allow_nonfinite", [False, True])
def test_a_scale_that_is_never_written_is_refused(codec, scale, block, allow_nonfinite):
    body = bytearray(pack(np.ones(BLOCK + 1, np.float32), codec))
    body[4 * block : 4 * block + 4] = floats(scale)
    with pytest.raises(ProtocolError) as caught:
        unpack(body, codec, BLOCK + 1, allow_nonfinite=allow_nonfinite)
    assert caught.value.reason == "schema"


@pytest.mark.parametrize(
    ("codec", "codes", "size"),
    [("int8", "8001", 2), ("int8", "0180", 2), ("int4", "08", 1), ("int4", "80", 2), ("int4", "1101f8", 6)],
)
def test_a_code_that_is_never_written_is_refused(codec, codes, size):
    with pytest.raises(ProtocolError) as caught:
        unpack(floats(1.0) + bytes.fromhex(codes), codec, size)
    assert caught.value.reason == "schema"


@pytest.mark.parametrize("padding", range(1, 16))
def test_the_nibble_after_the_last_code_is_zero(padding):
    assert unpack(floats(1.0) + bytes([0x21, 0x03]), "int4", 3).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ProtocolError) as caught:
        unpack(floats(1.0) + bytes([0x21, 0x03 | padding << 4]), "int4", 3)
    assert caught.value.reason == "schema"


@both
def test_every_code_comes_back_with_its_sign(codec):
    largest = LARGEST[codec]
    sent = np.arange(-largest, largest + 1, dtype=np.float32)
    assert there_and_back(sent, codec).tolist() == sent.tolist()


@both
def test_a_vector_with_gaps_in_its_memory_is_encoded_like_any_other_and_left_as_it_was(codec):
    wide = np.random.default_rng(4).standard_normal(3 * BLOCK).astype(np.float32)
    before = wide.copy()
    assert pack(wide[::2], codec) == pack(wide[::2].copy(), codec)
    assert wide.tobytes() == before.tobytes()
