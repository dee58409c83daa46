"""torch's casts between float32 and half precision, for whoever has torch loaded anyway.

They use the processor's own instructions: 110,000 entries take 20 us one way and 10 us the other, against 150 us and
120 us without them (`algorithms.halves`, where the bits are compared before they are used).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hermes_iot.algorithms import halves
from hermes_iot.domain import Params

_MAX: Final = float(halves.FP16_MAX)
#: Of halves as bits: the largest of all unsigned ones but NaN, and the largest of the signed ones but NaN.
_MINUS_INFINITY: Final = 0xFC00
_INFINITY: Final = 0x7C00


def use_torch() -> bool:
    """Cast with torch from now on, in the whole process; whether its bits are ours."""
    return halves.use(halves.Casts(to_halves=_to_halves, from_halves=_from_halves))


def _to_halves(vector: Params) -> NDArray[np.uint16]:
    numbers = torch.from_numpy(_owned(vector))
    bits: NDArray[np.uint16] = numbers.half().numpy().view(np.uint16)
    # Two looks for what became infinity cost less than clamping everything before.
    if bits.size and (bits.max() >= _MINUS_INFINITY or bits.view(np.int16).max() >= _INFINITY):
        bits = numbers.clamp(-_MAX, _MAX).half().numpy().view(np.uint16)
    return bits


def _from_halves(bits: NDArray[np.uint16]) -> Params:
    vector: Params = torch.from_numpy(_owned(bits.view(np.float16))).float().numpy()
    return vector


def _owned(array: NDArray[Any]) -> NDArray[Any]:
    """Such an array as torch takes: one that may be written to, without gaps."""
    return np.require(array, requirements=["C", "W"])
