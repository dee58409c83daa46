"""ZipLine against ends one can read off a ruler, and against trying everything."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.algorithms.zipline import iterations_to_barrier


@pytest.mark.parametrize(
    ("seconds", "most", "counts"),
    [
        ({}, 5, {}),
        ({"a": 3.0}, 5, {"a": 1}),
        ({"a": 2.0, "b": 2.0, "c": 2.0}, 5, {"a": 1, "b": 1, "c": 1}),
        # Ends 2 4 6 8 10 and 5 10: together at 10.
        ({"fast": 2.0, "slow": 5.0}, 5, {"fast": 5, "slow": 2}),
        # With no more than three, 4 and 5 lie 1 apart, and so do 6 and 5: the earlier ends sooner.
        ({"fast": 2.0, "slow": 5.0}, 3, {"fast": 2, "slow": 1}),
        # Ends 2 4 6 8, 3 6 9 12 and 7 14 21 28: the latest that 6, 6 and 7 have is 1 after the earliest.
        ({"a": 2.0, "b": 3.0, "c": 7.0}, 4, {"a": 3, "b": 2, "c": 1}),
        # Out of reach: as late as may be, and it waits for the rest.
        ({"fast": 1.0, "slow": 30.0}, 15, {"fast": 15, "slow": 1}),
        ({"fast": 1.0, "slow": 1.5}, 1, {"fast": 1, "slow": 1}),
    ],
)
def test_ends_are_chosen_that_lie_together(seconds, most, counts):
    assert iterations_to_barrier(seconds, most) == counts


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 6))
def test_no_other_choice_lies_closer_together(seconds, most):
    named = {f"d{at}": float(one) for at, one in enumerate(seconds)}
    counts = iterations_to_barrier(named, most)
    assert all(1 <= count <= most for count in counts.values())
    ends = [count * named[device] for device, count in counts.items()]
    every = itertools.product(*([count * one for count in range(1, most + 1)] for one in seconds))
    least = min((max(choice) - min(choice), max(choice)) for choice in every)
    assert (max(ends) - min(ends), max(ends)) == least
