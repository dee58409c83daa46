"""float32 to IEEE half precision and back, bit for bit as numpy's cast gives them, in whole-array integer steps.

numpy casts entry by entry, and for what becomes a subnormal half (below 6.1e-5: most of a displacement) it raises a
floating-point flag each time: 110,000 entries of 1e-4 took 8 ms to encode and 0.7 ms to decode, here 0.1 ms and
0.05 ms. Both directions rest on one addition. With E the entry's exponent, at least the one of the smallest normal half,
C = 2^(E + 13) is so large that the unit in the last place of C + |x| is that of the half: the float addition rounds |x|
to nearest, ties to even, and the low bits of the sum are the half's significand. Backwards, C is subtracted, exactly.
Subnormal halves have that smallest E and so are no special case, and no float32 in it is ever subnormal: boards that
flush those to zero agree.

Some ten thousand entries at a time, so that a block stays in the processor's nearest memory. Of a few hundred entries,
a bias or the model of a simulated fleet, the calls cost more than the entries: there it is numpy's cast (256 ordinary
numbers: 1.9 us to encode and 0.7 us to decode, the steps 9 us and 10 us).

Whoever has torch loaded anyway has casts that are ten times faster still (processors do it in one instruction).
`use` takes them over, once they were seen to give the same bits: what is computed does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import Params

#: The largest finite half. What is larger becomes it, instead of infinity from 65520 on.
FP16_MAX: Final = np.float32(65504.0)

#: Entries at a time, 128 KiB of each array: fewer are slower for the calls they take.
_BLOCK: Final = 32_768

#: Up to so many, entry by entry: at the worst, all of them subnormal, it costs twice the steps, else a fifth.
_FEW: Final = 256

_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_EXPONENT: Final = np.uint32(0x7F800000)
_LARGEST: Final = FP16_MAX.view(np.uint32)
#: 2^-14, the smallest normal half.
_SMALLEST: Final = np.float32(2.0**-14).view(np.uint32)
#: What makes C of 2^E.
_UP: Final = np.uint32(13 << 23)
#: float32's exponent bias less half's, and one: the significand in the sum brings its leading 1.
_BIAS: Final = np.uint32(113 << 10)

_HALF_MAGNITUDE: Final = np.uint16(0x7FFF)
_HALF_EXPONENT: Final = np.uint16(0x7C00)
_HALF_ONE: Final = np.uint16(0x0400)
#: C of a half's exponent field in float32's place: (field - 15 + 127 + 13) << 23.
_HALF_UP: Final = np.uint32((127 - 15 + 13) << 23)


@dataclass(frozen=True, slots=True, kw_only=True)
class Casts:
    """Both directions, see `to_halves` and `from_halves`."""

    to_halves: Callable[[Params], NDArray[np.uint16]]
    from_halves: Callable[[NDArray[np.uint16]], Params]


def to_halves(vector: Params) -> NDArray[np.uint16]:
    """The halves nearest to the entries of a finite vector of shape (P,), as bits.

    To nearest, ties to even; magnitudes above 65504 become 65504.
    """
    return _used[-1].to_halves(vector)


def from_halves(halves: NDArray[np.uint16]) -> Params:
    """The numbers of halves given as bits, shape (P,), as a new, writable vector; NaN and infinity among them."""
    return _used[-1].from_halves(halves)


def use(casts: Casts) -> bool:
    """Cast with these from now on, in the whole process; False, and nothing changes, if they give other bits than ours.

    Looked at are all halves, and of the other direction the numbers between two neighbouring halves, where rounding is
    decided, with the float32 next to each.
    """
    if not _agree(casts):
        return False
    _used.append(casts)
    del _used[:-1]
    return True


def _to_halves(vector: Params) -> NDArray[np.uint16]:
    if vector.size <= _FEW:
        return np.maximum(np.minimum(vector, FP16_MAX), -FP16_MAX).astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(vector).view(np.uint32)
    halves = np.empty(bits.size, dtype=np.uint16)
    block = min(_BLOCK, bits.size)
    magnitude, base, total = (np.empty(block, dtype=np.uint32) for _ in range(3))
    for at in range(0, bits.size, _BLOCK):
        part = bits[at : at + _BLOCK]
        x, c, s = magnitude[: part.size], base[: part.size], total[: part.size]
        np.bitwise_and(part, _MAGNITUDE, out=x)
        np.minimum(x, _LARGEST, out=x)
        np.maximum(x, _SMALLEST, out=c)
        np.bitwise_and(c, _EXPONENT, out=c)
        np.add(c, _UP, out=c)
        np.add(x.view(np.float32), c.view(np.float32), out=s.view(np.float32))
        np.subtract(s, c, out=s)  # the significand
        np.subtract(c, _UP, out=c)
        np.right_shift(c, 13, out=c)
        np.add(s, c, out=s)
        np.subtract(s, _BIAS, out=s)
        np.right_shift(part, 16, out=c)
        np.bitwise_and(c, np.uint32(0x8000), out=c)
        np.bitwise_or(s, c, out=s)
        halves[at : at + _BLOCK] = s
    return halves


def _from_halves(halves: NDArray[np.uint16]) -> Params:
    # A few, or NaN or infinity among them: nobody sends that twice.
    if halves.size <= _FEW or int(np.bitwise_and(halves, _HALF_EXPONENT).max()) == _HALF_EXPONENT:
        return halves.view(np.float16).astype(np.float32)
    vector = np.empty(halves.size, dtype=np.float32)
    bits = vector.view(np.uint32)
    block = min(_BLOCK, halves.size)
    short, wide = np.empty(block, dtype=np.uint16), np.empty(block, dtype=np.uint32)
    for at in range(0, halves.size, _BLOCK):
        part, b = halves[at : at + _BLOCK], bits[at : at + _BLOCK]
        e, c = short[: part.size], wide[: part.size]
        np.bitwise_and(part, _HALF_EXPONENT, out=e)
        np.maximum(e, _HALF_ONE, out=e)
        np.copyto(c, e)
        np.left_shift(c, 13, out=c)
        np.add(c, _HALF_UP, out=c)
        np.subtract(e, _HALF_ONE, out=e)
        np.subtract(np.bitwise_and(part, _HALF_MAGNITUDE), e, out=e)  # the significand
        np.copyto(b, e)
        np.add(b, c, out=b)
        np.subtract(b.view(np.float32), c.view(np.float32), out=b.view(np.float32))
        np.copyto(c, part)
        np.left_shift(c, 16, out=c)
        np.bitwise_and(c, np.uint32(0x80000000), out=c)
        np.bitwise_or(b, c, out=b)
    return vector


def _agree(casts: Casts) -> bool:
    halves = np.arange(1 << 16, dtype=np.uint16)
    numbers = _from_halves(halves)
    rising = np.sort(numbers[np.isfinite(numbers)])
    between = rising[:-1] + (rising[1:] - rising[:-1]) / 2
    beyond = np.array([65519.996, 65520, 1e38, 1e-45, 0], dtype=np.float32)
    around = (np.nextafter(between, np.float32(side)) for side in (-np.inf, np.inf))
    asked = np.concatenate([rising, between, *around, beyond, -beyond])
    said = ~np.isnan(numbers)  # which NaN a NaN becomes is nobody's business
    theirs = casts.from_halves(halves)
    return (
        theirs[said].tobytes() == numbers[said].tobytes()
        and bool(np.isnan(theirs[~said]).all())
        and casts.to_halves(asked).tobytes() == _to_halves(asked).tobytes()
    )


#: The casts in use; changed by `use` alone.
_used: Final = [Casts(to_halves=_to_halves, from_halves=_from_halves)]
