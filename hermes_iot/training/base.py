"""What the runtime asks of a trainer. `torch_trainer` is the real one, `toy` a numpy one for tests and simulation.

A trainer is deterministic: the same job gives the same result. It knows no clock; whoever calls it measures.
"""

from __future__ import annotations

from typing import Protocol

from hermes_iot.domain import ModelSignature, Params, Score, Split, Trained, TrainJob


class Trainer(Protocol):
    """Turns a `TrainJob` into `Trained`."""

    @property
    def signature(self) -> ModelSignature:
        """Layout of the vectors this trainer takes and gives."""

    @property
    def train_rows(self) -> int:
        """How many rows can be allotted (validation rows excluded)."""

    def initial(self, seed: int) -> Params:
        """A fresh model's vector, shape (P,), the same for the same seed."""

    def train(self, job: TrainJob) -> Trained:
        """One iteration. Divergence shows as a non-finite loss, never as an exception."""

    def score(self, params: Params, split: Split) -> Score:
        """Measure a vector on rows no device trains on."""
