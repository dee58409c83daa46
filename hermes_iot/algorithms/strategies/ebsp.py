"""`ebsp`: a barrier, but each device makes as many iterations before it as let all of them arrive nearly together.

Source: Xing Zhao et al., "Elastic Bulk Synchronous Parallel Model for Distributed Deep Learning" (ICDM 2019, arXiv
2001.01347), with its ZipLine scan, see `algorithms/zipline.py`. At every barrier the coordinator predicts from each
device's newest iteration when its next R iterations will end, chooses one end of each, and says so with the answer.
R is for its user to tune: it trades waiting against devices drifting apart.

Departures: the model is the plain mean of the models, as in the other barriers here, where the paper has a parameter
server that adds gradients. A device that has just come was not predicted: it pushes after one iteration and waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hermes_iot.algorithms.checks import require_whole
from hermes_iot.algorithms.speed import SECONDS_MAX
from hermes_iot.algorithms.strategies.barrier import Entry, Round, closed, complete, handed_in, kept, kept_of
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
from hermes_iot.algorithms.zipline import iterations_to_barrier
from hermes_iot.domain import DeviceId, Params, Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class EbspConfig:
    """Constants. lookahead: R, the most iterations between two barriers."""

    lookahead: int = 15

    def __post_init__(self) -> None:
        require_whole(self, "lookahead", 1, 10**4)


@dataclass(frozen=True, slots=True, kw_only=True)
class EbspDevice:
    """Iterations to make before the next push, and made since the last model came."""

    planned: int = 1
    made: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EbspHalf:
    """What was handed in since the last barrier, and the seconds an iteration took its device where they are known."""

    entries: Round = field(default_factory=dict)
    seconds: Mapping[DeviceId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ebsp(BaseStrategy[EbspDevice, EbspHalf]):
    """See the module. States: `EbspDevice` and `EbspHalf`."""

    config: EbspConfig

    @property
    def regime(self) -> Regime:
        """Fresh rows, fp32, nobody goes on alone."""
        return Regime(codec_up="fp32", codec_down="fp32", waits=True)

    # the device's half

    def device_start(self, initial: Params) -> EbspDevice:  # noqa: ARG002
        """One iteration."""
        return EbspDevice()

    def adopted(self, state: EbspDevice, received: Params, *, iterations: int) -> EbspDevice:  # noqa: ARG002
        """As many as were said, no more than R; where nothing was, one."""
        return EbspDevice(planned=min(max(1, iterations), self.config.lookahead))

    def observe(self, state: EbspDevice, trained: Trained, origin: Params) -> tuple[EbspDevice, Decision]:  # noqa: ARG002
        """Push when the count is reached."""
        made = state.made + 1
        push = made >= state.planned
        return replace(state, made=made), Decision(push=push, why="count" if push else "no")

    def contribution(self, state: EbspDevice, *, base: Params, params: Params) -> tuple[EbspDevice, Params]:  # noqa: ARG002
        """The model."""
        return state, params

    # the coordinator's half

    def coordinator_start(self, initial: Params) -> EbspHalf:  # noqa: ARG002
        """Nobody has handed in anything."""
        return EbspHalf()

    def merge(
        self,
        state: EbspHalf,
        model: Params,  # noqa: ARG002
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[EbspHalf, Merged]:
        """Hold it; with the last one awaited, merge all and tell all when the next barrier is."""
        device = contribution.device
        seconds = {other: one for other, one in state.seconds.items() if other != device}
        if 0 < contribution.seconds <= SECONDS_MAX:
            seconds[device] = contribution.seconds
        entries = handed_in(state.entries, device, Entry(vector=contribution.vector))
        return self._settled(EbspHalf(entries=entries, seconds=seconds), fleet, device)

    def changed(
        self,
        state: EbspHalf,
        model: Params,  # noqa: ARG002
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[EbspHalf, Merged]:
        """Who has gone is awaited no longer."""
        return self._settled(state, fleet, None)

    def dump(self, state: EbspHalf) -> StateDump:
        """All of it."""
        return kept(state.entries, seconds={str(device): seconds for device, seconds in state.seconds.items()})

    def load(self, dump: StateDump) -> EbspHalf:
        """The inverse of `dump`."""
        seconds = {DeviceId(device): float(value) for device, value in dict(dump.scalars["seconds"]).items()}
        return EbspHalf(entries=kept_of(dump), seconds=seconds)

    def _settled(self, state: EbspHalf, fleet: Fleet, newest: DeviceId | None) -> tuple[EbspHalf, Merged]:
        if not complete(state.entries, fleet):
            return state, NOTHING
        # Who has gone would only make the others meet its end.
        present = {device: seconds for device, seconds in state.seconds.items() if device in fleet}
        iterations = iterations_to_barrier(present, self.config.lookahead)
        return EbspHalf(), replace(closed(state.entries, by=newest), iterations=iterations)


def build_strategy(config: EbspConfig) -> Ebsp:
    """The strategy of these constants."""
    return Ebsp(config)


Config = EbspConfig
