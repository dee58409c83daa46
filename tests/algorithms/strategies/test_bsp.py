"""`bsp` and `bsp-tuned`: the mean of everybody, and who is waited for."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies import bsp, bsp_tuned
from hermes_iot.domain import Sizing
from tests.support.baselines import START, Lead, stored, vector


def lead(fleet, **constants):
    return Lead(bsp.build_strategy(bsp.Config(**constants)), fleet)


def test_the_model_is_the_mean_once_everybody_has_pushed():
    fleet = lead("ab")
    first = fleet.push("b", 3, 5)
    assert (first.model, first.reply_to) == (None, ())
    last = fleet.push("a", 1, 3)
    assert np.array_equal(last.model, vector(2, 4))
    assert (last.reply_to, last.weight) == (("a", "b"), 0.5)


def test_more_rows_count_more():
    fleet = lead("ab")
    fleet.push("a", 0, 8, samples=30)
    merged = fleet.push("b", 4, 0, samples=10)
    assert np.array_equal(merged.model, vector(1, 6))
    assert merged.weight == 0.25


def test_a_claim_of_no_rows_counts_as_one():
    fleet = lead("ab")
    fleet.push("a", 0, 0, samples=0)
    assert np.array_equal(fleet.push("b", 4, 8, samples=3).model, vector(3, 6))


def test_the_next_round_begins_empty():
    fleet = lead("ab")
    fleet.push("a", 1, 1)
    fleet.push("b", 3, 3)
    assert fleet.push("a", 5, 5).model is None
    assert np.array_equal(fleet.push("b", 7, 7).model, vector(6, 6))


def test_only_the_newest_of_a_device_counts():
    fleet = lead("ab")
    fleet.push("a", 100, 100)
    fleet.push("a", 1, 3)
    assert np.array_equal(fleet.push("b", 3, 5).model, vector(2, 4))


def test_the_round_closes_when_the_one_awaited_leaves():
    fleet = lead("abc")
    fleet.push("a", 1, 3)
    fleet.push("b", 3, 5)
    merged = fleet.now("ab")
    assert np.array_equal(merged.model, vector(2, 4))
    assert (merged.reply_to, merged.weight) == (("a", "b"), 0.0)


def test_who_pushed_and_left_still_counts():
    fleet = lead("abc")
    fleet.push("a", 0, 0)
    assert fleet.now("bc").model is None
    fleet.push("b", 3, 3)
    merged = fleet.push("c", 6, 9)
    assert np.array_equal(merged.model, vector(3, 4))
    assert merged.reply_to == ("a", "b", "c")


def test_whoever_comes_is_waited_for():
    fleet = lead("ab")
    fleet.push("a", 1, 1)
    assert fleet.now("abc").model is None
    assert fleet.push("b", 1, 1).model is None
    assert np.array_equal(fleet.push("c", 4, 7).model, vector(2, 3))


def test_a_change_before_anybody_pushed_is_none():
    fleet = lead("ab")
    assert fleet.now("a").reply_to == ()
    assert np.array_equal(fleet.model, START)


def reports(fleet):
    return {device: Report(seconds=1.0, samples=100, batch=16, epochs=1) for device in fleet}


def test_by_default_nobody_is_sized():
    assert lead("ab").resize(reports("ab")) == {}
    assert bsp.build_strategy(bsp.Config()).regime.sampling == "fresh"


def test_tuned_everybody_gets_an_equal_share_once_and_again_when_others_are_there():
    fleet = Lead(bsp_tuned.build_strategy(bsp_tuned.Config(steps=50)), "abcd")
    quarter = Sizing(samples=100, batch=16, steps=50, share=0.25)
    assert fleet.resize(reports("abcd")) == dict.fromkeys("abcd", quarter)
    assert fleet.resize(reports("abcd")) == {}
    assert {size.share for size in fleet.resize(reports("ab")).values()} == {0.5}
    assert fleet.resize({}) == {}


def test_tuned_is_the_same_barrier_over_a_walk_from_the_first_iteration_on():
    strategy = bsp_tuned.build_strategy(bsp_tuned.Config())
    assert isinstance(strategy, bsp.Bsp)
    assert (strategy.regime.sampling, strategy.regime.steps, strategy.regime.waits) == ("walk", 100, True)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_tuned_needs_steps(steps):
    with pytest.raises(Exception, match="steps"):
        bsp_tuned.Config(steps=steps)


def test_a_restart_forgets_neither_what_is_held_nor_who_shares():
    fleet = Lead(bsp_tuned.build_strategy(bsp_tuned.Config()), "ab")
    fleet.resize(reports("ab"))
    fleet.push("a", 1, 1)
    fleet.state = fleet.strategy.load(stored(fleet.strategy.dump(fleet.state)))
    assert fleet.resize(reports("ab")) == {}
    assert np.array_equal(fleet.push("b", 3, 3).model, vector(2, 2))
