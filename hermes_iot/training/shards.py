"""Rows on the wire, for fleets whose coordinator ships the data: two .npy arrays, x then y, one after the other.

The .npy format is numpy's own and documented, and `numpy.load` in a loop reads a saved shard. Its header is a Python
literal, which numpy's reader evaluates; a header from the network is matched against a pattern instead, and the size
it declares is compared with the bytes that came before anything is allocated. Object arrays (pickles) match no pattern.
"""

from __future__ import annotations

import io
import math
import re
from typing import Final

import numpy as np

from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.training.data import Array, Dataset

#: Larger shards are refused on both sides; the transport's own limit on a transfer is usually lower.
SHARD_BYTES_MAX: Final = 512 * 1024 * 1024

_MAGIC: Final = b"\x93NUMPY\x01\x00"
_PREFIX: Final = len(_MAGIC) + 2  # then the header's length, 2 bytes, little endian
_HEADER_BYTES_MAX: Final = 512
_HEADER: Final = re.compile(
    rb"\{'descr': '(?P<dtype>\|u1|<i8|<f4)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[1-9][0-9]{0,9},(?: [1-9][0-9]{0,9},){0,6}(?: [1-9][0-9]{0,9})?)\), \} *\n"
)


def encode_shard(x: Array, y: Array) -> bytes:
    """Rows as bytes.

    Raises:
        UsageError: the arrays are no valid `Dataset`, or larger than `SHARD_BYTES_MAX`.
    """
    shard = Dataset(x=x, y=y)
    if shard.x.nbytes + shard.y.nbytes + 2 * (_PREFIX + _HEADER_BYTES_MAX) > SHARD_BYTES_MAX:
        raise UsageError(f"a shard of {shard.x.nbytes + shard.y.nbytes} bytes is too large to ship")
    out = io.BytesIO()
    for array in (shard.x, shard.y):
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        np.lib.format.write_array(out, little, version=(1, 0), allow_pickle=False)
    return out.getvalue()


def decode_shard(data: bytes) -> tuple[Array, Array]:
    """Bytes as (x, y); the arrays may be read-only views of `data`.

    Raises:
        ProtocolError: with reason "size", "schema" or "finite".
    """
    if len(data) > SHARD_BYTES_MAX:
        raise ProtocolError("size", f"a shard of {len(data)} bytes is over the limit of {SHARD_BYTES_MAX}")
    x, end = _read(data, 0)
    y, end = _read(data, end)
    if end != len(data):
        raise ProtocolError("size", f"{len(data) - end} bytes follow a shard's two arrays")
    try:
        shard = Dataset(x=x, y=y)
    except UsageError as error:
        raise ProtocolError("schema", f"a shard's arrays do not fit: {error}") from error
    return shard.x, shard.y


def _read(data: bytes, start: int) -> tuple[Array, int]:
    if data[start : start + len(_MAGIC)] != _MAGIC:
        raise ProtocolError("schema", "a shard's array does not begin as .npy version 1.0 does")
    header_bytes = int.from_bytes(data[start + len(_MAGIC) : start + _PREFIX], "little")
    body = start + _PREFIX + header_bytes
    if header_bytes > _HEADER_BYTES_MAX or body > len(data):
        raise ProtocolError("size", f"a shard's header declares {header_bytes} bytes")
    header = _HEADER.fullmatch(data[start + _PREFIX : body])
    if header is None:
        raise ProtocolError("schema", "a shard's header is not one we write: dtype, order or shape")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(size) for size in header["shape"].split(b",") if size.strip())
    count = math.prod(shape)
    end = body + count * dtype.itemsize
    if end > len(data):
        raise ProtocolError("size", f"a shard's array declares {count * dtype.itemsize} bytes, {len(data) - body} came")
    array = np.frombuffer(data, dtype=dtype, count=count, offset=body).reshape(shape)
    array = np.require(array, dtype=dtype.newbyteorder("="), requirements="A")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ProtocolError("finite", "a shard holds NaN or infinite values")
    return array, end
