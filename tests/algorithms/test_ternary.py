"""The ternary codec: bytes by hand, and what only a hostile peer sends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms.compression import pack, pack_with_feedback, unpack
from hermes_iot.algorithms.ternary import THRESHOLD, ternary_bytes
from hermes_iot.errors import ProtocolError


def vector(*values):
    return np.array(values, dtype=np.float32)


def test_entries_above_the_threshold_become_their_sign_times_the_mean_of_those_kept():
    # Mean magnitude 15/5 = 3, threshold 3.6: 5 and -7 are kept, scale 6.
    body = pack(vector(5, -7, 1, -1, 1), "ternary")
    assert body == np.float32(6).tobytes() + bytes([0b00_00_11_01, 0])
    assert np.array_equal(unpack(body, "ternary", 5), [6, -6, 0, 0, 0])


def test_a_block_of_zeros_and_one_too_small_for_float32_are_zeros():
    for values in ((0, 0, 0), (1e-40, -1e-41, 0)):
        assert np.array_equal(unpack(pack(vector(*values), "ternary"), "ternary", 3), [0, 0, 0])


def test_every_block_has_a_scale_of_its_own():
    values = np.zeros(1025, dtype=np.float32)
    values[0], values[1024] = 10, -0.5
    decoded = unpack(pack(values, "ternary"), "ternary", 1025)
    # The last block has one entry, which is its mean and so below the threshold.
    assert (decoded[0], decoded[1024]) == (10.0, 0.0)
    values[1024] = 0
    assert THRESHOLD > 1


def test_the_largest_float32_survives():
    values = np.zeros(8, dtype=np.float32)
    values[3] = -np.finfo(np.float32).max
    assert np.array_equal(unpack(pack(values, "ternary"), "ternary", 8), values)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1023, 1024, 1025, 5000])
def test_a_body_is_two_bits_an_entry_and_four_bytes_a_block(size):
    assert ternary_bytes(size) == -(-size // 4) + 4 * -(-size // 1024)
    assert len(pack(np.ones(size, dtype=np.float32), "ternary")) == ternary_bytes(size)


@pytest.mark.parametrize(
    "body",
    [
        np.float32(1).tobytes() + bytes([0b10]),
        np.float32(1).tobytes() + bytes([0b01_00_00_00]),
        np.float32(0).tobytes() + bytes([0]),
        np.float32(-1).tobytes() + bytes([0]),
        np.float32(np.nan).tobytes() + bytes([0]),
        np.float32(np.inf).tobytes() + bytes([0]),
        np.float32(1e-40).tobytes() + bytes([0]),
    ],
    ids=["code 2", "code after the end", "scale 0", "scale -1", "scale NaN", "scale inf", "denormal scale"],
)
def test_what_is_never_written_is_refused(body):
    with pytest.raises(ProtocolError) as caught:
        unpack(body, "ternary", 3)
    assert caught.value.reason == "schema"


@given(values=hnp.arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1e6, 1e6, width=32)))
def test_what_comes_back_is_one_of_three_values_a_block(values):
    decoded = unpack(pack(values, "ternary"), "ternary", values.size)
    for start in range(0, values.size, 1024):
        assert len(np.unique(np.abs(decoded[start : start + 1024]))) <= 2
    assert (np.sign(decoded) * np.sign(values) >= 0).all()


def test_with_feedback_what_was_cut_off_arrives_in_the_end():
    rng = np.random.default_rng(7)
    target = rng.standard_normal(3000).astype(np.float32)
    arrived, residual = np.zeros_like(target), None
    for step in range(40):
        body, residual = pack_with_feedback(target if step == 0 else np.zeros_like(target), residual, "ternary")
        arrived += unpack(body, "ternary", target.size)
    assert np.linalg.norm(arrived - target) < 0.05 * np.linalg.norm(target)
    assert np.allclose(arrived + residual, target, atol=1e-4)
