"""`ebsp`: a barrier to which everybody comes at about the same time."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_iot.algorithms.strategies.ebsp import Config, build_strategy
from tests.support.baselines import START, Lead, trained, vector


def test_the_answer_says_how_many_iterations_there_are_to_the_next_barrier():
    # Ends 2 4 6 8 10 and 5 10: five of one, two of the other.
    fleet = Lead(build_strategy(Config(lookahead=5)), "ab")
    first = fleet.push("a", 1, 3, seconds=2.0)
    assert (first.model, first.reply_to, first.iterations) == (None, (), {})
    merged = fleet.push("b", 3, 5, seconds=5.0, samples=90)
    assert np.array_equal(merged.model, vector(2, 4))  # the plain mean, whatever the rows
    assert (merged.reply_to, merged.iterations, merged.weight) == (("a", "b"), {"a": 5, "b": 2}, 0.5)


def test_seconds_are_those_of_the_newest_iteration():
    fleet = Lead(build_strategy(Config(lookahead=5)), "ab")
    fleet.push("a", 0, 0, seconds=2.0, iterations=3)
    assert fleet.push("b", 0, 0, seconds=5.0).iterations == {"a": 5, "b": 2}


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_device_without_a_time_is_not_predicted(seconds):
    fleet = Lead(build_strategy(Config()), "ab")
    fleet.push("a", 0, 0, seconds=seconds)
    assert fleet.push("b", 0, 0, seconds=5.0).iterations == {"b": 1}


def test_a_device_that_has_gone_is_not_predicted():
    fleet = Lead(build_strategy(Config(lookahead=5)), "abc")
    fleet.push("a", 0, 0, seconds=2.0)
    fleet.push("b", 3, 3, seconds=5.0)
    fleet.now("ac")
    merged = fleet.push("c", 6, 6, seconds=2.0)
    assert np.array_equal(merged.model, vector(3, 3))
    assert (merged.reply_to, merged.iterations) == (("a", "b", "c"), {"a": 1, "c": 1})


def test_the_round_closes_when_the_one_awaited_leaves():
    fleet = Lead(build_strategy(Config()), "ab")
    fleet.push("a", 1, 3)
    merged = fleet.now("a")
    assert np.array_equal(merged.model, vector(1, 3))
    assert (merged.reply_to, merged.iterations) == (("a",), {"a": 1})


@pytest.mark.parametrize(("said", "made"), [(0, 1), (1, 1), (3, 3), (99, 4)])
def test_a_device_pushes_when_its_count_is_reached(said, made):
    strategy = build_strategy(Config(lookahead=4))
    state = strategy.adopted(strategy.device_start(START), START, iterations=said)
    decisions = []
    for _ in range(made):
        state, decision = strategy.observe(state, trained(2, 2), START)
        decisions.append((decision.push, decision.why))
    assert decisions == [(False, "no")] * (made - 1) + [(True, "count")]


def test_the_count_begins_anew_with_every_model():
    strategy = build_strategy(Config())
    state = strategy.adopted(strategy.device_start(START), START, iterations=2)
    state, _ = strategy.observe(state, trained(2, 2), START)
    state = strategy.adopted(state, START, iterations=2)
    assert not strategy.observe(state, trained(2, 2), START)[1].push
