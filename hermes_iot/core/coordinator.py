"""The coordinator's half of the protocol: events in, effects out.

Updates are taken as they come. Each is checked (run, layout, repetition, staleness, finite numbers), handed to the
strategy, acknowledged, and answered with the model the strategy says. Whatever is refused is counted under its
reason and answered with the present model too, so that a device out of step comes back into step by itself.

Two things are given from outside because they are computations, not decisions: `score` measures a vector on held-out
rows, `shard_of` encodes rows. Both are pure; the same events give the same run, bit for bit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hermes_iot.algorithms.compression import pack, unpack
from hermes_iot.algorithms.strategies.base import Contribution, Merged, ScoreOf, StateDump, Strategy
from hermes_iot.core.allotment import Allotment, ShardOf
from hermes_iot.core.effects import Checkpoint, Effect, Quit, Record, Remember, Send, SendKeyframe
from hermes_iot.core.member import Member
from hermes_iot.core.stopping import Progress, StopRules, reason_to_stop
from hermes_iot.core.tally import Tally
from hermes_iot.domain import DeviceId, Params, RunId, Score, Sizing
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    CoordinatorStatus,
    DeviceState,
    DeviceStatus,
    Model,
    Outcome,
    Request,
    RunManifest,
    RunState,
    Shard,
    Update,
)
from hermes_iot.protocol.wire import Received

#: How many earlier models are kept for strategies whose updates are displacements.
_BASES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """Timing and manners.

    Attributes:
        rules: when the run ends.
        first: size of a device nobody has measured yet.
        lag_max: an update made from a model older by more versions is stale; None = never.
        keyframe_interval_s, checkpoint_interval_s, status_interval_s, resize_interval_s: at most this often.
        linger_s: after the end, how long to wait for the devices' last counters.
        devices_max: more devices than this are not let in.
    """

    rules: StopRules = field(default_factory=StopRules)
    first: Sizing = field(default_factory=lambda: Sizing(samples=256, batch=16))
    lag_max: int | None = None
    keyframe_interval_s: float = 5.0
    checkpoint_interval_s: float = 10.0
    status_interval_s: float = 2.0
    resize_interval_s: float = 1.0
    linger_s: float = 5.0
    devices_max: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A run as its last checkpoint and the registry left it."""

    version: int
    arrays: Mapping[str, Params]
    scalars: Mapping[str, Any]
    allocations: Mapping[str, Allocation]


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
        self.members: dict[DeviceId, Member] = {}
        self.tally = Tally()
        self.progress = Progress()
        self.version = 0
        self.model = initial
        self.score: Score | None = None
        self.finished = False
        self._status = replace(status, run=manifest.run)
        self._strategy = strategy
        self._score_of = score
        self._shard_of = shard_of
        self._allotment = Allotment(manifest.run, manifest.data, shard_of)
        self._state: Any = strategy.coordinator_start(initial)
        self._bases: OrderedDict[int, Params] = OrderedDict()
        self._body: bytes | None = None
        self._started_at = now
        self._connected = False
        self._keyframe_version = -1
        self._checkpoint_version = -1
        self._keyframe_at = self._checkpoint_at = self._status_at = self._resize_at = now
        self._resize_wanted = False
        self._linger_until = math.inf
        if restored is not None:
            self._restore(restored, now)

    # --- events ---------------------------------------------------------------------------------------------------

    def connected(self, *, now: float) -> list[Effect]:
        """A (re)connection is up. The coordinator owns all retained state: publish every bit of it again."""
        self._connected = True
        allocations = [member.allocation for member in self.members.values() if member.allocation is not None]
        return [
            Send(message=self.manifest),
            *self._keyframe(now),
            *(Send(message=allocation, device=allocation.device) for allocation in allocations),
            self._announce(now),
        ]

    def disconnected(self) -> None:
        """The connection is gone; nothing is sent until it is back."""
        self._connected = False

    def carried(self, channel: str, *, up: int = 0, down: int = 0, tensor: bool = True) -> None:
        """The shell moved so many payload bytes."""
        self.tally.carried(channel, up=up, down=down, tensor=tensor)

    def malformed(self, device: DeviceId, channel: str, reason: str) -> list[Effect]:
        """The shell could not decode a message; a lost update is counted like any other refusal."""
        if channel == "update":
            self.tally.count("rejected", reason)
        return [Record(event="refused", fields={"device": device, "channel": channel, "reason": reason})]

    def received(self, received: Received, *, now: float) -> list[Effect]:
        """One message from a device."""
        message = received.message
        member, effects = self._member(received.device)
        if member is None:
            return self.malformed(received.device, _channel(message), "devices")
        member.last_seen = now
        match message:
            case DeviceStatus():
                effects += self._on_status(member, message)
            case DeviceState():
                effects += self._on_state(member, message, now)
            case Update():
                effects += self._on_update(member, message, now)
            case Request():
                effects += self._on_request(member, message)
            case _:
                pass
        return [*effects, *self.expire(now=now)]

    def stop(self, *, now: float) -> list[Effect]:
        """Leave in good order; the run stays unfinished and can be resumed."""
        self._status = replace(self._status, state="offline")
        return [*self._checkpoint(now), self._announce(now), Quit(reason="stopped")]

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do."""
        if self.finished:
            return self._linger_until
        deadlines = [self._status_at + self.settings.status_interval_s]
        if self.version != self._keyframe_version:
            deadlines.append(self._keyframe_at + self.settings.keyframe_interval_s)
        if self.version != self._checkpoint_version:
            deadlines.append(self._checkpoint_at + self.settings.checkpoint_interval_s)
        if self._resize_wanted:
            deadlines.append(self._resize_at + self.settings.resize_interval_s)
        if self.settings.rules.max_wall_s is not None:
            deadlines.append(self._started_at + self.settings.rules.max_wall_s)
        return min(deadlines)

    def expire(self, *, now: float) -> list[Effect]:
        """Do what has become due."""
        self.progress = replace(
            self.progress, elapsed_s=max(0.0, now - self._started_at), bytes_total=self.tally.tensor_bytes
        )
        if self.finished:
            silent = [member for member in self.members.values() if member.online and not _said_last(member)]
            return [Quit(reason=self.manifest.reason)] if not silent or now >= self._linger_until else []
        reason = reason_to_stop(self.settings.rules, self.progress)
        if reason is not None:
            return self.finish(reason, now=now)
        effects: list[Effect] = []
        if self._resize_wanted and now >= self._resize_at + self.settings.resize_interval_s:
            effects += self._resize(now)
        if self.version != self._keyframe_version and now >= self._keyframe_at + self.settings.keyframe_interval_s:
            effects += self._keyframe(now)
        if (
            self.version != self._checkpoint_version
            and now >= self._checkpoint_at + self.settings.checkpoint_interval_s
        ):
            effects += self._checkpoint(now)
        if now >= self._status_at + self.settings.status_interval_s:
            effects.append(self._announce(now))
        return effects

    def finish(self, reason: str, *, now: float, state: RunState = "finished") -> list[Effect]:
        """The run is over: say so, and linger for the devices' last counters."""
        self.finished = True
        self._linger_until = now + self.settings.linger_s
        self.manifest = replace(self.manifest, state=state, reason=reason)
        effects: list[Effect] = [*self._keyframe(now), Send(message=self.manifest), *self._checkpoint(now)]
        return [*effects, self._announce(now), Record(event="finished", fields={"reason": reason})]

    def summary(self, test: Score) -> dict[str, Any]:
        """The run in numbers. `test` is the final model's score on the test rows."""
        members = sorted(self.members.values(), key=lambda member: member.index)
        totals = [member.totals() for member in members]
        iterations = sum(one.iterations for one in totals)
        update_bytes, reply_bytes = self.tally.means()
        return {
            "accuracy": test.accuracy,
            "loss": test.loss,
            "validation_accuracy": self.score.accuracy if self.score is not None else None,
            "model_version": self.version,
            "devices": [member.summary() for member in members],
            "iterations": iterations,
            "updates_published": sum(one.published for one in totals),
            "updates_received": self.tally.received,
            "updates_applied": self.tally.applied,
            "updates_duplicate": self.tally.duplicate,
            "updates_stale": self.tally.stale,
            "updates_rejected": self.tally.rejected,
            "reasons": dict(self.tally.reasons),
            "bytes_up": sum(one.bytes_up for one in totals),
            "bytes_down": sum(one.bytes_down for one in totals),
            # The same iterations under BSP: each would have sent one update and fetched one model of these sizes.
            "bytes_bsp": round(iterations * (update_bytes + reply_bytes)),
            "bytes_by_kind": {"up": dict(self.tally.up), "down": dict(self.tally.down)},
            "wall_s": self.progress.elapsed_s,
        }

    # --- messages -------------------------------------------------------------------------------------------------

    def _member(self, device: DeviceId) -> tuple[Member | None, list[Effect]]:
        member = self.members.get(device)
        if member is not None:
            return member, []
        if len(self.members) >= self.settings.devices_max:
            return None, []
        member = Member(device=device, index=len(self.members))
        self.members[device] = member
        return member, []

    def _on_status(self, member: Member, status: DeviceStatus) -> list[Effect]:
        if status.session < member.session:
            return []  # the death of an earlier life, delivered late
        if status.state == "offline":
            was_online, member.online = member.online, False
            left = Record(event="left", fields={"device": member.device, "reason": status.reason or "connection lost"})
            return [left] if was_online else []
        known = member.birth is not None and member.session == status.session and member.online
        member.birth, member.session, member.online = status, status.session, True
        if known:
            return []
        joined = Record(
            event="joined",
            fields={"device": member.device, "session": status.session, "slowdown": status.slowdown},
        )
        return [joined, *self._welcome(member)]

    def _welcome(self, member: Member) -> list[Effect]:
        """A device that came back finds its allocation as it left it; a new one gets its first."""
        if self.finished:
            return []
        if member.allocation is not None:
            return [Send(message=member.allocation, device=member.device), self._remember(member)]
        rows_max = member.birth.memory_rows_max if member.birth is not None else 0
        first = self.settings.first
        samples = min(first.samples, rows_max) if rows_max else first.samples
        return self._allot(member, Sizing(samples=samples, batch=first.batch), "first allocation")

    def _on_state(self, member: Member, state: DeviceState, now: float) -> list[Effect]:
        if state.run != self.manifest.run or state.session < member.session:
            return []
        member.reported(state)
        effects = [self._timing(member, state)]
        allocation = member.allocation
        if allocation is not None and allocation.next_shard and state.shard == allocation.next_shard:
            member.allocation = self._allotment.rotate(allocation)
            effects += [Send(message=member.allocation, device=member.device), self._remember(member)]
        self._resize_wanted = True
        if now >= self._resize_at + self.settings.resize_interval_s and not self.finished:
            effects += self._resize(now)
        return effects

    def _on_request(self, member: Member, request: Request) -> list[Effect]:
        if request.run != self.manifest.run:
            return []
        if request.want == "model":
            return [self._reply(member.device, 0, 0)]
        body = self._allotment.body(request.sha256)
        if body is None:
            refused = {"device": member.device, "channel": "request", "reason": "unknown shard"}
            return [Record(event="refused", fields=refused)]
        return [Send(message=Shard(run=RunId(request.run), sha256=request.sha256, body=body), device=member.device)]

    def _on_update(self, member: Member, update: Update, now: float) -> list[Effect]:
        self.tally.update_messages += 1
        mark = (update.session, update.seq)
        outcome, reason, merged = self._judge(member, update, mark)
        self.tally.count(outcome, reason)
        if update.run != self.manifest.run:
            return [self._dropped(member, update, outcome, reason)]
        if update.session >= member.session:
            member.handled = max(member.handled, mark)
        session, seq = member.handled if outcome == "duplicate" else mark
        ack = Ack(run=RunId(update.run), session=session, seq=seq, outcome=outcome, reason=reason)
        effects: list[Effect] = [Send(message=ack, device=member.device)]
        if outcome != "applied":
            return [*effects, self._reply(member.device, *mark), self._dropped(member, update, outcome, reason)]
        if merged is None:
            return effects
        member.applied += 1
        return [*effects, *self._merged(member, update, merged, now)]

    def _judge(self, member: Member, update: Update, mark: tuple[int, int]) -> tuple[Outcome, str, Merged | None]:
        """What becomes of an update; merging is the last step because only it changes the model."""
        manifest = self.manifest
        if update.run != manifest.run:
            return "rejected", "run", None
        if update.model != manifest.model.sha256 or update.parameters != manifest.model.parameters:
            return "rejected", "model_mismatch", None
        if update.codec != manifest.codec:
            return "rejected", "codec", None
        if update.session < member.session:
            return "stale", "session", None
        if mark <= member.handled:
            return "duplicate", "", None
        if self.finished:
            return "stale", "finished", None
        lag = max(0, self.version - update.base_version)
        if self.settings.lag_max is not None and lag > self.settings.lag_max:
            return "stale", "lag", None
        try:
            vector = unpack(update.body, update.codec, update.parameters)
            contribution = Contribution(
                device=member.device,
                vector=vector,
                base=self._bases.get(update.base_version),
                lag=lag,
                samples=update.samples,
                iterations=update.iterations,
            )
            self._state, merged = self._strategy.merge(self._state, self.model, contribution, self._score_of)
        except ProtocolError as error:
            return "rejected", error.reason, None
        return "applied", "", merged

    # --- decisions ------------------------------------------------------------------------------------------------

    def _merged(self, member: Member, update: Update, merged: Merged, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if merged.model is not None:
            self.version += 1
            self.model = merged.model
            self._body = None
            self.score = merged.score or self._score_of(merged.model)
        self._judge_progress(self.score, now)
        effects += [
            self._reply(device, update.session, update.seq) if device == member.device else self._reply(device, 0, 0)
            for device in merged.reply_to
        ]
        record = Record(
            event="merge",
            fields={
                "device": member.device,
                "version": self.version,
                "session": update.session,
                "seq": update.seq,
                "lag": max(0, self.version - 1 - update.base_version),
                "iterations": update.iterations,
                "weight": merged.weight,
                "loss_claimed": update.loss,
                "loss": self.score.loss if self.score is not None else None,
                "accuracy": self.score.accuracy if self.score is not None else None,
                "applied": self.tally.applied,
                "bytes_up": sum(self.tally.up.values()),
                "bytes_down": sum(self.tally.down.values()),
            },
        )
        return [*effects, record]

    def _judge_progress(self, score: Score | None, now: float) -> None:
        better = score is not None and score.loss < self.progress.best_loss
        self.progress = Progress(
            elapsed_s=max(0.0, now - self._started_at),
            bytes_total=self.tally.tensor_bytes,
            applied=self.tally.applied,
            accuracy=score.accuracy if score is not None else None,
            best_loss=score.loss if better and score is not None else self.progress.best_loss,
            since_best=0 if better else self.progress.since_best + 1,
        )

    def _resize(self, now: float) -> list[Effect]:
        """Ask the strategy for new sizes once every device that is online has been measured under its present one."""
        self._resize_wanted = False
        self._resize_at = now
        reports = {}
        for member in self.members.values():
            if not member.online:
                continue
            report = member.report(self.manifest.epochs)
            if report is None:
                return []
            reports[member.device] = report
        self._state, sizes = self._strategy.resize(self._state, reports)
        effects: list[Effect] = []
        for device, asked in sizes.items():
            member = self.members[device]
            before, size = member.allocation, self._allotment.clamp(asked)
            if before is None or (before.samples, before.batch) == (size.samples, size.batch):
                continue
            why = f"{before.samples} rows took {member.iteration_s:.3g} s"
            effects += self._allot(member, size, why)
        return effects

    def _allot(self, member: Member, size: Sizing, reason: str) -> list[Effect]:
        held = {one.device: one.allocation for one in self.members.values() if one.allocation is not None}
        member.allocation = allocation = self._allotment.allot(member.device, size, held, reason=reason)
        member.iteration_s = 0.0
        fields = {
            "device": member.device,
            "version": allocation.version,
            "samples": allocation.samples,
            "batch": allocation.batch,
            "reason": reason,
        }
        return [
            Send(message=allocation, device=member.device),
            Record(event="allocation", fields=fields),
            self._remember(member),
        ]

    # --- what is said and kept ------------------------------------------------------------------------------------

    def _packed(self) -> bytes:
        """The present model in the run's codec; made once per version."""
        if self._body is None:
            self._body = pack(self.model, self.manifest.codec)
            if self._strategy.needs_base:
                self._bases[self.version] = unpack(self._body, self.manifest.codec, self.model.size)
                while len(self._bases) > _BASES_MAX:
                    self._bases.popitem(last=False)
        return self._body

    def _as_message(self, session: int, seq: int) -> Model:
        return Model(
            run=self.manifest.run,
            version=self.version,
            session=session,
            seq=seq,
            model=self.manifest.model.sha256,
            codec=self.manifest.codec,
            parameters=self.manifest.model.parameters,
            body=self._packed(),
        )

    def _reply(self, device: DeviceId, session: int, seq: int) -> Effect:
        self.tally.reply_messages += 1
        return Send(message=self._as_message(session, seq), device=device)

    def _keyframe(self, now: float) -> list[Effect]:
        self._keyframe_version = self.version
        self._keyframe_at = now
        return [SendKeyframe(model=self._as_message(0, 0))]

    def _announce(self, now: float) -> Effect:
        self._status_at = now
        online = sum(member.online for member in self.members.values())
        self._status = replace(
            self._status,
            model_version=self.version,
            devices_online=online,
            updates_applied=self.tally.applied,
            loss=self.score.loss if self.score is not None and math.isfinite(self.score.loss) else None,
            accuracy=self.score.accuracy if self.score is not None else None,
            elapsed_s=self.progress.elapsed_s,
        )
        return Send(message=self._status)

    def _timing(self, member: Member, state: DeviceState) -> Effect:
        return Record(
            event="state",
            fields={
                "device": member.device,
                "phase": state.phase,
                "iterations": member.totals().iterations,
                "published": member.totals().published,
                "samples": state.samples,
                "batch": state.batch,
                "iteration_s": state.iteration_s,
                "loss": state.loss,
                "z": state.z,
                "threshold": state.threshold,
                "gate": state.gate,
                "online": member.online,
            },
        )

    def _dropped(self, member: Member, update: Update, outcome: Outcome, reason: str) -> Effect:
        fields = {"device": member.device, "session": update.session, "seq": update.seq, "outcome": outcome}
        return Record(event="dropped", fields={**fields, "reason": reason})

    def _remember(self, member: Member) -> Effect:
        allocation = member.allocation
        row = {
            "session": member.session,
            "seq": member.handled[1] if member.handled[0] == member.session else 0,
            "counters": asdict(member.totals()),
            "status": "online" if member.online else "offline",
        }
        allocations = {} if allocation is None else {str(member.device): allocation}
        return Remember(devices={member.device: row}, allocations=allocations)

    def _checkpoint(self, now: float) -> list[Effect]:
        self._checkpoint_version = self.version
        self._checkpoint_at = now
        dump = self._strategy.dump(self._state)
        members = {
            one.device: {
                "session": one.session,
                "handled": list(one.handled),
                "applied": one.applied,
                "index": one.index,
            }
            for one in self.members.values()
        }
        scalars = {
            "strategy": dict(dump.scalars),
            "tally": self.tally.dump(),
            "members": members,
            "elapsed_s": max(0.0, now - self._started_at),
            "best_loss": self.progress.best_loss if math.isfinite(self.progress.best_loss) else None,
            "since_best": self.progress.since_best,
            "cursor": self._allotment.cursor,
            "shards": {name: [list(one) for one in ranges] for name, ranges in self._allotment.shards().items()},
        }
        arrays = {"model": self.model, **{f"strategy.{name}": array for name, array in dump.arrays.items()}}
        return [Checkpoint(version=self.version, arrays=arrays, scalars=scalars)]

    def _restore(self, restored: Restored, now: float) -> None:
        scalars = restored.scalars
        self.version = self._checkpoint_version = restored.version
        self.model = restored.arrays["model"]
        arrays = {name[9:]: array for name, array in restored.arrays.items() if name.startswith("strategy.")}
        self._state = self._strategy.load(StateDump(scalars=scalars["strategy"], arrays=arrays))
        self.tally = Tally.load(scalars["tally"])
        self._started_at = now - float(scalars["elapsed_s"])
        best = scalars["best_loss"]
        self.progress = Progress(
            applied=self.tally.applied,
            best_loss=math.inf if best is None else float(best),
            since_best=int(scalars["since_best"]),
        )
        self._allotment.cursor = int(scalars["cursor"])
        self._allotment.restore(
            {name: tuple((int(a), int(b)) for a, b in ranges) for name, ranges in scalars["shards"].items()}
        )
        for name, row in scalars["members"].items():
            session, seq = row["handled"]
            self.members[DeviceId(name)] = Member(
                device=DeviceId(name),
                index=int(row["index"]),
                session=int(row["session"]),
                handled=(int(session), int(seq)),
                applied=int(row["applied"]),
            )
        for name, allocation in restored.allocations.items():
            device = DeviceId(name)
            member = self.members.setdefault(device, Member(device=device, index=len(self.members)))
            member.allocation = allocation
        self.score = self._score_of(self.model)


def _said_last(member: Member) -> bool:
    return member.state is not None and member.state.phase == "finished"


def _channel(message: object) -> str:
    return "update" if isinstance(message, Update) else type(message).__name__.lower()
