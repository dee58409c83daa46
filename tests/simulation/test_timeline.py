"""What a board did when, at a grain that a chart can show."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.runtime.simulation.shelf import Card
from hermes_iot.runtime.simulation.timeline import Timeline


def test_stretches_follow_each_other_without_gaps():
    line = Timeline()
    for now, doing in ((1.0, "wait"), (2.0, "train"), (2.5, "train"), (4.0, "wait"), (4.0, "train"), (5.0, "off")):
        line.enter(doing, now=now)
    assert line.stretches(now=7.0) == [(0, 1, "off"), (1, 2, "wait"), (2, 5, "train"), (5, 7, "off")]
    assert line.train_s == 3.0


def test_training_that_the_end_interrupts_is_counted_up_to_it():
    line = Timeline()
    line.enter("train", now=1.0)
    line.settle(now=3.5)
    assert line.train_s == 2.5
    assert line.stretches(now=3.5) == [(0, 1, "off"), (1, 3.5, "train")]


@given(st.lists(st.tuples(st.floats(0.001, 10), st.sampled_from(["train", "wait", "off"])), max_size=300))
def test_a_bounded_picture_covers_the_whole_time(steps):
    line, now = Timeline(most=20), 0.0
    for pause, doing in steps:
        now += pause
        line.enter(doing, now=now)
    found = line.stretches(now=now + 1)
    assert len(found) <= 22
    assert (found[0][0], found[-1][1]) == (0.0, now + 1)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(found))


def test_joining_short_stretches_keeps_the_shares_of_a_regular_pattern():
    line = Timeline(most=100)
    for number in range(10_000):
        line.enter("train", now=number * 1.0)
        line.enter("wait", now=number + 0.9)
    assert line.train_s == pytest.approx(9_000)
    assert len(line.stretches(now=10_000)) <= 102


def test_a_card_keeps_what_was_used_last_when_it_is_full(monkeypatch):
    monkeypatch.setattr("hermes_iot.runtime.simulation.shelf.SHARD_CACHE_BYTES", 100)
    card = Card()
    card.put("a", 40)
    card.put("b", 40)
    assert card.has("a")
    card.put("c", 40)
    assert [card.has(name) for name in "abc"] == [True, False, True]
