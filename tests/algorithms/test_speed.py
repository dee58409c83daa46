from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.algorithms.speed import Report, follow, mini_batches, predicted_s
from hermes_iot.domain import DeviceId
from hermes_iot.errors import ProtocolError

repeatable = settings(derandomize=True, deadline=None)
A = DeviceId("a")
reports = st.builds(
    Report,
    seconds=st.floats(1e-3, 1e4),
    samples=st.integers(1, 10**6),
    batch=st.integers(1, 512),
    epochs=st.integers(1, 10),
)


def test_mini_batches_are_counted_without_rounding_up():
    assert mini_batches(5, 2500, 16) == 781.25


@repeatable
@given(report=reports)
def test_a_device_is_predicted_to_take_the_time_it_took(report):
    again = predicted_s(report.seconds_per_batch, report.epochs, report.samples, report.batch)
    assert again == pytest.approx(report.seconds, rel=1e-12)


@repeatable
@given(history=st.lists(reports, min_size=1, max_size=8), newest=st.floats(0.01, 1))
def test_a_smoothed_speed_lies_between_the_slowest_and_the_fastest_report(history, newest):
    followed = {}
    for report in history:
        followed = follow(followed, {A: report}, newest)
    speeds = [report.seconds_per_batch for report in history]
    assert min(speeds) * (1 - 1e-9) <= followed[A].seconds_per_batch <= max(speeds) * (1 + 1e-9)
    if newest == 1:
        assert followed[A].seconds_per_batch == pytest.approx(speeds[-1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0.0},
        {"seconds": -1.0},
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"samples": 0},
        {"batch": 0},
        {"epochs": 0},
        {"rows_max": 0},
    ],
)
def test_numbers_no_device_can_report_are_the_peers_fault(wrong):
    with pytest.raises(ProtocolError) as caught:
        Report(**{"seconds": 1.0, "samples": 1, "batch": 1, "epochs": 1, **wrong})
    assert caught.value.reason == "timing"
