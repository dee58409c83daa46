"""hermes-plus, but nobody is answered: what is left is the way in, which is what `benchmarks.ingest` measures."""

from __future__ import annotations

from dataclasses import replace

from hermes_iot.algorithms.strategies.base import Contribution, Fleet, Merged, ScoreOf
from hermes_iot.algorithms.strategies.hermes_plus import CoordinatorHalf, HermesPlus, HermesPlusConfig
from hermes_iot.domain import Params


class Unanswered(HermesPlus):
    """See the module."""

    def merge(
        self, state: CoordinatorHalf, model: Params, contribution: Contribution, fleet: Fleet, score: ScoreOf
    ) -> tuple[CoordinatorHalf, Merged]:
        """As hermes-plus merges; without the answer."""
        state, merged = HermesPlus.merge(self, state, model, contribution, fleet, score)
        return state, replace(merged, reply_to=())


def build_strategy(config: HermesPlusConfig) -> Unanswered:
    """The strategy of these constants."""
    return Unanswered(config)


Config = HermesPlusConfig
