"""`selsync`: norms a reader can square, and a barrier that one device calls for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hermes_iot.algorithms.strategies.selsync import Config, build_strategy
from tests.support.baselines import Lead, trained, vector

ZERO = vector(0, 0)


def course(*iterations, **constants):
    """The decisions of a device that begins at 0 and is never answered, and its last state."""
    strategy = build_strategy(Config(**constants))
    state = strategy.adopted(strategy.device_start(ZERO), ZERO, iterations=0)
    decisions = []
    for iteration in iterations:
        state, decision = strategy.observe(state, iteration, ZERO)
        decisions.append(decision)
    return decisions, state


def test_the_first_iteration_has_nothing_to_be_compared_with():
    decisions, state = course(trained(3, 4, mini_batches=5))
    assert [(one.push, one.why, one.z) for one in decisions] == [(True, "first", None)]
    assert state.smoothed == 1.0  # (5 / 5) squared


def test_the_change_is_that_of_the_smoothed_squared_norm():
    # Displacements of length 2, then 4 from there: squares 4 and 16, smoothed 4 + 0.25 * 12 = 7, which is 0.75 more.
    decisions, state = course(trained(2, 0), trained(2, 4), delta=0.75)
    assert (decisions[1].push, decisions[1].why) == (True, "change")
    assert (decisions[1].z, decisions[1].threshold, state.smoothed) == (0.75, 0.75, 7.0)
    decisions, _ = course(trained(2, 0), trained(2, 4), delta=0.76)
    assert (decisions[1].push, decisions[1].why) == (False, "no")


def test_a_fall_counts_like_a_rise():
    # Squares 4 and 0, unsmoothed: all of it is lost.
    decisions, _ = course(trained(2, 0), trained(2, 0), delta=1.0, smoothing=1.0)
    assert (decisions[1].why, decisions[1].z) == ("change", 1.0)


def test_lengths_are_per_mini_batch():
    # 2 in one step and 6 in three are the same gradient.
    decisions, _ = course(trained(2, 0), trained(8, 0, mini_batches=3), delta=1e-9, smoothing=1.0)
    assert (decisions[1].why, decisions[1].z) == ("no", 0.0)


def test_a_model_that_comes_is_where_the_next_iteration_begins():
    strategy = build_strategy(Config(smoothing=1.0))
    state = strategy.device_start(ZERO)
    state, _ = strategy.observe(state, trained(2, 0), ZERO)
    state = strategy.adopted(state, vector(10, 10), iterations=0)
    state, decision = strategy.observe(state, trained(12, 10), vector(10, 10))
    assert (decision.why, decision.z) == ("no", 0.0)


def test_it_does_not_fall_silent_for_ever():
    steady = [trained(float(at), 0) for at in range(1, 5)]
    decisions, _ = course(*steady, max_age=3)
    assert [one.why for one in decisions] == ["first", "no", "age", "age"]
    decisions, _ = course(*steady, max_age=None)
    assert [one.why for one in decisions] == ["first", "no", "no", "no"]


def test_the_age_begins_anew_with_a_push_and_with_a_model():
    strategy = build_strategy(Config(max_age=2))
    _, state = course(trained(1, 0), max_age=2)
    pushed, sent = strategy.contribution(state, base=ZERO, params=vector(1, 0))
    assert np.array_equal(sent, vector(1, 0))
    for after in (pushed, strategy.adopted(state, vector(1, 0), iterations=0)):
        _, decision = strategy.observe(after, trained(2, 0), ZERO)
        assert decision.why == "no"


def test_divergence_sends_back_to_where_the_displacement_begins_and_the_age_goes_on():
    decisions, state = course(trained(2, 0), trained(9, 9, loss=math.nan), trained(2, 0), delta=0.1, smoothing=1.0)
    assert [one.why for one in decisions] == ["first", "diverged", "no"]
    assert not decisions[1].push
    assert decisions[2].z == 0.0
    assert state.age == 3


def test_a_device_that_stood_still_has_no_relative_change():
    decisions, _ = course(trained(0, 0), trained(2, 0), max_age=None)
    assert (decisions[1].push, decisions[1].z) == (False, None)


def test_a_displacement_out_of_float32_is_no_measurement():
    strategy = build_strategy(Config(max_age=None))
    state = strategy.device_start(vector(-3e38, 0))
    state, decision = strategy.observe(state, trained(3e38, 0), ZERO)
    assert (decision.why, decision.z, state.smoothed) == ("first", None, None)


def lead(fleet):
    return Lead(build_strategy(Config()), fleet)


def test_the_first_push_summons_the_others_and_the_last_ends_it():
    fleet = lead("abc")
    first = fleet.push("b", 1, 3)
    assert (first.model, first.reply_to, first.summon) == (None, (), ("a", "c"))
    assert fleet.push("a", 3, 5).summon == ()
    merged = fleet.push("c", 5, 10)
    assert np.array_equal(merged.model, vector(3, 6))
    assert (merged.reply_to, merged.summon, merged.weight) == (("a", "b", "c"), (), pytest.approx(1 / 3))
    assert fleet.push("a", 3, 5).summon == ("b", "c")


def test_the_round_closes_when_the_one_awaited_leaves():
    fleet = lead("ab")
    fleet.push("a", 1, 3)
    assert np.array_equal(fleet.now("a").model, vector(1, 3))


def test_whoever_comes_to_a_barrier_is_summoned_and_so_is_who_comes_back():
    fleet = lead("ab")
    assert fleet.now("abc").summon == ()
    fleet.push("a", 1, 1)
    assert fleet.now("abcd").summon == ("d",)
    assert fleet.now("acd").summon == ()
    assert fleet.now("acdb").summon == ("b",)
