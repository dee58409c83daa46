"""`fedavg`: rounds, and the draw."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_iot.algorithms.strategies.fedavg import Config, build_strategy
from hermes_iot.runtime.strategies import resolve
from tests.support.baselines import Lead, vector


def lead(fleet, **constants):
    return Lead(build_strategy(Config(**constants)), fleet)


def begun(fleet, **constants):
    """After the round of everybody; whom the second was drawn for."""
    started = lead(fleet, **constants)
    for device in fleet:
        merged = started.push(device, 1, 1)
    return started, merged.reply_to


def test_everybody_takes_part_in_the_first_round_and_counts_by_rows():
    fleet = lead("ab")
    assert fleet.push("a", 0, 8, samples=30).reply_to == ()
    merged = fleet.push("b", 4, 0, samples=10)
    assert np.array_equal(merged.model, vector(1, 6))
    assert merged.weight == 0.25


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 3), (1.0, 6), (0.01, 1), (0.4, 2)])
def test_a_fraction_of_the_fleet_is_answered(fraction, count):
    _, drawn = begun("abcdef", fraction=fraction)
    assert len(drawn) == count
    assert drawn == tuple(sorted(set(drawn)))


def test_a_run_draws_by_its_own_seed_unless_one_is_given():
    found = resolve("fedavg")
    assert found.build({}, seed=7)[1].constants["seed"] == 7
    assert found.build({"seed": 3}, seed=7)[1].constants["seed"] == 3
    assert "seed" not in resolve("bsp").build({}, seed=7)[1].constants
    draws = {begun("abcdefghij", seed=seed)[1] for seed in range(5)}
    assert len(draws) > 1


def test_the_draw_is_a_function_of_seed_and_round():
    assert begun("abcdef")[1] == begun("fedcba")[1]
    assert len({begun("abcdef", seed=seed)[1] for seed in range(20)}) > 5
    fleet, drawn = begun("abcdef")
    seen = {drawn}
    for _ in range(20):
        for device in drawn:
            merged = fleet.push(device, 1, 1)
        drawn = merged.reply_to
        seen.add(drawn)
    assert set("".join("".join(one) for one in seen)) == set("abcdef")


def test_only_those_drawn_are_waited_for():
    fleet, (first, second) = begun("abcd")
    assert fleet.push(first, 2, 2).model is None
    assert np.array_equal(fleet.push(second, 4, 8).model, vector(3, 5))


def test_a_drawn_device_that_leaves_is_not_waited_for():
    fleet, (first, second) = begun("abcd")
    fleet.push(first, 2, 2)
    merged = fleet.now([device for device in "abcd" if device != second])
    assert np.array_equal(merged.model, vector(2, 2))
    assert len(merged.reply_to) == 2  # half of three, rounded
    assert second not in merged.reply_to


def test_who_left_before_it_pushed_is_not_drawn_again_until_it_has():
    fleet, (first, second) = begun("abcd", fraction=0.5)
    fleet.push(first, 2, 2)
    fleet.now([device for device in "abcd" if device != second])
    fleet.now("abcd")
    assert second not in fleet.state.idle
    fleet.push(second, 9, 9)
    assert second in fleet.state.idle


def test_when_all_that_were_drawn_leave_others_are_drawn():
    fleet, drawn = begun("abcd")
    rest = [device for device in "abcd" if device not in drawn]
    merged = fleet.now(rest)
    assert merged.model is None
    assert len(merged.reply_to) == 1
    assert set(merged.reply_to) <= set(rest)


def test_a_newcomers_first_push_is_not_counted_and_it_can_be_drawn_then():
    fleet, (first, second) = begun("abcd", fraction=0.5)
    fleet.now("abcdx")
    assert fleet.push("x", 99, 99).model is None
    fleet.push(first, 2, 2)
    assert np.array_equal(fleet.push(second, 4, 8).model, vector(3, 5))
    assert "x" in fleet.state.idle | set(fleet.state.drawn)


def test_when_all_have_left_a_round_of_everybody_begins():
    fleet, _ = begun("ab", fraction=0.5)
    fleet.now("")
    assert fleet.now("xy").reply_to == ()
    fleet.push("x", 1, 1)
    assert np.array_equal(fleet.push("y", 3, 5).model, vector(2, 3))


def test_who_comes_back_into_a_round_of_everybody_and_still_waits_is_answered():
    fleet, (drawn,) = begun("ab", fraction=0.5)
    waits = "b" if drawn == "a" else "a"
    fleet.now("")
    assert fleet.now(waits).reply_to == (waits,)
