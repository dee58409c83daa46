"""A model as one flat float32 vector, and the named tensors seen through it.

Everything that travels, is merged or is hashed is the flat vector (domain.py says why); names and shapes matter only
at the two ends, in the trainer and in exported files. So there are views here and no tree arithmetic.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import ModelSignature, Params

#: Elements worked on at a time where float64 is needed: 512 KiB, so the wide copy stays in a small board's cache.
BLOCK: Final = 65_536


def views(vector: Params, signature: ModelSignature) -> dict[str, NDArray[np.float32]]:
    """The named tensors inside `vector`, as reshaped views: writing to one writes to the vector.

    Raises:
        ValueError: the vector's length is not the signature's, its memory has gaps, or two tensors share a name.
    """
    if vector.shape != (signature.parameters,) or not vector.flags.c_contiguous:
        raise ValueError(f"a contiguous vector of {signature.parameters} is needed, not one of shape {vector.shape}")
    tensors: dict[str, NDArray[np.float32]] = {}
    at = 0
    for spec in signature.tensors:
        tensors[spec.name] = vector[at : at + spec.size].reshape(spec.shape)
        at += spec.size
    if len(tensors) != len(signature.tensors):
        raise ValueError("two tensors of the signature share a name")
    return tensors


def norm(vector: Params) -> float:
    """Euclidean length, summed in float64: float32 squares overflow from 2e19 on and lose small entries."""
    squares = 0.0
    for at in range(0, vector.size, BLOCK):
        block = vector[at : at + BLOCK].astype(np.float64)
        squares += float(block @ block)
    return math.sqrt(squares)


def is_finite(vector: Params) -> bool:
    """Whether no entry is NaN or infinite.

    The plain test: on 5e6 entries it took 0.9 ms, as long as the tricks with a sum or an extremum, which can overflow.
    Block by block, so that it needs no byte of memory for each entry. A mask's bytes are 0 and 1: looked through as
    bytes they cost a short vector half of what numpy's `all` does, and a block the same.
    """
    if vector.size <= BLOCK:
        return b"\0" not in np.isfinite(vector).tobytes()
    return all(is_finite(vector[at : at + BLOCK]) for at in range(0, vector.size, BLOCK))


def sha256(vector: Params) -> str:
    """Hex digest of the vector's little-endian float32 bytes, equal on every machine."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()
