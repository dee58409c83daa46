"""Waits between tries."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.transport.backoff import Backoff

chances = st.floats(0.0, 1.0, exclude_max=True)


def test_the_ceiling_doubles_up_to_the_cap():
    backoff = Backoff(base_s=1.0, cap_s=10.0)
    almost = 1.0 - 2**-53
    assert [round(backoff.wait_s(failures, almost), 9) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_half_of_a_wait_is_certain():
    assert [Backoff(base_s=1.0, cap_s=60.0).wait_s(failures, 0.0) for failures in (1, 2, 3)] == [0.5, 1.0, 2.0]


@given(failures=st.integers(0, 10**9), chance=chances, base_s=st.floats(0.001, 10), factor=st.floats(1, 1_000))
def test_a_wait_is_never_longer_than_the_cap_nor_shorter_than_half_the_base(failures, chance, base_s, factor):
    backoff = Backoff(base_s=base_s, cap_s=base_s * factor)
    assert base_s / 2 <= backoff.wait_s(failures, chance) <= backoff.cap_s


@given(st.integers(1, 100), chances, chances)
def test_more_chance_waits_longer_and_more_failures_never_shorter_at_the_same_chance(failures, one, other):
    backoff = Backoff()
    low, high = sorted((one, other))
    assert backoff.wait_s(failures, low) <= backoff.wait_s(failures, high)
    assert backoff.wait_s(failures, one) <= backoff.wait_s(failures + 1, one)


def test_a_fleet_that_lost_its_broker_together_comes_back_spread_out():
    rng = random.Random(7)
    waits = sorted(Backoff().wait_s(5, rng.random()) for _ in range(1_000))
    assert waits[0] >= 8.0
    busiest_s = max(sum(start <= wait < start + 0.5 for wait in waits) for start in (8 + i / 2 for i in range(16)))
    assert busiest_s < 100  # of 1,000 in half a second; 62 were an even spread


@pytest.mark.parametrize("bad", [{"base_s": 0.0}, {"base_s": 2.0, "cap_s": 1.0}, {"stable_s": -1.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="back-off"):
        Backoff(**bad)
