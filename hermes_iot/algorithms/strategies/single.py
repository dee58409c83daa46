"""`single`: the fastest device alone, with all the data. What a fleet must be better than.

No paper: it is SGD (Herbert Robbins, Sutton Monro, "A Stochastic Approximation Method", 1951,
doi 10.1214/aoms/1177729586) on one machine, and every comparison carries it, because a fleet of unequal boards often is
no faster than its best one. The case for a fleet is data that cannot move or do not fit.

All devices make one short iteration. When everybody that is there has, the one with the fewest seconds per mini-batch
is answered and nobody else: the others wait. (All times hold the lazy initialisation of a process's first iteration;
it is much the same for all. No later time is looked at: with fewer rows or a warm process it compares with none of
them.) The chosen one is given all the rows, and its model is the model. If it leaves, the
fastest of the others follows; it does not get its place back. What the others learnt in their first iteration is
thrown away. The serving average, switched off by default, is the only embellishment: Boris Polyak, Anatoli Juditsky,
"Acceleration of Stochastic Approximation by Averaging" (1992, doi 10.1137/0330046), with exponential weights. Its rate
begins at 1, 1/2, 1/3, so that the untrained model has no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hermes_iot.algorithms.aggregation import blend
from hermes_iot.algorithms.checks import STEPS_MAX, require_number, require_whole
from hermes_iot.algorithms.speed import SECONDS_MAX, Report
from hermes_iot.algorithms.strategies.base import NOTHING, Contribution, Fleet, Merged, Regime, ScoreOf, StateDump
from hermes_iot.algorithms.strategies.every import PushesModel
from hermes_iot.domain import DeviceId, Params, Sizing


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleConfig:
    """Constants.

    Attributes:
        steps: mini-batches of an iteration of the chosen device.
        first_steps: of everybody's first.
        average: weight of the newest model in the served average; 0 = the newest model itself is served.
    """

    steps: int = 400
    first_steps: int = 10
    average: float = 0.0

    def __post_init__(self) -> None:
        require_whole(self, "steps", 1, STEPS_MAX)
        require_whole(self, "first_steps", 1, STEPS_MAX)
        require_number(self, "average", 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleHalf:
    """What the coordinator knows.

    Attributes:
        speeds: seconds per mini-batch in the first iteration of every device that ever pushed; `SECONDS_MAX` where it
            named no time.
        chosen: the device that trains; None before one is chosen.
        sized: the chosen one was given its rows.
        batch: mini-batch of all chosen ones; 0 before one was sized. Those that gave up their rows know it no more.
        models: how many came from chosen devices.
        average: of those, shape (P,); None before the first, or where nothing is averaged.
    """

    speeds: Mapping[DeviceId, float] = field(default_factory=dict)
    chosen: DeviceId | None = None
    sized: bool = False
    batch: int = 0
    models: int = 0
    average: Params | None = None


@dataclass(frozen=True, slots=True)
class Single(PushesModel[SingleHalf]):
    """See the module. The coordinator's state: `SingleHalf`."""

    config: SingleConfig

    @property
    def regime(self) -> Regime:
        """A walk, fp32, nobody goes on alone; sized early, as the others are never measured again."""
        return Regime(
            sampling="walk",
            codec_up="fp32",
            codec_down="fp32",
            steps=self.config.first_steps,
            waits=True,
            sizes_early=True,
        )

    def coordinator_start(self, initial: Params) -> SingleHalf:  # noqa: ARG002
        """Nobody is chosen."""
        return SingleHalf()

    def merge(
        self,
        state: SingleHalf,
        model: Params,  # noqa: ARG002
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[SingleHalf, Merged]:
        """The chosen one's model is the model; of another's only the time is noted."""
        device = contribution.device
        state = replace(state, speeds={device: _seconds_per_batch(contribution), **state.speeds})
        if device != state.chosen:
            return _chosen(state, fleet)
        models = state.models + 1
        average = self._averaged(state.average, contribution.vector, models)
        state = replace(state, models=models, average=average)
        return state, Merged(model=contribution.vector, reply_to=(device,), weight=1.0)

    def changed(
        self,
        state: SingleHalf,
        model: Params,  # noqa: ARG002
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[SingleHalf, Merged]:
        """Somebody must train: the next one if the chosen one has gone."""
        return _chosen(state, fleet)

    def resize(
        self, state: SingleHalf, reports: Mapping[DeviceId, Report], fleet: Fleet
    ) -> tuple[SingleHalf, Mapping[DeviceId, Sizing]]:
        """All the rows for the chosen one, once; the others give up theirs, as rows are dealt out disjoint."""
        report = reports.get(state.chosen) if state.chosen is not None else None
        if state.chosen is None or state.sized or report is None:
            return state, {}
        least = Sizing(samples=1, batch=1, steps=self.config.first_steps)
        sizes: dict[DeviceId, Sizing] = dict.fromkeys(fleet, least)
        batch = state.batch or report.batch
        sizes[state.chosen] = Sizing(samples=report.samples, batch=batch, steps=self.config.steps, share=1.0)
        return replace(state, sized=True, batch=batch), sizes

    def served(self, state: SingleHalf, model: Params) -> Params:
        """The average, where there is one."""
        return model if state.average is None else state.average

    def dump(self, state: SingleHalf) -> StateDump:
        """All of it."""
        scalars = {
            "speeds": dict(state.speeds),
            "chosen": state.chosen,
            "sized": state.sized,
            "batch": state.batch,
            "models": state.models,
        }
        return StateDump(scalars=scalars, arrays={} if state.average is None else {"average": state.average})

    def load(self, dump: StateDump) -> SingleHalf:
        """The inverse of `dump`."""
        chosen = dump.scalars["chosen"]
        return SingleHalf(
            speeds={DeviceId(str(device)): float(one) for device, one in dict(dump.scalars["speeds"]).items()},
            chosen=None if chosen is None else DeviceId(str(chosen)),
            sized=bool(dump.scalars["sized"]),
            batch=int(dump.scalars["batch"]),
            models=int(dump.scalars["models"]),
            average=dump.arrays.get("average"),
        )

    def _averaged(self, average: Params | None, vector: Params, models: int) -> Params | None:
        if not self.config.average:
            return None
        return vector if average is None else blend(average, vector, max(self.config.average, 1.0 / models))


def _seconds_per_batch(contribution: Contribution) -> float:
    seconds = contribution.seconds / max(1, contribution.mini_batches)
    return seconds if 0 < seconds <= SECONDS_MAX else SECONDS_MAX


def _chosen(state: SingleHalf, fleet: Fleet) -> tuple[SingleHalf, Merged]:
    """The fastest of those that are there and have pushed, unless one is chosen and there; the first choice waits."""
    if state.chosen is not None and state.chosen in fleet:
        return state, NOTHING
    present = tuple(fleet)
    pushed = [device for device in present if device in state.speeds]
    if not pushed or (state.chosen is None and len(pushed) < len(present)):
        return state, NOTHING
    fastest = min(pushed, key=lambda device: state.speeds[device])  # the first of equals: who joined earlier
    return replace(state, chosen=fastest, sized=False), Merged(model=None, reply_to=(fastest,))


def build_strategy(config: SingleConfig) -> Single:
    """The strategy of these constants."""
    return Single(config)


Config = SingleConfig
