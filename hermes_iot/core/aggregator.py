"""Updates into the global model: judged (`intake`), merged by the strategy, counted, and measured against the best.

Here is everything an update can change: the model, the strategy's state, the counters, the progress that the stop
rules look at. It changes all of them or, but for its counter, none. What changed any of them is kept as an entry of
the redo log until `drain`; `redo` does it again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hermes_iot.algorithms.compression import unpack
from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies.base import (
    NOTHING,
    Contribution,
    Fleet,
    Merged,
    Regime,
    ScoreOf,
    StateDump,
    Strategy,
)
from hermes_iot.core.global_model import GlobalModel
from hermes_iot.core.intake import Standing, Verdict, checked, judge
from hermes_iot.core.member import Member
from hermes_iot.core.redo import Crew, Entry, FleetChanged, Found, Resized, UpdateTaken
from hermes_iot.core.stopping import Progress
from hermes_iot.core.tally import Tally
from hermes_iot.domain import DeviceId, Params, Score, Sizing
from hermes_iot.errors import ProtocolError, StorageError
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
        codecs: that updates may be written in beside the run's.
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
        codecs: Collection[str] = (),
    ) -> None:
        self.model = GlobalModel(manifest, initial, strategy.regime)
        self.tally = Tally()
        self.progress = Progress()
        self._strategy = strategy
        self._score_of = score_of
        self._fleet = fleet
        self._measure_s = measure_s
        self._codecs = frozenset({manifest.codec, *codecs})
        self._measured = (0, -math.inf)  # version and elapsed seconds
        self._state: Any = strategy.coordinator_start(initial)
        self._scores: list[Score] = []
        self._entries: list[Entry] = []

    @property
    def regime(self) -> Regime:
        """What the strategy asks of the run."""
        return self._strategy.regime

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
        """What becomes of an update. `manifest` is the run's as it stands, `closed` that it is over.

        `lag_max` is what a person says; None leaves the bound to the strategy.
        """
        standing = Standing(
            manifest=manifest,
            codecs=self._codecs,
            split=self.model.split,
            session=member.session,
            handled=member.handled,
            version=self.model.version,
            lag_max=lag_max if lag_max is not None else self.regime.lag_max(len(self._fleet)),
            closed=closed,
        )
        planned = member.allocation.steps if member.allocation is not None else 0
        base = self.model.base(member.device, update.base)

        def merge(vector: Params, lag: int) -> Merged:
            contribution = _contribution(member.device, update, vector, base=base, lag=lag, planned=planned)
            return self._merge(contribution, self._fleet, self._asked)

        verdict = judge(update, standing, merge)
        measured = self._settle(member, verdict)
        self._entries.append(
            UpdateTaken(
                device=member.device,
                update=update if verdict.merged is not None else replace(update, body=b""),
                outcome=verdict.outcome,
                reason=verdict.reason,
                lag=verdict.lag,
                planned=planned,
                base=base if verdict.merged is not None else None,
                found=self._found(measured),
            )
        )
        return verdict

    def changed(self, device: DeviceId) -> Merged:
        """A device came or left; what the strategy made of it."""
        merged = self._changed(self._fleet, self._asked)
        measured = self._advance(merged)
        works = device in self._fleet
        self._entries.append(FleetChanged(device=device, works=works, found=self._found(measured)))
        return merged

    def resize(self, reports: Mapping[DeviceId, Report]) -> Mapping[DeviceId, Sizing]:
        """New sizes for the devices that need one."""
        before = self._state
        self._state, sizes = self._strategy.resize(before, reports, self._fleet)
        if sizes or self._state is not before:
            self._entries.append(Resized(reports=reports, found=self._found(None)))
        return sizes

    def drain(self) -> tuple[Entry, ...]:
        """What was done since the last call."""
        if not self._entries:
            return ()
        entries, self._entries = tuple(self._entries), []
        return entries

    def redo(self, entry: Entry, member: Member | None, crew: Crew) -> Merged:
        """Do again what another process did, with what it found; what the strategy made of it.

        Args:
            entry: the next of its log.
            member: whose update it is.
            crew: the fleet it had, `entry` followed.

        Raises:
            StorageError: it comes out differently: another version, or another strategy, wrote the log.
        """
        found = entry.found
        score_of = _given(found.scores)
        self.passed(found.elapsed_s)
        merged = NOTHING
        match entry:
            case UpdateTaken() if member is not None:
                merged = self._redo_update(entry, member, crew, score_of)
            case FleetChanged():
                merged = self._changed(crew, score_of)
                self._advance(merged, measured=found.measured, again=True)
            case Resized(reports=reports):
                self._state, _ = self._strategy.resize(self._state, reports, crew)
        self.tally.up, self.tally.down = Counter(found.up), Counter(found.down)
        if self.model.version != found.version:
            raise StorageError(
                "the run's journal leads to another model",
                why=f"version {self.model.version} where {found.version} was written",
                mend="Go on with the software that wrote it, or forget the journal: hermes-iot repair RUN --forget-journal",
            )
        return merged

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

    def _redo_update(self, entry: UpdateTaken, member: Member, crew: Crew, score_of: ScoreOf) -> Merged:
        update, merged = entry.update, None
        if entry.outcome == "applied":
            vector = unpack(update.body, update.codec, update.parameters, self.model.split)
            contribution = _contribution(
                member.device, update, vector, base=entry.base, lag=entry.lag, planned=entry.planned
            )
            merged = self._merge(contribution, crew, score_of)
        verdict = Verdict(outcome=entry.outcome, reason=entry.reason, lag=entry.lag, merged=merged)
        self._settle(member, verdict, measured=entry.found.measured, again=True)
        return merged or NOTHING

    def _settle(
        self, member: Member, verdict: Verdict, *, measured: Score | None = None, again: bool = False
    ) -> Score | None:
        """Count it, and take over what was made of it; as `_advance`."""
        self.tally.count(verdict.outcome, verdict.reason)
        if verdict.merged is None:
            return None
        member.applied += 1
        return self._advance(verdict.merged, measured=measured, again=again)

    def _merge(self, contribution: Contribution, fleet: Fleet, score_of: ScoreOf) -> Merged:
        state, merged = self._strategy.merge(self._state, self.model.vector, contribution, fleet, score_of)
        merged = checked(merged)
        self._state = state
        return merged

    def _changed(self, fleet: Fleet, score_of: ScoreOf) -> Merged:
        try:
            state, merged = self._strategy.changed(self._state, self.model.vector, fleet, score_of)
            merged = checked(merged)
        except ProtocolError:  # what was held leads out of float32: nothing is made of it, then and when done again
            return NOTHING
        self._state = state
        return merged

    def _asked(self, params: Params) -> Score:
        """A score the strategy asks for; kept for the log."""
        score = self._score_of(params)
        self._scores.append(score)
        return score

    def _found(self, measured: Score | None) -> Found:
        scores, self._scores = tuple(self._scores), []
        return Found(
            scores=scores,
            measured=measured,
            version=self.model.version,
            elapsed_s=self.progress.elapsed_s,
            up=dict(self.tally.up),
            down=dict(self.tally.down),
        )

    def _advance(self, merged: Merged, *, measured: Score | None = None, again: bool = False) -> Score | None:
        """The next version, if there is one; its score where it is measured now. `again`: `measured` was."""
        if merged.model is None:
            self._progressed(self.progress.since_best)
            return None
        self.model.advance(merged.model, merged.score)
        self._progressed(self.progress.since_best + 1)
        if merged.score is not None:
            self._note(merged.score)
            return None
        if not again and self.progress.elapsed_s >= self._measured[1] + self._measure_s:
            measured = self._score_of(self.served)
        if measured is not None:
            self._note(measured)
        return measured

    def _note(self, score: Score) -> None:
        """The score of the present version."""
        self._measured = (self.model.version, self.progress.elapsed_s)
        self.model.score = score
        before = self.progress
        better = score.loss < before.best_loss
        self.progress = Progress(
            elapsed_s=before.elapsed_s,
            bytes_total=before.bytes_total,
            applied=before.applied,
            accuracy=score.accuracy,
            best_loss=score.loss if better else before.best_loss,
            since_best=0 if better else before.since_best,
        )

    def _progressed(self, since_best: int) -> None:
        """Updates were counted. Written out, like `passed`."""
        before = self.progress
        self.progress = Progress(
            elapsed_s=before.elapsed_s,
            bytes_total=before.bytes_total,
            applied=self.tally.applied,
            accuracy=before.accuracy,
            best_loss=before.best_loss,
            since_best=since_best,
        )


def _contribution(
    device: DeviceId, update: Update, vector: Params, *, base: Params | None, lag: int, planned: int
) -> Contribution:
    return Contribution(
        device=device,
        vector=vector,
        base=base,
        lag=lag,
        samples=update.samples,
        iterations=update.iterations,
        seconds=update.train_s,
        mini_batches=update.mini_batches,
        steps=update.steps,
        planned=planned,
    )


def _given(scores: Sequence[Score]) -> ScoreOf:
    """Says the scores that were found, one after the other, whatever is asked."""
    left = iter(scores)

    def score_of(_params: Params) -> Score:
        score = next(left, None)
        if score is None:
            raise StorageError(
                "the run's journal leads to another model",
                why="the strategy measures more than it did when it was written",
                mend="Go on with the software that wrote it, or forget the journal: hermes-iot repair RUN --forget-journal",
            )
        return score

    return score_of
