"""A float32 vector in bf16, little-endian: float32's upper half, 8 bits of precision, float32's range.

To nearest, ties to even; what lies beyond the largest finite number becomes that number. It needs no cast, only shifts of
whole arrays: the cheapest 16 bits of a board without torch.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hermes_iot.domain import Params

#: The largest finite number.
BF16_MAX: Final = np.uint32(0x7F7F0000).view(np.float32)


def to_bf16(vector: Params) -> bytes:
    """Encode a finite vector of shape (P,)."""
    bits = np.clip(vector, -BF16_MAX, BF16_MAX).view(np.uint32)
    # Half of the last place that stays is added, one less where that place is even: ties go to even.
    kept = bits >> 16
    kept &= 1
    kept += np.uint32(0x7FFF)
    kept += bits
    kept >>= 16
    return kept.astype("<u2").tobytes()


def from_bf16(body: bytes | bytearray | memoryview, size: int) -> Params:
    """Decode 2 * size bytes to a new vector of shape (size,), with NaN and infinities as they stand there."""
    bits = np.frombuffer(body, dtype="<u2", count=size).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)
