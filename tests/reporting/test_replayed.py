"""A recorded run beside its replay."""

import io
import re

import pytest
from rich.console import Console

from hermes_iot.reporting.replayed import compare

RUN = {
    "run": "digits-1",
    "strategy": "hermes-plus",
    "reason": "30 s of wall time",
    "iterations": 100,
    "updates_published": 100,
    "updates_applied": 0,
    "bytes_up": 1000,
    "bytes_down": 1000,
    "accuracy": 0.967,
    "loss": 1.0,
    "wall_s": 30.0,
}


def changes(**simulated):
    """The last column, by the first."""
    out = io.StringIO()
    document = {**RUN, **simulated, "recorded": RUN, "left_out": [], "scored_on": "validation"}
    compare(document, Console(file=out, width=110))
    cells = [re.split(r"  +", line.strip()) for line in out.getvalue().splitlines()]
    return {row[0]: row[-1] for row in cells}


def test_a_change_that_is_rounded_to_nothing_has_no_sign():
    found = changes(wall_s=29.95, bytes_up=1004, bytes_down=1510, iterations=99, updates_applied=5)
    assert (found["time"], found["bytes up"]) == ("0%", "0%")
    assert (found["bytes down"], found["local iterations"]) == ("+51%", "-1%")
    assert found["updates applied"] == "-", "of nothing there is no part"


@pytest.mark.parametrize(
    ("after", "words"), [(0.9671, "0.0 points"), (0.9668, "0.0 points"), (0.96, "-0.7 points"), (None, "-")]
)
def test_accuracies_differ_by_points(after, words):
    assert changes(accuracy=after)["accuracy"] == words
