"""`fedavg`: rounds; some of the devices are drawn for each, the model is the mean of theirs by rows.

Source: Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Aguera y Arcas, "Communication-Efficient
Learning of Deep Networks from Decentralized Data" (AISTATS 2017, arXiv 1602.05629). C and the weighting are the paper's;
rows are the device's own claim.

A device that was not drawn is simply not answered until it is. Only one that has pushed can be answered, so everybody
takes part in the first round, which begins at the keyframe, and whoever joins later pushes once without being counted.
A drawn device that leaves is not waited for. Where nobody who is there waits to be drawn - all have left and come
back - a round of everybody begins again.

The draw is a function of `seed`, the round's number and who there is to draw from, so a run can be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hermes_iot.algorithms.checks import require_number, require_whole
from hermes_iot.algorithms.strategies.barrier import Entry, Round, closed, complete, handed_in, kept, kept_of
from hermes_iot.algorithms.strategies.base import NOTHING, Contribution, Fleet, Merged, Regime, ScoreOf, StateDump
from hermes_iot.algorithms.strategies.every import PushesModel
from hermes_iot.domain import DeviceId, Params


@dataclass(frozen=True, slots=True, kw_only=True)
class FedavgConfig:
    """Constants. fraction: C, the part of the devices drawn for a round, at least one. seed: of the draws, where none is given the run's."""

    fraction: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        require_number(self, "fraction", 1e-6, 1)
        require_whole(self, "seed", 0, 2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedavgHalf:
    """A round.

    Attributes:
        number: rounds before this one.
        drawn: who takes part, by name; None = everybody who is there.
        entries: what those handed in.
        idle: others that have pushed and were not answered.
    """

    number: int = 0
    drawn: tuple[DeviceId, ...] | None = None
    entries: Round = field(default_factory=dict)
    idle: frozenset[DeviceId] = frozenset()


@dataclass(frozen=True, slots=True)
class Fedavg(PushesModel[FedavgHalf]):
    """See the module. The coordinator's state: `FedavgHalf`."""

    config: FedavgConfig

    @property
    def regime(self) -> Regime:
        """Fresh rows, fp32, nobody goes on alone."""
        return Regime(codec_up="fp32", codec_down="fp32", waits=True)

    def coordinator_start(self, initial: Params) -> FedavgHalf:  # noqa: ARG002
        """A round of everybody."""
        return FedavgHalf()

    def merge(
        self,
        state: FedavgHalf,
        model: Params,  # noqa: ARG002
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[FedavgHalf, Merged]:
        """Hold it if its sender was drawn; with the last one awaited, merge all and draw the next."""
        device = contribution.device
        if state.drawn is None or device in state.drawn:
            entry = Entry(vector=contribution.vector, weight=max(1, contribution.samples))
            state = replace(state, entries=handed_in(state.entries, device, entry))
        else:
            state = replace(state, idle=state.idle | {device})
        return self._settled(state, fleet, device)

    def changed(
        self,
        state: FedavgHalf,
        model: Params,  # noqa: ARG002
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[FedavgHalf, Merged]:
        """Who has gone is awaited no longer."""
        return self._settled(state, fleet, None)

    def dump(self, state: FedavgHalf) -> StateDump:
        """All of it."""
        drawn = None if state.drawn is None else list(state.drawn)
        return kept(state.entries, round=state.number, drawn=drawn, idle=sorted(state.idle))

    def load(self, dump: StateDump) -> FedavgHalf:
        """The inverse of `dump`."""
        drawn = dump.scalars["drawn"]
        return FedavgHalf(
            number=int(dump.scalars["round"]),
            drawn=None if drawn is None else tuple(DeviceId(str(device)) for device in drawn),
            entries=kept_of(dump),
            idle=frozenset(DeviceId(str(device)) for device in dump.scalars["idle"]),
        )

    def _settled(self, state: FedavgHalf, fleet: Fleet, newest: DeviceId | None) -> tuple[FedavgHalf, Merged]:
        if state.drawn is None:
            if not complete(state.entries, fleet):
                return _recalled(state, fleet)
        elif any(device in fleet and device not in state.entries for device in state.drawn):
            return state, NOTHING
        end = closed(state.entries, by=newest) if state.entries else NOTHING
        idle = state.idle | state.entries.keys()
        drawn = self._draw(state.number + 1, sorted(device for device in idle if device in fleet), len(fleet))
        after = FedavgHalf(number=state.number + 1, drawn=drawn or None, idle=idle - set(drawn))
        return after, replace(end, reply_to=drawn)

    def _draw(self, number: int, candidates: Sequence[DeviceId], present: int) -> tuple[DeviceId, ...]:
        """C of those present, from those that can be answered; by name."""
        count = min(len(candidates), max(1, round(self.config.fraction * present)))
        chance = np.random.default_rng((self.config.seed, number))
        picked = chance.choice(len(candidates), size=count, replace=False) if count else ()
        return tuple(candidates[at] for at in sorted(int(one) for one in picked))


def _recalled(state: FedavgHalf, fleet: Fleet) -> tuple[FedavgHalf, Merged]:
    """In a round of everybody, those take part too that still wait from an earlier one."""
    back = tuple(sorted(device for device in state.idle if device in fleet and device not in state.entries))
    return (
        (replace(state, idle=state.idle - set(back)), Merged(model=None, reply_to=back)) if back else (state, NOTHING)
    )


def build_strategy(config: FedavgConfig) -> Fedavg:
    """The strategy of these constants."""
    return Fedavg(config)


Config = FedavgConfig
