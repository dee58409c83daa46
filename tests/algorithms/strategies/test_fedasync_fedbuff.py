"""`fedasync` and `fedbuff`: what age takes away."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_iot.algorithms.strategies import fedasync, fedbuff
from hermes_iot.errors import ProtocolError
from tests.support.baselines import START, Lead, vector


@pytest.mark.parametrize(("lag", "weight"), [(0, 0.5), (3, 0.25), (8, 1 / 6)])
def test_the_older_a_push_the_less_it_counts(lag, weight):
    # alpha 0.5 and 1/sqrt(1 + lag): 1, 1/2, 1/3.
    fleet = Lead(fedasync.build_strategy(fedasync.Config(alpha=0.5)), "ab")
    merged = fleet.push("a", 13, 1, lag=lag)
    assert merged.weight == pytest.approx(weight)
    assert merged.model.tolist() == pytest.approx([1 + 12 * weight, 1])
    assert merged.reply_to == ("a",)


def test_without_an_exponent_age_does_not_count():
    fleet = Lead(fedasync.build_strategy(fedasync.Config(exponent=0)), "ab")
    assert fleet.push("a", 0, 0, lag=1000).weight == 0.6


def buffered(fleet, start=START, **constants):
    return Lead(fedbuff.build_strategy(fedbuff.Config(**constants)), fleet, start=start)


def test_k_displacements_move_the_model_by_their_mean_and_each_is_answered_at_once():
    fleet = buffered("abc", buffer=2)
    first = fleet.push("a", 4, 0)
    assert (first.model, first.reply_to) == (None, ("a",))
    # The second is 3 versions old and counts half: (4 + 0) / 2, (0 + 8 / 2) / 2.
    second = fleet.push("b", 0, 8, lag=3)
    assert np.array_equal(second.model, vector(3, 3))
    assert (second.reply_to, second.weight) == (("b",), 0.25)
    assert fleet.push("c", 1, 1).model is None


def test_the_servers_rate_scales_the_step():
    fleet = buffered("ab", buffer=2, rate=0.5)
    fleet.push("a", 4, 0)
    assert np.array_equal(fleet.push("a", 4, 8).model, vector(3, 3))


def test_with_fewer_devices_than_k_their_number_is_enough():
    fleet = buffered("abc", buffer=10)
    fleet.push("a", 3, 0)
    fleet.push("a", 3, 0)
    assert np.array_equal(fleet.push("b", 0, 6).model, vector(3, 3))


def test_a_device_that_leaves_can_be_what_fills_the_buffer():
    fleet = buffered("abc", buffer=10)
    fleet.push("a", 4, 0)
    fleet.push("b", 0, 4)
    merged = fleet.now("ab")
    assert np.array_equal(merged.model, vector(3, 3))
    assert merged.reply_to == ()
    assert fleet.now("a").model is None


def test_what_leads_out_of_float32_is_refused_before_it_is_gathered():
    fleet = buffered("abc", buffer=2, start=vector(2e38, 0))
    fleet.push("a", 1e38, 0)
    with pytest.raises(ProtocolError) as caught:
        fleet.push("b", 3e38, 0)
    assert caught.value.reason == "finite"
    assert np.isfinite(fleet.push("c", 1e38, 0).model).all()
