"""The paper's strategy: arithmetic a reader can do by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.algorithms.allocation import AllocationConfig
from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies import STRATEGIES
from hermes_iot.algorithms.strategies.base import Contribution, StateDump, Strategy
from hermes_iot.algorithms.strategies.hermes import Config, CoordinatorHalf, Hermes, HermesConfig, build_strategy
from hermes_iot.domain import Score, Sizing, Trained
from hermes_iot.errors import ProtocolError, UsageError

START = np.array([1.0, 1.0], dtype=np.float32)
#: Who is there; this strategy does not ask.
NOBODY = ()


def hermes(pushed="model", **gate):
    return build_strategy(HermesConfig(pushed=pushed, gate=GateConfig(**gate)))


def vector(*values):
    return np.array(values, dtype=np.float32)


def contribution(sent, base=None):
    return Contribution(device="d1", vector=sent, base=base, lag=0, samples=10, iterations=1)


def losses(table):
    """Scores by the first number of a vector: what it is not told about, it must not be asked."""
    return lambda params: Score(loss=table[round(float(params[0]), 3)], accuracy=None)


def trained(loss, *values):
    return Trained(params=vector(*(values or (0.0, 0.0))), loss=loss, samples=10, mini_batches=2)


def test_it_is_found_by_name_and_is_a_strategy():
    assert STRATEGIES["hermes"] == "hermes_iot.algorithms.strategies.hermes"
    assert Config is HermesConfig
    strategy: Strategy = build_strategy(Config())
    assert isinstance(strategy, Hermes)


@pytest.mark.parametrize("pushed", ["weights", "", None])
def test_an_unknown_form_of_push_is_refused(pushed):
    with pytest.raises(UsageError, match="pushed"):
        HermesConfig(pushed=pushed)


def test_only_displacements_from_the_received_model_need_it():
    assert [hermes(pushed).regime.needs_base for pushed in ("model", "gradients", "delta")] == [False, False, True]


# --- the device's half ------------------------------------------------------------------------------------------------


def test_the_gate_decides():
    strategy = hermes(max_age=3, alpha=-1e6)
    state = strategy.device_start(START)
    decisions = []
    for _ in range(3):
        state, decision = strategy.observe(state, trained(0.5), START)
        decisions.append((decision.push, decision.why))
    assert decisions == [(False, "few"), (False, "flat"), (True, "age")]


def test_divergence_empties_the_window_and_keeps_the_age():
    strategy = hermes(max_age=4, alpha=-1e6)
    state = strategy.device_start(START)
    for loss in (0.5, 0.4, math.nan):
        state, decision = strategy.observe(state, trained(loss), START)
    assert not decision.push
    assert (state.gate.window, state.gate.age) == ((), 3)
    _, decision = strategy.observe(state, trained(0.5), START)
    assert (decision.push, decision.why) == (True, "age")


def test_what_is_pushed_as_a_model_is_the_model():
    strategy = hermes("model")
    _, sent = strategy.contribution(strategy.device_start(START), base=START, params=vector(3, 4))
    assert np.array_equal(sent, vector(3, 4))


def test_what_is_pushed_as_delta_is_the_way_from_the_model_received():
    strategy = hermes("delta")
    _, sent = strategy.contribution(strategy.device_start(START), base=vector(2, 2), params=vector(3, 5))
    assert np.array_equal(sent, vector(1, 3))


def test_what_is_pushed_as_gradients_adds_up_over_the_pushes():
    strategy = hermes("gradients")
    state = strategy.device_start(START)
    state, sent = strategy.contribution(state, base=START, params=vector(3, 4))
    assert np.array_equal(sent, vector(2, 3))
    # It goes on from the global model (10, 10), but the sum does not know of that.
    state = strategy.adopted(state, vector(10, 10), iterations=0)
    state, sent = strategy.contribution(state, base=vector(10, 10), params=vector(11, 8))
    assert np.array_equal(sent, vector(3, 1))
    assert np.array_equal(state.moved, vector(3, 1))


def test_who_goes_on_alone_pushes_no_gradient_twice():
    """Two pushes from one received model, at 3 and then at 4: one step of 2 and one of 1, never 2 + 3."""
    strategy = hermes("gradients")
    state = strategy.device_start(START)
    state, sent = strategy.contribution(state, base=START, params=vector(3, 3))
    assert np.array_equal(sent, vector(2, 2))
    state, _ = strategy.observe(state, trained(0.5, 4, 4), START)
    state, sent = strategy.contribution(state, base=START, params=vector(4, 4))
    assert np.array_equal(sent, vector(3, 3))
    state = strategy.adopted(state, vector(10, 10), iterations=0)
    state, sent = strategy.contribution(state, base=vector(10, 10), params=vector(11, 10))
    assert np.array_equal(sent, vector(4, 3))


def test_after_a_divergence_gradients_count_from_the_model_received():
    strategy = hermes("gradients")
    state, _ = strategy.contribution(strategy.device_start(START), base=START, params=vector(3, 3))
    state, _ = strategy.observe(state, trained(math.nan), START)
    _, sent = strategy.contribution(state, base=START, params=vector(2, 2))
    assert np.array_equal(sent, vector(3, 3))  # 2 pushed before, 1 now


def test_a_difference_too_large_for_float32_is_infinite_and_warns_nobody():
    for pushed in ("delta", "gradients"):
        strategy = hermes(pushed)
        state = strategy.device_start(START)
        _, sent = strategy.contribution(state, base=vector(3e38, 0), params=vector(-3e38, 0))
        assert not np.isfinite(sent).all()


# --- the coordinator's half -------------------------------------------------------------------------------------------

#: What a device at (3, 5) sends in each form: it received (2, 2), and the run began at (1, 1).
SENT = {"model": vector(3, 5), "gradients": vector(2, 4), "delta": vector(1, 3)}


@pytest.mark.parametrize("pushed", SENT)
def test_the_first_push_becomes_the_model(pushed):
    strategy = hermes(pushed)
    state, merged = strategy.merge(
        strategy.coordinator_start(START), START, contribution(SENT[pushed], vector(2, 2)), NOBODY, losses({3.0: 0.25})
    )
    assert np.array_equal(merged.model, vector(3, 5))
    assert (merged.weight, merged.reply_to, merged.score) == (1.0, ("d1",), Score(loss=0.25, accuracy=None))
    assert state.loss == 0.25


@pytest.mark.parametrize("pushed", SENT)
def test_later_pushes_count_by_the_inverse_of_their_loss(pushed):
    # 1/L is 1/0.75 for the model (7, 1) and 1/0.25 for the update: one part to three.
    # (7 + 3*3) / 4 = 4, (1 + 3*5) / 4 = 4.
    strategy = hermes(pushed)
    state = replace(strategy.coordinator_start(START), loss=0.75)
    state, merged = strategy.merge(
        state, vector(7, 1), contribution(SENT[pushed], vector(2, 2)), NOBODY, losses({3.0: 0.25, 4.0: 0.2})
    )
    assert np.array_equal(merged.model, vector(4, 4))
    assert merged.weight == pytest.approx(0.75)
    assert state.loss == merged.score.loss == 0.2


def test_merging_touches_neither_the_model_nor_the_update():
    strategy = hermes()
    state = replace(strategy.coordinator_start(START), loss=0.5)
    model, update = vector(7, 1), vector(3, 5)
    strategy.merge(state, model, contribution(update), NOBODY, losses({3.0: 0.5, 5.0: 0.1}))
    assert np.array_equal(model, vector(7, 1))
    assert np.array_equal(update, vector(3, 5))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("before", [None, 0.5])
def test_an_update_without_a_finite_loss_is_refused(loss, before):
    strategy = hermes()
    state = replace(strategy.coordinator_start(START), loss=before)
    with pytest.raises(ProtocolError) as caught:
        strategy.merge(state, START, contribution(vector(3, 5)), NOBODY, losses({3.0: loss}))
    assert caught.value.reason == "loss"


def test_a_merge_without_a_finite_loss_is_refused():
    strategy = hermes()
    state = replace(strategy.coordinator_start(START), loss=0.5)
    with pytest.raises(ProtocolError) as caught:
        strategy.merge(state, vector(7, 1), contribution(vector(3, 5)), NOBODY, losses({3.0: 0.5, 5.0: math.nan}))
    assert caught.value.reason == "loss"


def test_a_displacement_from_a_model_that_is_not_known_is_refused():
    strategy = hermes("delta")
    with pytest.raises(ProtocolError) as caught:
        strategy.merge(strategy.coordinator_start(START), START, contribution(vector(1, 1)), NOBODY, losses({}))
    assert caught.value.reason == "base"


@pytest.mark.parametrize("pushed", ["delta", "gradients"])
def test_a_displacement_that_leads_out_of_float32_is_refused(pushed):
    strategy = hermes(pushed)
    far = vector(3e38, 0)
    with pytest.raises(ProtocolError) as caught:
        strategy.merge(strategy.coordinator_start(far), far, contribution(far, base=far), NOBODY, losses({}))
    assert caught.value.reason == "finite"


def test_resizing_is_the_allocators():
    strategy = build_strategy(HermesConfig(allocation=AllocationConfig(tolerance=0.05)))
    times = {"a": 1.0, "b": 1.1, "c": 1.2, "d": 1.15, "slow": 4.0}
    reports = {name: Report(seconds=one, samples=400, batch=10, epochs=1) for name, one in times.items()}
    state, sizes = strategy.resize(strategy.coordinator_start(START), reports, NOBODY)
    # 4 s for 40 mini-batches; the median is 1.15 s, and 5 % over it are 12.075 mini-batches: 120 rows.
    assert sizes == {"slow": Sizing(samples=120, batch=10)}
    assert state.allocation.target_s == 1.15
    assert np.array_equal(state.initial, START)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [None, 0.125])
@pytest.mark.parametrize("measured", [False, True])
def test_the_coordinators_half_survives_json_and_float32_arrays(loss, measured):
    strategy = hermes()
    state = replace(strategy.coordinator_start(vector(1.5, -2.25)), loss=loss)
    if measured:
        reports = {name: Report(seconds=1.0, samples=100, batch=10, epochs=1) for name in "abcd"}
        state, _ = strategy.resize(state, reports, NOBODY)
    dumped = strategy.dump(state)
    scalars = json.loads(json.dumps(dumped.scalars, allow_nan=False))
    arrays = {name: np.frombuffer(array.tobytes(), dtype="<f4").copy() for name, array in dumped.arrays.items()}
    again = strategy.load(StateDump(scalars=scalars, arrays=arrays))
    assert isinstance(again, CoordinatorHalf)
    assert (again.loss, again.allocation.target_s) == (loss, 1.0 if measured else None)
    assert again.initial.tobytes() == state.initial.tobytes()


def test_a_dump_of_something_else_is_no_state():
    with pytest.raises(KeyError):
        hermes().load(StateDump(scalars={}, arrays={}))


def test_after_a_restart_a_gradient_sum_still_starts_from_the_first_model():
    strategy = hermes("gradients")
    state = strategy.load(strategy.dump(replace(strategy.coordinator_start(START), loss=0.75)))
    _, merged = strategy.merge(
        state, vector(7, 1), contribution(SENT["gradients"]), NOBODY, losses({3.0: 0.25, 4.0: 0.2})
    )
    assert np.array_equal(merged.model, vector(4, 4))
