"""`fedasync`: nobody waits; a push moves the model towards the device's, the less the older it is.

Source: Cong Xie, Sanmi Koyejo, Indranil Gupta, "Asynchronous Federated Optimization" (arXiv 1903.03934):
w = (1 - a) w + a w_i with a = alpha * (1 + lag)^-exponent, the paper's polynomial staleness; `exponent` 0 is its
constant one. Its proximal term, which pulls local training towards the model received, is left out: the trainer
is plain SGD for every strategy.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_iot.algorithms.aggregation import blend
from hermes_iot.algorithms.checks import require_number
from hermes_iot.algorithms.strategies.base import Contribution, Fleet, Merged, Regime, ScoreOf
from hermes_iot.algorithms.strategies.every import Nothing, PushesModel, RemembersNothing
from hermes_iot.domain import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class FedasyncConfig:
    """Constants. alpha: weight of a push made from the newest model. exponent: how fast it falls with the lag."""

    alpha: float = 0.6
    exponent: float = 0.5

    def __post_init__(self) -> None:
        require_number(self, "alpha", 1e-6, 1)
        require_number(self, "exponent", 0, 100)


@dataclass(frozen=True, slots=True)
class Fedasync(RemembersNothing, PushesModel[Nothing]):
    """See the module. The coordinator remembers nothing."""

    config: FedasyncConfig

    @property
    def regime(self) -> Regime:
        """Fresh rows, fp32."""
        return Regime(codec_up="fp32", codec_down="fp32")

    def merge(
        self,
        state: Nothing,
        model: Params,
        contribution: Contribution,
        fleet: Fleet,  # noqa: ARG002
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[Nothing, Merged]:
        """Blend it in and answer its sender."""
        weight = self.config.alpha * (1 + contribution.lag) ** -self.config.exponent
        merged = blend(model, contribution.vector, weight)
        return state, Merged(model=merged, reply_to=(contribution.device,), weight=weight)


def build_strategy(config: FedasyncConfig) -> Fedasync:
    """The strategy of these constants."""
    return Fedasync(config)


Config = FedasyncConfig
