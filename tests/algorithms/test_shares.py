"""Equal-time iterations and shares by speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.algorithms.shares import SharesConfig, SharesState, share_out
from hermes_iot.algorithms.speed import Report
from hermes_iot.domain import Sizing
from hermes_iot.errors import ProtocolError, UsageError

FLEET = ("a", "b", "c", "d")


def report(batch_s, iteration=1, rows_max=10**6, samples=160):
    return Report(
        seconds=1.0,
        samples=samples,
        batch=16,
        epochs=1,
        iteration=iteration,
        batch_s=batch_s,
        rows_max=rows_max,
    )


def test_every_device_trains_for_the_target_time_on_its_part_by_speed():
    state, sizes = share_out(
        SharesState(), {"a": report(0.01), "b": report(0.04)}, SharesConfig(target_s=4, first_s=None), fleet=FLEET[:2]
    )
    # rates 100 and 25: shares 0.8 and 0.2; 4 s are 400 and 100 mini-batches.
    assert sizes["a"] == Sizing(samples=160, batch=16, steps=400, share=0.8)
    assert sizes["b"] == Sizing(samples=160, batch=16, steps=100, share=0.2)
    assert state.shares == {"a": 0.8, "b": 0.2}


def test_who_was_not_measured_yet_counts_as_of_mean_speed():
    state, sizes = share_out(SharesState(), {"a": report(0.01)}, SharesConfig(), fleet=FLEET[:4])
    assert sizes["a"].share == state.shares["a"] == 0.25


def test_speeds_are_smoothed_and_small_changes_left_alone():
    config = SharesConfig(target_s=4, first_s=None)
    state, _ = share_out(
        SharesState(), {"a": report(0.01, rows_max=320), "b": report(0.01, rows_max=320)}, config, fleet=FLEET[:2]
    )
    # 0.01 + 0.3 * (0.012 - 0.01) = 0.0106: 377 steps instead of 400, share 0.485 instead of 0.5.
    state, sizes = share_out(
        state, {"a": report(0.012, 2, rows_max=320), "b": report(0.01, rows_max=320)}, config, fleet=FLEET[:2]
    )
    assert sizes == {}
    assert state.shares["a"] == pytest.approx((1 / 0.0106) / (1 / 0.0106 + 100))


def test_from_one_size_to_the_next_an_iteration_doubles_or_halves_at_most():
    config = SharesConfig(target_s=4, first_s=None, ewma=1)
    state, sizes = share_out(SharesState(), {"a": report(0.01)}, config, fleet=FLEET[:1])
    assert sizes["a"].steps == 400
    state, sizes = share_out(state, {"a": report(0.001, 2)}, config, fleet=FLEET[:1])
    assert sizes["a"].steps == 800
    state, sizes = share_out(state, {"a": report(1.0, 3)}, config, fleet=FLEET[:1])
    assert sizes["a"].steps == 400
    for number in range(4, 20):
        state, sizes = share_out(state, {"a": report(1.0, number)}, config, fleet=FLEET[:1])
    assert state.given["a"].steps == 4


def test_a_straggler_never_falls_below_the_least_steps():
    _, sizes = share_out(SharesState(), {"a": report(0.01), "b": report(30.0)}, SharesConfig(), fleet=FLEET[:2])
    assert sizes["b"].steps == 4


def test_a_large_fleet_trains_longer_so_that_the_coordinator_keeps_up():
    reports = {f"d{number}": report(0.01) for number in range(200)}
    _, sizes = share_out(SharesState(), reports, SharesConfig(pushes_per_s=20), fleet=tuple(reports))
    assert sizes["d0"].steps == 1000  # 200 devices / 20 per second = 10 s


def test_who_was_measured_and_has_fallen_silent_has_no_part():
    config = SharesConfig(target_s=4, first_s=None)
    state, _ = share_out(SharesState(), {"a": report(0.01), "b": report(0.01)}, config, fleet=FLEET[:2])
    state, sizes = share_out(state, {"a": report(0.01)}, config, fleet=FLEET[:2])
    assert sizes["a"].share == 1.0


def test_who_is_gone_is_forgotten_and_the_others_take_over():
    config = SharesConfig(target_s=4, first_s=None)
    state, _ = share_out(SharesState(), {"a": report(0.01), "b": report(0.01)}, config, fleet=FLEET[:2])
    state, sizes = share_out(state, {"a": report(0.01)}, config, fleet=FLEET[:1])
    assert sizes["a"].share == 1.0
    assert set(state.given) == set(state.shares) == {"a"}


def test_for_comparison_rows_or_steps_can_be_equal():
    reports = {"a": report(0.01), "b": report(0.04)}
    _, sizes = share_out(SharesState(), reports, SharesConfig(rows="equal", target_s=4, first_s=None), fleet=FLEET[:2])
    assert [(one.share, one.steps) for one in sizes.values()] == [(0.5, 400), (0.5, 100)]
    _, sizes = share_out(SharesState(), reports, SharesConfig(length="steps", steps_equal=50), fleet=FLEET[:2])
    assert [one.steps for one in sizes.values()] == [50, 50]


def test_few_rows_are_not_gone_over_more_than_twice_an_iteration():
    # 3200 rows, half of them each: 1600 rows are 100 mini-batches, twice.
    reports = {"a": report(0.01, rows_max=3200), "b": report(0.01, rows_max=3200)}
    _, sizes = share_out(SharesState(), reports, SharesConfig(target_s=4, first_s=None, passes_max=2), fleet=FLEET[:2])
    assert sizes["a"].steps == 200
    _, sizes = share_out(
        SharesState(), reports, SharesConfig(target_s=4, first_s=None, passes_max=None), fleet=FLEET[:2]
    )
    assert sizes["a"].steps == 400


def test_a_devices_own_rows_are_all_its_own():
    reports = {"a": report(0.01, rows_max=3200, samples=3200), "b": report(0.01, rows_max=3200, samples=3200)}
    _, sizes = share_out(SharesState(), reports, SharesConfig(target_s=8, first_s=None, passes_max=2), fleet=FLEET[:2])
    assert sizes["a"].steps == 400


def test_a_bound_on_passes_never_brings_pushes_faster_than_the_coordinator_takes_them():
    reports = {"a": report(0.01, rows_max=32), "b": report(0.01, rows_max=32)}
    _, sizes = share_out(
        SharesState(), reports, SharesConfig(target_s=4, first_s=None, pushes_per_s=2), fleet=FLEET[:2]
    )
    assert sizes["a"].steps == 100


def test_the_target_time_begins_short_and_doubles_with_the_fleets_rounds():
    config = SharesConfig(target_s=4, first_s=0.5, rounds_per_doubling=8, ewma=1)
    state, steps = SharesState(), []
    for rounds in (0, 7, 8, 16, 24, 32, 1000):
        state, _ = share_out(state, {"a": report(0.01)}, config, fleet=FLEET[:1], rounds=rounds)
        steps.append(state.given["a"].steps)
    assert steps == [50, 50, 100, 200, 400, 400, 400]


def test_a_newcomer_is_made_room_for_although_no_share_changes_by_a_tenth():
    names = [f"d{number:02}" for number in range(13)]
    held = dict.fromkeys(names, 4505) | {"d12": 53}
    config = SharesConfig(target_s=4, first_s=None)
    old = {name: report(0.01, rows_max=54_060, samples=4505) for name in names[:12]}
    state, _ = share_out(SharesState(), old, config, fleet=names[:12])
    every = {name: report(0.01, rows_max=54_060, samples=held[name]) for name in names}
    state, sizes = share_out(state, every, config, fleet=names)
    assert set(sizes) == set(names)
    fair = {name: report(0.01, rows_max=54_060, samples=4158) for name in names}
    assert share_out(state, fair, config, fleet=names)[1] == {}


@pytest.mark.parametrize("claimed", [5e-324, 1e-310, 1e-12])
def test_no_claimed_speed_is_beyond_what_a_board_can_do(claimed):
    with pytest.raises(ProtocolError):
        report(claimed)


def test_nobody_measured_is_nobody_sized():
    assert share_out(SharesState(), {}, SharesConfig(), fleet=FLEET[:3]) == (SharesState(), {})


@given(speeds=st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=30))
def test_shares_are_positive_and_sum_to_one(speeds):
    reports = {f"d{number}": report(one) for number, one in enumerate(speeds)}
    state, _ = share_out(SharesState(), reports, SharesConfig(), fleet=tuple(reports))
    assert min(state.shares.values()) > 0
    assert sum(state.shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [{"target_s": 0}, {"steps_min": 0}, {"rows": "all"}, {"length": ""}, {"ewma": 0}, {"probe_steps": 0}],
    ids=str,
)
def test_constants_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SharesConfig(**wrong)
