"""The largest few per cent of a vector's entries as gaps and int8 values; the others come back as 0.

Kept are the k = ceil(percent * P / 100) entries of largest magnitude, of equal ones the first. The body is their
values as quantize.py writes int8 (scales, codes), then the gaps: how many entries are skipped before each kept one, a
byte each, where 255 means that 255 are skipped and the next byte goes on.

At 5 % a gap holds 5.7 bits. Rice codes take 14 % off the body (20 % at 10 %), but zstd runs over every body and finds
most of it itself: of 109,386 parameters what then travels was 1 to 7 % smaller on displacements of the MNIST model.
Bytes are read by one cumulative sum.

Selection is exact and takes two steps in a large vector: a threshold guessed a little low from every 61st magnitude
leaves a few candidates, and only they are partitioned. Should the guess leave too few, all are. Of a million entries
this took a half to a third of the time of one np.partition of them all with the vector sort of AVX-512, and a tenth or
less without it or where most entries are 0. The stride is a prime, or it would see one column of many a matrix.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hermes_iot.algorithms.quantize import from_int8, int8_bytes, to_int8
from hermes_iot.domain import Params
from hermes_iot.errors import ProtocolError

#: The byte that says the gap goes on.
_ON: Final = 255

#: Every so many entries one is looked at to guess the threshold, in vectors of at least so many.
_STRIDE: Final = 61
_SAMPLED_FROM: Final = 1 << 14


def kept(size: int, percent: int) -> int:
    """How many of `size` entries are kept, at least one where there is any."""
    return -(-size * percent // 100)


def shortest_topk(size: int, percent: int) -> int:
    """Length of a body whose gaps take a byte each."""
    count = kept(size, percent)
    return int8_bytes(count) + count


def longest_topk(size: int, percent: int) -> int:
    """Length of a body whose skipped entries all lie in one gap."""
    return shortest_topk(size, percent) + (size - kept(size, percent)) // _ON


def to_topk(vector: Params, percent: int) -> bytes:
    """Encode a finite vector of shape (P,)."""
    indices = _largest(np.abs(vector), kept(vector.size, percent))
    return to_int8(vector[indices]) + _gap_bytes(np.diff(indices, prepend=-1) - 1)


def from_topk(body: bytes | bytearray | memoryview, size: int, percent: int) -> Params:
    """Decode a body, at least `shortest_topk` long, to a new vector of shape (size,).

    Raises:
        ProtocolError: a scale or a code that is never written, another number of gaps than entries are kept, or an
            index beyond the vector (reason ``schema``).
    """
    count = kept(size, percent)
    gaps = np.frombuffer(body, dtype=np.uint8, offset=int8_bytes(count))
    last = np.flatnonzero(gaps != _ON)
    if last.size != count or (gaps[-1:] == _ON).any():
        raise ProtocolError("schema", f"the body has {last.size} gaps or an open one, {count} entries are kept")
    indices = np.cumsum(gaps, dtype=np.int64)[last] + np.arange(count)
    if count and indices[-1] >= size:
        raise ProtocolError("schema", f"index {indices[-1]} is beyond the {size} parameters")
    vector = np.zeros(size, dtype=np.float32)
    vector[indices] = from_int8(body, count)
    return vector


def _largest(magnitudes: Params, count: int) -> NDArray[np.intp]:
    """Indices, rising, of the `count` largest; of those equal to the smallest of them the first."""
    if not count:
        return np.empty(0, dtype=np.intp)
    floor = _floor(magnitudes, count) if magnitudes.size >= _SAMPLED_FROM else 0
    if floor > 0:
        candidates = np.flatnonzero(magnitudes >= floor)
        if candidates.size >= count:
            return candidates[_chosen(magnitudes[candidates], count)]
    return _chosen(magnitudes, count)


def _floor(magnitudes: Params, count: int) -> np.float32:
    """What about `count` magnitudes, and hardly ever fewer, are not below: three deviations under the sample's guess."""
    sample = magnitudes[::_STRIDE]
    expected = count / _STRIDE
    rank = min(sample.size, math.ceil(expected + 3 * math.sqrt(expected)) + 1)
    return np.float32(np.partition(sample, -rank)[-rank])


def _chosen(magnitudes: Params, count: int) -> NDArray[np.intp]:
    threshold = np.partition(magnitudes, -count)[-count]
    chosen = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def _gap_bytes(gaps: NDArray[np.intp]) -> bytes:
    """A byte for each gap; before the few that are too long for one, as many of `_ON` as they hold."""
    long = np.flatnonzero(gaps >= _ON)
    if not long.size:
        return gaps.astype(np.uint8).tobytes()
    times, gaps[long] = np.divmod(gaps[long], _ON)
    return np.insert(gaps.astype(np.uint8), np.repeat(long, times), _ON).tobytes()
