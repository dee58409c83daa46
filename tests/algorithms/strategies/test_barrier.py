"""Who is awaited at a barrier, and what comes of it."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_iot.algorithms.strategies.barrier import Entry, awaited, closed, complete, handed_in
from tests.support.baselines import Devices, vector


def entries(**vectors):
    return {device: Entry(vector=vector(*values)) for device, values in vectors.items()}


@pytest.mark.parametrize(
    ("handed", "fleet", "done", "missing"),
    [
        ("", "", False, ""),
        ("", "ab", False, "ab"),
        ("a", "ba", False, "b"),
        ("ab", "ab", True, ""),
        ("ax", "ab", False, "b"),  # as many as there are, but not the same
        ("abx", "ab", True, ""),
        ("a", "", True, ""),
    ],
)
def test_devices_that_are_there_are_awaited_and_no_others(handed, fleet, done, missing):
    held = entries(**dict.fromkeys(handed, (0, 0)))
    assert complete(held, Devices(fleet)) is done
    assert awaited(held, Devices(fleet)) == tuple(missing)


def test_the_newest_of_a_device_is_held_and_the_round_before_is_left_alone():
    before = entries(a=(1, 1))
    after = handed_in(before, "a", Entry(vector=vector(2, 2), weight=3.0))
    assert np.array_equal(before["a"].vector, vector(1, 1))
    assert np.array_equal(after["a"].vector, vector(2, 2))
    assert after["a"].weight == 3.0


def test_a_round_closes_with_the_weighted_mean():
    # (1*0 + 3*4) / 4 = 3; (1*8 + 3*0) / 4 = 2.
    held = {"b": Entry(vector=vector(4, 0), weight=3.0), "a": Entry(vector=vector(0, 8), weight=1.0)}
    end = closed(held, by="b")
    assert np.array_equal(end.model, vector(3, 2))
    assert (end.reply_to, end.weight) == (("a", "b"), 0.75)
    assert closed(held, by=None).weight == 0.0
    assert closed(held, by="x").weight == 0.0


def test_the_order_of_arrival_does_not_show():
    rng = np.random.default_rng(7)
    vectors = {
        name: Entry(vector=rng.normal(size=64).astype(np.float32), weight=0.1 + at) for at, name in enumerate("abcdef")
    }
    backwards = {name: vectors[name] for name in reversed(vectors)}
    assert closed(vectors, by=None).model.tobytes() == closed(backwards, by=None).model.tobytes()
