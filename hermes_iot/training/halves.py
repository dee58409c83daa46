"""torch's fp16 cast, lent to `algorithms.halves`: the bits of numpy's, at memory speed instead of 0.2 to 0.9 GB/s."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from hermes_iot.algorithms.halves import FP16
from hermes_iot.domain import Params


def lend() -> None:
    """This process has torch loaded: cast with it from now on."""
    with warnings.catch_warnings():
        # That a received body cannot be written to is said once per process; nobody writes to it.
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(bytes(2), dtype=np.float16))
    FP16.narrow, FP16.widen = narrowed, widened


def narrowed(vector: Params) -> NDArray[np.float16]:
    """Shape (P,) to the nearest halves, ties to even, too large ones to infinity."""
    halves: NDArray[np.float16] = torch.from_numpy(np.ascontiguousarray(vector)).half().numpy()
    return halves


def widened(halves: NDArray[np.float16]) -> Params:
    """Its inverse, to a new vector."""
    vector: Params = torch.from_numpy(halves).float().numpy()
    return vector
