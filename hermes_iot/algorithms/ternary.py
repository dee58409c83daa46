"""A float32 vector as -1, 0 and 1, one float32 scale to every 1024 entries: for links on which int4 is too much.

Source: ternary weight networks (Li and Liu 2016, arXiv 1605.04711): entries above a threshold, a multiple of the
block's mean magnitude, become their sign, the others 0, and the scale is the mean magnitude of those kept, which is the
best for them in the least-squares sense. With error feedback what is cut off comes later; without, this codec would
lose too much.

Body: all scales, little-endian, then four codes to a byte, the first in the lowest two bits: 0, 1, and 3 for -1. 2 is
never written, and the codes after the last entry are 0. A byte holds one of few patterns, so zstd, which goes over
every body, brings it to about half.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hermes_iot.algorithms.quantize import BLOCK, scale_bytes
from hermes_iot.domain import Params
from hermes_iot.errors import ProtocolError

#: Entries above so many times their block's mean magnitude are kept.
THRESHOLD: Final = 1.2

#: The four signs in every byte; NaN for the code that means nothing.
_SIGNS: Final = np.array([0, 1, np.nan, -1], dtype=np.float32)[
    np.arange(256)[:, np.newaxis] >> np.array([0, 2, 4, 6]) & 3
]
_SCALE_MIN: Final = np.finfo(np.float32).tiny
_SCALE_MAX: Final = np.finfo(np.float32).max


def ternary_bytes(size: int) -> int:
    """Length of a ternary body."""
    return scale_bytes(size) + -(-size // 4)


def to_ternary(vector: Params) -> bytes:
    """Encode a finite vector of shape (P,)."""
    padded = np.zeros(-(-vector.size // BLOCK) * BLOCK, dtype=np.float32)
    padded[: vector.size] = vector
    blocks = padded.reshape(-1, BLOCK)
    lengths = np.full(len(blocks), BLOCK)
    lengths[-1:] = vector.size - (len(blocks) - 1) * BLOCK
    magnitudes = np.abs(blocks)
    means = magnitudes.sum(axis=1, dtype=np.float64) / lengths
    kept = magnitudes > (THRESHOLD * means)[:, np.newaxis]
    sums = np.multiply(magnitudes, kept, out=magnitudes).sum(axis=1, dtype=np.float64)
    scales = np.minimum(sums / np.maximum(kept.sum(axis=1), 1), _SCALE_MAX).astype(np.float32)
    # Too small for a normal float32: sent as zeros, see `quantize`.
    tiny = scales < _SCALE_MIN
    kept[tiny] = False
    scales[tiny] = 1
    # 1, or 3 where the sign bit is set, times whether it is kept.
    codes = (1 + 2 * np.signbit(padded).view(np.uint8)) * kept.ravel().view(np.uint8)
    packed = codes[0::4] | codes[1::4] << 2 | codes[2::4] << 4 | codes[3::4] << 6
    body: bytes = scales.astype("<f4").tobytes() + packed[: -(-vector.size // 4)].tobytes()
    return body


def from_ternary(body: bytes | bytearray | memoryview, size: int) -> Params:
    """Decode a body of `ternary_bytes(size)` bytes to a new vector of shape (size,).

    Raises:
        ProtocolError: a scale or a code that `to_ternary` never writes (reason ``schema``).
    """
    scales = np.frombuffer(body, dtype="<f4", count=scale_bytes(size) // 4)
    if not ((scales >= _SCALE_MIN) & (scales <= _SCALE_MAX)).all():
        raise ProtocolError("schema", "a scale is not a normal positive number")
    packed = np.frombuffer(body, dtype=np.uint8, count=-(-size // 4), offset=scale_bytes(size))
    four = _SIGNS[packed]
    if np.isnan(four).any() or four.ravel()[size:].any():
        raise ProtocolError("schema", "a code is 2, or one after the last entry is not 0")
    signs = np.zeros(scales.size * BLOCK, dtype=np.float32)
    signs[: four.size] = four.ravel()
    blocks = signs.reshape(-1, BLOCK)
    blocks *= scales[:, np.newaxis].astype(np.float32)
    return signs[:size].copy()
