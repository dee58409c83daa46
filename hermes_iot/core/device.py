"""The device's half of the protocol: events in, effects out.

::

    starting --manifest--> (Prepare) --prepared--> waiting --model, allocation, shard--> training
       training --trained, gate says no--> training
       training --trained, gate fires--> pushed --answer--> training
       pushed --no answer for a while, or nobody there--> training   (on with the model it has)
       any --run ended--> finished --another run--> starting

Everything retained may arrive in any order, twice, or from an older run: run id and version are compared first.
A device trains as long as it has a model and an allocation, whether or not anybody listens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from hermes_iot.algorithms.compression import pack, unpack
from hermes_iot.algorithms.strategies.base import Strategy
from hermes_iot.core.effects import (
    Effect,
    FetchKeyframe,
    FindShard,
    ForgetKeyframe,
    Prepare,
    Quit,
    Rebirth,
    Record,
    Send,
    StoreMemory,
    StoreShard,
    Train,
)
from hermes_iot.core.learner import Learner
from hermes_iot.core.outbox import Outbox
from hermes_iot.core.shelf import Shelf
from hermes_iot.domain import DeviceId, Trained, TrainJob
from hermes_iot.errors import Incompatible, ProtocolError
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    Command,
    CoordinatorStatus,
    DeviceState,
    DeviceStatus,
    Metrics,
    Model,
    ModelHead,
    Phase,
    Request,
    Response,
    RunManifest,
    Shard,
    StrategyInfo,
    Update,
)
from hermes_iot.protocol.wire import Received


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Timing and manners of one device.

    Attributes:
        retry_s, retry_max_s: first and longest pause before an unanswered update is repeated.
        alone_after_s: without an answer for so long, training goes on from the local model.
        state_interval_s: the reported state is refreshed at most this often (pushes and allocations at once).
        once: quit when the run ends instead of waiting for the next one.
    """

    retry_s: float = 5.0
    retry_max_s: float = 60.0
    alone_after_s: float = 15.0
    state_interval_s: float = 1.0
    once: bool = False


class Device:
    """One board's decisions. Not thread-safe: one owner."""

    def __init__(
        self,
        *,
        device: DeviceId,
        memory: StoreMemory,
        birth: DeviceStatus,
        strategy_of: Callable[[StrategyInfo], Strategy[Any, Any]],
        settings: DeviceSettings,
    ) -> None:
        self.device = device
        self.settings = settings
        self.phase: Phase = "starting"
        self.manifest: RunManifest | None = None
        self.learner: Learner | None = None
        self.memory = memory
        self._birth = birth
        self._strategy_of = strategy_of
        self._shelf = Shelf()
        self._outbox = Outbox(retry_s=settings.retry_s, retry_max_s=settings.retry_max_s)
        self._early_allocation: Allocation | None = None
        self._early_head: ModelHead | None = None
        self._connected = False
        self._coordinator_online = False
        self._prepared = False
        self._busy = False
        self._discard_result = False
        self._paused = False
        self._draining = False
        self._dropped = 0
        self._bytes_up = 0
        self._bytes_down = 0
        self._state_sent_at = -math.inf
        self._state_dirty = False

    # --- events ---------------------------------------------------------------------------------------------------

    def connected(self, *, now: float) -> list[Effect]:
        """A (re)connection is up: say so, report the state, and ask again at once for what is awaited."""
        self._connected = True
        self._outbox.hasten(now=now)
        effects: list[Effect] = [self._send(self._birth)]
        if self.manifest is not None:
            effects.append(self._report(now))
            effects += [self._request("shard", sha256) for sha256 in self._shelf.missing()]
        return [*effects, *self.expire(now=now)]

    def disconnected(self) -> None:
        """The connection is gone. Training goes on."""
        self._connected = False

    def carried(self, *, up: int = 0, down: int = 0) -> None:
        """The shell moved so many payload bytes; they are reported in the state."""
        self._bytes_up += up
        self._bytes_down += down

    def refused(self) -> None:
        """The shell dropped a malformed message."""
        self._dropped += 1

    def received(self, received: Received, *, now: float) -> list[Effect]:
        """One message from the wire.

        Raises:
            ProtocolError: the message is wrong in itself; the caller counts it with `refused`.
            Incompatible: the run cannot be taken part in (strategy unknown here).
        """
        match received.message:
            case RunManifest() as manifest:
                return self._on_manifest(manifest, now)
            case CoordinatorStatus() as status:
                return self._on_coordinator(status, now)
            case Allocation() as allocation:
                return self._on_allocation(allocation, now)
            case ModelHead() as head:
                return self._on_head(head)
            case Model() as model:
                return self._on_model(model, keyframe=not received.device, now=now)
            case Ack() as ack:
                return self._on_ack(ack)
            case Shard() as shard:
                return self._on_shard(shard)
            case Command() as command:
                return self._on_command(command, now)
            case _:
                return []

    def prepared(self, run: str, signature_sha256: str, *, now: float) -> list[Effect]:
        """Task, model and data of `run` are ready.

        Raises:
            Incompatible: the model built here is laid out differently from the coordinator's.
        """
        if self.manifest is None or run != self.manifest.run:
            return []
        if signature_sha256 != self.manifest.model.sha256:
            raise Incompatible(
                f"the model of task {self.manifest.task.name!r} built here is not the coordinator's",
                why=f"its layout hashes to {signature_sha256[:12]}, expected {self.manifest.model.sha256[:12]}",
                mend="Install the same version of the task on both sides",
            )
        self._prepared = True
        if self.phase == "starting":
            self.phase = "waiting"
        effects: list[Effect] = []
        if self._early_head is not None:
            effects += self._on_head(self._early_head)
        if self._early_allocation is not None:
            effects += self._on_allocation(self._early_allocation, now)
        return [*effects, *self._proceed(now)]

    def shard_found(self, sha256: str, *, found: bool, now: float) -> list[Effect]:
        """The cache was asked: the shard is at hand, or must be requested."""
        if self.manifest is None:
            return []
        if not found:
            return [self._request("shard", sha256)] if self._connected else []
        self._shelf.stored(sha256)
        return self._proceed(now)

    def trained(self, result: Trained, seconds: float, *, now: float) -> list[Effect]:
        """One local iteration ended after `seconds`."""
        self._busy = False
        learner = self.learner
        if self._discard_result or learner is None:
            self._discard_result = False
            return self._proceed(now)
        decision = learner.take(result, seconds)
        self._state_dirty = True
        effects = self._telemetry(learner, result, seconds)
        if decision.push:
            effects += self._push(learner, result, seconds, now)
        if self._draining:
            return [*effects, *self.stop("drained", now=now)]
        effects += self._proceed(now)
        return [*effects, *self._refresh(now)]

    def untrainable(self, why: str, *, now: float) -> list[Effect]:
        """The job contradicts the data at hand (an allocation of rows that are not there): wait for another one."""
        self._busy = False
        self._discard_result = False
        self._shelf.reject()
        ignored = self._ignore("allocation that cannot be trained on", why)
        return [*ignored, *self._proceed(now), *self._refresh(now)]

    def stop(self, reason: str, *, now: float) -> list[Effect]:
        """Leave in good order: last state, explicit offline, quit."""
        self.phase = "finished"
        last = [self._report(now)] if self.manifest is not None else []
        farewell = self._send(replace(self._birth, state="offline", reason=reason))
        return [*last, farewell, Quit(reason=reason)]

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do; None when only an event can change anything."""
        deadlines: list[float] = []
        if (ask_again := self._outbox.next_deadline()) is not None and self._connected:
            deadlines.append(ask_again)
        if self.phase == "pushed":
            deadlines.append(self._outbox.since + self.settings.alone_after_s)
        if self._state_dirty and self._connected:
            deadlines.append(self._state_sent_at + self.settings.state_interval_s)
        return min(deadlines, default=None)

    def expire(self, *, now: float) -> list[Effect]:
        """Do what has become due."""
        effects: list[Effect] = []
        if self._connected and self._outbox.due(now=now):
            update = self._outbox.update
            effects.append(self._send(update) if update is not None else self._request("model"))
        effects += self._proceed(now)
        return [*effects, *self._refresh(now)]

    # --- messages -------------------------------------------------------------------------------------------------

    def _on_manifest(self, manifest: RunManifest, now: float) -> list[Effect]:
        if self.manifest is not None and manifest.run == self.manifest.run:
            ended = self.manifest.state == "running" and manifest.state != "running"
            self.manifest = manifest
            return self._end_run(manifest, now) if ended else []
        self.manifest = manifest
        self._forget_run()
        if manifest.state != "running":
            self.phase = "finished"
            return []
        self.learner = Learner(manifest, self._strategy_of(manifest.strategy), self.device)
        effects: list[Effect] = []
        if self.memory.run != manifest.run:
            self.memory = replace(self.memory, run=manifest.run, allocation_version=0)
            effects.append(self.memory)
        return [*effects, Prepare(manifest=manifest), self._report(now)]

    def _forget_run(self) -> None:
        self.phase = "starting"
        self.learner = None
        self._shelf = Shelf()
        self._outbox.clear()
        self._prepared = False
        self._discard_result = self._busy

    def _end_run(self, manifest: RunManifest, now: float) -> list[Effect]:
        self._outbox.clear()
        if self.settings.once:
            return self.stop(f"run ended: {manifest.reason}", now=now)
        self.phase = "finished"
        return [self._report(now)]

    def _on_coordinator(self, status: CoordinatorStatus, now: float) -> list[Effect]:
        returned = status.state == "online" and not self._coordinator_online
        self._coordinator_online = status.state == "online"
        if returned:
            self._outbox.hasten(now=now)
        return self.expire(now=now)

    def _on_allocation(self, allocation: Allocation, now: float) -> list[Effect]:
        self._early_allocation = allocation
        if self.manifest is None or not self._prepared:
            return []
        if allocation.run != self.manifest.run:
            return self._ignore("allocation of another run", allocation.run)
        if self._shelf.allocation is None and allocation.version < self.memory.allocation_version:
            return self._ignore("allocation older than the one obeyed before", str(allocation.version))
        return self._proceed(now) if self._shelf.offer(allocation) else []

    def _on_head(self, head: ModelHead) -> list[Effect]:
        self._early_head = head
        if self.manifest is None or not self._prepared or self.learner is None or self.learner.base is not None:
            return []
        if head.run != self.manifest.run:
            return self._ignore("model of another run", head.run)
        return [FetchKeyframe(parts=head.parts)]

    def _on_model(self, model: Model, *, keyframe: bool, now: float) -> list[Effect]:
        manifest, learner = self.manifest, self.learner
        if manifest is None or learner is None or not self._prepared or (keyframe and learner.base is not None):
            return []
        if model.run != manifest.run:
            return self._ignore("model of another run", model.run)
        if model.model != manifest.model.sha256 or model.parameters != manifest.model.parameters:
            raise ProtocolError("model_mismatch", f"a model of {model.parameters} parameters, not this run's")
        # Decoded first: a damaged answer must leave the outbox waiting for a good one.
        vector = unpack(model.body, model.codec, model.parameters)
        answered = not keyframe and self._outbox.answered(model.session, model.seq)
        had_none = learner.base is None
        if not had_none and not answered:
            return []
        if self._busy and not self._discard_result:
            learner.adopt_later(model.version, vector)
            return []
        learner.adopt(model.version, vector)
        return [*([ForgetKeyframe()] if had_none else []), *self._proceed(now)]

    def _on_ack(self, ack: Ack) -> list[Effect]:
        if self.manifest is None or ack.run != self.manifest.run:
            return []
        if (ack.session, ack.seq) <= (self.memory.session, self.memory.seq):
            self._outbox.acked(ack.session, ack.seq)
            return []
        # Somebody of this name has said more than we remember: our memory was lost (a new card, a wiped directory).
        # Our ids would look like repetitions for ever, so start a session above them.
        self.memory = replace(self.memory, session=ack.session + 1, seq=0)
        self._birth = replace(self._birth, session=self.memory.session)
        self._outbox.clear()
        return [self.memory, Rebirth()]

    def _on_shard(self, shard: Shard) -> list[Effect]:
        if self.manifest is None or shard.run != self.manifest.run or not self._shelf.asked_for(shard.sha256):
            return self._ignore("shard that was not asked for", shard.sha256[:12])
        return [StoreShard(sha256=shard.sha256, body=shard.body)]

    def _on_command(self, command: Command, now: float) -> list[Effect]:
        done: list[Effect] = []
        match command.name:
            case "pause":
                self._paused = True
                done = self._proceed(now)
            case "resume":
                self._paused = False
                done = self._proceed(now)
            case "resend":
                self._outbox.hasten(now=now)
                done = self.expire(now=now)
            case "drain":
                self._draining = True
                done = [] if self._busy else self.stop("drained", now=now)
            case "ping":
                pass
        return [self._send(Response(id=command.id, status="ok", detail=self.phase)), *done]

    # --- decisions ------------------------------------------------------------------------------------------------

    def _proceed(self, now: float) -> list[Effect]:
        """The one place that decides what to do next."""
        learner = self.learner
        if self._busy or not self._prepared or learner is None or self._draining or self.phase == "finished":
            return []
        effects: list[Effect] = []
        allocated = self._shelf.advance()
        effects += [FindShard(sha256=sha256) for sha256 in self._shelf.wanted()]
        job = self._next_job(learner)
        if self._paused:
            self.phase = "paused"
        elif job is None:
            self.phase = "waiting"
        elif self._must_wait(now):
            self.phase = "pushed"
        else:
            self.phase = "training"
            self._busy = True
            effects.append(Train(job=job))
        return [*self._obey(learner, now), *effects] if allocated else effects

    def _next_job(self, learner: Learner) -> TrainJob | None:
        allocation, manifest = self._shelf.allocation, self.manifest
        if allocation is None or manifest is None:
            return None
        shard = self._shelf.shard(prefer_next=manifest.data.sampling == "fresh")
        return learner.job(allocation, shard, self.memory.session)

    def _must_wait(self, now: float) -> bool:
        """Wait for the answer to a push, unless nobody is there to give it."""
        if self._outbox.awaiting is None or not self._connected or not self._coordinator_online:
            return False
        return now < self._outbox.since + self.settings.alone_after_s

    def _obey(self, learner: Learner, now: float) -> list[Effect]:
        """A new allocation is in force: remember its version, and say so."""
        allocation = self._shelf.allocation
        learner.reallocated()
        if allocation is not None:
            self.memory = replace(self.memory, allocation_version=allocation.version)
        return [self.memory, self._report(now)]

    def _push(self, learner: Learner, result: Trained, seconds: float, now: float) -> list[Effect]:
        manifest, allocation = self.manifest, self._shelf.allocation
        if manifest is None or allocation is None:
            return []
        vector, iterations = learner.contribution()
        self.memory = replace(self.memory, seq=self.memory.seq + 1)
        update = Update(
            run=manifest.run,
            session=self.memory.session,
            seq=self.memory.seq,
            base_version=learner.base_version,
            model=manifest.model.sha256,
            codec=manifest.codec,
            parameters=manifest.model.parameters,
            loss=result.loss,
            samples=result.samples,
            batch=allocation.batch,
            mini_batches=result.mini_batches,
            train_s=seconds,
            iterations=iterations,
            body=pack(vector, manifest.codec),
        )
        self._outbox.put(update, now=now)
        # On disk before it is said: a reboot must never use this number again.
        return [self.memory, *([self._send(update)] if self._connected else [])]

    # --- what is said ---------------------------------------------------------------------------------------------

    def _telemetry(self, learner: Learner, result: Trained, seconds: float) -> list[Effect]:
        manifest, allocation, decision = self.manifest, self._shelf.allocation, learner.decision
        if manifest is None or allocation is None:
            return []
        metrics = Metrics(
            run=manifest.run,
            session=self.memory.session,
            iteration=learner.iterations,
            seconds=seconds,
            samples=result.samples,
            batch=allocation.batch,
            mini_batches=result.mini_batches,
            loss=learner.loss,
            z=decision.z,
            threshold=decision.threshold,
            published=decision.push,
        )
        record = Record(
            event="iteration",
            fields={
                "iteration": metrics.iteration,
                "seconds": seconds,
                "samples": metrics.samples,
                "batch": metrics.batch,
                "loss": metrics.loss,
                "z": metrics.z,
                "threshold": metrics.threshold,
                "gate": decision.why,
                "published": metrics.published,
            },
        )
        due = manifest.telemetry == "full" or (manifest.telemetry == "sampled" and learner.iterations % 10 == 0)
        return [record, self._send(metrics)] if due and self._connected else [record]

    def _refresh(self, now: float) -> list[Effect]:
        """Report the state if it changed and the interval allows."""
        late = now >= self._state_sent_at + self.settings.state_interval_s
        return [self._report(now)] if self._state_dirty and self._connected and late else []

    def _report(self, now: float) -> Send:
        self._state_dirty = False
        self._state_sent_at = now
        learner, allocation = self.learner, self._shelf.allocation
        state = DeviceState(
            run=self.manifest.run if self.manifest is not None else "",
            session=self.memory.session,
            seq=self.memory.seq,
            phase=self.phase,
            allocation_version=allocation.version if allocation is not None else 0,
            model_version=learner.base_version if learner is not None else 0,
            iterations=learner.iterations if learner is not None else 0,
            published=learner.published if learner is not None else 0,
            samples=allocation.samples if allocation is not None else 0,
            batch=allocation.batch if allocation is not None else 0,
            mini_batches=learner.mini_batches if learner is not None else 0,
            iteration_s=learner.iteration_s if learner is not None else 0.0,
            loss=learner.loss if learner is not None else None,
            z=learner.decision.z if learner is not None else None,
            threshold=learner.decision.threshold if learner is not None else None,
            gate=learner.decision.why if learner is not None else "",
            shard=self._shelf.shard(prefer_next=self.manifest is not None and self.manifest.data.sampling == "fresh"),
            diverged=learner.diverged if learner is not None else 0,
            dropped=self._dropped,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
        )
        return self._send(state)

    def _request(self, want: Literal["model", "shard"], sha256: str = "") -> Send:
        run = self.manifest.run if self.manifest is not None else ""
        return self._send(Request(run=run, session=self.memory.session, want=want, sha256=sha256))

    def _ignore(self, what: str, which: str) -> list[Effect]:
        self._dropped += 1
        self._state_dirty = True
        return [Record(event="ignored", fields={"what": what, "which": which})]

    def _send(self, message: DeviceStatus | DeviceState | Update | Request | Metrics | Response) -> Send:
        return Send(message=message, device=self.device)
