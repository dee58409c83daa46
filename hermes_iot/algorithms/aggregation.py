"""How vectors become one: the paper's merge by inverse loss, weighted means, and displacements added to a model.

Source of the first: arXiv 2410.20495, loss-based aggregation: w = (w/L_g + w_i/L_i) / (1/L_g + 1/L_i). Both losses are
the coordinator's own, measured on rows it holds out: by a loss a device may claim, one claim of 1e-6 against 1 would
take the whole model.

Sums of several vectors are made in float64 and rounded once. Every coordinate of a mean then lies between its origins,
and equal vectors merge to themselves. The result is the same bit for bit wherever a journal is replayed: the operations
are element by element and in the order given, so neither the number of threads nor the width of the machine's vectors
shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from hermes_iot.algorithms.trees import BLOCK
from hermes_iot.domain import Params

#: Losses are clamped to this before they are inverted: a loss of 0 must not divide, nor a tiny one decide alone for ever.
LOSS_MIN: Final = 1e-6
LOSS_MAX: Final = 1e6


def loss_weighted(model: Params, loss_model: float, update: Params, loss_update: float) -> tuple[Params, float]:
    """Merge a device's model into the global one, both finite vectors of shape (P,).

    Args:
        model: the global model.
        loss_model: its loss on the held-out rows; one that is not a finite number counts as the largest.
        update: the device's model.
        loss_update: its loss on the same rows; with one that is not a finite number nothing is merged.

    Returns:
        The merged model, never an alias of `model`, and the update's weight: in (0, 1), or 0 when nothing was merged.

    Raises:
        ValueError: the vectors differ in shape or are not flat float32.
    """
    weight = update_weight(loss_model, loss_update)
    return blend(model, update, weight), weight


def update_weight(loss_model: float, loss_update: float) -> float:
    """The update's share (1/L_i) / (1/L_g + 1/L_i), a double: 1 - 1e-12, the largest, is 1 in float32."""
    if not math.isfinite(loss_update):
        return 0.0
    theirs = min(max(float(loss_update), LOSS_MIN), LOSS_MAX)
    ours = min(max(float(loss_model), LOSS_MIN), LOSS_MAX) if math.isfinite(loss_model) else LOSS_MAX
    return ours / (ours + theirs)


def blend(model: Params, update: Params, weight: float) -> Params:
    """(1 - weight) * model + weight * update as a new vector; `weight` in [0, 1].

    With weight 0 the update is not read at all, so whatever it holds cannot leak.

    Raises:
        ValueError: the vectors differ in shape or are not flat float32, or the weight is outside [0, 1].
    """
    _check(model, update)
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight {weight} is not in [0, 1]")
    if weight == 0.0:
        return model.copy()
    merged = np.empty_like(model)
    for at in range(0, model.size, BLOCK):
        part = slice(at, at + BLOCK)
        ours = np.multiply(model[part], 1.0 - weight, dtype=np.float64)
        merged[part] = ours + np.multiply(update[part], weight, dtype=np.float64)
    return merged


def weighted_mean(vectors: Sequence[Params], weights: Sequence[float]) -> Params:
    """sum(w_i * v_i) / sum(w_i) as a new vector, shape (P,), summed in the order given.

    Raises:
        ValueError: there is no vector, not one weight each, a weight is not finite or not above 0, or the vectors
            differ in shape or are not flat float32.
    """
    if not vectors or len(vectors) != len(weights):
        raise ValueError(f"{len(vectors)} vectors and {len(weights)} weights have no mean")
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise ValueError("every weight must be a finite number above 0")
    largest = max(weights)
    total = math.fsum(weight / largest for weight in weights)  # the sum of the weights themselves may overflow
    return _summed(None, vectors, [weight / largest / total for weight in weights])


def displaced(model: Params, displacements: Sequence[Params], scales: Sequence[float]) -> Params:
    """`model` + sum(s_i * d_i) as a new vector, shape (P,), summed in the order given.

    A coordinate that leads out of float32 becomes infinite; whoever asked looks. A single displacement needs no wider sum:
    it is scaled and added in float32, at the speed of memory.

    Raises:
        ValueError: there is not one scale for each, or the vectors differ in shape or are not flat float32.
    """
    if len(displacements) == len(scales) == 1:
        return _moved(model, displacements[0], np.float32(scales[0]))
    return _summed(model, displacements, scales)


def fold_displacement(total: Params, params: Params, base: Params) -> Params:
    """`total` + (`params` - `base`): how far a device has moved since the beginning, its restarts left out.

    The authors' code pushes the sum of all gradients since the run began although the device restarts from the global
    model at every push. What it pushes is then the first model plus this sum.

    Raises:
        ValueError: the vectors differ in shape or are not flat float32.
    """
    _check(total, params)
    _check(total, base)
    return total + (params - base)


def _moved(model: Params, displacement: Params, scale: np.float32) -> Params:
    _check(model, displacement)
    moved = np.empty_like(model)
    with np.errstate(over="ignore", invalid="ignore"):
        for at in range(0, model.size, BLOCK):
            block = moved[at : at + BLOCK]
            np.multiply(displacement[at : at + BLOCK], scale, out=block)
            np.add(model[at : at + BLOCK], block, out=block)
    return moved


def _summed(start: Params | None, vectors: Sequence[Params], scales: Sequence[float]) -> Params:
    like = vectors[0] if start is None else start
    for vector in vectors:
        _check(like, vector)
    summed = np.empty_like(like)
    for at in range(0, like.size, BLOCK):
        part = slice(at, at + BLOCK)
        block = np.zeros(like[part].shape) if start is None else start[part].astype(np.float64)
        for vector, scale in zip(vectors, scales, strict=True):
            block += np.multiply(vector[part], scale, dtype=np.float64)
        with np.errstate(over="ignore"):
            summed[part] = block
    return summed


def _check(one: Params, other: Params) -> None:
    if one.ndim != 1 or one.shape != other.shape or one.dtype != np.float32 or other.dtype != np.float32:
        raise ValueError(
            f"flat float32 vectors of one length are needed, not {one.dtype}{one.shape} and {other.dtype}{other.shape}"
        )
