"""A trainer without torch: softmax regression on seeded blobs, for tests of the machines and for the simulator.

A job of a few mini-batches takes well under a millisecond, the arithmetic is a page long, and the rows, mini-batches
and chance are those of every other trainer (`sampling`). The blobs overlap: a model trained on all rows is right for
about nine of ten, so a run has something to learn for a while and never reaches loss 0.
"""

from __future__ import annotations

import copy
import math

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import ModelSignature, Params, Score, Split, TensorSpec, Trained, TrainJob
from hermes_iot.errors import Incompatible
from hermes_iot.training import paired
from hermes_iot.training.data import Array, Dataset, Rows, TaskData, lay_out
from hermes_iot.training.sampling import RowSource, ShardLookup, mini_batches


class ToyTrainer:
    """Softmax regression; implements `base.Trainer`.

    Args:
        seed: makes the blobs and the run's permutation: trainers of one seed hold the same data.
        rows: samples in all; a tenth each is held out for validation and test.
        features: inputs per sample.
        classes: number of blobs.
        spread: standard deviation of a blob; the centres are standard normal.
        shards: finds shipped rows (same features and classes) by their digest.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        rows: int = 1000,
        features: int = 8,
        classes: int = 4,
        spread: float = 1.2,
        shards: ShardLookup | None = None,
    ) -> None:
        rng = np.random.default_rng([seed, rows, features, classes])
        centres = rng.standard_normal((classes, features))
        y = rng.integers(classes, size=rows)
        x = (centres[y] + spread * rng.standard_normal((rows, features))).astype(np.float32)
        self._data = TaskData(train=Dataset(x=x, y=y))
        self._layout = lay_out(self._data, seed=seed, validation_fraction=0.1)
        self._source = RowSource(self._data.train, self._layout.pool, shards)
        self._features, self._classes = features, classes

    @property
    def data(self) -> TaskData:
        """The blobs, undivided."""
        return self._data

    @property
    def targets(self) -> Array:
        """Classes of the rows that can be allotted, shape (train_rows,): what a split among devices looks at."""
        return self._data.train.y[self._layout.pool]

    def sharing(self, *, pool: Rows | None = None, shards: ShardLookup | None = None) -> ToyTrainer:
        """Another device's trainer on the same blobs and held-out rows, see `TorchTrainer.sharing`."""
        layout = self._layout if pool is None else self._layout.part(pool)
        sibling = copy.copy(self)
        sibling._layout, sibling._source = layout, self._source.sharing(layout.pool, shards)  # noqa: SLF001 - one of us
        return sibling

    @property
    def signature(self) -> ModelSignature:
        """Weights (features, classes), then biases (classes,)."""
        weights = TensorSpec(name="weight", shape=(self._features, self._classes))
        return ModelSignature(tensors=(weights, TensorSpec(name="bias", shape=(self._classes,))))

    @property
    def train_rows(self) -> int:
        """Rows that can be allotted."""
        return self._layout.pool.size

    def initial(self, seed: int) -> Params:
        """Small random weights, shape (P,)."""
        return (0.01 * np.random.default_rng([seed]).standard_normal(self.signature.parameters)).astype(np.float32)

    def train(self, job: TrainJob) -> Trained:
        """Plain SGD on the cross-entropy; a non-finite value anywhere gives loss NaN."""
        data, rows = self._source.draw(job)
        params = self._own(job.start)
        walks, gain, evaluated = job.sampling == "walk", None, 0
        steps, loss, began = self._descend(job, params, data, rows.train, losses=walks)
        if not walks:
            loss, evaluated = self._measure(params, data.take(rows.gate)).loss, rows.gate.size
        if not (math.isfinite(loss) and np.isfinite(params).all()):
            loss = math.nan
        elif walks and job.probe is not None and rows.gate.size:
            tested, merged = data.take(rows.gate), paired.merged(job.probe, params)
            before, after = (self._losses(model, tested) for model in (self._own(job.probe.base), merged))
            gain, evaluated = paired.gain(before, after), 2 * tested.rows
        return Trained(
            params=params,
            loss=loss,
            samples=rows.samples,
            mini_batches=steps,
            gain=gain,
            evaluated=evaluated,
            began=began,
        )

    def score(self, params: Params, split: Split) -> Score:
        """Mean cross-entropy and accuracy on the held-out rows."""
        held_out = {"validation": self._layout.validation, "test": self._layout.test}[split]
        if held_out is None:  # pragma: no cover - rows=1 and such
            raise Incompatible(f"the toy's {split} split is empty")
        return self._measure(self._own(params), held_out)

    def _descend(
        self, job: TrainJob, params: Params, data: Dataset, rows: Rows, *, losses: bool
    ) -> tuple[int, float, float | None]:
        """SGD in place; the steps taken and, where it is asked for, the mean of their losses and the first of them."""
        weight, bias = self._views(params)
        rate, steps, total = np.float32(job.learning_rate), 0, 0.0
        began: float | None = None
        with np.errstate(all="ignore"):  # divergence is a result, not a warning
            for batch in mini_batches(job, rows):
                x, y = data.x[batch], data.y[batch]
                slope = _softmax(x @ weight + bias)
                if losses:
                    value = float(_surprise(slope, y).mean())
                    began, total = value if began is None else began, total + value
                slope[np.arange(y.size), y] -= 1
                slope *= rate / np.float32(y.size)
                weight -= x.T @ slope
                bias -= slope.sum(axis=0)
                steps += 1
        return steps, total / max(1, steps), began

    def _own(self, params: Params) -> Params:
        if params.shape != (self.signature.parameters,):
            raise Incompatible(
                f"a vector of shape {params.shape}", why=f"the toy has {self.signature.parameters} values"
            )
        return params.astype(np.float32)

    def _views(self, params: Params) -> tuple[Params, Params]:
        cut = self._features * self._classes
        return params[:cut].reshape(self._features, self._classes), params[cut:]

    def _measure(self, params: Params, data: Dataset) -> Score:
        chances = self._chances(params, data)
        with np.errstate(all="ignore"):
            loss = float(_surprise(chances, data.y).mean())
        return Score(loss=loss, accuracy=float((chances.argmax(axis=1) == data.y).mean()))

    def _losses(self, params: Params, data: Dataset) -> NDArray[np.float64]:
        """Cross-entropy row by row, shape (rows,)."""
        return _surprise(self._chances(params, data), data.y)

    def _chances(self, params: Params, data: Dataset) -> NDArray[np.float32]:
        weight, bias = self._views(params)
        with np.errstate(all="ignore"):
            return _softmax(data.x @ weight + bias)


def _surprise(chances: NDArray[np.float32], y: Array) -> NDArray[np.float64]:
    """Minus the logarithm of the right class's chance, shape (rows,)."""
    with np.errstate(all="ignore"):
        right = np.maximum(chances[np.arange(y.size), y], np.float32(1e-12))
        surprise: NDArray[np.float64] = -np.log(right, dtype=np.float64)
    return surprise


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted: NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted
