"""`hermes`: the paper's strategy (arXiv 2410.20495), every ambiguous point a named option.

Device: train, take the test loss, push when it stands out below the recent ones (`gate`), then wait for the global
model and go on from there. Coordinator: the first push becomes the global model; later ones are averaged in by
inverse loss, both losses measured here on held-out rows, never claimed by a device. Devices whose iteration time is
an outlier get another dataset size (`allocation`).

Where the paper and its authors' code leave a choice, the default is the paper's, with four exceptions that are said
out loud: a push is forced after 10 silent iterations (`gate.max_age`; on shards that a device keeps, the paper's gate
never fires), scoring happens on a validation split instead of the test set (``--score-on``), the mini-batch is kept
unless `allocation.search_batch` says otherwise, and what is pushed is the local model. The authors push the sum of all
gradients since the run began, although the worker restarts from the global model at every push
(``pushed="gradients"``): what the coordinator then scores is a model that no device ever had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from hermes_iot.algorithms.aggregation import fold_displacement, loss_weighted
from hermes_iot.algorithms.allocation import AllocationConfig, AllocationState, allocate
from hermes_iot.algorithms.gate import GateConfig, GateState, observe, start
from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies.base import (
    BaseStrategy,
    Contribution,
    Decision,
    Fleet,
    Merged,
    Regime,
    ScoreOf,
    StateDump,
)
from hermes_iot.algorithms.trees import is_finite
from hermes_iot.domain import DeviceId, Params, Sizing, Trained
from hermes_iot.errors import ProtocolError, UsageError

Pushed = Literal["model", "gradients", "delta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HermesConfig:
    """Constants of the strategy.

    Attributes:
        gate: when a device pushes.
        allocation: who is re-sized, and how.
        pushed: the local model; the sum of all displacements since the run began (the authors' code); or the
            displacement from the model last received, which keeps more of fp16's precision but needs the coordinator
            to hold what every device received.
    """

    gate: GateConfig = field(default_factory=GateConfig)
    allocation: AllocationConfig = field(default_factory=AllocationConfig)
    pushed: Pushed = "model"

    def __post_init__(self) -> None:
        if self.pushed not in {"model", "gradients", "delta"}:
            raise UsageError(f"hermes.pushed is {self.pushed!r}", mend="Use 'model', 'gradients' or 'delta'")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHalf:
    """A device's memory.

    Attributes:
        gate: its own.
        moved: the sum of all displacements pushed since the run began, shape (P,); only where that sum is what is pushed.
        counted: how far of the present course is in `moved`: the model of the newest push, shape (P,), while no answer
            has come to it; None where the course begins at the model received. A device that goes on alone would
            otherwise count once more what it has pushed.
    """

    gate: GateState
    moved: Params | None
    counted: Params | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorHalf:
    """The model everything started from, the global model's loss (None before the first push), the allocator's."""

    initial: Params
    loss: float | None = None
    allocation: AllocationState = field(default_factory=AllocationState)


@dataclass(frozen=True, slots=True)
class Hermes(BaseStrategy[DeviceHalf, CoordinatorHalf]):
    """See the module. States: `DeviceHalf` and `CoordinatorHalf`."""

    config: HermesConfig

    @property
    def regime(self) -> Regime:
        """Fresh rows and fp16; only a displacement from the received model needs that model."""
        return Regime(needs_base=self.config.pushed == "delta")

    def device_start(self, initial: Params) -> DeviceHalf:
        """An empty window."""
        moved = np.zeros_like(initial) if self.config.pushed == "gradients" else None
        return DeviceHalf(gate=start(self.config.gate), moved=moved)

    def adopted(self, state: DeviceHalf, received: Params, *, iterations: int) -> DeviceHalf:  # noqa: ARG002
        """A new course begins there."""
        return state if state.counted is None else replace(state, counted=None)

    def observe(self, state: DeviceHalf, trained: Trained, origin: Params) -> tuple[DeviceHalf, Decision]:  # noqa: ARG002
        """The loss gate. Divergence sends the device back to the model received: a new course too."""
        gate, verdict = observe(state.gate, trained.loss, self.config.gate)
        decision = Decision(push=verdict.fire, why=verdict.reason, z=verdict.z, threshold=verdict.threshold)
        counted = state.counted if math.isfinite(trained.loss) else None
        return DeviceHalf(gate=gate, moved=state.moved, counted=counted), decision

    def contribution(self, state: DeviceHalf, *, base: Params, params: Params) -> tuple[DeviceHalf, Params]:
        """What `pushed` says. A difference or a sum may overflow to infinity; whoever asked looks."""
        with np.errstate(over="ignore", invalid="ignore"):
            if state.moved is not None:
                start = base if state.counted is None else state.counted
                moved = fold_displacement(state.moved, params, start)
                return replace(state, moved=moved, counted=params), moved
            return state, params - base if self.config.pushed == "delta" else params

    def coordinator_start(self, initial: Params) -> CoordinatorHalf:
        """Nothing merged yet."""
        return CoordinatorHalf(initial=initial)

    def merge(
        self,
        state: CoordinatorHalf,
        model: Params,
        contribution: Contribution,
        fleet: Fleet,  # noqa: ARG002
        score: ScoreOf,
    ) -> tuple[CoordinatorHalf, Merged]:
        """Average the update in by inverse loss; answer its sender alone.

        Raises:
            ProtocolError: ``loss`` when the update, or the model with it, has no finite loss on the held-out rows;
                ``base`` when the model it was made from is not known any more; ``finite`` when a sum overflows.
        """
        update = self._rebuilt(state, contribution)
        theirs = score(update)
        if not math.isfinite(theirs.loss):
            raise ProtocolError("loss", f"the update of {contribution.device} has no finite loss on held-out rows")
        if state.loss is None:
            merged, weight, result = update, 1.0, theirs
        else:
            merged, weight = loss_weighted(model, state.loss, update, theirs.loss)
            result = score(merged)
            if not math.isfinite(result.loss):
                raise ProtocolError("loss", f"with the update of {contribution.device} the model has no finite loss")
        reply_to = (contribution.device,)
        return replace(state, loss=result.loss), Merged(model=merged, reply_to=reply_to, weight=weight, score=result)

    def resize(
        self,
        state: CoordinatorHalf,
        reports: Mapping[DeviceId, Report],
        fleet: Fleet,  # noqa: ARG002
    ) -> tuple[CoordinatorHalf, Mapping[DeviceId, Sizing]]:
        """Outliers by the interquartile range, sizes by the dual binary search."""
        allocation, sizes = allocate(reports, state.allocation, self.config.allocation)
        return replace(state, allocation=allocation), sizes

    def dump(self, state: CoordinatorHalf) -> StateDump:
        """The smoothed speeds are left out: losing them only restarts the smoothing."""
        scalars = {"loss": state.loss, "target_s": state.allocation.target_s}
        return StateDump(scalars=scalars, arrays={"initial": state.initial})

    def load(self, dump: StateDump) -> CoordinatorHalf:
        """The inverse of `dump`."""
        loss, target_s = dump.scalars["loss"], dump.scalars["target_s"]
        return CoordinatorHalf(
            initial=dump.arrays["initial"],
            loss=None if loss is None else float(loss),
            allocation=AllocationState(target_s=None if target_s is None else float(target_s)),
        )

    def _rebuilt(self, state: CoordinatorHalf, contribution: Contribution) -> Params:
        """The device's model, whatever form it travelled in.

        Raises:
            ProtocolError: ``base``, or ``finite`` where a sum overflows.
        """
        if self.config.pushed == "model":
            return contribution.vector
        start = state.initial if self.config.pushed == "gradients" else contribution.base
        if start is None:
            raise ProtocolError("base", f"the model that {contribution.device} started from is not known")
        with np.errstate(over="ignore"):
            rebuilt = start + contribution.vector
        if not is_finite(rebuilt):
            raise ProtocolError("finite", f"the update of {contribution.device} leads out of float32")
        return rebuilt


def build_strategy(config: HermesConfig) -> Hermes:
    """The strategy of these constants."""
    return Hermes(config)


Config = HermesConfig
