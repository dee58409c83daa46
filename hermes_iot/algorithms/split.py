"""Which entries of a run's vectors travel in fp16 whatever the codec: a coarse one is not for every tensor.

A block of int4 has one scale. Where it holds a batch normalisation's running variance, which moves by whole units, its
neighbours' few thousandths are rounded away, and the variance itself by more than it is large: trained on MNIST through
int4, deadzone, topk1 or sign, error feedback included, a small convolutional net with batch normalisation ended in NaN;
with its vectors in fp16 it learnt as with fp32. A model of matrices and biases alone lost nothing measurable either way,
and its biases in fp16 cost 1.5 % of the bytes of int4 and a fifth of topk1's. Therefore `fine_for` proposes it for models
with running statistics only.

What is fine follows from the layout in the run's manifest: both sides know it before a body comes, nothing is said per
message, and a body's length can be told as before. Fine are tensors of fewer than two dimensions (biases, normalisation,
its statistics, scalars) unless they are long: a model that somebody wrote as one vector is to be compressed.

The body is the coarse entries as the codec writes them, then the fine ones as fp16, both in the vector's order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from hermes_iot.domain import Fine, Params, Ranges

#: Names and shapes, as a manifest has them.
Tensors: TypeAlias = Iterable[tuple[str, tuple[int, ...]]]

#: A longer vector is no tiny tensor. Layers of so many channels are rare.
FINE_MAX: Final = 16_384

#: What torch calls the statistics that a normalisation keeps.
_STATISTICS: Final = frozenset({"running_mean", "running_var"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The entries of a vector of shape (P,) in two parts, each as rising ranges that do not touch.

    Attributes:
        fine, coarse: together they are [0, P).
        fine_size, coarse_size: entries of each.
    """

    fine: Ranges
    coarse: Ranges
    fine_size: int
    coarse_size: int

    def apart(self, vector: Params) -> tuple[Params, Params]:
        """Copies of the coarse entries and of the fine ones."""
        return _joined(vector, self.coarse), _joined(vector, self.fine)

    def together(self, coarse: Params, fine: Params) -> Params:
        """The inverse of `apart`: a new vector."""
        vector = np.empty(self.coarse_size + self.fine_size, dtype=np.float32)
        for part, ranges in ((coarse, self.coarse), (fine, self.fine)):
            at = 0
            for start, stop in ranges:
                vector[start:stop] = part[at : at + stop - start]
                at += stop - start
        return vector


def fine_for(tensors: Tensors) -> Fine:
    """What a model needs where nobody says."""
    return "vectors" if any(name.rpartition(".")[2] in _STATISTICS for name, _ in tensors) else "none"


def split_of(tensors: Tensors, fine: Fine) -> Split | None:
    """The parts of a vector of this layout; None where all of it is written in the codec."""
    parts: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    at = 0
    for _, shape in tensors:
        size = int(np.prod(shape, dtype=np.int64))
        if not size:
            continue
        ranges = parts[len(shape) < 2 and size <= FINE_MAX]  # noqa: PLR2004 - a matrix has two dimensions
        if ranges and ranges[-1][1] == at:
            ranges[-1] = (ranges[-1][0], at + size)
        else:
            ranges.append((at, at + size))
        at += size
    if fine == "none" or not parts[True]:
        return None
    fine_size = sum(stop - start for start, stop in parts[True])
    return Split(fine=tuple(parts[True]), coarse=tuple(parts[False]), fine_size=fine_size, coarse_size=at - fine_size)


def _joined(vector: Params, ranges: Ranges) -> Params:
    return np.concatenate([vector[start:stop] for start, stop in ranges] or [vector[:0]])
