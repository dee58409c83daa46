"""What other gates would have pushed: worked out by hand."""

import math

import pytest

from hermes_iot.algorithms import gate_counts
from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.gate_counts import KINDS, Count, Rules, Seen
from hermes_iot.algorithms.paired_gate import PairedGateConfig, observe, pushed, start
from hermes_iot.domain import Gain

#: Nothing is forced within a test but where it says so, and the paper's gate never.
FAR = 1000
PAPER = GateConfig(max_age=None)


def seen(z=None, *, norm=1.0, loss=0.5, published=False):
    return Seen(loss=loss, z=z, norm=norm, published=published)


def counted(iterations, *, tested="paired", paper=PAPER, **constants):
    rules = Rules(
        own=PairedGateConfig(kind=tested, **{"max_age": FAR, "z": 2.0} | constants), paper=paper, tested=tested
    )
    state = gate_counts.start(rules)
    for one in iterations:
        state = gate_counts.add(state, one, rules)
    return state


def pushes(state):
    return {kind: count.pushes for kind, count in state.counts.items()}


def test_a_gate_fires_first_and_then_by_the_z_that_the_run_recorded():
    """First, then 2.0 and 2.5 reach z* = 2; without a gate all six are pushed."""
    state = counted([seen(None, published=True), *map(seen, (1.9, 2.0, -3.0, 2.5, 0.0))])
    assert (state.counts["paired"], state.counts["none"]) == (Count(pushes=3, both=1), Count(pushes=6, both=1))
    assert (state.iterations, state.published) == (6, 1)


def test_an_age_is_counted_from_the_gates_own_pushes():
    """tau = 3: first at 1; 2 and 3 are too young, 4 is forced; then 2.0 at 5 fires, so the next is forced at 8."""
    state = counted([seen(z) for z in (None, 0, 0, 0, 2, 0, 0, 0)], max_age=3)
    assert state.counts["paired"] == Count(pushes=4, forced=2)
    assert state.counts["none"] == Count(pushes=8, forced=0)


def test_a_push_that_the_papers_gate_forces_is_told_apart():
    """Losses that rise never stand out below, so tau = 2 alone pushes at 2 and 4."""
    state = counted([seen(loss=loss) for loss in (1.0, 2.0, 3.0, 4.0)], paper=GateConfig(max_age=2))
    assert state.counts["z-score"] == Count(pushes=2, forced=2)


def test_lengths_are_held_against_those_that_the_norm_gate_would_have_pushed():
    """0.9 of the typical length, which follows by 0.3: 1 (first), 0.89 no, 0.9 yes -> 0.97, 0.872 no (0.873 needed)."""
    state = counted([seen(norm=norm) for norm in (1.0, 0.89, 0.9, 0.872)], tested="none")
    assert pushes(state)["norm"] == 2
    assert pushes(counted([seen(norm=norm) for norm in (1.0, 0.89, 0.9, 0.874)], tested="none"))["norm"] == 3


def test_the_papers_gate_reads_the_losses():
    """A window of 1, 1, 1, 0: z = -sqrt 3."""
    iterations = [seen(loss=loss) for loss in (1.0, 1.0, 1.0, 0.0)]
    assert pushes(counted(iterations, paper=GateConfig(alpha=-1.7, max_age=None)))["z-score"] == 1
    assert pushes(counted(iterations, paper=GateConfig(alpha=-1.74, max_age=None)))["z-score"] == 0


@pytest.mark.parametrize(
    ("tested", "missing"),
    [
        ("paired", {"strict"}),
        ("strict", {"paired"}),
        ("norm", {"paired", "strict"}),
        ("coin", {"paired", "strict"}),
        ("none", {"paired", "strict"}),
        (None, {"paired", "strict"}),
    ],
)
def test_a_test_that_was_not_made_has_no_count(tested, missing):
    assert set(KINDS) - set(pushes(counted([seen(), seen()], tested=tested))) == missing


def test_one_length_that_is_missing_leaves_the_norm_gate_without_a_count():
    assert "norm" not in pushes(counted([seen(), seen(norm=None), seen()]))
    # One that diverged has none to tell, and no gate fires on it.
    assert pushes(counted([seen(), seen(loss=math.nan, norm=None), seen()]))["norm"] == 2


def test_a_diverged_iteration_is_pushed_by_none_of_them():
    assert set(pushes(counted([seen(3.0), seen(9.0, loss=math.nan)])).values()) == {1, 0}
    assert pushes(counted([seen(3.0), seen(9.0, loss=math.nan)]))["none"] == 1


def test_a_strict_test_without_rows_fires_as_it_does_in_a_run():
    assert pushes(counted([seen(), seen(None), seen(1.0)], tested="strict"))["strict"] == 2


def test_sums_leave_out_what_one_of_them_cannot_answer():
    one = {"none": Count(pushes=2, forced=1, both=1), "norm": Count(pushes=1)}
    more = {"none": Count(pushes=3, forced=2, both=2)}
    assert gate_counts.total(one, more) == {"none": Count(pushes=5, forced=3, both=3)}


@pytest.mark.parametrize("kind", ["paired", "strict", "norm", "coin", "none"])
@pytest.mark.parametrize("budget", [None, 0.4])
def test_the_gate_that_ran_would_push_what_it_pushed(kind, budget):
    """Fed with its own verdicts of a course of lengths and gains."""

    config = PairedGateConfig(kind=kind, budget=budget, z=2.0, max_age=4)
    state, iterations, forced = start(config), [], 0
    for number in range(40):
        gain = Gain(mean=math.sin(number), std=2.0, rows=64) if kind in {"paired", "strict"} else None
        norm, loss = 2 + math.cos(1.3 * number), 1 / (1 + number)
        state, verdict = observe(state, config, loss=loss, gain=gain, norm=norm)
        state = pushed(state, norm=norm if kind == "norm" else None) if verdict.fire else state
        iterations.append(Seen(loss=loss, z=verdict.z, norm=norm, published=verdict.fire))
        forced += verdict.reason == "age"
    found = counted(iterations, tested=kind, max_age=4, budget=budget)
    assert found.counts[kind] == Count(pushes=found.published, forced=forced, both=found.published)
    assert found.published == sum(one.published for one in iterations) > 5
