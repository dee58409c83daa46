"""`fedbuff`: nobody waits; displacements gather, and every K of them the model moves by their mean.

Source: John Nguyen, Kshitiz Malik, Hongyuan Zhan, Ashkan Yousefpour, Michael Rabbat, Mani Malek, Dzmitry Huba,
"Federated Learning with Buffered Asynchronous Aggregation" (AISTATS 2022, arXiv 2106.06639): each displacement counts
1/sqrt(1 + lag), their sum is divided by K, and a server learning rate is applied. The sender gets the present model at
once, whether its push was applied or only gathered. The paper's secure aggregation is not part of this.

With fewer than K devices there, K is their number: the buffer must not fill from one device's pushes alone. So a
device that leaves can be what fills it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hermes_iot.algorithms.aggregation import displaced
from hermes_iot.algorithms.checks import require_number, require_whole
from hermes_iot.algorithms.strategies.base import NOTHING, Contribution, Fleet, Merged, Regime, ScoreOf, StateDump
from hermes_iot.algorithms.strategies.every import PushesDisplacement
from hermes_iot.algorithms.trees import is_finite
from hermes_iot.domain import Params
from hermes_iot.errors import ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class FedbuffConfig:
    """Constants. buffer: K. rate: the server's learning rate, eta."""

    buffer: int = 10
    rate: float = 1.0

    def __post_init__(self) -> None:
        require_whole(self, "buffer", 1, 10**4)
        require_number(self, "rate", 1e-6, 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One displacement of shape (P,), and what it counts: 1/sqrt(1 + lag)."""

    displacement: Params
    scale: float


#: The buffer, in the order of arrival.
Buffer = tuple[Gathered, ...]


@dataclass(frozen=True, slots=True)
class Fedbuff(PushesDisplacement[Buffer]):
    """See the module. The coordinator's state: `Buffer`."""

    config: FedbuffConfig

    @property
    def regime(self) -> Regime:
        """Fresh rows, fp32, displacements."""
        return Regime(codec_up="fp32", codec_down="fp32", displaces=True)

    def coordinator_start(self, initial: Params) -> Buffer:  # noqa: ARG002
        """Empty."""
        return ()

    def merge(
        self,
        state: Buffer,
        model: Params,
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[Buffer, Merged]:
        """Gather it, move the model if the buffer is full, answer the sender.

        Raises:
            ProtocolError: ``finite`` when it alone would lead the model out of float32. The mean of displacements
                that do not can not either, so one that is gathered never spoils the others' merge.
        """
        reply_to = (contribution.device,)
        scale = 1.0 / math.sqrt(1 + contribution.lag)
        if not is_finite(displaced(model, [contribution.vector], [self.config.rate * scale])):
            raise ProtocolError("finite", f"the update of {contribution.device} leads out of float32")
        buffer = (*state, Gathered(displacement=contribution.vector, scale=scale))
        if len(buffer) < self._size(fleet):
            return buffer, Merged(model=None, reply_to=reply_to)
        weight = min(1.0, self.config.rate * scale / len(buffer))
        return (), Merged(model=self._applied(model, buffer), reply_to=reply_to, weight=weight)

    def changed(
        self,
        state: Buffer,
        model: Params,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[Buffer, Merged]:
        """With fewer devices there, what was gathered may be enough."""
        if not state or len(state) < self._size(fleet):
            return state, NOTHING
        return (), Merged(model=self._applied(model, state), reply_to=())

    def dump(self, state: Buffer) -> StateDump:
        """All of it."""
        return StateDump(
            scalars={"scales": [one.scale for one in state]},
            arrays={f"displacement.{number}": one.displacement for number, one in enumerate(state)},
        )

    def load(self, dump: StateDump) -> Buffer:
        """The inverse of `dump`."""
        return tuple(
            Gathered(displacement=dump.arrays[f"displacement.{number}"], scale=float(scale))
            for number, scale in enumerate(dump.scalars["scales"])
        )

    def _size(self, fleet: Fleet) -> int:
        return max(1, min(self.config.buffer, len(fleet)))

    def _applied(self, model: Params, buffer: Buffer) -> Params:
        strength = self.config.rate / len(buffer)
        return displaced(model, [one.displacement for one in buffer], [strength * one.scale for one in buffer])


def build_strategy(config: FedbuffConfig) -> Fedbuff:
    """The strategy of these constants."""
    return Fedbuff(config)


Config = FedbuffConfig
