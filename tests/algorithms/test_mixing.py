"""Displacements into a model: arithmetic a reader can do by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.algorithms.mixing import ELAPSED_MAX, elapsed, is_sound, mix, start

PLAIN = {"momentum": 0.0, "rate": 1.0, "ema_rate": 1.0}


def vector(*values):
    return np.array(values, dtype=np.float32)


def test_without_momentum_a_displacement_moves_the_model_by_its_share():
    state, model = mix(start(vector(0, 0)), vector(1, 1), vector(4, -8), share=0.25, elapsed=1.0, **PLAIN)
    assert np.array_equal(model, vector(2, -1))
    assert state.merges == 1


def test_the_outer_rate_scales_the_move():
    _, model = mix(
        start(vector(0)), vector(1), vector(4), share=0.25, elapsed=1.0, momentum=0.0, rate=0.5, ema_rate=1.0
    )
    assert np.array_equal(model, vector(1.5))


def test_velocity_is_renewed_once_per_fleet_round_by_the_mean_of_the_round():
    options = {"elapsed": 1.0, "momentum": 0.5, "rate": 1.0, "ema_rate": 1.0}
    # w = 0; q = 4 at share 1/2: w += 1/2 * (1.5*4 + 0.25*1*0) = 3; the round holds 2 at share 1/2.
    state, model = mix(start(vector(0)), vector(0), vector(4), share=0.5, **options)
    assert (model[0], state.velocity[0], state.gathered[0], state.gathered_share) == (3.0, 0.0, 2.0, 0.5)
    # q = 2: w += 1/2 * (1.5*2) = 1.5; the round is full: v = 0.5*0 + (2 + 1)/1 = 3.
    state, model = mix(state, model, vector(2), share=0.5, **options)
    assert (model[0], state.velocity[0], state.gathered[0], state.gathered_share) == (4.5, 3.0, 0.0, 0.0)
    # q = 0: w += 1/2 * 0.25 * 3 = 0.375.
    state, model = mix(state, model, vector(0), share=0.5, **options)
    assert model[0] == 4.875
    state, _ = mix(state, model, vector(2), share=0.5, **options)
    assert state.velocity[0] == 0.5 * 3 + (0 + 1) / 1


def test_a_contribution_of_several_iterations_fills_more_of_the_round():
    state, _ = mix(start(vector(0)), vector(0), vector(6), share=0.5, elapsed=3.0, momentum=0.5, rate=1.0, ema_rate=1.0)
    # c = 0.5 * 3 = 1.5: full; v = 3 / 1.5.
    assert (state.velocity[0], state.gathered_share) == (2.0, 0.0)


def test_the_served_average_forgets_the_untrained_model_and_then_follows_at_its_rate():
    options = {"share": 1.0, "elapsed": 1.0, "momentum": 0.0, "rate": 1.0, "ema_rate": 0.2}
    state, model = mix(start(vector(100)), vector(100), vector(-90), **options)
    assert (model[0], state.average[0]) == (10.0, 10.0)  # rate 1/(1+0)
    state, model = mix(state, model, vector(10), **options)
    assert state.average[0] == 15.0  # 1/(1+1)
    for _ in range(10):
        state, model = mix(state, model, vector(0), **options)
    before = state.average[0]
    state, _ = mix(state, model, vector(0), **options)
    assert state.average[0] == pytest.approx(before + 0.2 * (20 - before), rel=1e-6)


@pytest.mark.parametrize(
    ("steps", "planned", "expected"), [(400, 400, 1.0), (1200, 400, 3.0), (4000, 400, ELAPSED_MAX), (10, 0, 1.0)]
)
def test_elapsed_is_in_planned_iterations_and_bounded(steps, planned, expected):
    assert elapsed(steps, planned) == expected


def test_nothing_given_is_changed():
    model, moved = vector(1, 2), vector(3, 4)
    state = start(vector(0, 0))
    mix(state, model, moved, share=1.0, elapsed=2.0, momentum=0.5, rate=1.0, ema_rate=0.2)
    assert np.array_equal(model, vector(1, 2))
    assert np.array_equal(moved, vector(3, 4))
    assert not state.velocity.any()
    assert not state.gathered.any()


@given(order=st.permutations(range(4)))
def test_one_fleet_round_is_one_weighted_average_in_whatever_order(order):
    shares, moves = [0.1, 0.2, 0.3, 0.4], [8.0, -4.0, 2.0, 1.0]
    state, model = start(vector(5)), vector(5)
    for one in order:
        state, model = mix(state, model, vector(moves[one]), share=shares[one], elapsed=1.0, **PLAIN)
    assert model[0] == pytest.approx(5 + 0.8 - 0.8 + 0.6 + 0.4, abs=1e-5)


@pytest.mark.parametrize("devices", [3, 6, 7, 10, 12, 49, 1000])
def test_a_round_of_equal_shares_is_over_with_its_last_device(devices):
    """Six sixths add up to a little less than 1 in floating point."""
    state, model = start(vector(0)), vector(0)
    for _ in range(devices):
        assert state.rounds == 0
        state, model = mix(state, model, vector(1), share=1 / devices, elapsed=1.0, **PLAIN)
    assert (state.rounds, state.gathered_share) == (1, 0.0)


@given(
    order=st.permutations([1.0, 1.0, 1 / 1.6, 1 / 1.6, 1 / 1.6, 1 / 2.4, 1 / 2.4, 1 / 2.4, 1 / 4, 1 / 4, 1 / 8, 1 / 8])
)
def test_a_round_of_shares_by_speed_is_over_with_its_last_device_in_whatever_order(order):
    state, model = start(vector(0)), vector(0)
    for rate in order:
        assert state.rounds == 0
        state, model = mix(state, model, vector(1), share=rate / sum(order), elapsed=1.0, **PLAIN)
    assert state.rounds == 1


@pytest.mark.parametrize(
    ("model", "moved", "options"),
    [
        (3e38, 3e38, {"share": 0.5}),  # the model overflows, and what is gathered does not
        (-3e38, 3e38, {"share": 1e-3}),  # neither does: the average's way to the model is too long
        (0.0, math.inf, {"share": 1e-38, "ema_rate": 1e-7}),  # next to nothing of it is in the average
    ],
)
def test_a_state_that_left_float32_is_noticed(model, moved, options):
    before = start(vector(3e38, 1))
    after, _ = mix(before, vector(model, 1), vector(moved, 1), **{**PLAIN, "elapsed": 1.0, "ema_rate": 1.0, **options})
    assert not is_sound(before, after)


def test_a_velocity_that_left_float32_is_noticed_at_the_end_of_its_round():
    state, model = start(vector(0)), vector(0)
    options = {**PLAIN, "rate": 1e-3, "ema_rate": 0.2}
    for _ in range(2):
        after, model = mix(state, model, vector(2e38), share=0.5, elapsed=1.0, **options)
        assert is_sound(state, after)
        state = after
    after, _ = mix(state, model, vector(3e38), share=1.0, elapsed=1.0, **{**options, "momentum": 0.9})
    assert np.isinf(after.velocity[0])
    assert np.isfinite(after.average[0])
    assert not is_sound(state, after)
