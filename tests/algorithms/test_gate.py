from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.algorithms.gate import LOSS_MAX, GateConfig, GateState, Verdict, observe, start, z_score
from hermes_iot.errors import UsageError

repeatable = settings(derandomize=True, deadline=None)
PAPER = GateConfig(max_age=None)
losses_of_any_kind = st.lists(st.floats(), max_size=40)
configs = st.builds(
    GateConfig,
    window=st.integers(2, 12),
    alpha=st.floats(-3, -0.01),
    beta=st.floats(0, 0.5),
    patience=st.integers(1, 6),
    reference=st.sampled_from(["including", "preceding"]),
    window_after_push=st.sampled_from(["clear", "keep"]),
    threshold_after_push=st.sampled_from(["keep", "reset"]),
    sigma=st.sampled_from(["exact", "floored"]),
    max_age=st.none() | st.integers(1, 12),
)


def run(losses, config) -> tuple[list[Verdict], list[GateState]]:
    states, verdicts = [start(config)], []
    for loss in losses:
        state, verdict = observe(states[-1], loss, config)
        states.append(state)
        verdicts.append(verdict)
    return verdicts, states


def test_the_papers_gate_follows_a_trace_worked_out_by_hand():
    # (loss, fires, reason, z, threshold it was compared with)
    trace = [
        (3.0, False, "few", None, -1.3),
        (3.0, False, "flat", None, -1.3),
        (0.0, True, "loss", (0 - 2) / math.sqrt((1 + 1 + 4) / 3), -1.3),  # -1.414; the window is emptied
        (1.0, False, "few", None, -1.3),
        (1.0, False, "flat", None, -1.3),
        (1.0, False, "flat", None, -1.3),
        (1.0, False, "flat", None, -1.3),
        (1.0, False, "flat", None, -1.3),  # the fifth minor one: from here on every minor one wears the threshold
        (1.0, False, "flat", None, -1.3 * 0.9),
        (1.1, False, "no", (1.1 - 7.1 / 7) / (0.1 * math.sqrt(6) / 7), -1.3 * 0.9**2),
        (1.0, False, "no", (1.0 - 8.1 / 8) / (0.1 * math.sqrt(7) / 8), -1.3 * 0.9**3),
        (0.9, True, "loss", (0.9 - 1.0) / (0.1 * math.sqrt(2 / 9)), -1.3 * 0.9**4),  # -2.12
        (0.9, False, "few", None, -1.3 * 0.9**4),  # alpha does not come back
    ]
    verdicts, states = run([row[0] for row in trace], GateConfig())
    for verdict, (_, fire, reason, z, threshold) in zip(verdicts, trace, strict=True):
        assert (verdict.fire, verdict.reason) == (fire, reason)
        assert verdict.z == (None if z is None else pytest.approx(z))
        assert verdict.threshold == pytest.approx(threshold)
    assert states[-1] == GateState(window=(0.9,), threshold=states[-1].threshold, minors=1, age=1)


def test_the_window_holds_the_newest_losses_only():
    _, states = run([5.0, 4.0, 3.0, 2.0, 1.0], GateConfig(window=3, alpha=-9, max_age=None))
    assert states[-1].window == (3.0, 2.0, 1.0)


def test_the_count_of_minor_updates_does_not_restart_at_a_decay():
    _, states = run([1.0] * 5, GateConfig(patience=3, beta=0.5, alpha=-1, max_age=None))
    assert [state.minors for state in states[1:]] == [1, 2, 3, 4, 5]
    assert [state.threshold for state in states[1:]] == [-1, -1, -0.5, -0.25, -0.125]


def test_a_push_restarts_the_count_of_minor_updates():
    _, states = run([3.0, 3.0, 0.0], PAPER)
    assert states[-1] == GateState(window=(), threshold=-1.3, minors=0, age=0)


@repeatable
@given(losses=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=10))
def test_z_within_its_own_window_is_never_below_minus_the_root_of_one_less_than_its_length(losses):
    z = z_score(losses[-1], losses, PAPER)
    assert z is None or abs(z) <= math.sqrt(len(losses) - 1) + 1e-9


@repeatable
@given(losses=st.lists(st.floats(0, 1e6), min_size=3, max_size=3))
def test_alpha_of_the_paper_cannot_fire_before_the_third_loss_nor_a_deeper_one_before_the_fourth(losses):
    assert not any(verdict.fire for verdict in run(losses[:2], PAPER)[0])
    assert not any(verdict.fire for verdict in run(losses, GateConfig(alpha=-1.6, max_age=None))[0])


def test_the_third_and_the_fourth_loss_can_fire():
    assert [verdict.fire for verdict in run([1, 1, 0], PAPER)[0]] == [False, False, True]
    assert [verdict.fire for verdict in run([1, 1, 1, 0], GateConfig(alpha=-1.6))[0]] == [False] * 3 + [True]


@repeatable
@given(loss=st.floats(-1e300, 1e300), config=configs, count=st.integers(1, 60))
def test_equal_losses_never_fire_by_loss(loss, config, count):
    verdicts, _ = run([loss] * count, config)
    assert {verdict.reason for verdict in verdicts} <= {"few", "flat", "no", "age"}


@repeatable
@given(
    losses=st.lists(st.integers(0, 1000), min_size=2, max_size=10),
    power=st.integers(-20, 20),
    shift=st.integers(-1000, 1000),
    reference=st.sampled_from(["including", "preceding"]),
)
def test_z_depends_neither_on_the_unit_of_the_loss_nor_on_its_origin(losses, power, shift, reference):
    config = GateConfig(reference=reference)
    moved = [math.ldexp(loss + shift, power) for loss in losses]
    before, after = z_score(losses[-1], losses, config), z_score(moved[-1], moved, config)
    assert after == (None if before is None else pytest.approx(before, rel=1e-9, abs=1e-9))


@repeatable
@given(losses=losses_of_any_kind, config=configs)
def test_whatever_the_losses_the_state_stays_sound(losses, config):
    verdicts, states = run(losses, config)
    for loss, verdict, state in zip(losses, verdicts, states[1:], strict=True):
        assert verdict.fire == (verdict.reason in {"loss", "age"})
        assert (verdict.reason == "diverged") == (not math.isfinite(loss))
        assert verdict.z is None or math.isfinite(verdict.z)
        assert config.alpha <= state.threshold <= 0
        assert len(state.window) <= config.window
        assert all(math.isfinite(seen) for seen in state.window)
        assert not verdict.fire or state.age == state.minors == 0


@repeatable
@given(losses=st.lists(st.floats(0, 10), min_size=1, max_size=60), config=configs.filter(lambda one: one.max_age))
def test_no_device_is_silent_for_longer_than_the_maximum_age(losses, config):
    silent = longest = 0
    for verdict in run(losses, config)[0]:
        silent = 0 if verdict.fire else silent + 1
        longest = max(longest, silent)
    assert longest < config.max_age


def test_rising_losses_are_published_by_age_alone():
    config = GateConfig(max_age=4)
    assert [verdict.reason for verdict in run([1, 2, 3, 4, 5, 6, 7, 8], config)[0]] == ["few", "no", "no", "age"] * 2
    assert not any(verdict.fire for verdict in run(range(100), PAPER)[0])


def test_a_forced_push_counts_as_a_push():
    verdicts, states = run([1.0, 2.0], GateConfig(max_age=2))
    assert verdicts[-1] == Verdict(fire=True, reason="age", z=1.0, threshold=-1.3)
    assert states[-1] == GateState(window=(), threshold=-1.3, minors=0, age=0)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_fires_nothing_enters_no_window_and_empties_it(loss):
    config = GateConfig(max_age=3)
    verdicts, states = run([2.0, 2.0, loss, 1.0], config)
    assert verdicts[2] == Verdict(fire=False, reason="diverged", z=None, threshold=-1.3)
    assert states[3] == GateState(window=(), threshold=-1.3, minors=2, age=3)
    assert verdicts[3].reason == "age"  # the age went on while nothing could be sent


def test_the_reference_without_the_loss_itself_lets_one_low_loss_stand_out():
    losses = [1.0, 1.2, 1.0, 1.2, 0.5]
    including, _ = run(losses, GateConfig(alpha=-2.5))
    preceding, _ = run(losses, GateConfig(alpha=-2.5, reference="preceding"))
    assert not including[-1].fire  # of five losses z is -2 at the lowest
    assert preceding[-1].fire
    assert preceding[-1].z == pytest.approx((0.5 - 1.1) / math.sqrt(4 * 0.01 / 3))


def test_the_reference_without_the_loss_needs_two_earlier_losses():
    verdicts, _ = run([1.0, 2.0, 0.0], GateConfig(reference="preceding"))
    assert [verdict.reason for verdict in verdicts] == ["few", "few", "loss"]
    assert verdicts[-1].z == pytest.approx((0 - 1.5) / math.sqrt(0.5))


def test_a_window_of_two_suffices_for_either_reference():
    assert run([1.0, 2.0, 0.0], GateConfig(reference="preceding", window=2))[0][-1].fire
    at_the_bound = run([2.0, 1.0], GateConfig(window=2, alpha=-1))[0][-1]
    assert (at_the_bound.z, at_the_bound.fire) == (-1.0, True)


def test_a_kept_window_judges_the_very_next_loss():
    losses = [3.0, 3.0, 0.0, -30.0]
    assert run(losses, GateConfig(window_after_push="clear"))[0][-1].reason == "few"
    assert run(losses, GateConfig(window_after_push="keep"))[0][-1].reason == "loss"


def test_a_reset_brings_alpha_back_after_a_push():
    losses = [1.0] * 8 + [0.0]
    kept, reset = (run(losses, GateConfig(threshold_after_push=how))[1][-1] for how in ("keep", "reset"))
    assert kept.threshold == pytest.approx(-1.3 * 0.9**4)
    assert reset.threshold == -1.3


def test_a_floored_sigma_ignores_a_difference_that_means_nothing():
    losses = [1.0, 1.0, 1.0 - 1e-6]
    exact, _ = run(losses, GateConfig(sigma="exact"))
    floored, _ = run(losses, GateConfig(sigma="floored"))
    assert exact[-1].fire
    assert not floored[-1].fire
    assert floored[-1].z == pytest.approx(-(2e-6 / 3) / (1e-3 * (1 - 1e-6 / 3) + 1e-9), rel=1e-6)
    assert floored[1].z == 0.0  # where "exact" has nothing to score by


def test_a_worn_out_threshold_fires_at_the_recent_mean():
    config = GateConfig(alpha=0)
    assert [verdict.reason for verdict in run([1.0, 2.0, 1.5], config)[0]] == ["few", "no", "loss"]


def test_losses_beyond_all_reason_are_clamped():
    _, states = run([1e300, -1e300], GateConfig(alpha=-9))
    assert states[-1].window == (LOSS_MAX, -LOSS_MAX)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 1},
        {"window": 1001},
        {"window": 10.0},
        {"window": True},
        {"window": "10"},
        {"alpha": 0.1},
        {"alpha": -math.inf},
        {"alpha": math.nan},
        {"alpha": None},
        {"beta": 1},
        {"beta": -0.1},
        {"beta": math.nan},
        {"patience": 0},
        {"max_age": 0},
        {"max_age": 1.5},
        {"reference": "both"},
        {"window_after_push": "drop"},
        {"threshold_after_push": None},
        {"sigma": ["exact"]},
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line_that_names_it(wrong):
    with pytest.raises(UsageError) as caught:
        GateConfig(**wrong)
    assert str(caught.value).startswith(f"gate {next(iter(wrong))} ")
    assert "it must be " in str(caught.value)
    assert "\n" not in str(caught.value)


@repeatable
@given(config=configs)
def test_a_configuration_survives_the_manifest(config):
    assert GateConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_the_gate_loads_neither_numpy_nor_scipy():
    code = "import sys, hermes_iot.algorithms.gate; sys.exit('numpy' in sys.modules or 'scipy' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60).returncode == 0
