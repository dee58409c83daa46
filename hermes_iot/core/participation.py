"""One device in one run: which model it trains, on which rows, what it pushes and what it waits for.

::

    starting --prepared--> waiting --model, allocation, shard--> training
       training --trained, gate says no--> training
       training --trained, gate fires--> pushed --answer--> training
       pushed --no answer for a while, or nobody there--> training   (on with the model it has)

A device trains as long as it has a model and an allocation, whether or not anybody listens; where the strategy lets
nobody go on alone it waits for its answer however long that takes. It speaks only to who is there: an update made while
nobody leads is kept, the newest only, and sent when somebody does. What it lacks it asks for again and again, because
anything may be lost on the way: the keyframe, a shard, the allocation, its own birth.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from hermes_iot.algorithms.compression import unpack
from hermes_iot.algorithms.trees import is_finite
from hermes_iot.core.board import Board
from hermes_iot.core.effects import (
    Effect,
    FetchKeyframe,
    FindShard,
    ForgetKeyframe,
    Record,
    Resend,
    Send,
    StoreShard,
    Train,
)
from hermes_iot.core.learner import Learner
from hermes_iot.core.outbox import BYTES_PER_S, Outbox
from hermes_iot.core.pace import Pace
from hermes_iot.core.quota import Quota
from hermes_iot.core.reported import Traffic, iteration_record, metrics_of, state_of, update_of
from hermes_iot.core.retry import Retry
from hermes_iot.core.shelf import Shelf
from hermes_iot.domain import Trained
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.chunks import unpack_parts
from hermes_iot.protocol.messages import (
    Allocation,
    Command,
    Model,
    ModelHead,
    Phase,
    Request,
    RunManifest,
    Shard,
    Update,
)
from hermes_iot.protocol.wire import Missing


class Participation:
    """Mutable, owned by one `Device`, thrown away with the run.

    Attributes:
        manifest: of the run; only its state may change.
        phase: see the module; besides ``paused`` while the device is told to, ``finished`` when the run is over.
        learner: None where the run was over before this device came.
        outbox: the update under way.
    """

    def __init__(self, board: Board, manifest: RunManifest, learner: Learner | None, traffic: Traffic) -> None:
        settings = board.settings
        self.manifest = manifest
        self.phase: Phase = "starting" if learner is not None else "finished"
        self.learner = learner
        self.outbox = Outbox(retry=Retry(first_s=settings.retry_s, most_s=settings.retry_max_s))
        self._board = board
        self._shelf = Shelf()
        self._lacking = Retry(first_s=settings.retry_s, most_s=settings.retry_max_s)
        self._state_pace = Pace(interval_s=settings.state_interval_s, done_at=-math.inf)
        self._state_changed = self._state_held = False
        self._traffic = traffic
        self._prepared = False
        self._fetching = False
        self._training = False
        self._shard = ""  # what the newest iteration was begun on
        self._summons = ""  # the one followed last
        self._resends = Quota()

    @property
    def allocation(self) -> Allocation | None:
        """The one in force."""
        return self._shelf.allocation

    @property
    def shard_bytes_max(self) -> int | None:
        """See `Device.shard_bytes_max`."""
        return self._shelf.shard_bytes_max

    @property
    def bounded(self) -> dict[str, tuple[int, int]]:
        """See `Device.bounded`."""
        return {"shards": self._shelf.known}

    # --- events ---------------------------------------------------------------------------------------------------

    def hasten(self, *, now: float) -> None:
        """Ask at once for what is awaited and lacking: the way to the other side has just opened.

        Not without a model: whoever leads publishes a keyframe at every connection, and asking would bring another.
        """
        self.outbox.hasten(now=now)
        if self.learner is not None and self.learner.base is not None:
            self._lacking.hasten(now=now)

    def prepared(self, head: ModelHead | None, allocation: Allocation | None, *, now: float) -> list[Effect]:
        """Task, model and data are ready; `head` and `allocation` came before that."""
        if self._prepared:
            return []
        self._prepared = True
        if self.phase == "finished":
            return []
        self._enter("waiting")
        return self.catch_up(head, allocation, now=now)

    def catch_up(self, head: ModelHead | None, allocation: Allocation | None, *, now: float) -> list[Effect]:
        """Look at what came too early, now that it can be used."""
        self._lacking.start(now=now)
        effects = self.head_came(head, now=now) if head is not None else []
        effects += self.allocated(allocation, now=now) if allocation is not None else []
        return [*effects, *self.proceed(now=now)]

    def allocated(self, allocation: Allocation, *, now: float) -> list[Effect]:
        """An allocation came."""
        if not self._prepared:
            return []
        if allocation.run != self.manifest.run:
            return self._ignore("allocation of another run", allocation.run)
        if not self._shelf.newest and allocation.version < self._board.memory.allocation_version:
            return self._ignore("allocation older than the one obeyed before", str(allocation.version))
        return self.proceed(now=now) if self._shelf.offer(allocation) else []

    def head_came(self, head: ModelHead, *, now: float) -> list[Effect]:
        """There is a keyframe; fetched only by a device without a model, which asks for one if it does not come."""
        if not self._prepared or self.learner is None or self.learner.base is not None:
            return []
        if head.run != self.manifest.run:
            return self._ignore("model of another run", head.run)
        self._fetching = True
        self._lacking.start(now=now, allow_s=head.bytes / BYTES_PER_S)
        return [FetchKeyframe(parts=head.parts)]

    def model_came(self, model: Model, *, keyframe: bool, now: float) -> list[Effect]:
        """A model came: the keyframe, an answer to an update or to a request.

        Raises:
            ProtocolError: of another layout, or its body is damaged.
        """
        manifest, learner = self.manifest, self.learner
        if learner is None or not self._prepared or (keyframe and learner.base is not None):
            return []
        if model.run != manifest.run:
            return self._ignore("model of another run", model.run)
        if model.model != manifest.model.sha256 or model.parameters != manifest.model.parameters:
            raise ProtocolError("model_mismatch", f"a model of {model.parameters} parameters, not this run's")
        if model.base and (learner.base is None or model.base != learner.base_sha256):
            # It was made for somebody who holds what we do not: ask for the whole.
            self.outbox.acked(model.session, model.seq)
            self.outbox.retry.hasten(now=now)
            return [*self._ignore("difference from a model not held here", model.base[:12]), *self.expire(now=now)]
        # Decoded first: a damaged answer must leave the outbox waiting for a good one.
        vector = unpack(model.body, model.codec, model.parameters, learner.split)
        if model.base and learner.base is not None:
            vector = learner.base + vector
            if not is_finite(vector):
                raise ProtocolError("finite", "the difference leads out of float32")
        answered = not keyframe and self.outbox.answered(model.session, model.seq)
        if learner.base is not None and not answered:
            return []
        stale = self._outlived(model.version)
        if self._training:
            learner.adopt_later(model.version, vector, model.iterations, stale=stale)
            return []
        learner.adopt(model.version, vector, model.iterations, stale=stale)
        return [*self.forget_keyframe(), *self.proceed(now=now)]

    def _outlived(self, version: int) -> bool:
        """Whether what was learnt here since the last model is too old for the fleet's, as an update of it would be."""
        learner = self.learner
        if learner is None or learner.base is None:
            return False
        most = learner.regime.lag_max(self._board.leader.devices_most)
        return most is not None and version - learner.base_version > most

    def shard_came(self, shard: Shard) -> list[Effect]:
        """Rows came."""
        if shard.run != self.manifest.run or not self._shelf.asked_for(shard.sha256):
            return self._ignore("shard that was not asked for", shard.sha256[:12])
        return [StoreShard(sha256=shard.sha256, body=shard.body)]

    def shard_found(self, sha256: str, *, found: bool, now: float) -> list[Effect]:
        """The cache was asked: the shard is at hand, or must be requested."""
        if found:
            self._shelf.stored(sha256)
            return [*self._ask_for_pieces(now), *self.proceed(now=now)]
        self._shelf.not_found(sha256)
        return self._ask_for_pieces(now)

    def _ask_for_pieces(self, now: float) -> list[Effect]:
        """The next few of the shards that are nowhere here, if it is time to ask for them."""
        if not self._board.connected or not (names := self._shelf.to_ask_for()):
            return []
        self._lacking.start(now=now)
        return [self._request_shards(names)]

    def trained(self, result: Trained, seconds: float, *, now: float) -> list[Effect]:
        """One local iteration ended after `seconds`; one of an earlier run, or after the end, is worth nothing."""
        ours, self._training = self._training, False
        learner, allocation = self.learner, self._shelf.allocation
        if not ours or self.phase == "finished" or learner is None or allocation is None:
            return []
        known = learner.measured
        learner.take(result, seconds, hold=self.outbox.awaiting is not None)
        self._state_changed = True
        batch, session = allocation.batch, self._board.memory.session
        effects: list[Effect] = [iteration_record(learner, batch=batch, result=result, seconds=seconds)]
        wanted = self.manifest.telemetry
        if self._board.connected and (wanted == "full" or (wanted == "sampled" and learner.iterations % 10 == 0)):
            metrics = metrics_of(self.manifest, session, learner, batch=batch, result=result, seconds=seconds)
            effects.append(self._board.send(metrics))
        if learner.outgoing is not None:
            effects += self._push(learner, allocation, result, seconds, now)
        if learner.measured != known:
            effects += self.report(now=now)  # who gives out the work waits for this number
        return effects

    def untrainable(self, why: str, *, now: float) -> list[Effect]:
        """The job contradicts the data at hand (rows or a shard that are not there): wait, and look again later."""
        ours, self._training = self._training, False
        if not ours:
            return []
        self._shelf.reject(self._shard)
        self._lacking.start(now=now)
        return self._ignore("allocation that cannot be trained on", why)

    def end(self) -> None:
        """The run is over."""
        self.outbox.clear()
        self._lacking.stop()
        self._enter("finished")

    def summon(self, name: str) -> None:
        """The fleet wants to hear from this device at the end of its iteration; one that waits has said all it has.

        A summons is repeated under its name until the update it called for has arrived, and followed once.
        """
        if self.learner is not None and self.outbox.awaiting is None and name != self._summons:
            self._summons, self.learner.summoned = name, True

    def reopen(self, head: ModelHead | None, allocation: Allocation | None, *, now: float) -> list[Effect]:
        """The coordinator came back before it could record the end: the run goes on where it was."""
        self._enter("waiting" if self._prepared else "starting")
        return self.catch_up(head, allocation, now=now) if self._prepared else []

    # --- parts of messages ----------------------------------------------------------------------------------------

    def uploaded(self, *, now: float) -> None:
        """The broker has all of the update: the time for its answer begins."""
        self.outbox.since = now
        self.outbox.retry.postpone(now)

    def arriving(self, channel: str, *, until: float) -> None:
        """A message comes in parts, the next one by then: what is on its way is not asked for, and is waited for."""
        if channel == "model" and until < math.inf:
            self.outbox.retry.postpone(until)
            self.outbox.since = max(self.outbox.since, until - self._board.settings.alone_after_s)
        self._lacking.postpone(until)

    def stalled(self, gap: Missing) -> list[Effect]:
        """Parts of a message did not come: ask for them, if it is still wanted."""
        learner = self.learner
        if learner is None or self.phase == "finished" or not self._board.connected:
            return []
        want: Literal["model", "shard"] = "model" if gap.channel == "model" else "shard"
        if want == "model" and learner.base is not None and self.outbox.awaiting is None:
            return []
        self.arriving(gap.channel, until=gap.patient_until)
        request = Request(
            run=self.manifest.run,
            session=self._board.memory.session,
            want=want,
            transfer=gap.transfer,
            parts=gap.parts,
            missing=gap.missing,
        )
        return [self._board.send(request)]

    def resend(self, command: Command, *, now: float) -> list[Effect]:
        """The coordinator has a part of the update under way, if that is the one it means, and lacks the rest."""
        update = self.outbox.update
        if update is None or not self._resends.take(now=now):
            return []
        missing = unpack_parts(command.missing, command.parts)
        self.outbox.asked_for(len(missing) / command.parts, now=now)
        return [
            Resend(
                message=update,
                device=self._board.device,
                transfer=command.transfer,
                parts=command.parts,
                missing=command.missing,
            )
        ]

    # --- timers ---------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do; None when only an event can change anything."""
        deadlines: list[float] = []
        board = self._board
        asks_at, lacks_at = self.outbox.retry.deadline, self._lacking.deadline
        if asks_at is not None and board.heard and not board.uploading:
            deadlines.append(asks_at)
        if board.connected:
            if lacks_at is not None:
                deadlines.append(lacks_at)
            if self._state_changed:
                deadlines.append(self._state_pace.deadline)
        if self.phase == "pushed" and not board.uploading:
            # At once where the connection was lost meanwhile: nobody is there to be waited for.
            patience_s = board.settings.alone_after_s if board.heard else 0.0
            if self.learner is None or not self.learner.regime.waits:
                deadlines.append(self.outbox.since + patience_s)
        return min(deadlines) if deadlines else None

    def expire(self, *, now: float) -> list[Effect]:
        """Do what has become due."""
        effects: list[Effect] = []
        if self._board.heard and not self._board.uploading and self.outbox.due(now=now):
            update = self.outbox.update
            effects.append(self._send_update(update) if update is not None else self._request_model())
        if self._board.connected and self._lacking.due(now=now):
            effects += self._ask_for_what_is_lacking()
        return [*effects, *self.proceed(now=now), *self.refresh(now=now)]

    # --- decisions ------------------------------------------------------------------------------------------------

    def proceed(self, *, now: float) -> list[Effect]:
        """The one place that decides what to do next."""
        learner, board = self.learner, self._board
        if learner is None or board.draining or not self._prepared or self.phase == "finished":
            return []
        if board.busy:  # rows for what comes next are looked for meanwhile
            return [FindShard(sha256=sha256) for sha256 in self._shelf.wanted()]
        effects: list[Effect] = self._obey(learner, now) if self._shelf.advance() else []
        effects += [FindShard(sha256=sha256) for sha256 in self._shelf.wanted()]
        allocation = self._shelf.allocation
        shard = self._shelf.shard(prefer_next=self.manifest.data.sampling == "fresh")
        job = None
        if allocation is not None:
            job = learner.job(allocation, shard, board.memory.session, shards=self._shelf.pieces())
        if board.paused:
            self._enter("paused")
        elif job is None:
            self._enter("waiting")
        elif self._must_wait(now):
            self._enter("pushed")
        else:
            self._enter("training")
            self._training = board.busy = True
            self._shard = shard
            effects.append(Train(job=job))
        return effects

    def _must_wait(self, now: float) -> bool:
        """Wait for the answer to a push; where the strategy allows it, not when nobody is there to give it."""
        regime = self.learner.regime if self.learner is not None else None
        if self.outbox.awaiting is None or regime is None or regime.overlaps:
            return False
        patience_s = self._board.settings.alone_after_s
        patient = self._board.heard and (self._board.uploading or now < self.outbox.since + patience_s)
        return regime.waits or patient

    def _obey(self, learner: Learner, now: float) -> list[Effect]:
        """A new allocation is in force: remember its version, and say so."""
        allocation, board = self._shelf.allocation, self._board
        if allocation is None:
            return []
        learner.reallocated(allocation)
        board.memory = replace(board.memory, allocation_version=allocation.version)
        return [board.memory, *self.report(now=now)]

    def _push(
        self, learner: Learner, allocation: Allocation, result: Trained, seconds: float, now: float
    ) -> list[Effect]:
        if learner.outgoing is None:
            return []
        board = self._board
        board.memory = replace(board.memory, seq=board.memory.seq + 1)
        update = update_of(
            self.manifest,
            board.memory,
            device=board.device,
            outgoing=learner.outgoing,
            base_version=learner.base_version,
            base_sha256=learner.base_sha256,
            batch=allocation.batch,
            result=result,
            seconds=seconds,
        )
        self.outbox.put(update, now=now)
        board.memory = replace(board.memory, update=update)
        if self._state_pace.due(now=now) and not self._state_held:
            # The answer is near, and with it another phase and model: one report of both instead of two. Held back
            # once and no more, or a device that pushes all the time would never be heard of.
            self._state_pace.interval_s = self._board.settings.state_interval_s
            self._state_pace.done_at, self._state_held = now, True
        # On disk before it is said, the number and what it names: a reboot must neither use the one again nor lose the other.
        return [board.memory, *([self._send_update(update)] if board.heard else [])]

    def _send_update(self, update: Update) -> Send:
        return Send(message=update, device=self._board.device, reminder=self.outbox.handed_over())

    def _ask_for_what_is_lacking(self) -> list[Effect]:
        """Whatever keeps this device from training, once more."""
        self._shelf.retry()
        effects: list[Effect] = [self._request_shards(names)] if (names := self._shelf.missing()) else []
        if self.learner is not None and self.learner.base is None:
            effects.append(self._request_model())
        if self._shelf.allocation is None:
            effects.append(self._board.send(self._board.birth))  # whoever sees it born gives it an allocation
        if not effects:
            self._lacking.stop()
        return effects

    # --- what is said ---------------------------------------------------------------------------------------------

    def report(self, *, now: float) -> list[Effect]:
        """The reported state, now; without a connection at the next one."""
        if not self._board.connected:
            self._state_changed = True
            return []
        self._state_changed = self._state_held = False
        settings, fleet = self._board.settings, self._board.leader.devices
        self._state_pace.interval_s = max(settings.state_interval_s, fleet * settings.state_s_per_device)
        self._state_pace.done_at = now
        state = state_of(
            run=self.manifest.run,
            phase=self.phase,
            memory=self._board.memory,
            learner=self.learner,
            allocation=self._shelf.allocation,
            shard=self._shard,
            traffic=self._traffic,
        )
        return [self._board.send(state)]

    def refresh(self, *, now: float) -> list[Effect]:
        """Report the state if it changed and the interval allows."""
        return self.report(now=now) if self._state_changed and self._state_pace.due(now=now) else []

    def forget_keyframe(self) -> list[Effect]:
        """No chunk of the keyframe is wanted any more: only who subscribes anew is sent the next run's."""
        was, self._fetching = self._fetching, False
        return [ForgetKeyframe()] if was else []

    def _enter(self, phase: Phase) -> None:
        self._state_changed = self._state_changed or phase != self.phase
        self.phase = phase

    def _request_model(self) -> Send:
        return self._board.send(Request(run=self.manifest.run, session=self._board.memory.session, want="model"))

    def _request_shards(self, names: list[str]) -> Send:
        """One is named as it always was; more than one in a list."""
        one, more = (names[0], ()) if len(names) == 1 else ("", tuple(names))
        session = self._board.memory.session
        return self._board.send(Request(run=self.manifest.run, session=session, want="shard", sha256=one, shards=more))

    def _ignore(self, what: str, which: str) -> list[Effect]:
        self._traffic.dropped += 1
        self._state_changed = True
        return [Record(event="ignored", fields={"what": what, "which": which})]
