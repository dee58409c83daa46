import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.training.data import (
    Dataset,
    TaskData,
    lay_out,
    normalise,
    permutation,
    positions,
    seed63,
    sha256,
    sha256_of_all,
    shuffled,
)

X = np.arange(12, dtype=np.float64).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 0, 1])


def a_set(rows: int) -> Dataset:
    return Dataset(x=np.arange(rows, dtype=np.int64), y=np.arange(rows, dtype=np.int64))


class TestNormalise:
    def test_a_pair_is_a_training_set_in_storage_types(self):
        data = normalise((X, Y.astype(np.int16)), origin="task t")
        assert data.train.x.dtype == np.float32
        assert data.train.y.dtype == np.int64
        assert np.array_equal(data.train.x, X)
        assert data.test is None
        assert data.validation is None

    def test_four_arrays_bring_a_test_set(self):
        data = normalise((X, Y, X[:2], Y[:2]), origin="task t")
        assert data.test is not None
        assert data.test.rows == 2

    def test_a_mapping_names_its_splits(self):
        data = normalise({"train": (X, Y), "test": (X[:2], Y[:2]), "validation": [X[:1], Y[:1]]}, origin="task t")
        assert data.validation is not None
        assert (data.train.rows, data.validation.rows) == (6, 1)

    def test_torch_tensors_are_taken_gradients_and_all(self):
        x = torch.ones(6, 2, dtype=torch.float64, requires_grad=True)
        assert normalise((x, torch.zeros(6, dtype=torch.int32)), origin="t").train.x.dtype == np.float32

    def test_uint8_images_stay_bytes_and_uint8_labels_do_not(self):
        data = normalise((np.zeros((6, 3), np.uint8), np.zeros(6, np.uint8)), origin="t")
        assert data.train.x.dtype == np.uint8
        assert data.train.y.dtype == np.int64

    def test_booleans_are_numbers_as_inputs_and_classes_as_targets(self):
        data = normalise((X > 3, Y > 0), origin="t")
        assert data.train.x.dtype == np.float32
        assert data.train.y.dtype == np.int64

    def test_a_column_of_labels_is_a_vector_of_labels(self):
        assert normalise((X, Y.reshape(6, 1)), origin="t").train.y.shape == (6,)

    def test_a_column_of_regression_targets_keeps_its_shape(self):
        assert normalise((X, X[:, :1]), origin="t").train.y.shape == (6, 1)

    def test_foreign_byte_order_is_made_native(self):
        assert normalise((X.astype(">f4"), Y.astype(">i4")), origin="t").train.x.dtype.isnative

    @pytest.mark.parametrize(
        ("loaded", "names"),
        [
            (None, "NoneType"),
            (X, "float64 (6, 2)"),
            ((X, Y, X), "a tuple of 3"),
            ((X, Y.tolist()), "a list"),
            ((X, Y[:5]), "x has 6 rows but y has 5"),
            ((X[:0], Y[:0]), "empty"),
            ((X.astype(object), Y), "object (6, 2)"),
            ((X, np.array(["a"] * 6)), "<U1 (6,)"),
            ((X * 1j, Y), "complex128"),
            ((X * np.nan, Y), "NaN"),
            ((np.full((6, 2), 1e300), Y), "infinite"),
            ((np.float32(1), Y), "a float32"),
            ((np.array(1.0), Y), "float64 ()"),
            ({"test": (X, Y)}, "'test'"),
            ({"train": (X, Y), "tests": (X, Y)}, "'tests'"),
            ({"train": (X, Y, Y)}, "a tuple of 3"),
        ],
    )
    def test_anything_else_is_refused_saying_what_came(self, loaded, names):
        with pytest.raises(UsageError) as caught:
            normalise(loaded, origin="task room.py")
        assert names in str(caught.value)
        assert "task room.py" in str(caught.value)


def test_a_data_set_of_another_type_is_refused_at_birth():
    with pytest.raises(UsageError, match="float64"):
        Dataset(x=X, y=Y)


class TestDigest:
    BASE = TaskData(train=Dataset(x=X.astype(np.float32), y=Y))

    def test_it_is_the_same_for_equal_data_whatever_the_memory_layout(self):
        again = Dataset(x=np.asfortranarray(self.BASE.train.x), y=self.BASE.train.y.copy())
        assert sha256(TaskData(train=again)) == sha256(self.BASE)

    def test_one_changed_value_type_or_shape_changes_it(self):
        x, y = self.BASE.train.x, self.BASE.train.y
        nudged = x.copy()
        nudged[3, 1] += 1
        others = [Dataset(x=nudged, y=y), Dataset(x=x.reshape(6, 1, 2), y=y), Dataset(x=x, y=y.astype(np.float32))]
        assert len({sha256(TaskData(train=other)) for other in [*others, self.BASE.train]}) == 4

    def test_test_rows_do_not_count(self):
        assert sha256(TaskData(train=self.BASE.train, test=a_set(2))) == sha256(self.BASE)

    def test_every_row_of_every_split_counts_where_all_do(self):
        train = self.BASE.train
        splits = [{}, {"test": a_set(2)}, {"validation": a_set(2)}, {"test": a_set(3)}, {"validation": train}]
        every = [*(TaskData(train=train, **one) for one in splits), TaskData(train=a_set(2))]
        assert len({sha256_of_all(one) for one in every}) == len(every)
        assert sha256_of_all(TaskData(train=train, test=a_set(2))) == sha256_of_all(every[1])


class TestShuffles:
    def test_the_run_order_is_frozen(self):
        # A change here means that boards with different versions train on one another's held-out rows.
        assert permutation(7, 10).tolist() == [2, 9, 1, 0, 6, 7, 3, 5, 8, 4]

    def test_key_length_and_purpose_matter(self):
        orders = [shuffled(key, "a", 50).tolist() for key in [(), (0,), (1,), (1, 0), (0, 1)]]
        assert len({str(order) for order in [*orders, shuffled((1,), "b", 50).tolist()]}) == 6

    @given(st.integers(0, 2**64), st.integers(0, 300))
    def test_every_row_comes_once(self, seed, rows):
        assert sorted(permutation(seed, rows)) == list(range(rows))

    def test_seeds_fit_63_bits_and_differ_by_key(self):
        seeds = {seed63((key,), "torch") for key in range(100)}
        assert len(seeds) == 100
        assert all(0 <= seed < 2**63 for seed in seeds)


class TestPositions:
    def test_no_range_means_every_row(self):
        assert positions((), 3).tolist() == [0, 1, 2]

    def test_ranges_keep_their_order(self):
        assert positions(((4, 6), (0, 2)), 10).tolist() == [4, 5, 0, 1]

    @pytest.mark.parametrize(
        "ranges", [((0, 11),), ((-1, 2),), ((3, 2),), ((0, 3), (2, 4)), ((5, 9), (0, 6)), ((2, 2),), ((0, 10**18),)]
    )
    def test_ranges_that_leave_the_pool_overlap_or_name_nothing_are_refused(self, ranges):
        with pytest.raises(ProtocolError) as caught:
            positions(ranges, 10)
        assert caught.value.reason == "rows"


class TestLayOut:
    @given(st.integers(10, 400), st.integers(0, 5), st.sampled_from([0.0, 0.1, 0.3]), st.booleans())
    def test_every_row_is_held_out_or_allottable_and_never_both(self, rows, seed, fraction, brings_test):
        data = TaskData(train=a_set(rows), test=a_set(3) if brings_test else None)
        layout = lay_out(data, seed=seed, validation_fraction=fraction)
        parts = [layout.pool.tolist()]
        parts += [split.y.tolist() for split in (layout.validation, None if brings_test else layout.test) if split]
        assert sorted(itertools.chain.from_iterable(parts)) == list(range(rows))
        if fraction:
            assert layout.validation is not None
            assert layout.validation.rows == max(1, round(fraction * rows))

    def test_splits_a_task_brings_cost_no_training_row(self):
        data = TaskData(train=a_set(20), validation=a_set(2), test=a_set(3))
        layout = lay_out(data, seed=0, validation_fraction=0.1)
        assert layout.pool.size == 20
        assert layout.validation is data.validation

    def test_nothing_held_out_leaves_no_split(self):
        layout = lay_out(TaskData(train=a_set(4)), seed=0, validation_fraction=0)
        assert (layout.pool.size, layout.validation, layout.test) == (4, None, None)

    @given(st.integers(0, 50), st.integers(1, 60))
    def test_a_devices_own_rows_never_include_what_the_whole_fleet_holds_out(self, start, length):
        data = TaskData(train=a_set(120))
        whole = lay_out(data, seed=3, validation_fraction=0.1)
        own = lay_out(data, seed=3, validation_fraction=0.1, rows=slice(start, start + length + 20))
        assert set(own.pool) == set(whole.pool) & set(range(start, start + length + 20))
        assert whole.validation is not None
        assert own.validation is not None
        assert own.validation.y.tolist() == whole.validation.y.tolist()

    def test_shares_of_the_pool_allot_every_row_once(self):
        layout = lay_out(TaskData(train=a_set(100)), seed=1, validation_fraction=0.1)
        shares = [layout.allotted(ranges) for ranges in (((0, 30), (60, 80)), ((30, 60),))]
        assert sorted(np.concatenate(shares)) == sorted(layout.pool)

    @pytest.mark.parametrize("fraction", [-0.1, 0.5, float("nan")])
    def test_an_impossible_fraction_is_refused(self, fraction):
        with pytest.raises(UsageError, match="validation_fraction"):
            lay_out(TaskData(train=a_set(9)), seed=0, validation_fraction=fraction)

    @pytest.mark.parametrize(("rows", "own"), [(1, None), (2, None), (9, slice(9, 12))])
    def test_no_row_left_is_an_error(self, rows, own):
        with pytest.raises(UsageError, match="no row is left"):
            lay_out(TaskData(train=a_set(rows)), seed=0, validation_fraction=0.1, rows=own)
