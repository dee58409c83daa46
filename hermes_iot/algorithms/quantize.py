"""A float32 vector as int8 or int4 codes, one float32 scale to every 1024 entries.

Body: all scales, little-endian, then the codes. int4 codes are two's complement nibbles, the lower nibble first, and
with an odd number of them the last nibble is 0. A block's scale is max|x| / 127 or / 7, a code is x / scale rounded to
nearest, halves to even, and what comes back is scale * code, so no entry moves by more than half a scale.

Every machine decodes to the same bits: one float32 product of two normal numbers, on which boards that flush
denormals agree with those that do not. Therefore a scale is a normal number. A block of zeros, or one whose scale would
be smaller (every |x| below 2e-36), is sent as zeros with scale 1. At the other end 127 * (max / 127) may round up to
infinity; the scale stops one step of float32 short of that.

A vector that was decoded once is encoded to itself. This rests on 127 and 7 being one less than a power of two: then
dividing the largest entry once more gives the scale that made it.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import Params
from hermes_iot.errors import ProtocolError

#: Entries that share a scale. 4 bytes in 1024 entries are 0.8 % of an int4 body.
BLOCK: Final = 1024

#: The largest code. -128 and -8 are never written: both signs reach equally far.
INT8_MAX: Final = 127
INT4_MAX: Final = 7

#: The smallest scale: the smallest normal float32.
_SCALE_MIN: Final = np.finfo(np.float32).tiny


def scale_bytes(size: int) -> int:
    """Length of the scales of so many entries."""
    return -(-size // BLOCK) * 4


def int8_bytes(size: int) -> int:
    """Length of an int8 body."""
    return scale_bytes(size) + size


def int4_bytes(size: int) -> int:
    """Length of an int4 body."""
    return scale_bytes(size) + (size + 1) // 2


def to_int8(vector: Params) -> bytes:
    """Encode a finite vector of shape (P,)."""
    scales, codes = _quantized(vector, INT8_MAX)
    return scales + codes[: vector.size].tobytes()


def from_int8(body: bytes | bytearray | memoryview, size: int, offset: int = 0) -> Params:
    """Decode `int8_bytes(size)` bytes from `offset` on, which must be there, to a new vector of shape (size,).

    Raises:
        ProtocolError: a scale or a code that `to_int8` never writes (reason ``schema``).
    """
    codes = np.frombuffer(body, dtype=np.int8, count=size, offset=offset + scale_bytes(size))
    return _scaled(codes, body, offset, INT8_MAX)


def to_int4(vector: Params) -> bytes:
    """Encode a finite vector of shape (P,)."""
    scales, codes = _quantized(vector, INT4_MAX)
    return scales + nibbles(codes, vector.size)


def from_int4(body: bytes | bytearray | memoryview, size: int) -> Params:
    """Decode a body of `int4_bytes(size)` bytes to a new vector of shape (size,).

    Raises:
        ProtocolError: a scale, a code or a last nibble that `to_int4` never writes (reason ``schema``).
    """
    pairs = np.frombuffer(body, dtype=np.int8, count=(size + 1) // 2, offset=scale_bytes(size))
    codes = np.empty(2 * pairs.size, dtype=np.int8)
    # Shifting an int8 to the right repeats its sign.
    codes[0::2] = (pairs << 4) >> 4
    codes[1::2] = pairs >> 4
    if codes[size:].any():
        raise ProtocolError("schema", "the nibble after the last code is not 0")
    return _scaled(codes[:size], body, 0, INT4_MAX)


def blocks_of(vector: Params) -> Params:
    """A copy in blocks, shape (blocks, `BLOCK`), the last padded with zeros."""
    padded = np.zeros(-(-vector.size // BLOCK) * BLOCK, dtype=np.float32)
    padded[: vector.size] = vector
    return padded.reshape(-1, BLOCK)


def steps(wanted: Params, largest: int) -> Params:
    """Wanted scales, shape (blocks,), brought to what may be sent with codes up to `largest`; changed in place."""
    wanted[wanted < _SCALE_MIN] = 1
    return np.minimum(wanted, _scale_max(largest), out=wanted)


def nibbles(codes: NDArray[np.int8], size: int) -> bytes:
    """The first `size` codes, from -7 to 7, two to a byte; padded with zeros to whole blocks, so the last nibble is 0."""
    unsigned = codes.view(np.uint8)
    pairs = (unsigned[0::2] & 0x0F) | (unsigned[1::2] << 4)
    return pairs[: (size + 1) // 2].tobytes()


@cache
def _scale_max(largest: int) -> np.float32:
    """The largest scale: its product with the largest code is finite, while the next one's may not be."""
    return np.float32(np.nextafter(np.finfo(np.float32).max / np.float32(largest), np.float32(0)))


def _quantized(vector: Params, largest: int) -> tuple[bytes, NDArray[np.int8]]:
    """The scales as bytes, and the codes padded with zeros to whole blocks."""
    blocks = blocks_of(vector)
    scales = steps(np.maximum(blocks.max(axis=1), -blocks.min(axis=1)) / np.float32(largest), largest)
    blocks /= scales[:, np.newaxis]
    return scales.astype("<f4").tobytes(), np.rint(blocks, out=blocks).astype(np.int8).ravel()


def _scaled(codes: NDArray[np.int8], body: bytes | bytearray | memoryview, offset: int, largest: int) -> Params:
    """Codes times the scales that stand in the body from `offset` on."""
    size = codes.size
    scales = np.frombuffer(body, dtype="<f4", count=-(-size // BLOCK), offset=offset)
    # Also false for NaN.
    if not ((scales >= _SCALE_MIN) & (scales <= _scale_max(largest))).all():
        raise ProtocolError("schema", f"a scale is not within what blocks of codes up to {largest} can have")
    if size and codes.min() < -largest:
        raise ProtocolError("schema", f"a code is below -{largest}")
    vector = codes.astype(np.float32)
    whole = size // BLOCK
    blocks = vector[: whole * BLOCK].reshape(whole, BLOCK)
    blocks *= scales[:whole, np.newaxis]
    # One scale is left for the entries after the last whole block, or there are neither.
    vector[whole * BLOCK :] *= scales[whole:]
    return vector
