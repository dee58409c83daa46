"""The arithmetic of a `domain.Probe`, shared by every trainer: which two models, and what their losses say.

Both models see the same rows, so what the rows have in common (hard ones are hard for both) cancels in the difference.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import Gain, Params, Probe
from hermes_iot.errors import Incompatible


def merged(probe: Probe, params: Params) -> Params:
    """``base + weight * (params - origin)``, shape (P,).

    Raises:
        Incompatible: the probe's vectors are of another length.
    """
    for vector in (probe.base, probe.origin):
        if vector.shape != params.shape:
            raise Incompatible(f"a probe's vector has the shape {vector.shape}", why=f"the model's is {params.shape}")
    with np.errstate(all="ignore"):  # a model that is not finite gives losses that are not
        return probe.base + np.float32(probe.weight) * (params - probe.origin)


def gain(before: NDArray[np.float64], after: NDArray[np.float64]) -> Gain | None:
    """Mean and population standard deviation of the rows' differences; None without rows or with one not finite.

    Args:
        before: the rows' losses under `base`, shape (m,).
        after: the same under the merged model.
    """
    with np.errstate(all="ignore"):
        differences = before - after
        if not differences.size:
            return None
        mean, std = float(differences.mean()), float(differences.std())
    return Gain(mean=mean, std=std, rows=differences.size) if math.isfinite(mean) and math.isfinite(std) else None
