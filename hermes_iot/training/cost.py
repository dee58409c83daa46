"""A trainer that trains nothing and costs nothing: for simulations whose subject is traffic and timing, not learning.

A thousand boards make a hundred thousand iterations in an hour. What a strategy does with them depends on their
outcome all the same, so an outcome there must be: SGD on a noisy quadratic, in closed form. The loss is

    L(w) = floor + sum_j h_j (w_j - w*_j)^2 / (2 scale)

with curvatures h_j spread over two decades, as a network's are. A job of k steps at learning rate r, mini-batch b moves

    w - w*  ->  a (w - w*) + sqrt(1 - a^2) * sigma * sqrt(r / b) * n,     a_j = (1 - r h_j)^k,  n standard normal

which is the mean and, up to a factor near 1, the stationary variance of SGD there: losses fall fast, then slowly, then
hover at a height that more devices averaged, larger mini-batches and smaller rates lower. Deterministic in the job.
"""

from __future__ import annotations

import math
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hermes_iot.domain import Gain, ModelSignature, Params, Probe, Score, Split, TensorSpec, Trained, TrainJob
from hermes_iot.errors import Incompatible
from hermes_iot.training.sampling import GATE_FRACTION

#: Loss of a fresh model above the floor: that of guessing among ten classes.
_START_LOSS: Final = math.log(10)
_FLOOR: Final = 0.05
_ACCURACY_MAX: Final = 0.99
#: Length of the gradient noise of one row, in units of a fresh model's distance from the optimum.
_NOISE: Final = 0.5
_CURVATURES: Final = (0.002, 0.2)
_TABLE: Final = 1 << 16
_KEPT_MAX: Final = 4_096


class CostTrainer:
    """Implements `base.Trainer`.

    Args:
        seed: of the optimum and the noise.
        parameters: length of the vector.
        rows: how many training rows there seem to be.
    """

    def __init__(self, *, seed: int = 0, parameters: int = 256, rows: int = 1_000_000) -> None:
        chance = np.random.default_rng([seed, parameters])
        self._signature = ModelSignature(tensors=(TensorSpec(name="progress", shape=(parameters,)),))
        self._rows = rows
        self._best: Params = chance.standard_normal(parameters).astype(np.float32)
        self._curvature: Params = np.geomspace(*_CURVATURES, parameters).astype(np.float32)
        # A generator for each job would cost as much as the job: noise is a stretch of one table, found by the job's key.
        self._table: NDArray[np.float32] = chance.standard_normal(_TABLE + parameters).astype(np.float32)
        self._start: Params = self._best + chance.standard_normal(parameters).astype(np.float32)
        self._kept: dict[tuple[float, int], tuple[Params, Params]] = {}
        gap = self._start - self._best
        self._scale = float(self._curvature @ (gap * gap)) / 2 / _START_LOSS

    @property
    def signature(self) -> ModelSignature:
        """One tensor."""
        return self._signature

    @property
    def train_rows(self) -> int:
        """As many as were asked for."""
        return self._rows

    def initial(self, seed: int) -> Params:  # noqa: ARG002 - Trainer's signature; the seed is in the optimum
        """The vector everything starts from, shape (P,)."""
        return self._start.copy()

    def train(self, job: TrainJob) -> Trained:
        """See the module. Counts of rows and mini-batches are those of a real trainer."""
        walk = job.sampling == "walk"
        rows = max(1, min(job.samples, self._rows))
        gate = 0 if walk else max(1, round(GATE_FRACTION * rows))
        steps = job.steps if walk else job.epochs * -(-max(1, rows - gate) // job.batch)
        place = zlib.crc32(repr(job.key).encode())
        spread = np.float32(_NOISE * math.sqrt(job.learning_rate / job.batch))
        with np.errstate(all="ignore"):  # divergence is a result, not a warning
            keep, stir = self._after(job.learning_rate, steps)
            params = self._own(job.start) - self._best
            params *= keep
            params += stir * (self._noise(place) * spread)
            params += self._best
            loss = self._loss(params)
        evaluated = gate if job.probe is None else 2 * job.probe.rows
        return Trained(
            params=params,
            loss=loss * math.exp(float(self._table[place % _TABLE]) / math.sqrt(max(gate, job.batch))),
            samples=steps * job.batch if walk else rows,
            mini_batches=steps,
            gain=None if job.probe is None else self._gain(params, job.probe, place),
            evaluated=evaluated,
        )

    def score(self, params: Params, split: Split) -> Score:  # noqa: ARG002 - Trainer's signature: all rows are alike
        """The loss without noise, and an accuracy that falls with it."""
        loss = self._loss(self._own(params))
        return Score(loss=loss, accuracy=_ACCURACY_MAX * math.exp(_FLOOR - loss) if math.isfinite(loss) else 0.0)

    def _after(self, rate: float, steps: int) -> tuple[Params, Params]:
        """The a and sqrt(1 - a^2) of the module's header: the same for all boards of one size, so they are remembered."""
        known = self._kept.get((rate, steps))
        if known is None:
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            keep = np.power(1 - rate * self._curvature, steps, dtype=np.float32)
            known = self._kept[rate, steps] = keep, np.sqrt(1 - keep * keep)
        return known

    def _gain(self, params: Params, probe: Probe, place: int) -> Gain:
        """The true difference, seen through as much noise as so many rows leave."""
        candidate = probe.base + np.float32(probe.weight) * (params - probe.origin)
        before, after = self._loss(probe.base), self._loss(candidate)
        std = abs(before - after) + math.sqrt(before * after) * 0.05
        mean = before - after + std / math.sqrt(probe.rows) * float(self._table[(place + 1) % _TABLE])
        return Gain(mean=mean, std=std, rows=probe.rows)

    def _loss(self, params: Params) -> float:
        gap = params - self._best
        return _FLOOR + float(self._curvature @ (gap * gap)) / 2 / self._scale

    def _noise(self, place: int) -> Params:
        start = place % _TABLE
        return self._table[start : start + self._best.size]

    def _own(self, params: Params) -> Params:
        if params.shape != self._best.shape:
            raise Incompatible(f"a vector of shape {params.shape}", why=f"the cost model has {self._best.size} values")
        return params
