"""One bit an entry: bytes by hand, what is refused, and what arrives with error feedback."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms.compression import CODINGS, pack, pack_with_feedback, unpack
from hermes_iot.algorithms.signs import BLOCK, sign_bytes
from hermes_iot.errors import ProtocolError

repeatable = settings(derandomize=True, deadline=None)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)


def vector(*values):
    return np.array(values, dtype=np.float32)


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def there_and_back(sent):
    return unpack(pack(sent, "sign"), "sign", sent.size)


def test_the_bytes_by_hand():
    # mean magnitude 18 / 9 = 2; negative are the entries 1, 2 and 8
    sent = vector(1, -2, -3, 4, 0, 1, 1, 2, -4)
    assert pack(sent, "sign") == floats(2.0) + bytes([0b0000_0110, 0b0000_0001])
    assert there_and_back(sent).tolist() == [2, -2, -2, 2, 2, 2, 2, 2, -2]


def test_every_block_has_its_scale_and_the_last_one_that_of_its_own_entries():
    sent = np.concatenate([np.full(BLOCK, 3.0), np.full(BLOCK, -0.5), [8, -4]]).astype(np.float32)
    assert pack(sent, "sign")[:12] == floats(3.0, 0.5, 6.0)
    assert there_and_back(sent)[[0, BLOCK - 1, BLOCK, 2 * BLOCK - 1]].tolist() == [3, 3, -0.5, -0.5]
    assert there_and_back(sent)[2 * BLOCK :].tolist() == [6, -6]


@pytest.mark.parametrize(
    ("size", "length"), [(0, 0), (1, 5), (8, 5), (9, 6), (2048, 260), (2049, 265), (109_386, 13_890)]
)
def test_how_long_a_body_is(size, length):
    assert sign_bytes(size) == length == len(pack(np.ones(size, np.float32), "sign"))


@repeatable
@given(sent=hnp.arrays(np.float32, st.integers(0, 3 * BLOCK), elements=finite32))
@example(sent=vector(-TINY / 2, 0))
@example(sent=vector(0, -0.0))
def test_what_was_decoded_once_travels_without_further_loss(sent):
    once = there_and_back(sent)
    assert np.isfinite(once).all()
    assert there_and_back(once).tobytes() == once.tobytes()


@repeatable
@given(sent=hnp.arrays(np.float32, st.integers(1, 2 * BLOCK), elements=st.floats(-1e6, 1e6, width=32)))
def test_no_entry_changes_its_sign_and_each_block_keeps_its_mean_magnitude(sent):
    received = there_and_back(sent)
    assert np.array_equal(np.signbit(received), np.signbit(sent))
    for start in range(0, sent.size, BLOCK):
        block = np.abs(sent[start : start + BLOCK].astype(np.float64))
        assert np.allclose(np.abs(received[start : start + BLOCK]), block.mean(), rtol=1e-6, atol=TINY)


def test_the_error_is_never_longer_than_what_was_sent():
    # |x - s sign(x)|^2 = |x|^2 - n s^2 in every block: the compressor of error feedback contracts
    sent = np.random.default_rng(2).standard_normal(5 * BLOCK).astype(np.float32)
    apart = np.square(sent - there_and_back(sent)).reshape(5, BLOCK).sum(axis=1)
    assert np.allclose(apart, (np.square(sent) - np.square(there_and_back(sent))).reshape(5, BLOCK).sum(axis=1))
    assert (apart < 0.4 * np.square(sent).reshape(5, BLOCK).sum(axis=1)).all()  # 1 - 2 / pi for a normal one


def test_with_feedback_what_was_cut_off_arrives_in_the_end():
    rng = np.random.default_rng(7)
    target = rng.standard_normal(3000).astype(np.float32)
    arrived, residual = np.zeros_like(target), None
    for step in range(40):
        body, residual = pack_with_feedback(target if step == 0 else np.zeros_like(target), residual, "sign")
        arrived += unpack(body, "sign", target.size)
    assert np.linalg.norm(arrived - target) < 0.05 * np.linalg.norm(target)
    assert np.allclose(arrived + residual, target, atol=1e-4)


def test_the_largest_float32_comes_back_as_it_was():
    assert there_and_back(vector(MAX, -MAX)).tolist() == [MAX, -MAX]
    assert there_and_back(np.full(BLOCK, -MAX, np.float32)).tolist() == [-MAX] * BLOCK


@pytest.mark.parametrize("values", [(0, 0), (TINY / 2, -TINY / 2), (1e-45, 0)])
def test_a_block_whose_mean_is_no_normal_number_comes_back_as_zeros(values):
    assert pack(vector(*values), "sign")[:4] == floats(0.0)
    assert there_and_back(vector(*values)).tolist() == [0, 0]


@pytest.mark.parametrize("scale", [-0.0, -1.0, 1e-45, TINY / 2, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("block", [0, 1])
def test_a_scale_that_is_never_written_is_refused(scale, block):
    body = bytearray(pack(np.ones(BLOCK + 1, np.float32), "sign"))
    body[4 * block : 4 * block + 4] = floats(scale)
    with pytest.raises(ProtocolError) as caught:
        unpack(body, "sign", BLOCK + 1, allow_nonfinite=True)
    assert caught.value.reason == "schema"


@pytest.mark.parametrize("bit", range(3, 8))
def test_a_bit_after_the_last_sign_is_refused(bit):
    assert unpack(floats(1.0) + bytes([0b101]), "sign", 3).tolist() == [-1, 1, -1]
    with pytest.raises(ProtocolError) as caught:
        unpack(floats(1.0) + bytes([0b101 | 1 << bit]), "sign", 3)
    assert caught.value.reason == "schema"


@pytest.mark.parametrize("wrong", [-1, 1, -4, 4])
def test_a_body_of_another_length_is_refused(wrong):
    with pytest.raises(ProtocolError) as caught:
        unpack(bytes(sign_bytes(BLOCK + 9) + wrong), "sign", BLOCK + 9)
    assert caught.value.reason == "size"


def test_it_is_for_differences_only():
    assert CODINGS["sign"].partial
