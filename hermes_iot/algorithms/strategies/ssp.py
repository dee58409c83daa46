"""`ssp`: `asp` with a bound: a device too far ahead of the slowest is not answered until the slowest has caught up.

Source: Qirong Ho, James Cipar, Henggang Cui, Jin Kyu Kim, Seunghak Lee, Phillip B. Gibbons, Garth A. Gibson, Gregory R.
Ganger, Eric P. Xing, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server" (NeurIPS 2013).
A device's clock counts its iterations; it goes on while its clock is at most `bound` above the lowest one. A bound of 0
is a barrier after every iteration, though each push is added as it comes.

Where devices come and go, the paper says nothing. A newcomer's clock begins at the lowest one of those that are there:
at 0 it would hold up the whole fleet until it had made as many iterations as everybody before it. One that leaves is
forgotten, and answered if it waited: it holds nobody up and nobody holds it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hermes_iot.algorithms.checks import require_number, require_whole
from hermes_iot.algorithms.strategies.asp import added
from hermes_iot.algorithms.strategies.base import Contribution, Fleet, Merged, Regime, ScoreOf, StateDump
from hermes_iot.algorithms.strategies.every import PushesDisplacement
from hermes_iot.domain import DeviceId, Params


@dataclass(frozen=True, slots=True, kw_only=True)
class SspConfig:
    """Constants.

    Attributes:
        bound: iterations a device may be ahead of the slowest.
        scale: what a displacement is multiplied by before it is added; None = 1/N.
    """

    bound: int = 3
    scale: float | None = None

    def __post_init__(self) -> None:
        require_whole(self, "bound", 0, 10**6)
        if self.scale is not None:
            require_number(self, "scale", 1e-9, 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class SspHalf:
    """Iterations of every device that is there, and who waits, first come first."""

    clocks: Mapping[DeviceId, int] = field(default_factory=dict)
    waiting: tuple[DeviceId, ...] = ()


@dataclass(frozen=True, slots=True)
class Ssp(PushesDisplacement[SspHalf]):
    """See the module. The coordinator's state: `SspHalf`."""

    config: SspConfig

    @property
    def regime(self) -> Regime:
        """Fresh rows, fp32, displacements, nobody goes on alone."""
        return Regime(codec_up="fp32", codec_down="fp32", displaces=True, waits=True)

    def coordinator_start(self, initial: Params) -> SspHalf:  # noqa: ARG002
        """No clock runs yet."""
        return SspHalf()

    def merge(
        self,
        state: SspHalf,
        model: Params,
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[SspHalf, Merged]:
        """Add it, and answer whoever may go on now.

        Raises:
            ProtocolError: ``finite`` when the model would leave float32.
        """
        merged, weight = added(model, contribution, fleet, self.config.scale)
        device = contribution.device
        clocks = _present(state.clocks, fleet)
        if device in clocks:
            clocks[device] += max(1, contribution.iterations)
        waiting = (*(other for other in state.waiting if other != device), device)
        state, free = self._freed(replace(state, clocks=clocks, waiting=waiting))
        return state, Merged(model=merged, reply_to=free, weight=weight)

    def changed(
        self,
        state: SspHalf,
        model: Params,  # noqa: ARG002
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[SspHalf, Merged]:
        """If the slowest has gone, others may go on."""
        state, free = self._freed(replace(state, clocks=_present(state.clocks, fleet)))
        return state, Merged(model=None, reply_to=free)

    def dump(self, state: SspHalf) -> StateDump:
        """All of it."""
        return StateDump(scalars={"clocks": dict(state.clocks), "waiting": list(state.waiting)})

    def load(self, dump: StateDump) -> SspHalf:
        """The inverse of `dump`."""
        clocks = {DeviceId(str(device)): int(clock) for device, clock in dict(dump.scalars["clocks"]).items()}
        return SspHalf(clocks=clocks, waiting=tuple(DeviceId(str(device)) for device in dump.scalars["waiting"]))

    def _freed(self, state: SspHalf) -> tuple[SspHalf, tuple[DeviceId, ...]]:
        """Who no longer waits: near enough to the slowest, or gone."""
        most = min(state.clocks.values(), default=0) + self.config.bound
        free = tuple(device for device in state.waiting if state.clocks.get(device, most) <= most)
        waiting = tuple(device for device in state.waiting if state.clocks.get(device, most) > most)
        return replace(state, waiting=waiting), free


def _present(clocks: Mapping[DeviceId, int], fleet: Fleet) -> dict[DeviceId, int]:
    """The clocks of those that are there; a newcomer's begins at the lowest of them."""
    lowest = min((clocks[device] for device in fleet if device in clocks), default=0)
    return {device: clocks.get(device, lowest) for device in fleet}


def build_strategy(config: SspConfig) -> Ssp:
    """The strategy of these constants."""
    return Ssp(config)


Config = SspConfig
