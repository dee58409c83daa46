"""The dead-zone codec: bytes by hand, its bounds, and what arrives with error feedback."""

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms.compression import CODINGS, pack, pack_with_feedback, unpack
from hermes_iot.algorithms.deadzone import STEP, ZERO
from hermes_iot.algorithms.quantize import int4_bytes


def vector(*values):
    return np.array(values, dtype=np.float32)


def full(*values):
    """A whole block, the rest zeros."""
    block = np.zeros(1024, dtype=np.float32)
    block[: len(values)] = values
    return block


def test_a_step_is_one_and_a_half_root_mean_squares_where_no_entry_is_large():
    # Alternating 2 and -2: root mean square 2, step 3; 2/3 is beyond 0.6, so it becomes one step.
    values = np.tile(vector(2, -2), 512)
    body = pack(values, "deadzone")
    assert body == np.float32(3).tobytes() + bytes([0b1111_0001]) * 512
    assert np.array_equal(unpack(body, "deadzone", 1024), np.tile(vector(3, -3), 512))


def test_the_largest_entry_is_seven_steps_where_it_stands_out():
    # Sum of squares 49 + 0.3^2 + 0.65^2: root mean square 0.22, of which one and a half are less than 7/7.
    decoded = unpack(pack(full(-7, 0.55, 0.65), "deadzone"), "deadzone", 1024)
    assert np.array_equal(decoded, full(-7, 0, 1))


@pytest.mark.parametrize("values", [(0, 0, 0), (1e-40, -1e-41, 0)])
def test_a_block_of_zeros_and_one_too_small_for_float32_are_zeros(values):
    assert np.array_equal(unpack(pack(vector(*values), "deadzone"), "deadzone", 3), [0, 0, 0])


def test_the_largest_float32_survives():
    largest = np.finfo(np.float32).max
    for values in (full(-largest), np.full(1024, largest)):
        decoded = unpack(pack(values.astype(np.float32), "deadzone"), "deadzone", 1024)
        assert np.isfinite(decoded).all()
        assert np.allclose(decoded / largest, values / largest, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 1023, 1024, 1025, 5000])
def test_a_body_is_as_long_as_int4s(size):
    assert len(pack(np.ones(size, dtype=np.float32), "deadzone")) == int4_bytes(size)
    assert CODINGS["deadzone"].body_bytes(size) == int4_bytes(size)


@given(values=hnp.arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1e6, 1e6, width=32)))
@example(values=vector(6.8e-38))  # a seventh of it is no normal number: sent as 0
def test_no_entry_moves_by_more_than_the_dead_zone_and_none_changes_its_sign(values):
    decoded = unpack(pack(values, "deadzone"), "deadzone", values.size)
    assert (np.sign(decoded) * np.sign(values) >= 0).all()
    for start in range(0, values.size, 1024):
        block = values[start : start + 1024].astype(np.float64)
        spread = np.sqrt(np.square(block).sum() / 1024)  # the padding of the last block counts
        step = max(np.abs(block).max() / 7, STEP * spread, np.finfo(np.float32).tiny)
        assert (
            np.abs(decoded[start : start + 1024] - block) <= ZERO * step * (1 + 1e-5) + 7 * np.finfo(np.float32).tiny
        ).all()


def test_noise_costs_less_than_three_fifths_of_what_int4_costs():
    values = np.random.default_rng(3).standard_normal(100_000).astype(np.float32)
    packed = {codec: len(zstandard.compress(pack(values, codec))) for codec in ("int4", "deadzone")}
    assert packed["deadzone"] < 0.6 * packed["int4"]


def test_with_feedback_what_was_cut_off_arrives_in_the_end():
    rng = np.random.default_rng(7)
    target = rng.standard_normal(3000).astype(np.float32)
    arrived, residual = np.zeros_like(target), None
    for step in range(12):
        body, residual = pack_with_feedback(target if step == 0 else np.zeros_like(target), residual, "deadzone")
        arrived += unpack(body, "deadzone", target.size)
    assert np.linalg.norm(arrived - target) < 0.05 * np.linalg.norm(target)
    assert np.allclose(arrived + residual, target, atol=1e-4)
