from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms.aggregation import (
    blend,
    displaced,
    fold_displacement,
    loss_weighted,
    update_weight,
    weighted_mean,
)
from hermes_iot.algorithms.trees import BLOCK

repeatable = settings(derandomize=True, deadline=None)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
pairs = st.integers(0, 20).flatmap(
    lambda size: st.tuples(
        hnp.arrays(np.float32, size, elements=finite32), hnp.arrays(np.float32, size, elements=finite32)
    )
)
finite_losses = st.floats(allow_nan=False, allow_infinity=False)


def vector(*values):
    return np.array(values, dtype=np.float32)


def test_each_model_counts_by_the_inverse_of_its_loss():
    # 1/L_g = 1, 1/L_i = 3: a quarter of ours, three quarters of theirs
    merged, weight = loss_weighted(vector(0, 8, -4), 1.0, vector(4, 0, -4), 1 / 3)
    assert weight == pytest.approx(0.75)
    assert merged.tolist() == [3.0, 2.0, -4.0]
    assert merged.dtype == np.float32


def test_equal_losses_give_the_mean():
    merged, weight = loss_weighted(vector(1, 2), 0.7, vector(3, 5), 0.7)
    assert weight == 0.5
    assert merged.tolist() == [2.0, 3.5]


@repeatable
@given(ours=st.floats(1e-6, 1e6), theirs=st.floats(1e-6, 1e6))
def test_the_weight_is_the_papers_formula(ours, theirs):
    assert update_weight(ours, theirs) == pytest.approx((1 / theirs) / (1 / ours + 1 / theirs), rel=1e-12)


@repeatable
@given(ours=st.floats(), theirs=finite_losses)
def test_a_finite_loss_has_a_weight_strictly_between_0_and_1(ours, theirs):
    assert 0 < update_weight(ours, theirs) < 1


@repeatable
@given(ours=st.floats(1e-6, 1e6), better=st.floats(1e-6, 1e6), worse=st.floats(1e-6, 1e6))
def test_a_smaller_loss_never_weighs_less(ours, better, worse):
    better, worse = sorted((better, worse))
    assert update_weight(ours, better) >= update_weight(ours, worse)


def test_losses_are_clamped_before_they_are_inverted():
    assert update_weight(1.0, 0.0) == update_weight(1.0, -5.0) == update_weight(1.0, 1e-6)
    assert update_weight(0.0, 1.0) == update_weight(1e-6, 1.0)
    assert update_weight(1.0, 1e30) == update_weight(1.0, 1e6)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_an_update_whose_loss_is_not_finite_is_left_out_whatever_it_holds(loss):
    model = vector(1, 2)
    merged, weight = loss_weighted(model, 1.0, vector(math.nan, math.inf), loss)
    assert weight == 0.0
    assert merged.tolist() == [1.0, 2.0]
    assert merged is not model


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_global_model_whose_loss_is_not_finite_counts_as_the_worst(loss):
    assert update_weight(loss, 1.0) == pytest.approx(1e6 / (1e6 + 1))


@repeatable
@given(pair=pairs, ours=st.floats(), theirs=st.floats())
def test_every_coordinate_lies_between_its_two_origins_and_is_never_nan(pair, ours, theirs):
    model, update = pair
    merged, _ = loss_weighted(model, ours, update, theirs)
    assert np.all(merged >= np.minimum(model, update))
    assert np.all(merged <= np.maximum(model, update))


@repeatable
@given(pair=pairs, weight=st.floats(0, 1))
def test_equal_vectors_blend_to_themselves(pair, weight):
    assert blend(pair[0], pair[0].copy(), weight).tolist() == pair[0].tolist()


def test_a_vector_longer_than_a_block_is_merged_like_a_short_one_and_the_same_every_time():
    rng = np.random.default_rng(7)
    model, update = rng.standard_normal((2, 2 * BLOCK + 3)).astype(np.float32)
    merged = blend(model, update, 0.3)
    exact = 0.7 * model.astype(np.float64) + 0.3 * update.astype(np.float64)
    np.testing.assert_allclose(merged, exact, rtol=6e-8, atol=1e-12)
    assert merged.tobytes() == blend(model, update, 0.3).tobytes()
    assert merged[-5:].tobytes() == blend(model[-5:], update[-5:], 0.3).tobytes()


def test_merging_changes_neither_of_its_arguments():
    model, update = vector(1, 2), vector(3, 4)
    loss_weighted(model, 1.0, update, 2.0)
    assert (model.tolist(), update.tolist()) == ([1, 2], [3, 4])


@pytest.mark.parametrize(
    ("model", "update"),
    [
        (vector(1), vector(1, 2)),
        (vector(1, 2), vector(1)),
        (vector(1), np.ones(1)),
        (np.ones(1), vector(1)),
        (np.ones((1, 1), np.float32), np.ones((1, 1), np.float32)),
    ],
)
def test_vectors_that_do_not_fit_are_a_programming_error(model, update):
    with pytest.raises(ValueError, match="flat float32 vectors of one length"):
        loss_weighted(model, 1.0, update, math.nan)
    with pytest.raises(ValueError, match="flat float32 vectors of one length"):
        fold_displacement(model, model, update)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_outside_its_range_is_a_programming_error(weight):
    with pytest.raises(ValueError, match="not in"):
        blend(vector(1), vector(2), weight)


def test_the_displacement_adds_up_over_restarts():
    # from 10 to 13, then restarted at 20 and trained to 19: moved by 3 - 1
    total = fold_displacement(vector(0), vector(13), vector(10))
    assert fold_displacement(total, vector(19), vector(20)).tolist() == [2.0]


# --- means and displacements ------------------------------------------------------------------------------------------


def test_a_weighted_mean_counts_by_the_weights():
    # (2*1 + 1*4 + 1*2) / 4 = 2, (2*0 + 1*8 - 1*4) / 4 = 1
    merged = weighted_mean([vector(1, 0), vector(4, 8), vector(2, -4)], [2, 1, 1])
    assert merged.tolist() == [2.0, 1.0]
    assert merged.dtype == np.float32


def test_a_mean_is_summed_in_float64():
    # In float32, 1e8 + 1 is 1e8.
    assert weighted_mean([vector(1e8), vector(1), vector(-1e8)], [1, 1, 1]).tolist() == [np.float32(1 / 3)]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1e308, 1e308], [1e-308, 1e-308]])
def test_only_the_ratio_of_weights_counts(weights):
    assert weighted_mean([vector(1, 2), vector(3, 5)], weights).tolist() == [2.0, 3.5]


@repeatable
@given(pairs, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_mean_lies_between_its_origins(pair, one, other):
    kept = [vector.copy() for vector in pair]
    merged = weighted_mean(pair, [one, other])
    assert np.all(np.minimum(*pair) <= merged)
    assert np.all(merged <= np.maximum(*pair))
    assert all(np.array_equal(vector, before) for vector, before in zip(pair, kept, strict=True))


@pytest.mark.parametrize(
    ("vectors", "weights"),
    [
        ([], []),
        ([vector(1)], []),
        ([vector(1)], [0]),
        ([vector(1)], [-1]),
        ([vector(1)], [math.nan]),
        ([vector(1)], [math.inf]),
        ([vector(1), vector(1, 2)], [1, 1]),
        ([np.ones(1)], [1]),
    ],
)
def test_what_has_no_mean_is_refused(vectors, weights):
    with pytest.raises(ValueError):  # noqa: PT011 - each of the causes has its own words
        weighted_mean(vectors, weights)


def test_displacements_are_added_at_their_scale():
    model, one, other = vector(1, 1), vector(4, 0), vector(0, -2)
    assert displaced(model, [one, other], [0.5, 0.25]).tolist() == [3.0, 0.5]
    assert (model.tolist(), one.tolist(), other.tolist()) == ([1, 1], [4, 0], [0, -2])


def test_displacements_longer_than_a_block_are_added_throughout():
    size = BLOCK + 3
    moved = displaced(np.ones(size, np.float32), [np.full(size, 2, np.float32)], [0.5])
    assert np.array_equal(moved, np.full(size, 2, np.float32))


def test_a_displacement_out_of_float32_is_infinite_and_warns_nobody():
    assert displaced(vector(3e38), [vector(3e38)], [1.0]).tolist() == [math.inf]


def test_a_displacement_of_another_length_is_refused():
    with pytest.raises(ValueError, match="one length"):
        displaced(vector(1, 2), [vector(1)], [1.0])
