from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.algorithms.partition import merged, positions, resize, rows_of
from hermes_iot.domain import DeviceId

repeatable = settings(derandomize=True, deadline=None)
A, B, C, D = (DeviceId(name) for name in "abcd")
steps = st.lists(st.tuples(st.sampled_from([A, B, C, D]), st.integers(0, 45)), max_size=12)
totals = st.integers(0, 40)


def rows(ranges) -> set[int]:
    return set(positions(ranges).tolist())


def played(steps, total) -> dict:
    held = {}
    for device, samples in steps:
        held[device] = resize(held, device, samples, total)
    return held


def by_rows(held, device, samples, total) -> set[int]:
    """The same rule on single rows: keep the lowest, then add by (holders, position)."""
    own = sorted(rows(held.get(device, ())))
    samples = min(samples, total)
    holders = [sum(row in rows(ranges) for other, ranges in held.items() if other != device) for row in range(total)]
    free = sorted(set(range(total)) - set(own), key=lambda row: (holders[row], row))
    return set(own[:samples]) | set(free[: max(0, samples - len(own))])


def test_the_first_devices_take_the_lowest_free_rows():
    held = played([(A, 3), (B, 4)], 10)
    assert held == {A: ((0, 3),), B: ((3, 7),)}


def test_shrinking_releases_the_tail_and_the_next_one_gets_it_first():
    held = played([(A, 6), (B, 2), (A, 4)], 10)
    assert held[A] == ((0, 4),)
    assert resize(held, C, 3, 10) == ((4, 6), (8, 9))


def test_a_tail_is_counted_over_several_ranges():
    held = {A: ((0, 2), (5, 9))}
    assert resize(held, A, 3, 10) == ((0, 2), (5, 6))
    assert resize(held, A, 2, 10) == ((0, 2),)
    assert resize(held, A, 0, 10) == ()


def test_growing_keeps_what_is_held_and_joins_what_touches():
    held = {A: ((2, 4),), B: ((4, 6),)}
    assert resize(held, A, 6, 10) == ((0, 4), (6, 8))


def test_when_no_row_is_free_those_with_the_fewest_holders_are_shared_first():
    held = {A: ((0, 6),), B: ((4, 10),), C: ((0, 2),)}
    # one holder: 2, 3 and 6..9; two: 0, 1 and 4, 5
    assert resize(held, D, 4, 10) == ((2, 4), (6, 8))
    assert resize(held, D, 7, 10) == ((0, 1), (2, 4), (6, 10))


def test_more_than_all_rows_is_all_rows():
    assert resize({A: ((3, 5),)}, A, 99, 10) == ((0, 10),)
    assert resize({}, A, 5, 0) == ()


def test_ranges_beyond_the_permutation_are_given_up():
    assert resize({A: ((0, 2), (8, 30))}, A, 5, 10) == ((0, 3), (8, 10))
    assert resize({B: ((0, 10), (20, 30))}, A, 9, 10) == ((0, 9),)  # 10 to 20 is nobody's and no row


def test_nobody_can_hold_a_negative_number_of_rows():
    for samples, total in ((-1, 5), (1, -5)):
        with pytest.raises(ValueError, match="cannot be held"):
            resize({}, A, samples, total)


@repeatable
@given(steps=steps, total=totals)
def test_every_device_holds_exactly_what_it_was_last_given_in_clean_ranges(steps, total):
    held = played(steps, total)
    for device, samples in dict(steps).items():
        ranges = held[device]
        assert rows_of(ranges) == len(rows(ranges)) == len(positions(ranges)) == min(samples, total)
        assert merged(ranges) == ranges
        assert rows(ranges) <= set(range(total))


@repeatable
@given(steps=steps, total=totals)
def test_devices_stay_disjoint_as_long_as_all_of_them_fit(steps, total):
    held = {}
    for device, samples in steps:
        after = {**{one: rows_of(ranges) for one, ranges in held.items()}, device: samples}
        if sum(after.values()) > total:
            continue
        held[device] = resize(held, device, samples, total)
        everything = np.concatenate([positions(ranges) for ranges in held.values()])
        assert len(set(everything.tolist())) == everything.size


@repeatable
@given(steps=steps, total=totals, device=st.sampled_from([A, B, C, D]), samples=st.integers(0, 45))
def test_no_more_rows_move_than_must_and_the_rule_holds_row_by_row(steps, total, device, samples):
    held = played(steps, total)
    before, after = rows(held.get(device, ())), rows(resize(held, device, samples, total))
    assert len(before & after) == min(len(before), samples, total)
    assert after == by_rows(held, device, samples, total)


@repeatable
@given(steps=steps, total=totals, samples=st.integers(0, 45))
def test_asking_twice_changes_nothing(steps, total, samples):
    held = played(steps, total)
    held[A] = resize(held, A, samples, total)
    assert resize(held, A, samples, total) == held[A]


@repeatable
@given(ranges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8))
def test_merging_keeps_every_row_once(ranges):
    assert rows(merged(ranges)) == {row for start, stop in ranges for row in range(start, stop)}
    joined = merged(ranges)
    assert all(before[1] < after[0] for before, after in pairwise(joined))


def test_positions_are_in_the_order_of_the_ranges():
    assert positions(((4, 6), (0, 1))).tolist() == [4, 5, 0]
    assert positions(()).dtype == positions(((0, 1),)).dtype == np.int64


@pytest.mark.timeout(10)  # it takes tens of milliseconds; a set of rows for every device would take far longer
def test_ten_thousand_devices_on_a_million_rows_are_no_burden():
    held = {DeviceId(str(at)): ((100 * at, 100 * at + 60), (100 * at + 70, 100 * at + 100)) for at in range(10_000)}
    grown = resize(held, DeviceId("5000"), 300_000, 1_000_000)
    assert rows_of(grown) == 300_000
    assert merged((*grown, *held[DeviceId("5000")])) == grown
    gaps = {row for at in range(10_000) for row in range(100 * at + 60, 100 * at + 70)}
    assert gaps <= rows(grown)
