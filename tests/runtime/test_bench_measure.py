import math

import pytest

from hermes_iot.runtime.bench.ends import FLEET_ROUNDS, Ending, Patience, Plateau
from hermes_iot.runtime.bench.measure import (
    COLUMNS,
    columns,
    first_crossing,
    independence,
    numbers,
    point_at,
    points,
)
from tests.support.benches import curve, point


def document(line, *, paper_s=None, stop_s=None):
    return {
        "columns": list(COLUMNS),
        "points": columns(line),
        "end": {"kind": "target", "reason": "", "t_s": line[-1].t_s},
        "paper_stop": {"patience": 10, "t_s": paper_s},
        "stop_rule": {"t_s": stop_s},
    }


def test_a_target_is_reached_at_the_first_of_two_evaluations_in_a_row():
    line = curve(0.1, 0.9, 0.5, 0.91, 0.9, 0.2)
    assert first_crossing(line, 0.9).t_s == 3  # not 1: one evaluation alone may be luck
    assert first_crossing(line, 0.91) is None
    assert first_crossing(line, 0.1).t_s == 0
    assert first_crossing(line, 0.95) is None


def test_the_last_evaluation_alone_reaches_nothing():
    assert first_crossing(curve(0.1, 0.2, 0.99), 0.9) is None
    assert first_crossing(curve(0.99), 0.9) is None


def test_without_accuracies_no_target_is_reached():
    assert first_crossing(curve(None, None, None), 0.1) is None


def test_what_is_reached_after_our_stop_rule_does_not_count():
    line = curve(0.1, 0.2, 0.9, 0.9)
    assert first_crossing(line, 0.9, until_s=2.0).t_s == 2
    assert first_crossing(line, 0.9, until_s=1.5) is None
    found = numbers(document(line, stop_s=1.0), [0.9])
    assert found["targets"][0]["reached"] is None
    assert found["stop_rule"]["reached"]["accuracy"] == 0.2


def test_the_effort_up_to_a_target_is_that_of_the_crossing():
    found = numbers(document(curve(0.1, 0.2, 0.8, 0.9, 0.9)), [0.8, 0.95])
    low, high = found["targets"]
    assert (low["target"], high["reached"]) == (0.8, None)
    assert low["reached"] == {
        "t_s": 2.0,
        "bytes_model": 200,
        "bytes_data": 20,
        "bytes_control": 2,
        "pushes": 4,
        "iterations": 12,
        "samples": 2000,
        "iterations_per_push": 3.0,
        "accuracy": 0.8,
    }
    assert found["best_accuracy"] == 0.9
    assert found["at_end"]["t_s"] == 4.0
    assert found["paper_stop"] == {"patience": 10, "reached": None}


def test_the_papers_stop_is_looked_up_at_the_next_evaluation_but_keeps_its_time():
    found = numbers(document(curve(0.1, 0.2, 0.3, 0.4), paper_s=1.4), [0.9])["paper_stop"]["reached"]
    assert (found["t_s"], found["accuracy"], found["pushes"]) == (1.4, 0.3, 4)


def test_after_the_last_evaluation_the_last_one_stands():
    assert point_at(curve(0.1, 0.2), 7.0).t_s == 1.0


def test_iterations_per_push_of_a_device_that_never_pushed_are_unknown():
    assert independence(7, 0) is None
    assert independence(9, 3) == 3.0


def test_a_curve_comes_back_from_disk():
    line = curve(0.1, None)
    assert points({"columns": list(COLUMNS), "points": columns(line)}) == tuple(line)
    lost = [*columns(line)[0]]
    lost[COLUMNS.index("loss")] = None
    assert math.isnan(points({"columns": list(COLUMNS), "points": [lost]})[0].loss)


# --- ends -------------------------------------------------------------------------------------------------------------


def rows(losses, *, each=1000):
    return [point(second, 0.0, loss=loss, samples=each * second) for second, loss in enumerate(losses)]


def held_at(plateau, line):
    for one in line:
        plateau.add(one)
    return plateau.at.t_s if plateau.at is not None else None


def test_the_plateau_comes_after_twelve_fleet_rounds_without_progress():
    # 1,000 rows a second, a fleet round of 500: 12 rounds are 6 seconds, from the best at second 2.
    assert FLEET_ROUNDS == 12
    losses = [1.0, 0.9, 0.8, 0.8, 0.7999, 0.81, 0.8, 0.8, 0.8, 0.8]
    assert held_at(Plateau(500), rows(losses)) == 8
    assert held_at(Plateau(500), rows(losses[:8])) is None


def test_progress_of_a_thousandth_is_none():
    assert held_at(Plateau(500), rows([1.0] + [0.9991] * 9)) == 6  # counted from second 0: 0.9991 is not below 0.999
    assert held_at(Plateau(500), rows([1.0, *([0.9989] * 8)])) == 7


def test_the_first_plateau_is_kept_whatever_comes_later():
    assert held_at(Plateau(500), rows([1.0] * 7 + [0.1] * 5)) == 6


def test_a_plateau_may_have_to_last():
    assert held_at(Plateau(500, least_s=9.0), rows([1.0] * 12)) == 9


def test_before_anything_is_measured_work_counts_all_the_same():
    assert held_at(Plateau(500), rows([None] * 8)) == 6


@pytest.mark.parametrize("lost", [None, math.nan])
def test_a_loss_that_is_not_there_is_no_progress(lost):
    assert held_at(Plateau(500), rows([1.0, lost, lost, lost, lost, lost, lost])) == 6


def test_patience_counts_aggregations_since_the_best_loss():
    patience = Patience(3)
    for t_s, loss in ((0.5, 0.9), (1.0, 0.8), (1.5, 0.81), (2.0, 0.85), (2.5, 0.9)):
        patience.merged(t_s, loss)
    assert patience.at_s == 2.5


def test_updates_gathered_at_a_barrier_are_one_aggregation():
    patience = Patience(2)
    patience.merged(1.0, 0.5)
    for t_s in (1.1, 1.2, 1.3, 1.4):
        patience.merged(t_s, 0.5)
    assert patience.at_s is None
    patience.merged(2.0, 0.6)
    patience.merged(3.0, 0.7)
    assert patience.at_s == 3.0


def test_aggregations_nobody_measured_are_no_aggregations_without_a_better_loss():
    patience = Patience(2)
    for t_s in range(20):
        patience.merged(float(t_s), None if t_s == 0 else 0.9)
    assert patience.at_s is None


def ended(line, *, await_patience=False, long=False, patience=None):
    patience = patience or Patience(1)
    ending = Ending(target=0.9, plateau=Plateau(1000), patience=patience, await_patience=await_patience, long=long)
    for count in range(1, len(line) + 1):
        if ending(line[:count]) is not None:
            return ending.kind, line[count - 1].t_s
    return ending.kind, None


def test_a_cell_ends_when_its_target_was_crossed_twice():
    assert ended(curve(0.1, 0.9, 0.1, 0.9, 0.9, 0.9)) == ("target", 4.0)


def test_a_long_cell_goes_on_to_the_plateau():
    assert ended(curve(*([0.95] * 20)), long=True) == ("plateau", 12.0)


def test_a_cell_that_waits_for_the_papers_rule_goes_on_until_it_held():
    patience = Patience(1)
    assert ended(curve(*([0.95] * 20)), await_patience=True, patience=patience) == (None, None)
    patience.merged(1.0, 0.5)
    patience.merged(2.0, 0.6)
    assert ended(curve(*([0.95] * 20)), await_patience=True, patience=patience) == ("target", 1.0)


def test_a_cell_that_ran_on_for_the_papers_rule_says_what_ended_it():
    patience = Patience(1)
    patience.merged(1.0, 0.5)
    ending = Ending(target=0.9, plateau=Plateau(1000), patience=patience, await_patience=True, long=False)
    line = curve(0.95, 0.95, 0.95)
    assert ending(line[:2]) is None, "reached, and the rule has not held yet"
    patience.merged(2.5, 0.6)
    assert ending(line) == "test accuracy 0.9 reached, later also no better loss in 1 aggregations"
    at_once = Ending(target=0.9, plateau=Plateau(1000), patience=patience, await_patience=True, long=False)
    assert at_once(line[:2]) == "test accuracy 0.9 reached"
