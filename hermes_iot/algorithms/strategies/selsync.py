"""`selsync`: a device trains alone while its gradient changes little; when one finds that it does not, all meet.

Source: Sahil Tyagi, Martin Swany, "Accelerating Distributed ML Training via Selective Synchronization" (IEEE CLUSTER
2023, arXiv 2307.07950): with s the smoothed norm of the gradient, synchronise parameters when |s - s'| / s' >= delta, s'
being the one before; one device that says so is enough. `delta` and `smoothing` are those the authors' published scripts
run with (of the smoothing the script says 0.01, but sets the same shell variable to 0.25 before it is used).

The norm is that of an iteration's mean displacement per mini-batch. SGD moves by the learning rate times the gradient,
so this is the mean gradient times a constant, and the constant cancels in the relative change. (The one iteration at
half the learning rate that follows a divergence reads low.) Against the paper, which looks at every mini-batch, a mean
over an iteration is far less noisy. A fall of the norm can never exceed `smoothing`: with the defaults only a rise to
2.2 times the smoothed norm, in its square, or `max_age`, brings devices together.

Departures, all but the first because boards are no lockstep cluster:

- The norm is squared and smoothed once, exponentially without end; the authors' code smooths the norm and once more
  the change, over a window of 25, and synchronises throughout the first 25. Their steps are mini-batches: 25 of our
  iterations would be half a run. Here only a device's first iteration, which has none before it, always pushes.
- Devices do not decide at the same step. The first push of one asks all others to push at the end of the iteration
  they are at, so a straggler's iteration is waited for.
- After `max_age` silent iterations a device pushes anyway: a fleet that sees no change must not train apart for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from hermes_iot.algorithms.checks import require_number, require_whole
from hermes_iot.algorithms.strategies.barrier import Entry, Round, awaited, closed, complete, handed_in, kept, kept_of
from hermes_iot.algorithms.strategies.base import (
    NOTHING,
    BaseStrategy,
    Contribution,
    Decision,
    Fleet,
    Merged,
    Regime,
    ScoreOf,
    StateDump,
)
from hermes_iot.algorithms.trees import norm
from hermes_iot.domain import DeviceId, Params, Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class SelsyncConfig:
    """Constants.

    Attributes:
        delta: relative change of the smoothed squared norm from which on an update is worth a synchronisation.
        smoothing: weight of the newest squared norm in the smoothed one.
        max_age: silent iterations after which a device pushes anyway, the pushing one counted; None = never.
    """

    delta: float = 0.3
    smoothing: float = 0.25
    max_age: int | None = 10

    def __post_init__(self) -> None:
        require_number(self, "delta", 0, 1e6)
        require_number(self, "smoothing", 1e-6, 1)
        if self.max_age is not None:
            require_whole(self, "max_age", 1, 10**6)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelsyncDevice:
    """A device's memory.

    Attributes:
        start: where the coming iteration begins, shape (P,).
        smoothed: s', None before the first iteration.
        age: iterations since the last push.
    """

    start: Params
    smoothed: float | None = None
    age: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SelsyncHalf:
    """What was handed in since the last barrier, and who was asked to."""

    entries: Round = field(default_factory=dict)
    summoned: frozenset[DeviceId] = frozenset()


@dataclass(frozen=True, slots=True)
class Selsync(BaseStrategy[SelsyncDevice, SelsyncHalf]):
    """See the module. States: `SelsyncDevice` and `SelsyncHalf`."""

    config: SelsyncConfig

    @property
    def regime(self) -> Regime:
        """Fresh rows, fp32, nobody who has pushed goes on alone."""
        return Regime(codec_up="fp32", codec_down="fp32", waits=True)

    # the device's half

    def device_start(self, initial: Params) -> SelsyncDevice:
        """No norm yet."""
        return SelsyncDevice(start=initial)

    def adopted(self, state: SelsyncDevice, received: Params, *, iterations: int) -> SelsyncDevice:  # noqa: ARG002
        """The next iteration begins there. The norms go on: a synchronisation is no new course."""
        return replace(state, start=received, age=0)

    def observe(self, state: SelsyncDevice, trained: Trained, origin: Params) -> tuple[SelsyncDevice, Decision]:
        """Push if the gradient changed, or nothing was said for long."""
        age = state.age + 1
        if not math.isfinite(trained.loss):
            return replace(state, start=origin, age=age), Decision(push=False, why="diverged")
        squared = _squared_norm(state.start, trained)
        smoothed, change = self._followed(state.smoothed, squared)
        why = self._why(change, age, first=state.smoothed is None)
        after = SelsyncDevice(start=trained.params, smoothed=smoothed, age=age)
        return after, Decision(push=why != "no", why=why, z=change, threshold=self.config.delta)

    def contribution(self, state: SelsyncDevice, *, base: Params, params: Params) -> tuple[SelsyncDevice, Params]:  # noqa: ARG002
        """The model."""
        return replace(state, age=0), params

    def _followed(self, before: float | None, squared: float) -> tuple[float | None, float | None]:
        """The smoothed squared norm, and its relative change; None where it has none."""
        if not math.isfinite(squared):  # vectors further apart than float32 reaches
            return before, None
        if before is None:
            return squared, None
        smoothed = before + self.config.smoothing * (squared - before)
        return smoothed, abs(smoothed - before) / before if before > 0 else None

    def _why(self, change: float | None, age: int, *, first: bool) -> str:
        if first:
            return "first"
        if change is not None and change >= self.config.delta:
            return "change"
        return "age" if self.config.max_age is not None and age >= self.config.max_age else "no"

    # the coordinator's half

    def coordinator_start(self, initial: Params) -> SelsyncHalf:  # noqa: ARG002
        """Everybody trains alone."""
        return SelsyncHalf()

    def merge(
        self,
        state: SelsyncHalf,
        model: Params,  # noqa: ARG002
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[SelsyncHalf, Merged]:
        """Hold it and summon the others; with the last one, merge all and answer all."""
        entry = Entry(vector=contribution.vector)
        state = replace(state, entries=handed_in(state.entries, contribution.device, entry))
        return _settled(state, fleet, contribution.device)

    def changed(
        self,
        state: SelsyncHalf,
        model: Params,  # noqa: ARG002
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[SelsyncHalf, Merged]:
        """Who has gone is awaited no longer; who has come to a barrier is summoned too."""
        return _settled(state, fleet, None)

    def dump(self, state: SelsyncHalf) -> StateDump:
        """All of it."""
        return kept(state.entries, summoned=sorted(state.summoned))

    def load(self, dump: StateDump) -> SelsyncHalf:
        """The inverse of `dump`."""
        summoned = frozenset(DeviceId(str(device)) for device in dump.scalars["summoned"])
        return SelsyncHalf(entries=kept_of(dump), summoned=summoned)


def _squared_norm(start: Params, trained: Trained) -> float:
    """Of the mean displacement per mini-batch; infinite where it leads out of float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = norm(trained.params - start) / max(1, trained.mini_batches)
    return moved * moved


def _settled(state: SelsyncHalf, fleet: Fleet, newest: DeviceId | None) -> tuple[SelsyncHalf, Merged]:
    if not state.entries:
        return state, NOTHING
    if complete(state.entries, fleet):
        return SelsyncHalf(), closed(state.entries, by=newest)
    still = awaited(state.entries, fleet)
    # One that went is forgotten here, so it is asked again when it comes back.
    summon = tuple(device for device in still if device not in state.summoned)
    return replace(state, summoned=frozenset(still)), Merged(model=None, reply_to=(), summon=summon)


def build_strategy(config: SelsyncConfig) -> Selsync:
    """The strategy of these constants."""
    return Selsync(config)


Config = SelsyncConfig
