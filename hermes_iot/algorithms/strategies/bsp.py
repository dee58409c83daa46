"""`bsp`: everybody waits for everybody after every iteration; the model is the mean of all.

Source: Leslie G. Valiant, "A bridging model for parallel computation" (Communications of the ACM 33(8), 1990,
doi 10.1145/79173.79181), the way distributed SGD uses it: compute, exchange, barrier. Models are averaged and not
gradients; after one step from the same model the two are the same, and here an iteration is many steps. Each counts by
the rows of its iteration, so equal rows give the plain mean. Rows are the device's own claim; the references trust it.

By default as the paper under comparison (arXiv 2410.20495) runs it: fresh rows in every iteration, several passes over
them. With `steps` an iteration is that many mini-batches of a walk, and the data are dealt out once in equal, disjoint
shares: the same barrier with short rounds and all the data, see `bsp_tuned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hermes_iot.algorithms.checks import STEPS_MAX, require_whole
from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies.barrier import Entry, Round, closed, complete, handed_in, kept, kept_of
from hermes_iot.algorithms.strategies.base import NOTHING, Contribution, Fleet, Merged, Regime, ScoreOf, StateDump
from hermes_iot.algorithms.strategies.every import PushesModel
from hermes_iot.domain import DeviceId, Params, Sizing


@dataclass(frozen=True, slots=True, kw_only=True)
class BspConfig:
    """Constants. steps: mini-batches of an iteration, over equal shares of the data; 0 = passes over fresh rows."""

    steps: int = 0

    def __post_init__(self) -> None:
        require_whole(self, "steps", 0, STEPS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class BspHalf:
    """What was handed in since the last barrier, and among whom the data were dealt out."""

    entries: Round = field(default_factory=dict)
    sharing: frozenset[DeviceId] = frozenset()


@dataclass(frozen=True, slots=True)
class Bsp(PushesModel[BspHalf]):
    """See the module. The coordinator's state: `BspHalf`."""

    config: BspConfig

    @property
    def regime(self) -> Regime:
        """fp32, nobody goes on alone; a walk where `steps` says so."""
        steps = self.config.steps
        return Regime(
            sampling="walk" if steps else "fresh", codec_up="fp32", codec_down="fp32", steps=steps, waits=True
        )

    def coordinator_start(self, initial: Params) -> BspHalf:  # noqa: ARG002
        """Nobody has handed in anything."""
        return BspHalf()

    def merge(
        self,
        state: BspHalf,
        model: Params,  # noqa: ARG002
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[BspHalf, Merged]:
        """Hold it; with the last one awaited, merge all and answer all."""
        entry = Entry(vector=contribution.vector, weight=max(1, contribution.samples))
        state = replace(state, entries=handed_in(state.entries, contribution.device, entry))
        return _settled(state, fleet, contribution.device)

    def changed(
        self,
        state: BspHalf,
        model: Params,  # noqa: ARG002
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[BspHalf, Merged]:
        """Who has gone is awaited no longer."""
        return _settled(state, fleet, None)

    def resize(
        self,
        state: BspHalf,
        reports: Mapping[DeviceId, Report],
        fleet: Fleet,  # noqa: ARG002
    ) -> tuple[BspHalf, Mapping[DeviceId, Sizing]]:
        """In a walk: an equal share each, dealt out anew only when it is among others."""
        among = frozenset(reports)
        if not self.config.steps or not among or among == state.sharing:
            return state, {}
        sizes = {
            device: Sizing(
                samples=report.samples, batch=report.batch, steps=self.config.steps, share=1.0 / len(reports)
            )
            for device, report in reports.items()
        }
        return replace(state, sharing=among), sizes

    def dump(self, state: BspHalf) -> StateDump:
        """All of it."""
        return kept(state.entries, sharing=sorted(state.sharing))

    def load(self, dump: StateDump) -> BspHalf:
        """The inverse of `dump`."""
        sharing = frozenset(DeviceId(str(device)) for device in dump.scalars["sharing"])
        return BspHalf(entries=kept_of(dump), sharing=sharing)


def _settled(state: BspHalf, fleet: Fleet, newest: DeviceId | None) -> tuple[BspHalf, Merged]:
    if not complete(state.entries, fleet):
        return state, NOTHING
    return replace(state, entries={}), closed(state.entries, by=newest)


def build_strategy(config: BspConfig) -> Bsp:
    """The strategy of these constants."""
    return Bsp(config)


Config = BspConfig
