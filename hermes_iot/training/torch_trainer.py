"""Local SGD in PyTorch. With `flat_model` the only home of torch, apart from the tasks themselves.

- A model is one flat float32 vector (`flat_model`).
- One torch thread: a board's network thread must get its core, and sums in one order are bit-identical.
- The default optimizer is plain SGD (the paper's), written out below. It has no state, so nothing is lost by starting
  anew each iteration, which is what is done with any optimizer. `torch.optim` is avoided on purpose: the first call
  into it imports torch's compiler (measured: 1.6 s, 85 MB of memory).
- Divergence is a result: a loss of NaN, never an exception.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hermes_iot.domain import ModelSignature, Params, Score, Split, Trained, TrainJob
from hermes_iot.errors import HermesError, ProtocolError, UsageError
from hermes_iot.training.data import Dataset, Layout, Rows, TaskData, lay_out, seed63
from hermes_iot.training.flat_model import FlatModel
from hermes_iot.training.sampling import RowSource, ShardLookup, mini_batches
from hermes_iot.training.tasks import Task

#: Rows per forward pass when measuring: bounds the activations' memory on a board.
_CHUNK_ROWS: Final = 256

_WHY_CHARACTERS_MAX: Final = 300


class TorchTrainer:
    """Implements `base.Trainer` for a task. Not for two threads at once: train and score share one model.

    Args:
        task: see `tasks.resolve`.
        data: what `task.load_data()` gave; None on a device that is shipped its rows.
        seed: the run's: orders the rows and seeds the buffers that never travel.
        validation_fraction: see `data.lay_out`.
        rows: this device's own part of the training set, see `data.lay_out`.
        shards: finds the arrays (x, y) of a shipped shard.

    Raises:
        UsageError: the task's model cannot be trained, or does not take its data.
    """

    def __init__(
        self,
        task: Task,
        data: TaskData | None,
        *,
        seed: int,
        validation_fraction: float = 0.1,
        rows: slice | None = None,
        shards: ShardLookup | None = None,
    ) -> None:
        torch.set_num_threads(1)
        with contextlib.suppress(RuntimeError):  # torch takes it once per process only, and before any parallel work
            torch.set_num_interop_threads(1)
        self._task = task
        self._model = FlatModel(_built(task, seed), task.name)
        self._loss: Callable[[Any, Any], Any] = task.loss or default_loss
        self._accuracy: Callable[[Any, Any], Any] = task.accuracy or default_accuracy
        self._layout = (
            lay_out(data, seed=seed, validation_fraction=validation_fraction, rows=rows)
            if data is not None
            else Layout(pool=np.arange(0), validation=None, test=None)
        )
        self._source = RowSource(data.train if data is not None else None, self._layout.pool, shards)
        self._checked_shard = ""
        if data is not None:
            for dataset in (data.train, data.validation, data.test):
                if dataset is not None:
                    self._check(dataset)

    @property
    def signature(self) -> ModelSignature:
        """Layout of the flat vector."""
        return self._model.signature

    @property
    def train_rows(self) -> int:
        """How many rows can be allotted; 0 when rows are shipped."""
        return self._layout.pool.size

    def initial(self, seed: int) -> Params:
        """A fresh model's vector, shape (P,)."""
        return FlatModel(_built(self._task, seed), self._task.name).vector()

    def train(self, job: TrainJob) -> Trained:
        """One iteration of local SGD.

        Raises:
            ProtocolError: the job names rows or a shard that do not fit.
            Incompatible: `job.start` has another length than this model.
        """
        data, rows = self._source.draw(job)
        if job.shard and job.shard != self._checked_shard:
            try:
                self._check(data)
            except UsageError as error:
                raise ProtocolError("shard", str(error)) from error
            self._checked_shard = job.shard
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed63(job.key, "torch"))
            self._model.load(job.start)
            steps, sound = self._descend(job, data, rows.train)
            params = self._model.vector()
            loss = math.nan
            if sound and np.isfinite(params).all():
                loss = self._measure(data, rows.gate).loss
        loss = loss if math.isfinite(loss) else math.nan
        return Trained(params=params, loss=loss, samples=rows.samples, mini_batches=steps)

    def score(self, params: Params, split: Split) -> Score:
        """Loss and accuracy on rows nobody trains on.

        Raises:
            UsageError: nothing was held out for this split.
            Incompatible: `params` has another length than this model.
        """
        held_out = {"validation": self._layout.validation, "test": self._layout.test}[split]
        if held_out is None:
            raise UsageError(f"task {self._task.name} has no {split} rows", why="none were brought and none held out")
        self._model.load(params)
        return self._measure(held_out, np.arange(held_out.rows), accuracy=self._accuracy)

    def _descend(self, job: TrainJob, data: Dataset, rows: Rows) -> tuple[int, bool]:
        """SGD over the rows; returns the steps taken and whether every loss was finite."""
        module = self._model.module
        build = self._task.build_optimizer or PlainSgd
        optimizer = build([p for p in module.parameters() if p.requires_grad], job.learning_rate)
        if not hasattr(optimizer, "step") or not hasattr(optimizer, "zero_grad"):
            raise UsageError(f"task {self._task.name}: build_optimizer() returned a {type(optimizer).__name__}")
        normalises, steps = self._model.normalises_batches, 0
        for batch in mini_batches(job, rows, drop_single=normalises):
            # Batch statistics of a single row mean nothing (torch refuses them): such a step uses the running ones.
            training = batch.size > 1 or not normalises
            if module.training != training:
                module.train(training)
            x, y = _batch(data, batch)
            optimizer.zero_grad()
            loss = self._loss_of(module(x), y)
            if not math.isfinite(float(loss.detach())):
                return steps, False
            loss.backward()
            optimizer.step()
            steps += 1
        return steps, True

    def _measure(self, data: Dataset, rows: Rows, accuracy: Callable[[Any, Any], Any] | None = None) -> Score:
        """Means over the rows, taken in chunks, in evaluation mode and without gradients."""
        self._model.module.eval()
        loss, right = 0.0, 0.0
        with torch.no_grad():
            for start in range(0, rows.size, _CHUNK_ROWS):
                chunk = rows[start : start + _CHUNK_ROWS]
                x, y = _batch(data, chunk)
                outputs = self._model.module(x)
                loss += float(self._loss_of(outputs, y)) * chunk.size
                if accuracy is not None:
                    share = accuracy(outputs, y)
                    right = math.nan if share is None else right + float(share) * chunk.size
        share_right = None if accuracy is None or math.isnan(right) else right / rows.size
        return Score(loss=loss / rows.size, accuracy=share_right)

    def _loss_of(self, outputs: Any, targets: Tensor) -> Any:
        """The loss; NaN where a task's own might raise because the outputs are (torch's BCELoss does)."""
        if self._task.loss is not None and isinstance(outputs, Tensor) and torch.isnan(outputs).any():
            return torch.tensor(math.nan)
        return self._loss(outputs, targets)

    def _check(self, data: Dataset) -> None:
        """Pass two rows through the model, so that a misfit shows before a fleet is started."""
        what = f"task {self._task.name}: x {data.x.dtype} {data.x.shape}, y {data.y.dtype} {data.y.shape}"
        self._model.module.eval()
        x, y = _batch(data, np.arange(min(2, data.rows)))
        try:
            outputs = self._model.module(x)
            if self._task.loss is None and data.y.dtype.kind == "i":
                _check_labels(data, 2 if _single_logit(outputs, y) else outputs.shape[1], what)
            loss = self._loss(outputs, y)
            self._accuracy(outputs.detach() if isinstance(outputs, Tensor) else outputs, y)
        except HermesError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:_WHY_CHARACTERS_MAX]
            raise UsageError(f"{what} do not fit the model", why=why) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise UsageError(f"{what}: the loss must be one number that depends on the model's parameters")


class PlainSgd:
    """w -= learning_rate * gradient. Called as an optimizer of torch is."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self._parameters = list(parameters)
        self._learning_rate = learning_rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step downhill."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-self._learning_rate)


def default_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for integer targets, binary for a single logit; mean squared error for float targets."""
    if not targets.is_floating_point():
        if _single_logit(outputs, targets):
            return functional.binary_cross_entropy_with_logits(
                outputs.reshape(targets.shape), targets.to(outputs.dtype)
            )
        return functional.cross_entropy(outputs, targets)
    if outputs.numel() != targets.numel():  # broadcasting would quietly compare everything with everything
        raise ValueError(f"outputs {tuple(outputs.shape)} cannot be compared with targets {tuple(targets.shape)}")
    return functional.mse_loss(outputs.reshape(targets.shape), targets)


def default_accuracy(outputs: Tensor, targets: Tensor) -> float | None:
    """Share of rows whose likeliest class is the target; None for float targets."""
    if targets.is_floating_point():
        return None
    if _single_logit(outputs, targets):
        guesses = (outputs.reshape(targets.shape) > 0).to(targets.dtype)
    else:
        guesses = outputs.argmax(dim=1)
    return int((guesses == targets).sum()) / targets.numel()


def _check_labels(data: Dataset, classes: int, what: str) -> None:
    low, high = int(data.y.min()), int(data.y.max())
    if low < 0 or high >= classes:
        raise UsageError(f"{what}: targets run from {low} to {high}", why=f"the model tells {classes} classes apart")


def _single_logit(outputs: Tensor, targets: Tensor) -> bool:
    return outputs.shape == targets.shape or (outputs.ndim == targets.ndim + 1 and outputs.shape[1] == 1)


def _batch(data: Dataset, rows: Rows) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(data.x[rows])
    if x.dtype == torch.uint8:
        x = x.to(torch.float32).div_(255)
    return x, torch.from_numpy(data.y[rows])


def _built(task: Task, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = task.build_model()
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"task {task.name}: build_model() returned a {type(module).__name__}", why="it must be an nn.Module"
        )
    return module
