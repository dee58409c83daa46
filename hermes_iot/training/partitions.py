"""Splits a training set among simulated devices that do not see the same world.

`dirichlet` is label skew as federated learning's papers make it: Hsu et al. 2019 (arXiv 1909.06335) draw every device's
mixture of classes from a Dirichlet distribution. Here, as in Yurochkin et al. 2019 (arXiv 1905.12022), it is every
class's division among the devices that is drawn: then each row goes to exactly one device and none is left over.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from hermes_iot.errors import UsageError
from hermes_iot.training.data import Array, Rows

#: A device with fewer rows than this has hardly a mini-batch.
ROWS_MIN: Final = 10


def dirichlet(
    labels: Array, devices: int, alpha: float, rng: np.random.Generator, *, rows_min: int = ROWS_MIN
) -> list[Rows]:
    """A disjoint split of all rows by class: proportions ~ Dir(alpha) over the devices, drawn for each class.

    Args:
        labels: classes, shape (rows,), integers.
        devices: how many parts.
        alpha: concentration: at 100 nearly equal mixtures, at 0.1 a few classes a device.
        rng: all chance of the split.
        rows_min: a device drawn fewer is given rows of the one that has most, until it has as many.

    Returns:
        For each device the positions in `labels`, ascending.

    Raises:
        UsageError: the targets are no classes, or the numbers leave no such split.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        why = f"the targets are {labels.dtype} {labels.shape}, not one class a row"
        raise UsageError("rows can be skewed by label only where there are labels", why=why)
    if not (math.isfinite(alpha) and alpha > 0):
        raise UsageError(f"alpha is {alpha}", why="a Dirichlet distribution needs a number above 0")
    if devices < 1 or rows_min < 1 or devices * rows_min > labels.size:
        raise UsageError(f"{labels.size} rows cannot be split among {devices} devices, {rows_min} at least for each")
    parts: list[list[Rows]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(devices, alpha))
        cuts = np.floor(np.cumsum(shares)[:-1] * rows.size).astype(np.intp)
        for part, taken in zip(parts, np.split(rows, cuts), strict=True):
            part.append(taken)
    # Shuffled, so that rows given away below are a sample of what their holder has.
    return [np.sort(part) for part in _levelled([rng.permutation(np.concatenate(part)) for part in parts], rows_min)]


def _levelled(parts: list[Rows], rows_min: int) -> list[Rows]:
    """The parts after the poorest were given rows of the richest; each donor keeps `rows_min`."""
    sizes = np.array([part.size for part in parts])
    while (poor := int(sizes.argmin())) != (rich := int(sizes.argmax())) and sizes[poor] < rows_min:
        given = min(rows_min - sizes[poor], sizes[rich] - rows_min)
        parts[poor] = np.concatenate([parts[poor], parts[rich][sizes[rich] - given :]])
        parts[rich] = parts[rich][: sizes[rich] - given]
        sizes[poor] += given
        sizes[rich] -= given
    return parts
