"""The words every layer uses: identities, model signatures, jobs and their results.

A model travels and is merged as one flat float32 vector, never as a dict of tensors: vectors are several times
cheaper to add, scale and hash. The `ModelSignature` says how a vector is laid out, so both sides can tell before
they allocate anything whether they speak of the same model.

numpy is imported for the type checker only: `status` and `--help` must not pay for it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NewType, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DeviceId = NewType("DeviceId", str)
RunId = NewType("RunId", str)

#: A model, or a difference of two, as one vector: shape (P,), float32, C order, in the signature's order.
Params: TypeAlias = "NDArray[np.float32]"

#: Half-open ranges [start, stop) of positions in the run's permutation of the training rows.
Ranges: TypeAlias = tuple[tuple[int, int], ...]

#: indexed: every device holds the set, the allocation names rows. local: a device's own rows never leave it.
#: shipped: the coordinator sends the rows.
DataMode = Literal["indexed", "local", "shipped"]

#: fresh: every iteration draws its samples anew (the paper). kept: an iteration is passes over the rows allotted.
#: walk: an iteration is a number of mini-batches, the next ones of an endless walk over the rows allotted.
Sampling = Literal["fresh", "kept", "walk"]

#: fresh: the gate's loss is taken on 15 % of each iteration's draw (the paper). fixed: on one slice kept aside.
GateSplit = Literal["fresh", "fixed"]

Split = Literal["validation", "test"]

#: How much a device says of each iteration: nothing, every tenth, every one.
Telemetry = Literal["off", "sampled", "full"]

#: How a vector's numbers are written as bytes. int8, int4, deadzone: blocks with one scale each. topk1, topk5, topk10: the
#: largest 1, 5 or 10 % of the entries, the rest counts as 0. sign: one bit an entry.
Codec = Literal["fp32", "fp16", "bf16", "int8", "int4", "deadzone", "topk1", "topk5", "topk10", "sign"]

#: Which tensors travel in fp16 though the codec is a coarser one: none, or those of fewer than two dimensions.
Fine = Literal["none", "vectors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a model: its name and shape. Always float32 on the wire."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSignature:
    """The layout of a flat vector: tensors in order."""

    tensors: tuple[TensorSpec, ...]

    @property
    def parameters(self) -> int:
        """Length P of the flat vector."""
        return sum(spec.size for spec in self.tensors)

    @property
    def sha256(self) -> str:
        """Hex digest of the layout; equal digests mean exchangeable vectors."""
        layout = [[spec.name, list(spec.shape)] for spec in self.tensors]
        return hashlib.sha256(json.dumps(layout, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A paired test at the end of an iteration: two models on the same rows, the next ones of the walk.

    With w the iteration's result, the models are `base` and ``base + weight * (w - origin)``: about the model the
    fleet would have if the update were merged at this weight. Nobody has trained on the rows in this iteration; they
    are trained on in the next one, so nothing is held back.

    Attributes:
        base: the fleet's model as this device knows it, shape (P,).
        origin: where the displacement that would be sent begins, shape (P,); usually `base` itself.
        weight: of the displacement in the merge, above 0.
        rows: m, how many rows are wanted.
        since: None, or the position of the walk (see `TrainJob.walked`) from which on rows count as trained on and
            are left out of the test: a true held-out test while such rows last.
    """

    base: Params
    origin: Params
    weight: float
    rows: int
    since: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a `Probe` found: d_j = loss_j(base) - loss_j(base + weight * (w - origin)) over its rows.

    Attributes:
        mean, std: of the d_j; `std` is the population's.
        rows: m, how many there were; fewer than asked for where the walk had no more.
    """

    mean: float
    std: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """One local iteration, complete: the same job on the same data gives the same result, bit for bit.

    Attributes:
        start: the vector to start from, shape (P,).
        samples: n, how many rows this iteration uses, its validation part included.
        batch: b, the mini-batch.
        epochs: E, passes over the training part.
        learning_rate: SGD step size.
        sampling: where the rows come from, see `Sampling`.
        gate_split: which rows the gate's loss is taken on, see `GateSplit`.
        rows: positions allotted to this device; empty = every row it can see.
        shard: hex digest of a shipped shard, or "" when the device holds the data itself.
        key: integers that seed all chance in this iteration.
        slice_key: integers that seed the choice of the fixed slice, and the walk: the same for all jobs of a device
            in a run.
        steps: mini-batches to take when sampling is "walk"; `samples` and `epochs` are not read then.
        walked: rows of the walk taken by earlier iterations: where this one begins.
        shards: hex digests of the shipped pieces to walk over, in order; empty when the device holds the data itself.
        probe: a paired test to make at the end of a walk's iteration.
    """

    start: Params
    samples: int
    batch: int
    epochs: int
    learning_rate: float
    sampling: Sampling
    gate_split: GateSplit
    rows: Ranges
    shard: str
    key: tuple[int, ...]
    slice_key: tuple[int, ...]
    steps: int = 0
    walked: int = 0
    shards: tuple[str, ...] = ()
    probe: Probe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What one iteration gave.

    Attributes:
        params: the vector after the last step, shape (P,).
        loss: mean loss of `params` on the gate's rows; may be NaN or infinite when training diverged. In a walk: the
            mean of the mini-batches' training losses.
        samples: rows used, validation part included; in a walk the rows walked, a row met twice counted twice.
        mini_batches: optimizer steps taken.
        gain: what the job's probe found; None without one, or where too few rows were left for it.
        evaluated: forward passes of one row beside training: the gate's rows, or twice the probe's.
        began: in a walk the first mini-batch's training loss, which is the job's start measured on its rows.
    """

    params: Params
    loss: float
    samples: int
    mini_batches: int
    gain: Gain | None = None
    evaluated: int = 0
    began: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A model measured on rows nobody trained on.

    Attributes:
        loss: mean loss.
        accuracy: share of right answers in [0, 1]; None where the task has no such notion (regression).
    """

    loss: float
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What the allocator gives one device.

    Attributes:
        samples: dataset size in rows; where `share` is given, whoever knows the data makes it that share of them.
        batch: mini-batch in rows.
        steps: mini-batches of one iteration in a walk; 0 where passes over the rows make an iteration.
        share: of the fleet's speed, in [0, 1]; 0 where nothing is shared out by speed.
    """

    samples: int
    batch: int
    steps: int = 0
    share: float = 0.0


def stable_int(text: str) -> int:
    """A 63-bit integer from a string, equal on every machine and run (unlike `hash`)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
