"""The coordinator's half of the protocol: events in, effects out.

Updates are taken as they come (`aggregator`), acknowledged, and answered with the model the strategy says. Whatever
is refused is counted under its reason and answered with the present model too, if not too often, so that a device out of
step comes back into step by itself. Work is given out by `assigner`; who is there is kept by `roster`. Here is the rest: what is
said to everybody, when it is said again, what is written down, and how a run ends.

Two things are given from outside because they are computations, not decisions: `score` measures a vector on held-out
rows, `shard_of` encodes rows. Both are pure; the same events give the same run, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from hermes_iot.algorithms.strategies.base import Merged, Regime, ScoreOf, Strategy
from hermes_iot.core import patience, records, snapshot
from hermes_iot.core.aggregator import Aggregator
from hermes_iot.core.allotment import ShardOf
from hermes_iot.core.assigner import Assigner
from hermes_iot.core.effects import Effect, Journal, Quit, Record, Resend, Send, SendKeyframe
from hermes_iot.core.global_model import BASES_MAX
from hermes_iot.core.member import Member
from hermes_iot.core.pace import Pace, Stopwatch
from hermes_iot.core.quota import Quota
from hermes_iot.core.redo import Entry, weight
from hermes_iot.core.roster import Roster
from hermes_iot.core.settings import CoordinatorSettings
from hermes_iot.core.shipped import Shipped
from hermes_iot.core.snapshot import Restored
from hermes_iot.core.stopping import Progress, reason_to_stop
from hermes_iot.core.summary import summary_of
from hermes_iot.core.summons import Summons
from hermes_iot.core.tally import Tally
from hermes_iot.domain import DeviceId, Params, Score
from hermes_iot.protocol.messages import (
    Ack,
    Command,
    CoordinatorStatus,
    DeviceState,
    DeviceStatus,
    Message,
    Metrics,
    Model,
    Outcome,
    Request,
    RunManifest,
    RunState,
    Shard,
    Update,
)
from hermes_iot.protocol.wire import ROUTES, Missing, Received

__all__ = ["Coordinator", "CoordinatorSettings", "Restored"]

#: A fleet is sized before its time when so large a part of it was measured for the first time: a large one would
#: otherwise work for minutes as if nothing was known. Each device is such news once, so this costs it a fixed amount.
NEWS_SHARE: Final = 1 / 8


#: So many refusals of who is no member are recorded at once, and one a second after that.
STRANGERS_TOLD: Final = 20

#: So much of a session's name fits into a command's.
_SESSION_MAX: Final = 40


class Coordinator:
    """One run's decisions. Not thread-safe: one owner."""

    def __init__(
        self,
        *,
        manifest: RunManifest,
        status: CoordinatorStatus,
        strategy: Strategy[Any, Any],
        initial: Params,
        score: ScoreOf,
        settings: CoordinatorSettings,
        shard_of: ShardOf | None = None,
        restored: Restored | None = None,
        now: float,
    ) -> None:
        self.manifest = manifest
        self.settings = settings
        self.finished = False
        self._roster = Roster(manifest.run, settings.devices_max)
        self._assigner = Assigner(manifest, settings, self._roster, shard_of, early=strategy.regime.sizes_early)
        self._aggregator = Aggregator(
            manifest,
            strategy,
            initial,
            score,
            fleet=self._roster.live,
            measure_s=settings.measure_interval_s,
            codecs=[codec for _, codec in settings.codec_for],
        )
        self._status = replace(status, run=manifest.run)
        self._summons = Summons(session=status.session, first_s=settings.retry_s, most_s=settings.retry_max_s)
        self._watch = Stopwatch(started_at=now, limit_s=settings.rules.max_wall_s)
        self._shipped = Shipped()
        self._gaps_asked = 0
        self._strangers = Quota(burst=STRANGERS_TOLD, interval_s=1.0)  # whose refusals are recorded
        self._connected = False
        self._keyframe_version = -1
        self._checkpoint_version = -1
        self._keyframe_pace = Pace(interval_s=settings.keyframe_interval_s, done_at=now)
        self._checkpoint_pace = Pace(interval_s=settings.checkpoint_interval_s, done_at=now)
        self._status_pace = Pace(interval_s=settings.status_interval_s, done_at=now)
        self._resize_pace = Pace(interval_s=settings.resize_interval_s, done_at=now)
        self._resize_wanted = False
        self._run_wanted = False
        self._newly_measured = 0
        self._linger_until = self._farewell_until = math.inf
        self._gone = False
        self._unasked: tuple[DeviceId, ...] = ()  # summoned by another process
        self._logged = 0  # bytes of the redo log since the last checkpoint, about
        if restored is not None:
            restored = replace(restored, entries=self._weighed(restored.entries))
            self._unasked = snapshot.resume(restored, self._aggregator, self._assigner, self._roster)
            self._checkpoint_version = restored.version
            self._watch.started_at = now - self.progress.elapsed_s

    @property
    def members(self) -> dict[DeviceId, Member]:
        """The devices that take part, in the order they joined."""
        return self._roster.members

    @property
    def tally(self) -> Tally:
        """What became of every update, and how many bytes went which way."""
        return self._aggregator.tally

    @property
    def progress(self) -> Progress:
        """What the stop rules look at."""
        return self._aggregator.progress

    @property
    def version(self) -> int:
        """Of the global model."""
        return self._aggregator.model.version

    @property
    def model(self) -> Params:
        """The model that is measured, saved and handed out, shape (P,)."""
        return self._aggregator.served

    @property
    def regime(self) -> Regime:
        """What the strategy asks of the run."""
        return self._aggregator.regime

    @property
    def bounded(self) -> dict[str, tuple[int, int]]:
        """What is kept of others' doings, by name: how many, and how many at most (reliability.md, I8)."""
        members = max(1, len(self.members))
        walks = self.manifest.data.sampling == "walk"
        return {
            "devices": (len(self.members), self.settings.devices_max),
            "whole models": (self._aggregator.model.wholes, BASES_MAX),
            **self._aggregator.model.bytes_held,
            # Each allocation names two; blocks are the data set's, and stay.
            "shards": (0 if walks else len(self._assigner.allotment.shards()), 2 * members),
        }

    @property
    def score(self) -> Score | None:
        """Of the global model on the held-out rows; None before the first measurement."""
        return self._aggregator.model.score

    # --- events ---------------------------------------------------------------------------------------------------

    def connected(self, *, now: float) -> list[Effect]:
        """A (re)connection is up. The coordinator owns all retained state: publish every bit of it again."""
        self._connected = True
        if self._status.reason:
            return [self._repeat(now)]
        self._tick(now)
        for member in self._roster:  # while nobody could be heard, nobody was silent
            member.worked_at = now
        if self.finished:  # it ended while nobody could be told: the devices' time to answer begins now
            self._linger_until = now + self.settings.linger_s
        # A run is on disk before any device hears of it: what it is told must not be told otherwise after a crash.
        first = self._checkpoint(now) if self._checkpoint_version < 0 else []
        retained = [Send(message=self.manifest), *self._keyframe(now), *self._assigner.say_all(), self._announce(now)]
        summons, self._unasked = [self._summon(device, now) for device in self._unasked], ()
        return self._journalled([*first, *retained, *summons])

    def disconnected(self) -> None:
        """The connection is gone; what is retained is said again when it is back."""
        self._connected = False

    def suspend(self, reason: str, *, now: float) -> list[Effect]:
        """Nothing can be written down, so nothing is decided until `resume`; devices are told to keep what they have.

        What they say meanwhile is not for this machine: it would be neither counted nor answered.
        """
        self._status = replace(self._status, reason=reason)
        return [self._repeat(now), Record(event="suspended", fields={"reason": reason})]

    def resume(self, *, now: float) -> list[Effect]:
        """Go on. Everything retained is said again, as after a lost connection: nobody was heard meanwhile."""
        self._status = replace(self._status, reason="")
        said = self.connected(now=now) if self._connected and not self._gone else []
        return [*said, Record(event="resumed", fields={})]

    def carried(self, channel: str, *, up: int = 0, down: int = 0, tensor: bool = True) -> None:
        """The shell moved so many payload bytes."""
        self.tally.carried(channel, up=up, down=down, tensor=tensor)

    def malformed(self, device: DeviceId, channel: str, reason: str) -> list[Effect]:
        """The shell could not decode a message; a lost update is counted like any other refusal."""
        if channel == "update":
            self.tally.count("rejected", reason)
        # Whoever is no member may be anybody, and a line is longer than what it tells of.
        if device not in self.members and not self._strangers.take(now=self.progress.elapsed_s):
            return []
        return [records.refused(device, channel, reason)]

    def received(self, received: Received, *, now: float) -> list[Effect]:
        """One message from a device."""
        device, message = received.device, received.message
        if self._gone or self._status.reason:
            return []
        members = self._roster.members
        if device not in members:
            if not self._roster.admits(message):
                return self.malformed(device, "update", "run") if isinstance(message, Update) else []
            if self._roster.full:
                return self.malformed(device, ROUTES[type(message)].channel, "devices")
            self._roster.admit(device).worked_at = now
        member = members[device]
        effects = self._listen(member, message, now)
        return self._journalled([*effects, *self._attend(member, now), *self._expire(now)])

    def shipped(self, device: DeviceId, transfer: str, message: Model | Shard) -> None:
        """The shell sent this in more than one part: some of them may be asked for again."""
        self._shipped.put(device, transfer, message)

    def stalled(self, gaps: Iterable[Missing]) -> list[Effect]:
        """Parts of updates do not come by themselves: ask for exactly these."""
        effects: list[Effect] = []
        for gap in gaps:
            if gap.device in self.members and not self._gone:
                self._gaps_asked += 1
                order = Command(
                    id=f"parts-{self._status.session[:_SESSION_MAX]}-{self._gaps_asked}",
                    name="resend",
                    transfer=gap.transfer,
                    parts=gap.parts,
                    missing=gap.missing,
                )
                effects.append(Send(message=order, device=gap.device))
        return effects

    def stop(self, *, now: float) -> list[Effect]:
        """Leave in good order; the run stays unfinished and can be resumed."""
        self._tick(now)
        return self._journalled([*self._checkpoint(now), *self._leave("stopped", now)])

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do; None when only an event can change anything."""
        if self._gone:
            return None
        if self._status.reason:
            return self._status_pace.deadline if self._connected else None
        if self.finished:
            return self._linger_until if self._connected else self._farewell_until
        over_at = self._watch.deadline
        deadlines = [] if over_at is None else [over_at]
        if self._connected:
            deadlines.append(self._status_pace.deadline)
            if self.version != self._keyframe_version:
                deadlines.append(self._keyframe_pace.deadline)
        if self.version != self._checkpoint_version and math.isfinite(self._checkpoint_pace.deadline):
            deadlines.append(self._checkpoint_pace.deadline)
        if self._resize_wanted:
            deadlines.append(self._resize_pace.deadline)
        return min(deadlines, default=None)

    def expire(self, *, now: float) -> list[Effect]:
        """Do what has become due."""
        if self._status.reason:
            return [self._repeat(now)] if self._connected and self._status_pace.due(now=now) else []
        return self._journalled(self._expire(now))

    def finish(self, reason: str, *, now: float, state: RunState = "finished") -> list[Effect]:
        """The run is over: say so, and linger for the devices' last counters; where nobody is there, leave at once."""
        return self._journalled(self._finish(reason, now, state))

    def summary(self, test: Score) -> dict[str, Any]:
        """The run in numbers. `test` is the final model's score on the test rows."""
        wall_s = self.progress.elapsed_s
        return summary_of(self._roster, self.tally, self._aggregator.model, test=test, wall_s=wall_s)

    # --- time -----------------------------------------------------------------------------------------------------

    def _expire(self, now: float) -> list[Effect]:
        self._tick(now)
        if self._gone:
            return []
        if self.finished:
            over = self._all_said(now) if self._connected else now >= self._farewell_until
            return self._leave(self.manifest.reason, now) if over else []
        effects = self._look_around(now) if self._connected and self._status_pace.due(now=now) else []
        reason = reason_to_stop(self.settings.rules, self.progress)
        if reason is not None:
            return [*effects, *self._finish(reason, now)]
        if self._resize_wanted and self._resize_pace.due(now=now):
            self._resize_wanted, self._newly_measured = False, 0
            self._slow_down(self._resize_pace, self.settings.resize_interval_s, now)
            self._assigner.reclaim()
            reports = self._assigner.reports(now=now)
            effects += self._assigner.resize(self._aggregator.resize(reports), now=now) if reports else []
        if self._checkpoint_wanted(now):
            effects += self._checkpoint(now)
        if self._connected and self.version != self._keyframe_version and self._keyframe_pace.due(now=now):
            effects += self._keyframe(now)
        if self._connected and self._status_pace.due(now=now):
            effects += [Send(message=self.manifest)] if self._run_wanted else []
            self._run_wanted = False
            effects.append(self._announce(now))
        return effects

    def _finish(self, reason: str, now: float, state: RunState = "finished") -> list[Effect]:
        self._tick(now)
        self._aggregator.measure()
        self.finished = True
        self._linger_until = now + self.settings.linger_s
        self._farewell_until = now + self.settings.farewell_s
        self.manifest = replace(self.manifest, state=state, reason=reason)
        return [
            *self._checkpoint(now),
            *self._keyframe(now),
            Send(message=self.manifest),
            self._announce(now),
            Record(event="finished", fields={"reason": reason}),
            *self._expire(now),
        ]

    # --- messages -------------------------------------------------------------------------------------------------

    def _listen(self, member: Member, message: Message, now: float) -> list[Effect]:
        match message:
            case DeviceStatus():
                return self._on_status(member, message, now)
            case DeviceState():
                return self._on_state(member, message, now)
            case Update():
                return self._on_update(member, message, now)
            case Request() if message.run == self.manifest.run:
                return self._on_request(member, message, now)
            case Metrics() if message.run == self.manifest.run:
                return [records.iterated(member.device, message)]
        return []

    def _on_status(self, member: Member, status: DeviceStatus, now: float) -> list[Effect]:
        if status.session < member.session:
            # The death of an earlier life, delivered late - or the birth of a device that has lost its memory.
            return [self._ack(member, member.acked, "stale", "session")] if status.state == "online" else []
        known = member.online and member.birth is not None and member.session == status.session
        was_online, member.online = member.online, status.state == "online"
        if member.session != status.session:
            member.owed = False  # whatever it waited for in an earlier life
        member.session = status.session
        if not member.online:
            return [records.left(status, member.device)] if was_online else []
        member.birth = status
        if known:  # it asks for its work: what it was sent may be lost
            return self._assigner.say(member) if not self.finished else []
        member.waited_since = now
        if not was_online:  # who was born twice without having been gone has died at its work
            member.worked_at, member.silent = now, False
        welcome = self._assigner.welcome(member, now=now) if not self.finished else []
        return [records.joined(status, member.device), *welcome]

    def _on_state(self, member: Member, state: DeviceState, now: float) -> list[Effect]:
        known = bool(member.timings or member.batch_s)
        if state.run != self.manifest.run or not member.reported(state, now=now):
            return []
        self._resize_wanted = True
        self._newly_measured += not known and bool(member.timings or member.batch_s)
        if self._newly_measured > NEWS_SHARE * len(self.members):
            self._resize_pace.interval_s = self.settings.resize_interval_s
        following = self._assigner.follow(member, state, now=now) if not self.finished else []
        return [records.reported(member, state), *following]

    def _on_request(self, member: Member, request: Request, now: float) -> list[Effect]:
        if request.want == "run":  # said with the next status, and so no more often, however many ask
            self._run_wanted = True
            return []
        if request.want == "model" and member.owed:
            return []
        if request.want == "shard" and not request.transfer:
            return self._assigner.ship(member, request, now=now)
        if not member.requests.take(now=now):
            return [records.refused(member.device, "request", "rate")]
        kept = self._shipped.find(member.device, request.transfer) if request.transfer else None
        if kept is None:  # a shard is asked for by its name after a while
            return [self._reply(member.device, 0, 0)] if request.want == "model" else []
        return [
            Resend(
                message=kept,
                device=member.device,
                transfer=request.transfer,
                parts=request.parts,
                missing=request.missing,
            )
        ]

    def _on_update(self, member: Member, update: Update, now: float) -> list[Effect]:
        verdict = self._aggregator.take(
            self.manifest, member, update, lag_max=self.settings.lag_max, closed=self.finished
        )
        if update.run != self.manifest.run:
            return [records.dropped(member.device, update, verdict)]
        mark = (update.session, update.seq)
        if mark > member.handled:
            member.worked(now=now)
            self._summons.followed(member.device)
        member.handle(*mark)
        member.base = update.base
        ack = self._ack(member, member.handled, verdict.outcome, verdict.reason)
        if verdict.merged is None:
            member.refusals += verdict.outcome == "rejected"
            # Only the newest can still be awaited, after the end none is, and one that waits for others goes on waiting.
            # However many come, they bring no more models than requests would: who goes without asks after a while.
            awaited = mark >= member.handled and not self.finished and not member.owed
            answer = [self._reply(member.device, *mark)] if awaited and member.requests.take(now=now) else []
            return [ack, *answer, records.dropped(member.device, update, verdict)]
        member.owed = True
        member.contributed()
        record = records.merged(member.device, update, verdict, self._aggregator.model, self.tally)
        return [ack, *self._answers(verdict.merged, now), record]

    def _answers(self, merged: Merged, now: float) -> list[Effect]:
        """What the strategy wants said, to those who wait for it and to those it wants to hear from."""
        answers: list[Effect] = []
        for device in merged.reply_to:
            member = self.members[device]
            member.owed, member.worked_at = False, now
            answers.append(self._reply(device, *member.handled, iterations=merged.iterations.get(device, 0)))
        return [*answers, *(self._summon(device, now) for device in merged.summon)]

    def _summon(self, device: DeviceId, now: float) -> Effect:
        allow_s = patience.iteration_s(self.members[device], self.manifest.epochs)
        return self._summons.ask(device, now=now, allow_s=allow_s)

    # --- who is waited for ----------------------------------------------------------------------------------------

    def _attend(self, member: Member, now: float) -> list[Effect]:
        """A member may be waited for no longer, or again; then shares change, and nobody must wait for one that is gone."""
        effects: list[Effect] = []
        excuse = patience.excuse_of(member)
        if excuse != member.excused:
            member.excused = excuse
            effects.append(records.excused(member.device, excuse) if excuse else records.readmitted(member.device))
        if not self._roster.note(member) or self.finished:
            return effects
        self._resize_wanted = True
        if member.device in self._roster.live:
            member.worked_at = now
            if member.reissue and member.allocation is not None:  # its rows were given away while it was silent
                effects += self._assigner.welcome(member, now=now)
        return [*effects, *self._answers(self._aggregator.changed(member.device), now)]

    def _look_around(self, now: float) -> list[Effect]:
        """Who has fallen silent is waited for no longer, and who has not followed a summons is summoned again."""
        silent = patience.fallen_silent(
            self._roster.at_work(),
            epochs=self.manifest.epochs,
            pace_s=len(self.members) * self.settings.announce_s_per_device,
            unmeasured_s=self.settings.measure_patience_s,
            now=now,
        )
        effects: list[Effect] = []
        for member in silent:
            member.silent = True
            effects += self._attend(member, now)
        return [*effects, *self._summons.again(self._roster.live, now=now)]

    # --- the end --------------------------------------------------------------------------------------------------

    def _all_said(self, now: float) -> bool:
        """Whether every device that is there has reported its last counters, or has had its time."""
        return now >= self._linger_until or self._roster.all_said

    def _leave(self, reason: str, now: float) -> list[Effect]:
        """A clean end publishes no last will: without this word the next coordinator would find the fleet led."""
        self._gone = True
        self._status = replace(self._status, state="offline", reason="")
        return [self._announce(now), Quit(reason=reason)]

    def _tick(self, now: float) -> None:
        """Time passes, until the run is over."""
        elapsed_s = self.progress.elapsed_s if self.finished else self._watch.elapsed_s(now=now)
        self._aggregator.passed(elapsed_s)

    def _journalled(self, effects: list[Effect]) -> list[Effect]:
        """What was decided is written down before it is told."""
        drained = self._aggregator.drain()
        return [Journal(entries=tuple(self._weighed(drained))), *effects] if drained else effects

    # --- what is said and kept ------------------------------------------------------------------------------------

    def _reply(self, device: DeviceId, session: int, seq: int, *, iterations: int = 0) -> Effect:
        # Who asks by a request has lost what it held, or its answer; whoever sent an update has named its base in it.
        base = self.members[device].base if seq else ""
        model = self._aggregator.model.answer(device, base, session=session, seq=seq, iterations=iterations)
        return Send(message=model, device=device)

    def _ack(self, member: Member, mark: tuple[int, int], outcome: Outcome, reason: str) -> Effect:
        session, seq = mark
        ack = Ack(
            run=self.manifest.run, session=session, seq=seq, outcome=outcome, reason=reason, newest=member.session
        )
        return Send(message=ack, device=member.device)

    def _slow_down(self, pace: Pace, interval_s: float, now: float) -> None:
        """Something that costs something for every device was done now: see `announce_s_per_device`."""
        pace.done_at = now
        pace.interval_s = max(interval_s, len(self.members) * self.settings.announce_s_per_device)

    def _keyframe(self, now: float) -> list[Effect]:
        self._keyframe_version = self.version
        self._slow_down(self._keyframe_pace, self.settings.keyframe_interval_s, now)
        return [SendKeyframe(model=self._aggregator.model.whole())]

    def _announce(self, now: float) -> Effect:
        self._slow_down(self._status_pace, self.settings.status_interval_s, now)
        score = self.score
        self._status = replace(
            self._status,
            model_version=self.version,
            devices_online=self._roster.online,
            updates_applied=self.tally.applied,
            loss=score.loss if score is not None and math.isfinite(score.loss) else None,
            accuracy=score.accuracy if score is not None else None,
            elapsed_s=self.progress.elapsed_s,
        )
        return Send(message=self._status)

    def _repeat(self, now: float) -> Effect:
        """The same numbers again: newer ones may not be on disk."""
        self._slow_down(self._status_pace, self.settings.status_interval_s, now)
        return Send(message=self._status)

    def _snapshot(self) -> snapshot.Snapshot:
        summoned = self._summons.pending or self._unasked
        return snapshot.taken(self._aggregator, self._assigner, self._roster, summoned=summoned)

    def _weighed(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self._logged += weight(entry)
            yield entry

    def _checkpoint_wanted(self, now: float) -> bool:
        """By time where the model has changed; by the log's size even where nothing but repetitions came."""
        if not math.isfinite(self._checkpoint_pace.interval_s):
            return False
        changed = self.version != self._checkpoint_version and self._checkpoint_pace.due(now=now)
        return changed or self._logged >= self.settings.checkpoint_bytes

    def _checkpoint(self, now: float) -> list[Effect]:
        self._checkpoint_version, self._logged = self.version, 0
        self._checkpoint_pace.done_at = now
        return [snapshot.dump(self._snapshot())]
