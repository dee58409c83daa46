from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.domain import Probe, TrainJob
from hermes_iot.errors import ProtocolError
from hermes_iot.training.data import shuffled
from hermes_iot.training.walk import HELD_OUT_MIN, Walk

START = np.zeros(1, dtype=np.float32)


def a_probe(rows, since=None):
    return Probe(base=START, origin=START, weight=0.1, rows=rows, since=since)


@pytest.fixture
def walk_job(make_job):
    def make(*, steps, walked, batch=2, probe=None, slice_key=(9,)):
        return make_job(
            START, sampling="walk", steps=steps, walked=walked, batch=batch, probe=probe, slice_key=slice_key
        )

    return make


def passes(rows, count, key=(9,)):
    """The walk's first passes, one after the other."""
    return np.concatenate([shuffled((*key, number), "walk", rows) for number in range(count)]).tolist()


def test_five_rows_by_hand(walk_job):
    first, second, third = (shuffled((9, number), "walk", 5).tolist() for number in range(3))
    walk = Walk()
    assert walk.trained(walk_job(steps=2, walked=0), 5).tolist() == first[:4]
    # The fifth row of the first pass, then five of the second.
    assert walk.trained(walk_job(steps=3, walked=4), 5).tolist() == [first[4], *second]
    assert walk.trained(walk_job(steps=1, walked=10), 5).tolist() == third[:2]


def test_every_row_is_met_once_a_pass_whatever_the_iterations_lengths(walk_job):
    walk, walked, met = Walk(), 0, []
    for steps in (3, 1, 7, 2, 12):
        rows = walk.trained(walk_job(steps=steps, walked=walked, batch=4), 20)
        walked += rows.size
        met += rows.tolist()
    assert walked == 100
    for number in range(5):
        assert sorted(met[20 * number : 20 * (number + 1)]) == list(range(20))


def test_a_mini_batch_is_never_larger_than_the_rows(walk_job):
    assert Walk().trained(walk_job(steps=3, walked=0, batch=16), 5).tolist() == passes(5, 3)


def test_passes_and_devices_have_orders_of_their_own(walk_job):
    walk = Walk()
    orders = {
        tuple(walk.trained(walk_job(steps=1, batch=50, walked=50 * number, slice_key=(key,)), 50))
        for number in range(2)
        for key in range(2)
    }
    assert len(orders) == 4


def test_growing_rows_are_walked_from_the_same_position(walk_job):
    walk = Walk()
    job = walk_job(steps=4, walked=10)
    walk.trained(job, 40)
    assert sorted(walk.trained(walk_job(steps=25, walked=50), 50)) == list(range(50))
    assert walk.trained(job, 50).tolist() == passes(50, 1)[10:18]


@pytest.mark.parametrize(("steps", "walked"), [(0, 0), (-1, 0), (2, -1)])
def test_a_walk_that_goes_nowhere_is_refused(walk_job, steps, walked):
    with pytest.raises(ProtocolError):
        Walk().trained(walk_job(steps=steps, walked=walked), 5)


def test_few_orders_are_remembered(walk_job, monkeypatch):
    sorted_rows = []
    monkeypatch.setattr("hermes_iot.training.walk.shuffled", lambda *args: sorted_rows.append(args) or shuffled(*args))
    walk = Walk()
    for iteration in range(50):
        walk.trained(walk_job(steps=3, walked=6 * iteration), 60)
    assert len(sorted_rows) == 5  # 300 rows, five passes
    assert len(walk._orders) <= 3


class TestProbe:
    def test_its_rows_are_those_trained_on_next(self, walk_job):
        walk = Walk()
        probed = walk.probed(walk_job(steps=5, walked=20, probe=a_probe(8)), 100)
        assert probed.tolist() == walk.trained(walk_job(steps=4, walked=30), 100).tolist()

    def test_without_one_there_are_no_rows(self, walk_job):
        assert Walk().probed(walk_job(steps=5, walked=20), 100).size == 0

    def test_over_a_passs_end_no_row_comes_twice_and_none_of_this_iteration(self, walk_job):
        order = passes(10, 2)
        probed = Walk().probed(walk_job(steps=3, walked=2, probe=a_probe(99)), 10)
        assert probed.tolist()[:2] == order[8:10]
        assert sorted(probed) == sorted(set(order[:2]) & set(order[10:18]) | set(order[8:10]))

    @given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 6), st.integers(1, 4), st.integers(1, 12))
    def test_there_is_one_whenever_a_row_was_left(self, rows, walked, steps, batch, wanted):
        job = TrainJob(
            start=START, samples=1, batch=batch, epochs=1, learning_rate=0.1, sampling="walk", gate_split="fresh",
            rows=(), shard="", key=(), slice_key=(9,), steps=steps, walked=walked, probe=a_probe(wanted),
        )  # fmt: skip
        walk = Walk()
        trained, probed = set(walk.trained(job, rows)), walk.probed(job, rows).tolist()
        assert bool(probed) == (len(trained) < rows)
        assert len(probed) == len(set(probed)) <= wanted
        assert not set(probed) & trained

    def test_a_strict_one_leaves_out_what_was_visited_since(self, walk_job):
        # A pass of 100: rows 0..29 were walked before the base came, 30..89 since; ten of this pass are new.
        order = passes(100, 2)
        job = walk_job(steps=20, walked=50, probe=a_probe(1000, since=30))
        probed = Walk().probed(job, 100).tolist()
        visited = set(order[30:90])
        assert probed[:10] == order[90:100]
        assert not set(probed) & visited
        assert set(probed[10:]) == {row for row in order[100:190] if row not in visited} - set(order[90:100])

    def test_a_strict_one_with_fewer_than_32_left_is_none(self, walk_job):
        sizes = {}
        for walked in (60, 62, 64, 66, 68, 70):  # visited: 0 to walked + 2 of the first pass of 100
            probed = Walk().probed(walk_job(steps=1, walked=walked, probe=a_probe(1000, since=0)), 100)
            sizes[walked] = probed.size
        assert sizes == {60: 38, 62: 36, 64: 34, 66: 32, 68: 0, 70: 0}
        assert HELD_OUT_MIN == 32

    def test_a_strict_one_may_ask_for_fewer_than_32(self, walk_job):
        assert Walk().probed(walk_job(steps=1, walked=0, probe=a_probe(16, since=0)), 100).size == 16

    @pytest.mark.parametrize("since", [-5, 0, 10_000])
    def test_a_strict_one_never_uses_this_iterations_rows(self, walk_job, since):
        job = walk_job(steps=10, walked=40, probe=a_probe(1000, since=since))
        walk = Walk()
        assert not set(walk.probed(job, 100)) & set(walk.trained(job, 100))

    def test_after_a_whole_pass_nothing_is_held_out(self, walk_job):
        assert Walk().probed(walk_job(steps=1, walked=10**9, probe=a_probe(9, since=0)), 100).size == 0

    def test_successive_probes_move_on(self, walk_job):
        walk = Walk()
        firsts = [walk.probed(walk_job(steps=2, walked=4 * at, probe=a_probe(4)), 100).tolist() for at in range(9)]
        assert all(set(one).isdisjoint(other) for one, other in pairwise(firsts))
