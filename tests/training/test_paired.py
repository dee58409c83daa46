import math

import numpy as np
import pytest

from hermes_iot.domain import Gain, Probe
from hermes_iot.errors import Incompatible
from hermes_iot.training.paired import gain, merged


def a_probe(base, origin, weight):
    vectors = {"base": np.array(base, np.float32), "origin": np.array(origin, np.float32)}
    return Probe(**vectors, weight=weight, rows=4)


def test_the_merged_model_is_the_base_moved_by_a_part_of_the_displacement():
    moved = merged(a_probe([1, 2], [0, 4], 0.25), np.array([4, 0], np.float32))
    assert moved.tolist() == [2.0, 1.0]
    assert moved.dtype == np.float32


@pytest.mark.parametrize("length", [1, 3])  # one number would quietly be broadcast
def test_vectors_of_another_model_are_refused(length):
    for base, origin in ((length, 2), (2, length)):
        with pytest.raises(Incompatible, match="shape"):
            merged(a_probe([0] * base, [0] * origin, 0.5), np.zeros(2, np.float32))


def test_mean_and_population_deviation_by_hand():
    # Differences 1, 3: mean 2, deviations -1 and 1.
    assert gain(np.array([2.0, 5.0]), np.array([1.0, 2.0])) == Gain(mean=2.0, std=1.0, rows=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_difference_that_is_not_finite_gives_none(value):
    assert gain(np.array([1.0, value]), np.array([1.0, 1.0])) is None
    assert gain(np.array([1.0, value]), np.array([1.0, value])) is None


def test_no_rows_give_none():
    assert gain(np.empty(0), np.empty(0)) is None
