from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.algorithms.trees import BLOCK, is_finite, norm, sha256, views
from hermes_iot.domain import ModelSignature, TensorSpec

repeatable = settings(derandomize=True, deadline=None)
SIGNATURE = ModelSignature(
    tensors=(
        TensorSpec(name="weight", shape=(2, 3)),
        TensorSpec(name="scale", shape=()),
        TensorSpec(name="none", shape=(0, 4)),
        TensorSpec(name="bias", shape=(2,)),
    )
)


def arrays():
    return [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.float32(6).reshape(()),
        np.empty((0, 4), dtype=np.float32),
        np.array([7, 8], dtype=np.float32),
    ]


def test_views_are_the_tensors_and_share_the_vectors_memory():
    vector = np.arange(9, dtype=np.float32)
    tensors = views(vector, SIGNATURE)
    assert list(tensors) == ["weight", "scale", "none", "bias"]
    for array, spec in zip(arrays(), SIGNATURE.tensors, strict=True):
        np.testing.assert_array_equal(tensors[spec.name], array)
    tensors["scale"][...] = 60
    tensors["bias"][1] = 80
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 60, 7, 80]


@repeatable
@given(shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5), seed=st.integers(0, 99))
def test_views_cover_the_whole_vector_in_the_signatures_order(shapes, seed):
    signature = ModelSignature(tensors=tuple(TensorSpec(name=str(at), shape=s) for at, s in enumerate(shapes)))
    vector = np.random.default_rng(seed).standard_normal(signature.parameters).astype(np.float32)
    tensors = views(vector, signature)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {str(at): s for at, s in enumerate(shapes)}
    assert b"".join(tensor.tobytes() for tensor in tensors.values()) == vector.tobytes()


def test_what_does_not_follow_the_signature_is_a_programming_error():
    for vector in (np.zeros(8, np.float32), np.zeros((3, 3), np.float32), np.zeros(18, np.float32)[::2]):
        with pytest.raises(ValueError, match="contiguous vector of 9"):
            views(vector, SIGNATURE)
    twice = ModelSignature(tensors=(TensorSpec(name="w", shape=(1,)), TensorSpec(name="w", shape=(1,))))
    with pytest.raises(ValueError, match="share a name"):
        views(np.zeros(2, np.float32), twice)


def test_the_norm_is_the_euclidean_length():
    assert norm(np.array([3, -4], np.float32)) == 5.0
    assert norm(np.empty(0, np.float32)) == 0.0


def test_the_norm_neither_overflows_nor_loses_small_entries():
    assert norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30)
    many = np.full(3 * BLOCK, 1e-4, np.float32)
    many[0] = 1.0
    assert norm(many) == pytest.approx(math.sqrt(1 + (3 * BLOCK - 1) * 1e-8), rel=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_is_found(bad):
    vector = np.full(100_001, 3e38, np.float32)  # whose sum is infinite
    assert is_finite(vector)
    vector[77_777] = bad
    assert not is_finite(vector)


def test_two_infinities_do_not_cancel_and_nothing_is_finite():
    assert not is_finite(np.array([math.inf, -math.inf], np.float32))
    assert is_finite(np.empty(0, np.float32))


def test_the_digest_is_of_the_little_endian_bytes():
    expected = hashlib.sha256(struct.pack("<3f", 1.0, -2.5, 0.0)).hexdigest()
    vector = np.array([1.0, -2.5, 0.0], np.float32)
    assert sha256(vector) == sha256(vector.astype(">f4")) == expected
    assert sha256(np.repeat(vector, 2)[::2]) == expected


def test_the_digest_tells_plus_from_minus_zero():
    assert sha256(np.array([0.0], np.float32)) != sha256(np.array([-0.0], np.float32))
