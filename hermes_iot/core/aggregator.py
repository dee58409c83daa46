"""Updates into the global model: judged (`intake`), merged by the strategy, counted, and measured against the best.

Here is everything an update can change: the model, the strategy's state, the counters, the progress that the stop
rules look at. It changes all of them or, but for its counter, none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies.base import Contribution, Merged, ScoreOf, StateDump, Strategy
from hermes_iot.core.global_model import GlobalModel
from hermes_iot.core.intake import Standing, Verdict, checked, judge
from hermes_iot.core.member import Member
from hermes_iot.core.stopping import Progress
from hermes_iot.core.tally import Tally
from hermes_iot.domain import DeviceId, Params, Sizing
from hermes_iot.protocol.messages import RunManifest, Update


class Aggregator:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        model: the fleet's.
        tally: what became of every update.
        progress: what the stop rules look at.
    """

    def __init__(self, manifest: RunManifest, strategy: Strategy[Any, Any], initial: Params, score_of: ScoreOf) -> None:
        self.model = GlobalModel(manifest, initial, keeps_bases=strategy.needs_base)
        self.tally = Tally()
        self.progress = Progress()
        self._strategy = strategy
        self._score_of = score_of
        self._state: Any = strategy.coordinator_start(initial)

    def take(
        self, manifest: RunManifest, member: Member, update: Update, *, lag_max: int | None, closed: bool
    ) -> Verdict:
        """What becomes of an update. `manifest` is the run's as it stands, `closed` that it is over."""
        self.tally.update_messages += 1
        standing = Standing(
            manifest=manifest,
            session=member.session,
            handled=member.handled,
            version=self.model.version,
            lag_max=lag_max,
            closed=closed,
        )
        verdict = judge(update, standing, lambda vector, lag: self._merge(member, update, vector, lag))
        self.tally.count(verdict.outcome, verdict.reason)
        if verdict.merged is not None:
            member.applied += 1
            self._advance(verdict.merged)
        return verdict

    def resize(self, reports: Mapping[DeviceId, Report]) -> Mapping[DeviceId, Sizing]:
        """New sizes for the devices that need one."""
        self._state, sizes = self._strategy.resize(self._state, reports)
        return sizes

    def dump(self) -> StateDump:
        """The strategy's state, for a checkpoint."""
        return self._strategy.dump(self._state)

    def restore(self, *, version: int, model: Params, strategy: StateDump, tally: Tally, progress: Progress) -> None:
        """As a checkpoint left it; what is not kept, the score, is measured again."""
        score = self._score_of(model)
        self.model.restore(version, model, score)
        self._state = self._strategy.load(strategy)
        self.tally = tally
        self.progress = replace(progress, accuracy=score.accuracy)

    def _merge(self, member: Member, update: Update, vector: Params, lag: int) -> Merged:
        contribution = Contribution(
            device=member.device,
            vector=vector,
            base=self.model.base(update.base_version),
            lag=lag,
            samples=update.samples,
            iterations=update.iterations,
        )
        state, merged = self._strategy.merge(self._state, self.model.vector, contribution, self._score_of)
        merged = checked(merged)
        self._state = state
        return merged

    def _advance(self, merged: Merged) -> None:
        progress = replace(self.progress, applied=self.tally.applied)
        if merged.model is not None:
            score = merged.score or self._score_of(merged.model)
            self.model.advance(merged.model, score)
            better = score.loss < progress.best_loss
            progress = replace(
                progress,
                accuracy=score.accuracy,
                best_loss=score.loss if better else progress.best_loss,
                since_best=0 if better else progress.since_best + 1,
            )
        self.progress = progress
