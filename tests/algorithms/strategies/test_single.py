"""`single`: who is chosen, what it is given, and who follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies.single import Config, build_strategy
from hermes_iot.domain import Sizing
from tests.support.baselines import START, Lead, stored, vector


def lead(fleet, **constants):
    return Lead(build_strategy(Config(**constants)), fleet)


def raced(fleet, seconds, **constants):
    """After everybody's first iteration; who was answered."""
    race = lead(fleet, **constants)
    answered = [race.push(device, 9, 9, seconds=seconds[device]).reply_to for device in sorted(fleet)]
    return race, answered


def test_the_fastest_alone_is_answered_when_everybody_has_reported():
    race, answered = raced("abc", {"a": 3.0, "b": 1.0, "c": 2.0})
    assert answered == [(), (), ("b",)]
    assert np.array_equal(race.model, START)  # what the first iterations learnt is thrown away


def test_speed_is_per_mini_batch():
    race = lead("ab")
    race.push("a", 0, 0, seconds=1.0, mini_batches=5)
    assert race.push("b", 0, 0, seconds=1.5, mini_batches=10).reply_to == ("b",)


def test_only_first_iterations_are_compared():
    race, _ = raced("abc", {"a": 1.0, "b": 2.0, "c": 3.0})
    race.push("c", 9, 9, seconds=0.001)
    assert race.now("bc").reply_to == ("b",)


def test_of_equals_the_one_that_joined_first():
    assert raced("ca", {"c": 1.0, "a": 1.0})[1][-1] == ("c",)


def test_a_device_that_names_no_time_is_the_last_choice():
    assert raced("abc", {"a": 0.0, "b": float("nan"), "c": 1e6})[1][-1] == ("c",)


def test_its_model_is_the_model():
    race, _ = raced("ab", {"a": 1.0, "b": 2.0})
    merged = race.push("a", 3, 4)
    assert np.array_equal(merged.model, vector(3, 4))
    assert (merged.reply_to, merged.weight) == (("a",), 1.0)
    assert race.push("b", 9, 9).reply_to == ()
    assert np.array_equal(race.model, vector(3, 4))


def test_it_is_given_all_the_rows_once_and_the_others_give_up_theirs():
    race, _ = raced("abc", {"a": 1.0, "b": 2.0, "c": 3.0}, steps=400, first_steps=10)
    report = Report(seconds=1.0, samples=100, batch=16, epochs=1)
    everything, least = Sizing(samples=100, batch=16, steps=400, share=1.0), Sizing(samples=1, batch=1, steps=10)
    assert race.resize({"b": report}) == {}
    assert race.resize({"a": report, "b": report}) == {"a": everything, "b": least, "c": least}
    assert race.resize({"a": report}) == {}
    race.now("bc")
    # It has given up its rows; the fleet's mini-batch is remembered.
    shrunk = Report(seconds=1.0, samples=1, batch=1, epochs=1)
    assert race.resize({"b": shrunk}) == {"b": replace(everything, samples=1), "c": least}


def test_before_the_choice_nobody_is_sized():
    report = Report(seconds=1.0, samples=100, batch=16, epochs=1)
    assert lead("ab").resize({"a": report, "b": report}) == {}


def test_the_choice_is_made_when_the_last_one_awaited_leaves():
    race = lead("abc")
    race.push("a", 0, 0, seconds=2.0)
    race.push("b", 0, 0, seconds=1.0)
    assert race.now("ab").reply_to == ("b",)


def test_if_it_leaves_the_next_fastest_follows_and_it_does_not_get_its_place_back():
    race, _ = raced("abc", {"a": 3.0, "b": 1.0, "c": 2.0})
    assert race.now("ac").reply_to == ("c",)
    assert race.now("acb").reply_to == ()
    assert race.push("b", 9, 9, seconds=0.1).reply_to == ()
    assert race.push("c", 5, 5).reply_to == ("c",)


def test_a_newcomer_at_its_first_iteration_holds_up_no_successor():
    race, _ = raced("ab", {"a": 1.0, "b": 2.0})
    assert race.now("bx").reply_to == ("b",)


def test_who_joins_after_the_choice_waits():
    race, _ = raced("ab", {"a": 1.0, "b": 2.0})
    assert race.now("abx").reply_to == ()
    assert race.push("x", 9, 9, seconds=0.01).reply_to == ()
    assert race.now("bx").reply_to == ("x",)


def test_when_all_have_left_whoever_pushes_next_is_chosen():
    race, _ = raced("ab", {"a": 1.0, "b": 2.0})
    race.now("")
    assert race.now("x").reply_to == ()
    assert race.push("x", 9, 9).reply_to == ("x",)


def test_by_default_the_model_itself_is_served():
    race, _ = raced("a", {"a": 1.0})
    race.push("a", 3, 4)
    assert np.array_equal(race.served, vector(3, 4))


def test_the_served_average_begins_with_the_first_model():
    # Rates 1, 1/2, 1/3, then 1/4: (8, 0); half of (4, 4) makes (6, 2).
    race, _ = raced("a", {"a": 1.0}, average=0.25)
    assert np.array_equal(race.served, START)
    served = []
    for values in ((8, 0), (4, 4), (6, 2), (10, 2)):
        race.push("a", *values)
        served.append(race.served.tolist())
    # Then 1/3 of (6, 2) leaves (6, 2), and 1/4 of (10, 2) makes (7, 2).
    assert served == [[8, 0], [6, 2], [6, 2], [7, 2]]
    assert np.array_equal(race.model, vector(10, 2))


def test_the_choice_and_the_average_survive_a_restart():
    race, _ = raced("ab", {"a": 1.0, "b": float("nan")}, average=0.5)
    race.push("a", 8, 0)
    race.resize({"a": Report(seconds=1.0, samples=100, batch=16, epochs=1)})
    again = race.strategy.load(stored(race.strategy.dump(race.state)))
    assert (again.speeds, again.chosen, again.models) == ({"a": 0.1, "b": 1e7}, "a", 1)
    assert (again.sized, again.batch) == (True, 16)
    assert again.average.tobytes() == race.state.average.tobytes()
    bare = build_strategy(Config())
    assert bare.load(stored(bare.dump(bare.coordinator_start(START)))) == bare.coordinator_start(START)
