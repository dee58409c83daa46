import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.training.shards import decode_shard, encode_shard

SHARD = encode_shard(np.arange(12, dtype=np.uint8).reshape(3, 4), np.array([0, 1, 2]))


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body


def refusal(data: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode_shard(data)
    return caught.value.reason


@given(
    st.integers(1, 5),
    st.sampled_from([np.uint8, np.int64, np.float32]),
    st.lists(st.integers(1, 4), max_size=3),
    st.data(),
)
def test_rows_come_back_as_they_were_sent(rows, dtype, shape, data):
    elements = st.floats(-10, 10, width=32) if dtype == np.float32 else None
    x = data.draw(hnp.arrays(dtype, (rows, *shape), elements=elements))
    y = data.draw(hnp.arrays(np.int64, (rows,)))
    x_again, y_again = decode_shard(encode_shard(x, y))
    assert x_again.dtype == x.dtype
    assert np.array_equal(x_again, x)
    assert np.array_equal(y_again, y)
    assert y_again.flags.aligned


def test_a_shard_is_two_plain_npy_arrays():
    stream = io.BytesIO(SHARD)
    assert np.load(stream, allow_pickle=False).shape == (3, 4)
    assert np.load(stream, allow_pickle=False).tolist() == [0, 1, 2]


def test_non_contiguous_rows_are_encoded_too():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    assert np.array_equal(decode_shard(encode_shard(x, np.zeros(3, np.float32)))[0], x)


def test_arrays_that_are_no_data_set_cannot_be_shipped():
    with pytest.raises(UsageError):
        encode_shard(np.zeros((3, 4), np.float32), np.zeros(2, np.int64))


@pytest.mark.parametrize("length", range(0, len(SHARD), 7))
def test_a_shard_cut_short_is_refused(length):
    assert refusal(SHARD[:length]) in {"size", "schema"}


@given(st.binary(max_size=400))
def test_noise_raises_nothing_but_our_own_error(noise):
    refusal(noise)


@given(st.integers(0, len(SHARD) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_changes_values_only(at, flip):
    damaged = bytearray(SHARD)
    damaged[at] ^= flip
    try:
        x, y = decode_shard(bytes(damaged))
    except ProtocolError:
        return
    assert len(x) == len(y) == 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", b"\x80\x04."), "schema"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }\n", bytes(8)), "schema"),
        (npy("{'descr': '|u1', 'fortran_order': True, 'shape': (1, 1), }\n", bytes(1)), "schema"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }\n"), "schema"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (), }\n", bytes(1)), "schema"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }\n", bytes(1)), "schema"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999,), }\n"), "schema"),
        (npy("__import__('os').system('true')\n"), "schema"),
        (npy("(" * 400), "schema"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 9999999999), }\n", bytes(64)), "size"),
        (npy("x" * 600), "size"),
        (SHARD.replace(b"NUMPY\x01\x00", b"NUMPY\x02\x00"), "schema"),
        (SHARD + b"\x00", "size"),
        (SHARD[: len(SHARD) // 2], "schema"),
        (
            encode_shard(np.array([1.0], np.float32), np.array([1])).replace(b"\x00\x00\x80\x3f", b"\x00\x00\xc0\x7f"),
            "finite",
        ),
    ],
)
def test_hostile_shards_are_refused_with_a_reason(data, reason):
    assert refusal(data) == reason


def test_rows_and_targets_of_different_length_are_refused():
    one = encode_shard(np.zeros((1, 1), np.uint8), np.zeros(1, np.int64))
    two = encode_shard(np.zeros((2, 1), np.uint8), np.zeros(2, np.int64))
    assert refusal(one[:129] + two[130:]) == "schema"


def test_a_huge_declared_size_allocates_nothing():
    bomb = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000, 9), }\n", bytes(32))
    tracemalloc.start()
    refusal(bomb)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 100_000
