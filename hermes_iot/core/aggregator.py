"""Updates into the global model: judged (`intake`), merged by the strategy, counted, and measured against the best.

Here is everything an update can change: the model, the strategy's state, the counters, the progress that the stop
rules look at. It changes all of them or, but for its counter, none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies.base import Contribution, Fleet, Merged, ScoreOf, StateDump, Strategy
from hermes_iot.core.global_model import GlobalModel
from hermes_iot.core.intake import Standing, Verdict, checked, judge
from hermes_iot.core.member import Member
from hermes_iot.core.stopping import Progress
from hermes_iot.core.tally import Tally
from hermes_iot.domain import DeviceId, Params, Score, Sizing
from hermes_iot.protocol.messages import RunManifest, Update


class Aggregator:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        model: the fleet's.
        tally: what became of every update.
        progress: what the stop rules look at.

    Args:
        manifest: of the run.
        strategy: its coordinator half.
        initial: the first model, shape (P,).
        score_of: measures a vector on held-out rows.
        fleet: who is there.
        measure_s: a model whose score the strategy did not need is measured at most this often; 0 = each one.
    """

    def __init__(
        self,
        manifest: RunManifest,
        strategy: Strategy[Any, Any],
        initial: Params,
        score_of: ScoreOf,
        *,
        fleet: Fleet,
        measure_s: float = 0.0,
    ) -> None:
        self.model = GlobalModel(manifest, initial, strategy.regime)
        self.tally = Tally()
        self.progress = Progress()
        self._strategy = strategy
        self._score_of = score_of
        self._fleet = fleet
        self._measure_s = measure_s
        self._measured = (0, -math.inf)  # version and elapsed seconds
        self._state: Any = strategy.coordinator_start(initial)

    @property
    def early(self) -> bool:
        """Whether devices are sized one by one as they are measured, see `Regime.sizes_early`."""
        return self._strategy.regime.sizes_early

    @property
    def served(self) -> Params:
        """The model that is measured, saved and handed out, shape (P,)."""
        return self._strategy.served(self._state, self.model.vector)

    def take(
        self, manifest: RunManifest, member: Member, update: Update, *, lag_max: int | None, closed: bool
    ) -> Verdict:
        """What becomes of an update. `manifest` is the run's as it stands, `closed` that it is over."""
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

    def changed(self) -> Merged:
        """A device came or left; what the strategy made of it."""
        state, merged = self._strategy.changed(self._state, self.model.vector, self._fleet, self._score_of)
        merged = checked(merged)
        self._state = state
        self._advance(merged)
        return merged

    def resize(self, reports: Mapping[DeviceId, Report]) -> Mapping[DeviceId, Sizing]:
        """New sizes for the devices that need one."""
        self._state, sizes = self._strategy.resize(self._state, reports, self._fleet)
        return sizes

    def passed(self, elapsed_s: float) -> None:
        """So much of the run's time has passed. Written out: it does so at every event of a large fleet."""
        before = self.progress
        self.progress = Progress(
            elapsed_s=elapsed_s,
            bytes_total=self.tally.tensor_bytes,
            applied=before.applied,
            accuracy=before.accuracy,
            best_loss=before.best_loss,
            since_best=before.since_best,
        )

    def measure(self) -> None:
        """Bring the score up to date, where it is that of an earlier version."""
        if self._measured[0] != self.model.version:
            self._note(self._score_of(self.served))

    def dump(self) -> StateDump:
        """The strategy's state, for a checkpoint."""
        return self._strategy.dump(self._state)

    def restore(self, *, version: int, model: Params, strategy: StateDump, tally: Tally, progress: Progress) -> None:
        """As a checkpoint left it; what is not kept, the score, is measured again."""
        self._state = self._strategy.load(strategy)
        score = self._score_of(self._strategy.served(self._state, model))
        self.model.restore(version, model, score)
        self._measured = (version, progress.elapsed_s)
        self.tally = tally
        self.progress = replace(progress, accuracy=score.accuracy)

    def _merge(self, member: Member, update: Update, vector: Params, lag: int) -> Merged:
        contribution = Contribution(
            device=member.device,
            vector=vector,
            base=self.model.base(member.device, update.base),
            lag=lag,
            samples=update.samples,
            iterations=update.iterations,
            seconds=update.train_s,
            mini_batches=update.mini_batches,
            steps=update.steps,
            planned=member.allocation.steps if member.allocation is not None else 0,
        )
        state, merged = self._strategy.merge(self._state, self.model.vector, contribution, self._fleet, self._score_of)
        merged = checked(merged)
        self._state = state
        return merged

    def _advance(self, merged: Merged) -> None:
        self.progress = replace(self.progress, applied=self.tally.applied)
        if merged.model is None:
            return
        self.model.advance(merged.model, merged.score)
        self.progress = replace(self.progress, since_best=self.progress.since_best + 1)
        if merged.score is not None:
            self._note(merged.score)
        elif self.progress.elapsed_s >= self._measured[1] + self._measure_s:
            self._note(self._score_of(self.served))

    def _note(self, score: Score) -> None:
        """The score of the present version."""
        self._measured = (self.model.version, self.progress.elapsed_s)
        self.model.score = score
        better = score.loss < self.progress.best_loss
        self.progress = replace(
            self.progress,
            accuracy=score.accuracy,
            best_loss=score.loss if better else self.progress.best_loss,
            since_best=0 if better else self.progress.since_best,
        )
