"""Local SGD in PyTorch. With `flat_model` and `losses` the only home of torch, apart from the tasks themselves.

- A model is one flat float32 vector (`flat_model`).
- One torch thread: a board's network thread must get its core, and sums in one order are bit-identical.
- The default optimizer is plain SGD (the paper's), written out below. It has no state, so nothing is lost by starting
  anew each iteration, which is what is done with any optimizer. `torch.optim` is avoided on purpose: the first call
  into it imports torch's compiler (measured: 1.6 s, 85 MB of memory).
- Divergence is a result: a loss of NaN, never an exception.
- Where a step's time goes (784-128-64-10, mini-batch 16, one core, 237 us): forward and backward pass 181, adding the
  gradients 20, gathering rows 17 when every mini-batch is gathered by itself. Several are gathered at once. Tried and
  dropped: one flat gradient vector (one addition instead of six, but autograd then adds where it otherwise hands over:
  slower).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hermes_iot.domain import Gain, ModelSignature, Params, Probe, Score, Split, Trained, TrainJob
from hermes_iot.errors import HermesError, UsageError
from hermes_iot.training import half_casts, paired
from hermes_iot.training.data import Array, Dataset, Layout, Rows, TaskData, lay_out, seed63
from hermes_iot.training.flat_model import FlatModel
from hermes_iot.training.losses import check_labels, default_accuracy, default_loss, default_row_losses
from hermes_iot.training.sampling import RowSource, ShardLookup, mini_batches
from hermes_iot.training.tasks import Task

#: Bytes of the widest layer's output per forward pass when measuring, and the rows of one at most. It bounds memory on
#: a board, and beyond a cache's size every layer waits for memory (measured: a small CNN takes 1.6 times as long with
#: 256 rows, 11 MB, as with 97, a model of 145 parameters 2.7 times as long as with 1024).
_CHUNK_BYTES: Final = 4 * 1024 * 1024
_CHUNK_ROWS_MAX: Final = 1024

#: Inputs gathered at once for the next mini-batches, in bytes as float32; a mini-batch may be larger.
_BLOCK_BYTES: Final = 512 * 1024

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
        half_casts.use_torch()
        self._task = task
        self._model = FlatModel(_built(task, seed), task.name)
        self._loss: Callable[[Any, Any], Any] = task.loss or default_loss
        self._accuracy: Callable[[Any, Any], Any] = task.accuracy or default_accuracy
        self._layout = (
            lay_out(data, seed=seed, validation_fraction=validation_fraction, rows=rows)
            if data is not None
            else Layout(pool=np.arange(0), validation=None, test=None)
        )
        self._train = data.train if data is not None else None
        self._chunk_rows = 1  # until data was seen
        self._source = RowSource(self._train, self._layout.pool, shards, self._check)
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

    @property
    def targets(self) -> Array:
        """Targets of the rows that can be allotted, shape (train_rows, ...): what a split among devices looks at.

        Raises:
            UsageError: there are no rows here.
        """
        if self._train is None:
            raise UsageError(f"task {self._task.name} was given no data here, so there are no targets to look at")
        return self._train.y[self._layout.pool]

    def sharing(self, *, pool: Rows | None = None, shards: ShardLookup | None = None) -> TorchTrainer:
        """Another device's trainer that shares this one's model, data and held-out rows; costs next to nothing.

        For a simulator of many devices. What one of them computes does not depend on what the others did, but they
        share one module: only one of them may work at a time, from whatever thread.

        Args:
            pool: the device's own rows: positions in this trainer's pool, shape (train_rows of the new one,); None =
                the same.
            shards: finds what was shipped to that device; None = the same.

        Raises:
            UsageError: `pool` is empty, or names a row twice or one that is not there.
        """
        layout = self._layout if pool is None else self._layout.part(pool)
        sibling = copy.copy(self)
        sibling._layout = layout  # noqa: SLF001 - one of us
        sibling._source = self._source.sharing(layout.pool, shards, sibling._check)  # noqa: SLF001
        return sibling

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
        gain, evaluated = None, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed63(job.key, "torch"))
            self._model.load(job.start)
            steps, loss, began = self._descend(job, data, rows.train)
            params = self._model.vector()
            if not math.isfinite(loss) or not np.isfinite(params).all():
                loss = math.nan
            elif job.sampling != "walk":
                loss, evaluated = self._measure(data, rows.gate).loss, rows.gate.size
            elif job.probe is not None and rows.gate.size:
                gain, evaluated = self._gain(job.probe, params, data, rows.gate), 2 * rows.gate.size
        return Trained(
            params=params,
            loss=loss if math.isfinite(loss) else math.nan,
            samples=rows.samples,
            mini_batches=steps,
            gain=gain,
            evaluated=evaluated,
            began=began if job.sampling == "walk" else None,
        )

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

    def _descend(self, job: TrainJob, data: Dataset, rows: Rows) -> tuple[int, float, float | None]:
        """SGD over the rows; the steps taken, the mean of their losses (NaN where it ended early for one), the first."""
        module = self._model.module
        build = self._task.build_optimizer or PlainSgd
        optimizer = build([p for p in module.parameters() if p.requires_grad], job.learning_rate)
        if not hasattr(optimizer, "step") or not hasattr(optimizer, "zero_grad"):
            raise UsageError(f"task {self._task.name}: build_optimizer() returned a {type(optimizer).__name__}")
        normalises, steps, losses, began = self._model.normalises_batches, 0, 0.0, None
        for x, y in _batches(data, mini_batches(job, rows, drop_single=normalises), job.batch):
            # Batch statistics of a single row mean nothing (torch refuses them): such a step uses the running ones.
            training = len(x) > 1 or not normalises
            if module.training != training:
                module.train(training)
            optimizer.zero_grad()
            loss = self._loss_of(module(x), y)
            value = loss.item()  # on a CPU this waits for nothing, and is cheaper than adding up tensors
            if not math.isfinite(value):
                return steps, math.nan, began
            losses += value
            began = value if began is None else began
            loss.backward()
            optimizer.step()
            steps += 1
        optimizer.zero_grad()  # as large as the model, and of no use to anybody while the update is on its way
        return steps, losses / steps if steps else math.nan, began

    def _gain(self, probe: Probe, params: Params, data: Dataset, rows: Rows) -> Gain | None:
        merged = paired.merged(probe, params)
        return paired.gain(*(self._row_losses(model, data, rows) for model in (probe.base, merged)))

    def _row_losses(self, params: Params, data: Dataset, rows: Rows) -> NDArray[np.float64]:
        """A vector's loss on each row, shape (rows,), in evaluation mode and without gradients."""
        self._model.load(params)
        self._model.module.eval()
        chunks = np.split(rows, range(self._chunk_rows, rows.size, self._chunk_rows))
        with torch.no_grad():
            return np.concatenate(
                [self._one_by_one(*_batch(data, chunk)).numpy() for chunk in chunks], dtype=np.float64
            )

    def _one_by_one(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each row of a batch, shape (rows,).

        A task's own loss is only known as a mean over rows, so it is asked row by row, each time for a slice of one of
        the outputs. Outputs that are no tensor with an axis of rows are not sliced: then every row has a forward pass
        of its own.
        """
        outputs = self._model.module(x)
        if self._task.loss is None:
            return default_row_losses(outputs, y)
        if isinstance(outputs, Tensor) and outputs.shape[:1] == x.shape[:1]:
            answers: Iterable[Any] = torch.split(outputs, 1)
        else:
            answers = (self._model.module(row) for row in torch.split(x, 1))
        return torch.tensor(
            [float(self._loss_of(one, target)) for one, target in zip(answers, torch.split(y, 1), strict=True)]
        )

    def _measure(self, data: Dataset, rows: Rows, accuracy: Callable[[Any, Any], Any] | None = None) -> Score:
        """Means over the rows, taken in chunks, in evaluation mode and without gradients."""
        self._model.module.eval()
        loss, right = 0.0, 0.0
        with torch.no_grad():
            for chunk in np.split(rows, range(self._chunk_rows, rows.size, self._chunk_rows)):
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
                check_labels(data, outputs, y, what)
            loss = self._loss(outputs, y)
            widest = max(x[0].numel(), self._model.widest(x))
            self._accuracy(outputs.detach() if isinstance(outputs, Tensor) else outputs, y)
        except HermesError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:_WHY_CHARACTERS_MAX]
            raise UsageError(f"{what} do not fit the model", why=why) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise UsageError(f"{what}: the loss must be one number that depends on the model's parameters")
        self._chunk_rows = min(_CHUNK_ROWS_MAX, max(1, _CHUNK_BYTES // (4 * widest)))


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


def _batches(data: Dataset, rows: Iterator[Rows], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The mini-batches as tensors, several gathered and scaled at once: by themselves each costs 8 us more.

    Args:
        data: where the rows are.
        rows: of each mini-batch.
        batch: the usual size of one.
    """
    at_once = max(1, _BLOCK_BYTES // (4 * math.prod(data.x.shape[1:]) * batch))
    while block := list(itertools.islice(rows, at_once)):
        x, y = _batch(data, np.concatenate(block))
        sizes = [one.size for one in block]
        yield from zip(torch.split(x, sizes), torch.split(y, sizes), strict=True)


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
