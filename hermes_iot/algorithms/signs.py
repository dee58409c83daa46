"""A float32 vector as one bit an entry, and one scale to every 2048 entries: the mean of their magnitudes.

signSGD with error feedback (Karimireddy et al. 2019, arXiv 1901.09847), whose scale this is, blockwise. What is lost is
carried over to the next difference; without that the method need not converge, so a whole model is not sent this way.

Body: all scales, float32, little-endian, then the signs, eight to a byte from the lowest bit on, 1 = negative, unused
bits 0. What comes back is scale or -scale. A scale is 0 or a normal number: a block whose mean would be smaller comes
back as zeros. Decoding is no arithmetic at all, so every machine gets the same bits. With 2048 entries a scale is 1.6 % of
the body. A vector that was decoded once is encoded to itself: the mean of equal numbers is that number, in float64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import Params
from hermes_iot.errors import ProtocolError

#: Entries that share a scale.
BLOCK: Final = 2048

_SCALE_MIN: Final = np.finfo(np.float32).tiny
_SCALE_MAX: Final = np.finfo(np.float32).max
_MINUS: Final = np.uint32(1 << 31)


def sign_bytes(size: int) -> int:
    """Length of a body."""
    return _blocks(size) * 4 + -(-size // 8)


def to_sign(vector: Params) -> bytes:
    """Encode a finite vector of shape (P,)."""
    whole = vector.size // BLOCK * BLOCK
    magnitudes = np.abs(vector)
    means: NDArray[np.float64] = magnitudes[:whole].reshape(-1, BLOCK).mean(axis=1, dtype=np.float64)
    if whole < vector.size:
        means = np.append(means, magnitudes[whole:].mean(dtype=np.float64))
    scales = means.astype(np.float32)
    scales[scales < _SCALE_MIN] = 0
    return scales.astype("<f4").tobytes() + np.packbits(np.signbit(vector), bitorder="little").tobytes()


def from_sign(body: bytes | bytearray | memoryview, size: int) -> Params:
    """Decode `sign_bytes(size)` bytes to a new vector of shape (size,).

    Raises:
        ProtocolError: a scale or an unused bit that `to_sign` never writes (reason ``schema``).
    """
    scales = np.frombuffer(body, dtype="<f4", count=_blocks(size)).astype(np.float32, copy=False)
    # Also false for NaN. Minus zero is none of ours.
    if not ((scales == 0) | ((scales >= _SCALE_MIN) & (scales <= _SCALE_MAX))).all() or np.signbit(scales).any():
        raise ProtocolError("schema", "a scale is neither 0 nor a positive normal number")
    packed = np.frombuffer(body, dtype=np.uint8, offset=scales.nbytes)
    if size % 8 and packed[-1] >> size % 8:
        raise ProtocolError("schema", "a bit after the last sign is not 0")
    # Eight entries at a time from a table: their sign bits as float32 has them.
    bits = _TABLE.take(packed, axis=0).reshape(-1)[:size]
    whole = size // BLOCK
    values = scales.view(np.uint32)
    bits[: whole * BLOCK].reshape(whole, BLOCK)[...] |= values[:whole, np.newaxis]
    # One scale is left for the entries after the last whole block, or there are neither.
    bits[whole * BLOCK :] |= values[whole:]
    return bits.view(np.float32)


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _table() -> NDArray[np.uint32]:
    """The eight sign bits of every byte, shape (256, 8)."""
    return np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1, bitorder="little") * _MINUS


_TABLE: Final = _table()
