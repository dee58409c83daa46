import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.domain import Probe, TrainJob
from hermes_iot.errors import ProtocolError
from hermes_iot.training.data import Dataset, shuffled
from hermes_iot.training.sampling import RowSource, draw, mini_batches

START = np.zeros(1, dtype=np.float32)
jobs = st.builds(
    TrainJob,
    start=st.just(START),
    samples=st.integers(1, 80),
    batch=st.integers(1, 20),
    epochs=st.integers(1, 3),
    learning_rate=st.just(0.1),
    sampling=st.sampled_from(["fresh", "kept"]),
    gate_split=st.sampled_from(["fresh", "fixed"]),
    rows=st.sampled_from([(), ((0, 1),), ((3, 40),), ((30, 50), (0, 7))]),
    shard=st.just(""),
    key=st.tuples(st.integers(0, 99)),
    slice_key=st.tuples(st.integers(0, 9)),
)


@given(jobs)
def test_a_draw_stays_within_the_allotment_and_tests_on_nothing_it_trains_on(job):
    rows = draw(job, rows=50)
    allowed = {p for start, stop in job.rows or ((0, 50),) for p in range(start, stop)}
    train, gate = rows.train.tolist(), rows.gate.tolist()
    assert train
    assert gate
    assert set(train) | set(gate) <= allowed
    assert len(set(train)) == len(train)
    if len(allowed) > 1 and job.samples > 1:
        assert not set(train) & set(gate)
        assert rows.samples == len(train) + len(gate) <= min(job.samples, len(allowed))


@given(jobs)
def test_the_same_job_draws_the_same_rows(job):
    one, two = draw(job, rows=50), draw(job, rows=50)
    assert one.train.tolist() == two.train.tolist()
    assert one.gate.tolist() == two.gate.tolist()


def test_a_fresh_draw_splits_85_to_15(make_job):
    rows = draw(make_job(START, samples=200), rows=1000)
    assert (rows.train.size, rows.gate.size, rows.samples) == (170, 30, 200)


def test_another_key_draws_other_rows(make_job):
    one, two = (draw(make_job(START, key=(key,)), rows=1000).train for key in (1, 2))
    assert set(one) != set(two)


def test_kept_rows_are_the_first_of_the_allotment_in_order(make_job):
    rows = draw(make_job(START, sampling="kept", samples=20, rows=((40, 70), (0, 9))), rows=100)
    assert sorted([*rows.train, *rows.gate]) == list(range(40, 60))


def test_the_fixed_slice_is_the_same_for_every_job_and_never_trained_on(make_job):
    gates, trained = set(), set()
    for key in range(60):
        rows = draw(make_job(START, gate_split="fixed", samples=40, key=(key,)), rows=100)
        gates.add(tuple(rows.gate))
        trained |= set(rows.train)
    assert len(gates) == 1
    assert len(trained) == 85  # with time every row but the slice's
    assert not trained & set(gates.pop())


def test_the_fixed_slice_of_kept_rows_is_15_percent_of_the_allotment(make_job):
    job = make_job(START, sampling="kept", gate_split="fixed", samples=40, rows=((10, 50),))
    rows = draw(job, rows=100)
    assert rows.gate.size == 6
    assert sorted([*rows.train, *rows.gate]) == list(range(10, 50))


def test_a_fixed_slice_survives_a_changed_allotment(make_job):
    first, grown = (
        draw(make_job(START, sampling="kept", gate_split="fixed", samples=1000, rows=((0, stop),)), rows=1000)
        for stop in (500, 550)
    )
    assert len(set(first.gate) & set(grown.train)) <= 10  # of 75: only those that a better-ranked new row pushed out


def test_devices_keep_different_slices_aside(make_job):
    one, two = (draw(make_job(START, gate_split="fixed", slice_key=(key,)), rows=500).gate for key in (1, 2))
    assert set(one) != set(two)


@pytest.mark.parametrize("sampling", ["fresh", "kept"])
@pytest.mark.parametrize("gate_split", ["fresh", "fixed"])
def test_one_row_is_trained_and_tested_on(make_job, sampling, gate_split):
    rows = draw(make_job(START, sampling=sampling, gate_split=gate_split, rows=((4, 5),)), rows=9)
    assert (rows.train.tolist(), rows.gate.tolist(), rows.samples) == ([4], [4], 1)


@given(jobs)
def test_mini_batches_walk_every_row_once_an_epoch(job):
    train = np.arange(100, 133)
    batches = list(mini_batches(job, train))
    per_epoch = -(-33 // job.batch)
    assert len(batches) == per_epoch * job.epochs
    for epoch in range(job.epochs):
        walked = np.concatenate(batches[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(walked) == list(range(100, 133))


def test_every_epoch_has_its_own_order(make_job):
    batches = list(mini_batches(make_job(START, batch=50, epochs=3), np.arange(50)))
    assert len({tuple(batch) for batch in batches}) == 3


@pytest.mark.parametrize(
    ("rows", "batch", "sizes"), [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_a_last_single_row_can_be_left_out(make_job, rows, batch, sizes):
    batches = mini_batches(make_job(START, batch=batch), np.arange(rows), drop_single=True)
    assert [chunk.size for chunk in batches] == sizes


class TestRowSource:
    HERE = Dataset(x=np.zeros((6, 2), np.float32), y=np.arange(6))
    SENT = Dataset(x=np.ones((4, 2), np.float32), y=np.arange(4))

    def test_positions_become_rows_of_the_training_set(self, make_job):
        source = RowSource(self.HERE, np.array([5, 3, 1]), None)
        data, rows = source.draw(make_job(START, sampling="kept", rows=((1, 3),)))
        assert data is self.HERE
        assert {*rows.train, *rows.gate} == {3, 1}

    def test_a_shipped_shard_is_all_the_jobs_and_fetched_once(self, make_job):
        asked = []

        def lookup(digest):
            asked.append(digest)
            return self.SENT.x, self.SENT.y

        source = RowSource(None, np.arange(0), lookup)
        for _ in range(2):
            data, rows = source.draw(make_job(START, shard="ab", rows=((900, 950),)))
            assert data.rows == 4
            assert sorted([*rows.train, *rows.gate]) == [0, 1, 2, 3]
        assert asked == ["ab"]

    @pytest.mark.parametrize("shard", ["", "ab"])
    def test_a_job_for_rows_that_are_not_here_is_refused(self, make_job, shard):
        with pytest.raises(ProtocolError):
            RowSource(None, np.arange(0), None).draw(make_job(START, shard=shard))

    def test_a_walk_goes_over_the_rows_allotted_and_its_probe_over_the_next(self, make_job):
        source = RowSource(self.HERE, np.array([5, 3, 1, 0]), None)
        order = np.array([3, 1, 0])[shuffled((9, 0), "walk", 3)]
        probe = Probe(base=START, origin=START, weight=0.1, rows=5)
        job = make_job(START, sampling="walk", rows=((1, 4),), steps=1, batch=2, walked=0, probe=probe)
        data, rows = source.draw(job)
        assert data is self.HERE
        assert rows.train.tolist() == order[:2].tolist()
        assert rows.gate.tolist() == order[2:].tolist()
        assert rows.samples == 2
        assert [batch.tolist() for batch in mini_batches(job, rows.train, drop_single=True)] == [order[:2].tolist()]

    def test_siblings_share_the_data_and_have_pools_of_their_own(self, make_job):
        source = RowSource(self.HERE, np.arange(6), {"ab": (self.SENT.x, self.SENT.y)}.__getitem__)
        sibling = source.sharing(np.array([4]), None)
        data, rows = sibling.draw(make_job(START, sampling="walk", steps=1, batch=9))
        assert data is self.HERE
        assert rows.train.tolist() == [4]
        assert sibling.draw(make_job(START, shard="ab"))[0].rows == 4


class TestPieces:
    WHOLE = Dataset(x=np.arange(20, dtype=np.float32).reshape(10, 2), y=np.arange(10))

    @pytest.fixture
    def shipped(self):
        """A source, the digests it asked for, and those it checked the rows of."""
        asked, checked = [], []
        cuts = {"a": slice(0, 4), "b": slice(4, 5), "c": slice(5, 10)}

        def lookup(digest):
            asked.append(digest)
            return self.WHOLE.x[cuts[digest]], self.WHOLE.y[cuts[digest]]

        return RowSource(None, np.arange(0), lookup, checked.append), asked, checked

    @pytest.fixture
    def walk_job(self, make_job):
        return lambda *shards: make_job(
            START, sampling="walk", steps=3, batch=4, walked=6, shards=shards, rows=((70, 80),)
        )

    def test_pieces_in_order_are_the_rows_they_were_cut_from(self, shipped, walk_job, make_job):
        sent, rows = shipped[0].draw(walk_job("a", "b", "c"))
        assert np.array_equal(sent.x, self.WHOLE.x)
        assert np.array_equal(sent.y, self.WHOLE.y)
        here = RowSource(self.WHOLE, np.arange(10), None)
        _, expected = here.draw(make_job(START, sampling="walk", steps=3, batch=4, walked=6))
        assert rows.train.tolist() == expected.train.tolist()

    def test_the_order_is_the_jobs(self, shipped, walk_job):
        assert shipped[0].draw(walk_job("c", "a"))[0].y.tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3]

    def test_growing_piece_by_piece_each_is_fetched_and_checked_once(self, shipped, walk_job):
        source, asked, checked = shipped
        for shards in (("a",), ("a",), ("a", "b"), ("a", "b"), ("a", "b", "c")):
            source.draw(walk_job(*shards))
        assert asked == ["a", "b", "c"]
        assert [piece.rows for piece in checked] == [4, 1, 5]

    def test_pieces_no_longer_named_are_let_go(self, shipped, walk_job):
        source, asked, _ = shipped
        for shards in (("a", "b"), ("b",), ("a", "b")):
            source.draw(walk_job(*shards))
        assert asked == ["a", "b", "a"]

    def test_rows_are_in_memory_once(self, shipped, walk_job):
        source = shipped[0]
        data, _ = source.draw(walk_job("a", "b", "c"))
        assert all(np.shares_memory(piece.x, data.x) for piece in source._pieces.values())

    def test_one_draw_after_another_gives_the_same_object(self, shipped, walk_job):
        source = shipped[0]
        assert source.draw(walk_job("a", "b"))[0] is source.draw(walk_job("a", "b"))[0]

    @pytest.mark.parametrize("x", [np.ones((2, 3), np.float32), np.ones((2, 2), np.uint8)])
    def test_pieces_of_different_kinds_are_the_peers_fault(self, walk_job, x):
        pieces = {"a": (self.WHOLE.x, self.WHOLE.y), "b": (x, np.zeros(2, np.int64))}
        with pytest.raises(ProtocolError) as caught:
            RowSource(None, np.arange(0), pieces.__getitem__).draw(walk_job("a", "b"))
        assert caught.value.reason == "shard"
