"""hermes-plus: the two halves, by hand."""

import math

import numpy as np
import pytest

from hermes_iot.algorithms.mixing import start
from hermes_iot.algorithms.paired_gate import PairedGateConfig
from hermes_iot.algorithms.shares import SharesConfig
from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies.base import Contribution, Work
from hermes_iot.algorithms.strategies.hermes_plus import Config, build_strategy
from hermes_iot.domain import Gain, Trained
from hermes_iot.errors import ProtocolError, UsageError

FLEET = ("a", "b")
ZERO = np.zeros(2, dtype=np.float32)


def vector(*values):
    return np.array(values, dtype=np.float32)


def plus(**changes):
    return build_strategy(Config(**changes))


def pushed(device, *values, steps=100, planned=100, lag=0):
    return Contribution(
        device=device,
        vector=vector(*values),
        base=None,
        lag=lag,
        samples=1600,
        iterations=1,
        seconds=1.0,
        mini_batches=steps,
        steps=steps,
        planned=planned,
    )


def unasked(_params):
    raise AssertionError("hermes-plus needs no score to merge")


def sized(strategy, speeds):
    reports = {name: Report(seconds=1.0, samples=160, batch=16, epochs=1, batch_s=one) for name, one in speeds.items()}
    return strategy.resize(strategy.coordinator_start(ZERO), reports, tuple(speeds))[0]


def trained(loss=0.5, gain=None, params=(0.0, 0.0)):
    return Trained(params=vector(*params), loss=loss, samples=160, mini_batches=10, gain=gain)


def test_its_regime_is_a_walk_of_displacements_and_differences():
    regime = plus().regime
    assert (regime.sampling, regime.codec_up, regime.codec_down, regime.steps) == ("walk", "deadzone", "deadzone", 10)
    assert (regime.learning_rate_scale, regime.warmup_steps) == (1.5, 30)
    assert regime.displaces
    assert regime.delta_down
    assert not regime.waits
    assert plus(barrier=True).regime.waits
    assert plus(shares=SharesConfig(probe_steps=7)).regime.steps == 7


def test_a_push_counts_by_its_devices_share_of_the_speed():
    strategy = plus(momentum=0.0)
    state = sized(strategy, {"a": 0.01, "b": 0.03})  # rates 100 and 33.3
    state, merged = strategy.merge(state, vector(1, 1), pushed("a", 4, 8), FLEET, unasked)
    assert np.allclose(merged.model, vector(1 + 3, 1 + 6))
    assert merged.weight == pytest.approx(0.75)
    assert merged.reply_to == ("a",)
    assert merged.model is not strategy.served(state, merged.model)


def test_before_anybody_was_measured_all_count_alike():
    strategy = plus(momentum=0.0)
    _, merged = strategy.merge(strategy.coordinator_start(ZERO), vector(0, 0), pushed("a", 4, 8), FLEET, unasked)
    assert np.array_equal(merged.model, vector(2, 4))


def test_uniform_weights_ignore_speeds():
    strategy = plus(momentum=0.0, weights="uniform")
    state = sized(strategy, {"a": 0.01, "b": 0.03})
    _, merged = strategy.merge(state, vector(0, 0), pushed("a", 4, 8), FLEET, unasked)
    assert np.array_equal(merged.model, vector(2, 4))


def test_what_is_too_old_grows_with_the_fleet():
    regime = plus(lag_per_device=10).regime
    assert [regime.lag_max(devices) for devices in (0, 1, 12)] == [10, 10, 120]


def test_an_update_that_leads_out_of_float32_is_refused():
    strategy = plus()
    far = vector(3e38, 3e38)
    with pytest.raises(ProtocolError) as caught:
        strategy.merge(strategy.coordinator_start(far), far, pushed("a", 3e38, 3e38), ("a",), unasked)
    assert caught.value.reason == "finite"


def test_with_a_barrier_nothing_is_merged_before_the_last_and_then_everybody_is_answered():
    strategy = plus(barrier=True, momentum=0.0)
    state = strategy.coordinator_start(ZERO)
    state, merged = strategy.merge(state, ZERO, pushed("a", 2, 2), FLEET, unasked)
    assert (merged.model, merged.reply_to) == (None, ())
    state, merged = strategy.merge(state, ZERO, pushed("b", 4, 4), FLEET, unasked)
    assert np.array_equal(merged.model, vector(3, 3))
    assert set(merged.reply_to) == {"a", "b"}
    assert state.waiting == {}


def test_with_a_barrier_who_leaves_is_awaited_no_longer():
    strategy = plus(barrier=True, momentum=0.0)
    state, _ = strategy.merge(strategy.coordinator_start(ZERO), ZERO, pushed("a", 2, 2), FLEET, unasked)
    _, merged = strategy.changed(state, ZERO, ("a",), unasked)
    assert np.array_equal(merged.model, vector(2, 2))
    assert merged.reply_to == ("a",)


def test_the_test_is_made_at_the_weight_the_merge_will_give():
    strategy = plus()
    state = strategy.device_start(ZERO)
    assert strategy.test(state, Work(steps=400, batch=16, share=0.2)).weight == pytest.approx(1.5 * 0.2)
    assert strategy.test(state, Work(steps=400, batch=16, share=0.01)).weight == 0.1
    assert strategy.test(state, Work(steps=100, batch=16, share=0.2)).rows == 160
    assert plus(gate=PairedGateConfig(kind="none")).test(state, Work(steps=400, batch=16, share=0.2)) is None
    assert plus(gate=PairedGateConfig(kind="strict")).test(state, Work(steps=400, batch=16, share=0.2)).strict


def test_a_push_sends_the_way_since_the_origin_and_resets_the_age():
    strategy = plus()
    state, decision = strategy.observe(strategy.device_start(ZERO), trained(), ZERO)
    assert (decision.push, decision.why) == (True, "first")
    state, sent = strategy.contribution(state, base=vector(1, 1), params=vector(3, 0))
    assert np.array_equal(sent, vector(2, -1))
    assert state.age == 0
    state, decision = strategy.observe(state, trained(gain=Gain(mean=0.1, std=0.1, rows=100)), ZERO)
    assert (decision.push, decision.why, decision.z) == (True, "gain", pytest.approx(10.0))
    _, decision = strategy.observe(state, trained(loss=math.nan), ZERO)
    assert not decision.push


def test_the_norm_gate_measures_the_displacement():
    strategy = plus(gate=PairedGateConfig(kind="norm"))
    state, _ = strategy.observe(strategy.device_start(ZERO), trained(params=(3.0, 4.0)), ZERO)
    state, _ = strategy.contribution(state, base=ZERO, params=vector(3, 4))
    assert state.norm == 5.0
    _, decision = strategy.observe(state, trained(params=(0.3, 0.4)), ZERO)
    assert (decision.push, decision.z, decision.threshold) == (False, pytest.approx(0.5), 4.5)


def test_the_coordinators_half_survives_a_checkpoint():
    strategy = plus()
    state, _ = strategy.merge(strategy.coordinator_start(ZERO), ZERO, pushed("a", 2, 2), FLEET, unasked)
    again = strategy.load(strategy.dump(state))
    one = strategy.merge(state, vector(1, 1), pushed("b", 1, 3), FLEET, unasked)
    other = strategy.merge(again, vector(1, 1), pushed("b", 1, 3), FLEET, unasked)
    assert np.array_equal(one[1].model, other[1].model)
    assert np.array_equal(one[0].mixing.average, other[0].mixing.average)
    assert start(ZERO).merges == 0


@pytest.mark.parametrize(
    "wrong", [{"momentum": 1.0}, {"codec_up": "zip"}, {"weights": "loss"}, {"barrier": 1}, {"ema_rate": 0}], ids=str
)
def test_constants_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Config(**wrong)


@pytest.mark.parametrize("wrong", [{"delta_down": False, "codec_down": "topk10"}, {"codec_whole": "deadzone"}], ids=str)
def test_a_whole_model_is_not_sent_without_some_of_its_entries(wrong):
    with pytest.raises(UsageError, match="whole model cannot be sent as"):
        Config(**wrong)
