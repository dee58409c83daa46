"""`asp`: nobody waits; every push is added to the model at 1/N, and its sender goes on from the result.

Source: Benjamin Recht, Christopher Re, Stephen Wright, Feng Niu, "Hogwild!: A Lock-Free Approach to Parallelizing
Stochastic Gradient Descent" (NeurIPS 2011, arXiv 1106.5730), and Jeffrey Dean et al., "Large Scale Distributed Deep
Networks" (NeurIPS 2012), whose workers add what they found to a model that has moved on meanwhile. There a push is one
or a few steps. Here it is a whole local iteration: N of them added at full strength go N times as far as any device
went, and training diverges. At 1/N (N: the devices that are there) one push of each is one average.

Nothing looks at how old a push is: a straggler's counts like any other. `ssp` bounds that.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_iot.algorithms.aggregation import displaced
from hermes_iot.algorithms.checks import require_number
from hermes_iot.algorithms.strategies.base import Contribution, Fleet, Merged, Regime, ScoreOf
from hermes_iot.algorithms.strategies.every import Nothing, PushesDisplacement, RemembersNothing
from hermes_iot.algorithms.trees import is_finite
from hermes_iot.domain import Params
from hermes_iot.errors import ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class AspConfig:
    """Constants. scale: what a displacement is multiplied by before it is added; None = 1/N."""

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            require_number(self, "scale", 1e-9, 1e3)


@dataclass(frozen=True, slots=True)
class Asp(RemembersNothing, PushesDisplacement[Nothing]):
    """See the module. The coordinator remembers nothing."""

    config: AspConfig

    @property
    def regime(self) -> Regime:
        """Fresh rows, fp32, displacements."""
        return Regime(codec_up="fp32", codec_down="fp32", displaces=True)

    def merge(
        self,
        state: Nothing,
        model: Params,
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[Nothing, Merged]:
        """Add it and answer its sender.

        Raises:
            ProtocolError: ``finite`` when the model would leave float32.
        """
        merged, weight = added(model, contribution, fleet, self.config.scale)
        return state, Merged(model=merged, reply_to=(contribution.device,), weight=weight)


def added(model: Params, contribution: Contribution, fleet: Fleet, scale: float | None) -> tuple[Params, float]:
    """The model with a displacement added at `scale` (None: 1/N), and the displacement's weight in [0, 1].

    Raises:
        ProtocolError: ``finite`` when the model would leave float32.
    """
    strength = 1.0 / max(1, len(fleet)) if scale is None else scale
    merged = displaced(model, [contribution.vector], [strength])
    if not is_finite(merged):
        raise ProtocolError("finite", f"the update of {contribution.device} leads out of float32")
    return merged, min(1.0, strength)


def build_strategy(config: AspConfig) -> Asp:
    """The strategy of these constants."""
    return Asp(config)


Config = AspConfig
