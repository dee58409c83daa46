"""The paired loss gate: worked out by hand."""

import math
from dataclasses import replace

import pytest

from hermes_iot.algorithms.paired_gate import (
    THRESHOLD_MAX,
    THRESHOLD_MIN,
    PairedGateConfig,
    observe,
    pushed,
    start,
    statistic,
    test_rows,
)
from hermes_iot.domain import Gain
from hermes_iot.errors import UsageError

rows_of = test_rows
del test_rows  # pytest would take it for a test

#: mean 0.02, std 0.1 over 100 rows: z = 0.02 / (0.1 / 10) = 2.
TWO = Gain(mean=0.02, std=0.1, rows=100)
ONE = Gain(mean=0.01, std=0.1, rows=100)


def seen(config, *, iterations=1, age=0, **changes):
    return replace(start(config), iterations=iterations, age=age, **changes)


def judged(config, state=None, **given):
    values = {"loss": 0.5, "gain": None, "norm": None} | given
    return observe(state or seen(config), config, **values)


def test_z_is_the_mean_over_its_standard_error():
    assert statistic(TWO) == pytest.approx(2.0, rel=1e-6)
    assert statistic(Gain(mean=0.0, std=0.0, rows=16)) == 0.0


def test_the_first_iteration_of_a_run_is_always_pushed():
    config = PairedGateConfig()
    state, verdict = judged(config, start(config), gain=Gain(mean=-1.0, std=0.1, rows=16))
    assert (verdict.fire, verdict.reason) == (True, "first")
    assert state.iterations == 1


@pytest.mark.parametrize(("gain", "fires"), [(TWO, True), (ONE, False), (Gain(mean=-0.1, std=0.1, rows=100), False)])
def test_it_fires_from_z_on(gain, fires):
    config = PairedGateConfig(z=1.999)
    _, verdict = judged(config, gain=gain)
    assert (verdict.fire, verdict.reason) == ((True, "gain") if fires else (False, "no"))
    assert verdict.z == pytest.approx(statistic(gain))
    assert verdict.threshold == 1.999


def test_after_max_age_iterations_without_a_push_it_fires_whatever_z():
    config = PairedGateConfig(max_age=3)
    state, reasons = seen(config), []
    for _ in range(3):
        state, verdict = judged(config, state, gain=ONE)
        reasons.append(verdict.reason)
    assert reasons == ["no", "no", "age"]
    assert pushed(state, norm=None).age == 0


def test_without_unused_rows_a_strict_test_fires_and_a_paired_one_does_not():
    assert judged(PairedGateConfig(kind="strict"))[1].reason == "blind"
    assert judged(PairedGateConfig(kind="paired"))[1].reason == "no"


def test_divergence_fires_nothing_and_the_age_goes_on():
    config = PairedGateConfig(kind="none", max_age=1)
    state, verdict = judged(config, loss=math.nan)
    assert (verdict.fire, verdict.reason, state.age) == (False, "diverged", 1)


def test_no_gate_pushes_always():
    assert judged(PairedGateConfig(kind="none"))[1].reason == "always"


def test_the_norm_gate_holds_a_displacement_against_those_pushed_before():
    config = PairedGateConfig(kind="norm", norm=0.9)
    assert judged(config, norm=0.001)[1].reason == "norm"  # nothing to hold it against
    state = pushed(seen(config), norm=2.0)
    assert state.norm == 2.0
    assert judged(config, replace(state, iterations=5), norm=1.8)[1].fire
    assert not judged(config, replace(state, iterations=5), norm=1.79)[1].fire
    assert pushed(state, norm=3.0).norm == pytest.approx(2.0 + 0.3 * 1.0)


def test_the_coin_falls_about_as_often_as_it_should_and_always_the_same_way():
    config = PairedGateConfig(kind="coin", coin=0.6, max_age=1000)
    fell = [judged(config, seen(config, iterations=number), loss=1 / number)[1].fire for number in range(1, 1001)]
    assert fell == [
        judged(config, seen(config, iterations=number), loss=1 / number)[1].fire for number in range(1, 1001)
    ]
    assert 550 < sum(fell) < 650


def test_a_budget_moves_the_threshold_towards_the_wanted_rate_within_bounds():
    config = PairedGateConfig(budget=0.5, z=1.5)
    state, _ = judged(config, gain=TWO)
    assert state.threshold == 1.5 + 0.5 * (1 - 0.5)
    state, _ = judged(config, gain=ONE)
    assert state.threshold == 1.5 + 0.5 * (0 - 0.5)
    high, low = seen(config, threshold=THRESHOLD_MAX), seen(config, threshold=THRESHOLD_MIN)
    assert judged(config, high, gain=Gain(mean=9.0, std=0.1, rows=100))[0].threshold == THRESHOLD_MAX
    assert (
        judged(PairedGateConfig(budget=1.0), low, gain=Gain(mean=-9.0, std=0.1, rows=100))[0].threshold == THRESHOLD_MIN
    )


@pytest.mark.parametrize(("rows", "expected"), [(0, 16), (100, 16), (1000, 100), (100_000, 300)])
def test_a_tenth_of_the_iterations_rows_is_tested_within_bounds(rows, expected):
    assert rows_of(rows, PairedGateConfig()) == expected


@pytest.mark.parametrize("kind", ["norm", "coin", "none", None])
def test_other_gates_make_no_test(kind):
    assert rows_of(1000, PairedGateConfig(kind=kind)) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "z"}, {"max_age": 0}, {"z": 99}, {"weight_min": 0}, {"test_rows_max": 3}, {"budget": 2}, {"coin": -0.1}],
    ids=str,
)
def test_constants_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PairedGateConfig(**wrong)
