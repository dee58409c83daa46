"""`asp` adds what comes; `ssp` makes who is far ahead wait."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_iot.algorithms.strategies import asp, ssp
from hermes_iot.errors import ProtocolError
from tests.support.baselines import Lead, stored, vector


def bounded(fleet, **constants):
    return Lead(ssp.build_strategy(ssp.Config(**constants)), fleet)


@pytest.mark.parametrize("module", [asp, ssp])
def test_a_push_is_added_at_one_over_n(module):
    fleet = Lead(module.build_strategy(module.Config()), "abcd")
    merged = fleet.push("a", 4, -8)
    assert np.array_equal(merged.model, vector(2, -1))
    assert (merged.reply_to, merged.weight) == (("a",), 0.25)
    assert np.array_equal(fleet.push("b", 4, 0).model, vector(3, -1))


@pytest.mark.parametrize("module", [asp, ssp])
def test_a_push_is_added_at_the_scale_given(module):
    fleet = Lead(module.build_strategy(module.Config(scale=1.5)), "abcd")
    merged = fleet.push("a", 4, -8)
    assert np.array_equal(merged.model, vector(7, -11))
    assert merged.weight == 1.0


@pytest.mark.parametrize("module", [asp, ssp])
def test_a_push_of_one_that_has_just_gone_is_added_and_answered(module):
    fleet = Lead(module.build_strategy(module.Config()), "")
    merged = fleet.push("a", 1, 2)
    assert np.array_equal(merged.model, vector(2, 3))
    assert merged.reply_to == ("a",)


@pytest.mark.parametrize("module", [asp, ssp])
def test_what_leads_out_of_float32_is_refused(module):
    fleet = Lead(module.build_strategy(module.Config()), "a", start=vector(3e38, 0))
    with pytest.raises(ProtocolError) as caught:
        fleet.push("a", 3e38, 0)
    assert caught.value.reason == "finite"


@pytest.mark.parametrize("module", [asp, ssp])
def test_what_is_sent_is_the_way_from_the_model_received(module):
    strategy = module.build_strategy(module.Config())
    _, sent = strategy.contribution((), base=vector(2, 2), params=vector(3, 5))
    assert np.array_equal(sent, vector(1, 3))
    assert strategy.regime.displaces
    _, sent = strategy.contribution((), base=vector(3e38, 0), params=vector(-3e38, 0))
    assert not np.isfinite(sent).all()


def test_who_is_further_ahead_than_the_bound_waits_for_the_slowest():
    fleet = bounded("ab", bound=2)
    assert [fleet.push("a", 0, 0).reply_to for _ in range(3)] == [("a",), ("a",), ()]
    # b's first iteration brings it to 1: 3 is 2 ahead.
    assert fleet.push("b", 0, 0).reply_to == ("a", "b")


def test_a_push_is_merged_even_if_its_sender_waits():
    fleet = bounded("ab", bound=0)
    merged = fleet.push("a", 2, 4)
    assert (merged.model.tolist(), merged.reply_to) == ([2, 3], ())


def test_a_bound_of_none_is_a_barrier():
    fleet = bounded("abc", bound=0)
    assert fleet.push("c", 0, 0).reply_to == ()
    assert fleet.push("a", 0, 0).reply_to == ()
    assert fleet.push("b", 0, 0).reply_to == ("c", "a", "b")


def test_a_push_that_stands_for_several_iterations_counts_as_several():
    fleet = bounded("ab", bound=3)
    assert fleet.push("a", 0, 0, iterations=4).reply_to == ()
    assert fleet.push("b", 0, 0).reply_to == ("a", "b")


def test_when_the_slowest_leaves_others_go_on():
    fleet = bounded("abc", bound=1)
    fleet.push("b", 0, 0)
    fleet.push("a", 0, 0)
    assert fleet.push("a", 0, 0).reply_to == ()
    merged = fleet.now("ab")
    assert (merged.model, merged.reply_to) == (None, ("a",))


def test_who_leaves_while_it_waits_is_answered():
    fleet = bounded("ab", bound=0)
    fleet.push("a", 0, 0)
    assert fleet.now("b").reply_to == ("a",)
    assert fleet.now("ab").reply_to == ()


def test_a_newcomer_begins_where_the_slowest_is():
    fleet = bounded("ab", bound=1)
    for _ in range(5):
        fleet.push("a", 0, 0)
        fleet.push("b", 0, 0)
    fleet.push("a", 0, 0)
    fleet.now("abc")
    assert fleet.state.clocks == {"a": 6, "b": 5, "c": 5}
    assert fleet.push("c", 0, 0).reply_to == ("c",)
    assert fleet.push("c", 0, 0).reply_to == ()


def test_clocks_and_who_waits_survive_a_restart():
    fleet = bounded("ab", bound=1)
    fleet.push("a", 0, 0)
    assert fleet.push("a", 0, 0).reply_to == ()
    again = fleet.strategy.load(stored(fleet.strategy.dump(fleet.state)))
    assert again == fleet.state
    fleet.state = again
    assert fleet.push("b", 0, 0).reply_to == ("a", "b")


def test_one_that_waited_and_pushes_again_is_answered_once():
    fleet = bounded("ab", bound=0)
    fleet.push("a", 0, 0)
    fleet.push("a", 0, 0)
    fleet.push("b", 0, 0)
    assert fleet.push("b", 0, 0).reply_to == ("a", "b")
