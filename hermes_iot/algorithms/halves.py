"""A float32 vector in 16 bits an entry, little-endian.

fp16 is IEEE's half: 11 bits of precision, up to 65504. bf16 is float32's upper half: 8 bits of precision, float32's range.
Both round to nearest, ties to even, and what lies beyond the largest finite number becomes that number.

numpy casts fp16 entry by entry, at 0.2 to 0.9 GB/s; torch does it with the processor's own instruction at memory speed,
to the same bits. torch is training's, so whoever has it loaded lends its cast (`training.halves`); without it nothing
changes but the time. bf16 needs no cast, only shifts of whole arrays: the choice of a board without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import Params

#: The largest finite numbers.
FP16_MAX: Final = np.float32(65504.0)
BF16_MAX: Final = np.uint32(0x7F7F0000).view(np.float32)

#: fp16's infinity as an unsigned number, and the sign above it.
_FP16_INFINITY: Final = 0x7C00
_FP16_SIGN: Final = 0x8000


def _narrowed(vector: Params) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return vector.astype(np.float16)


def _widened(halves: NDArray[np.float16]) -> Params:
    return halves.astype(np.float32)


@dataclass(slots=True, kw_only=True)
class Fp16Cast:
    """How this process casts; the bits are the same whichever way.

    Attributes:
        narrow: shape (P,) to the nearest halves, ties to even, too large ones to infinity.
        widen: its inverse, to a new, writable vector.
    """

    narrow: Callable[[Params], NDArray[np.float16]] = _narrowed
    widen: Callable[[NDArray[np.float16]], Params] = _widened


#: The one in use.
FP16: Final = Fp16Cast()


def to_fp16(vector: Params) -> bytes:
    """Encode a finite vector of shape (P,)."""
    halves = FP16.narrow(vector)
    bits = halves.view(np.int16)
    # Two readings of the small result instead of a clamp of the large vector before it: the same bits.
    if bits.size and (bits.max() >= _FP16_INFINITY or bits.view(np.uint16).max() >= _FP16_SIGN + _FP16_INFINITY):
        halves = FP16.narrow(np.clip(vector, -FP16_MAX, FP16_MAX))
    return halves.astype("<f2", copy=False).tobytes()


def from_fp16(body: bytes | bytearray | memoryview, size: int) -> Params:
    """Decode 2 * size bytes to a new vector of shape (size,), with NaN and infinities as they stand there."""
    return FP16.widen(np.frombuffer(body, dtype="<f2", count=size).astype(np.float16, copy=False))


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
