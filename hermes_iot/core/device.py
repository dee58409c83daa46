"""The device's half of the protocol: events in, effects out.

::

    starting --manifest--> (Prepare) --prepared--> takes part (see `participation`)
    any --run ended--> finished --another run, or the same again--> takes part

Everything retained may arrive in any order, twice, or from an older run: run id and version are compared first, and
what comes before its manifest is put by. A manifest that does not come, while somebody leads a run that this device knows
nothing of, is asked for: retained messages get lost like any other. Here is what concerns a device whatever it trains: its connection, which run
it is in, its session, and what it is commanded to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from hermes_iot.algorithms.strategies.base import Strategy
from hermes_iot.core.board import Board
from hermes_iot.core.effects import Effect, Prepare, Quit, Rebirth, StoreMemory
from hermes_iot.core.learner import Learner
from hermes_iot.core.participation import Participation
from hermes_iot.core.reported import Traffic
from hermes_iot.core.retry import Retry
from hermes_iot.core.settings import DeviceSettings
from hermes_iot.domain import DeviceId, ModelSignature, RunId, TensorSpec, Trained
from hermes_iot.errors import Incompatible, ProtocolError
from hermes_iot.protocol.limits import INTEGER_MAX
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    Command,
    CoordinatorStatus,
    DeviceStatus,
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
from hermes_iot.protocol.wire import Missing, Received

__all__ = ["Device", "DeviceSettings"]


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
        self.part: Participation | None = None
        self._board = Board(device=device, settings=settings, memory=memory, birth=birth)
        self._strategy_of = strategy_of
        self._traffic = Traffic()
        # The newest of each retained kind: they may come before the run they belong to.
        self._allocation: Allocation | None = None
        self._head: ModelHead | None = None
        self._ack: Ack | None = None
        self._stopped = False
        self._unknown = Retry(first_s=settings.retry_s, most_s=settings.retry_max_s)  # the run that is led
        self._led = ""

    @property
    def phase(self) -> Phase:
        """What this device is doing."""
        if self._stopped:
            return "finished"
        return self.part.phase if self.part is not None else "starting"

    @property
    def manifest(self) -> RunManifest | None:
        """Of the run it is in, or was in last."""
        return self.part.manifest if self.part is not None else None

    @property
    def learner(self) -> Learner | None:
        """Model and counters of that run."""
        return self.part.learner if self.part is not None else None

    @property
    def allocation(self) -> Allocation | None:
        """The one in force in that run."""
        return self.part.allocation if self.part is not None else None

    @property
    def shard_bytes_max(self) -> int | None:
        """The longest shard that it has been allotted; None where that is not said."""
        return self.part.shard_bytes_max if self.part is not None else None

    @property
    def bounded(self) -> dict[str, tuple[int, int]]:
        """What is kept of others' doings, by name: how many, and how many at most (reliability.md, I8)."""
        return self.part.bounded if self.part is not None else {}

    @property
    def memory(self) -> StoreMemory:
        """What must survive a restart."""
        return self._board.memory

    # --- events ---------------------------------------------------------------------------------------------------

    def connected(self, *, now: float, arriving: Mapping[str, float] | None = None) -> list[Effect]:
        """A (re)connection is up: say so, report the state, and ask again at once for what is awaited.

        Args:
            now: seconds.
            arriving: channels on which a message is half received, and until when the rest of it is waited for: that
                is asked for by its parts, and not as a whole.
        """
        self._board.connected = True
        self._board.leader.connected()
        birth = self._board.send(self._board.birth)
        if self.part is None:
            return [birth]
        self.part.hasten(now=now)
        for channel, until in (arriving or {}).items():
            self.part.arriving(channel, until=until)
        return [birth, *self.part.report(now=now), *self.part.expire(now=now)]

    def disconnected(self) -> None:
        """The connection is gone. Training goes on."""
        self._board.connected = False

    def carried(self, *, up: int = 0, down: int = 0) -> None:
        """The shell moved so many payload bytes; they are reported in the state."""
        self._traffic.bytes_up += up
        self._traffic.bytes_down += down

    def uploading(self, *, active: bool, now: float) -> None:
        """A large update is on its way to the broker, or all of it is there: from then on an answer can be waited for."""
        self._board.uploading = active
        if self.part is not None and not active:
            self.part.uploaded(now=now)

    def arriving(self, channel: str, *, until: float) -> None:
        """A message comes in parts; the next one should be here by then."""
        if self.part is not None:
            self.part.arriving(channel, until=until)

    def stalled(self, gaps: Iterable[Missing]) -> list[Effect]:
        """Parts of messages do not come by themselves."""
        return [effect for gap in gaps if self.part is not None for effect in self.part.stalled(gap)]

    def refused(self) -> None:
        """The shell dropped a malformed message."""
        self._traffic.dropped += 1

    def received(self, received: Received, *, now: float) -> list[Effect]:
        """One message from the wire.

        Raises:
            ProtocolError: the message is wrong in itself; the caller counts it with `refused`.
            Incompatible: the run cannot be taken part in (strategy unknown here).
        """
        part = self.part
        self._board.leader.check(getattr(received.message, "epoch", 0), now=now)
        match received.message:
            case RunManifest() as manifest:
                return self._on_manifest(manifest, now)
            case CoordinatorStatus() as status:
                return self._on_coordinator(status, now)
            case Ack() as ack:
                self._ack = ack
                return self._on_ack(ack)
            case Command() as command:
                return self._on_command(command, now)
            case Allocation() as allocation:
                self._allocation = allocation
                return part.allocated(allocation, now=now) if part is not None else []
            case ModelHead() as head:
                self._head = head
                return part.head_came(head, now=now) if part is not None else []
            case Model() as model:
                return part.model_came(model, keyframe=not received.device, now=now) if part is not None else []
            case Shard() as shard:
                return part.shard_came(shard) if part is not None else []
            case _:
                return []

    def prepared(self, run: str, signature_sha256: str, *, now: float) -> list[Effect]:
        """Task, model and data of `run` are ready.

        Raises:
            Incompatible: the model built here is laid out differently from the coordinator's.
        """
        part = self.part
        if part is None or run != part.manifest.run:
            return []
        expected = part.manifest.model.sha256
        if signature_sha256 != expected:
            raise Incompatible(
                f"the model of task {part.manifest.task.name!r} built here is not the coordinator's",
                why=f"its layout hashes to {signature_sha256[:12]}, expected {expected[:12]}",
                mend="Install the same version of the task on both sides",
            )
        return part.prepared(self._head, self._allocation, now=now)

    def shard_found(self, sha256: str, *, found: bool, now: float) -> list[Effect]:
        """The cache was asked: the shard is at hand, or must be requested."""
        return self.part.shard_found(sha256, found=found, now=now) if self.part is not None else []

    def trained(self, result: Trained, seconds: float, *, now: float) -> list[Effect]:
        """One local iteration ended after `seconds`."""
        self._board.busy = False
        return self._go_on(self.part.trained(result, seconds, now=now) if self.part is not None else [], now)

    def untrainable(self, why: str, *, now: float) -> list[Effect]:
        """The job contradicts the data at hand."""
        self._board.busy = False
        return self._go_on(self.part.untrainable(why, now=now) if self.part is not None else [], now)

    def stop(self, reason: str, *, now: float) -> list[Effect]:
        """Leave in good order: last state, explicit offline, quit."""
        self._stopped = True
        last: list[Effect] = []
        if self.part is not None:
            self.part.end()
            last = self.part.report(now=now)
        farewell = self._board.send(replace(self._board.birth, state="offline", reason=reason))
        return [*last, farewell, Quit(reason=reason)]

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do; None when only an event can change anything."""
        deadline = self.part.next_deadline() if self.part is not None else None
        asks_at = self._unknown.deadline
        if asks_at is not None and self._board.heard and (deadline is None or asks_at < deadline):
            return asks_at
        return deadline

    def expire(self, *, now: float) -> list[Effect]:
        """Do what has become due."""
        effects: list[Effect] = []
        if self._board.heard and self._unknown.due(now=now):
            request = Request(run=RunId(self._led), session=self.memory.session, want="run")
            effects.append(self._board.send(request))
        return [*effects, *(self.part.expire(now=now) if self.part is not None else [])]

    # --- messages -------------------------------------------------------------------------------------------------

    def _on_manifest(self, manifest: RunManifest, now: float) -> list[Effect]:
        part, running = self.part, manifest.state == "running"
        if manifest.run == self._led:
            self._unknown.stop()
        if part is None or part.manifest.run != manifest.run or (part.learner is None and running):
            return self._enter_run(manifest, now)
        was_running = part.manifest.state == "running"
        part.manifest = manifest
        if was_running and not running:
            return self._end_run(part, now)
        if running and not was_running:
            return [*part.reopen(self._head, self._allocation, now=now), *part.report(now=now)]
        return []

    def _enter_run(self, manifest: RunManifest, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.part is not None:
            effects += self.part.forget_keyframe()
            self._traffic = Traffic()
        running = manifest.state == "running"
        _check_layout(manifest)
        learner = Learner(manifest, self._strategy_of(manifest.strategy), self.device) if running else None
        self.part = Participation(self._board, manifest, learner, self._traffic)
        if not running:
            return [*effects, *self.part.report(now=now)]
        if self.memory.run != manifest.run:
            self._board.memory = replace(self.memory, run=manifest.run, allocation_version=0, update=None)
            effects.append(self.memory)
        unacked = self.memory.update
        if unacked is not None and _fits(unacked, manifest):
            self.part.outbox.take_up(unacked, now=now)
        effects += [Prepare(manifest=manifest), *self.part.report(now=now)]
        return [*effects, *(self._on_ack(self._ack) if self._ack is not None else [])]

    def _end_run(self, part: Participation, now: float) -> list[Effect]:
        if self.settings.once:
            return self.stop(f"run ended: {part.manifest.reason}", now=now)
        part.end()
        return part.report(now=now)

    def _on_coordinator(self, status: CoordinatorStatus, now: float) -> list[Effect]:
        there = self._board.leader.online
        came = self._board.leader.heard(status)
        self._look_for(status, now)
        if self.part is not None and came:
            self.part.hasten(now=now)
        # Most say only that time goes on: a fleet hears thousands of them, and nothing is due by them.
        return self.expire(now=now) if came or self._board.leader.online != there else []

    def _look_for(self, status: CoordinatorStatus, now: float) -> None:
        """Whether the run that is led is known here; its manifest comes before the word on it, or was lost."""
        if status.state != "online":
            return
        self._led = status.run
        known = not status.run or (self.part is not None and self.part.manifest.run == status.run)
        if known:
            self._unknown.stop()
        elif self._unknown.deadline is None:
            self._unknown.start(now=now)

    def _on_ack(self, ack: Ack) -> list[Effect]:
        if self.part is None or ack.run != self.part.manifest.run:
            return []
        if (ack.session, ack.seq) <= (self.memory.session, self.memory.seq) and ack.newest <= self.memory.session:
            self.part.outbox.acked(ack.session, ack.seq)
            if self.part.outbox.update is None:
                self._board.memory = replace(self.memory, update=None)
            return []
        known = max(ack.session, ack.newest)
        if known >= INTEGER_MAX:
            raise ProtocolError("session", "an ack leaves no session above its own")
        # Somebody of this name has said more than we remember: our memory was lost (a new card, a wiped directory).
        # Our ids would look like repetitions for ever, so start a session above them.
        self._board.memory = replace(self.memory, session=known + 1, seq=0, update=None)
        self._board.birth = replace(self._board.birth, session=self.memory.session)
        self.part.outbox.clear()
        self._recount()
        return [self.memory, Rebirth()]

    def _recount(self) -> None:
        """Counters are of a session: under a new one the old ones would be added a second time."""
        self._traffic.dropped = self._traffic.bytes_up = self._traffic.bytes_down = 0
        if self.part is not None and self.part.learner is not None:
            self.part.learner.recount()

    def _on_command(self, command: Command, now: float) -> list[Effect]:
        done: list[Effect] = []
        match command.name:
            case "pause" | "resume":
                self._board.paused = command.name == "pause"
                done = self.expire(now=now)
            case "resend" if command.transfer:
                done = self.part.resend(command, now=now) if self.part is not None else []
            case "resend":
                if self.part is not None:
                    self.part.hasten(now=now)
                    self.part.outbox.hurried = False
                done = self.expire(now=now)
            case "drain":
                self._board.draining = True
                done = [] if self._board.busy else self.stop("drained", now=now)
            case "push":
                if self.part is not None:
                    self.part.summon(command.id)
            case "ping":
                pass
        return [self._board.send(Response(id=command.id, status="ok", detail=self.phase)), *done]

    def _go_on(self, effects: list[Effect], now: float) -> list[Effect]:
        """The worker is free again."""
        if self._board.draining:
            return [*effects, *self.stop("drained", now=now)]
        if self.part is None:
            return effects
        return [*effects, *self.part.proceed(now=now), *self.part.refresh(now=now)]


def _fits(update: Update, manifest: RunManifest) -> bool:
    """Whether an update of an earlier life can be sent into this run; which codecs it may be in the coordinator knows."""
    return (update.run, update.model) == (manifest.run, manifest.model.sha256)


def _check_layout(manifest: RunManifest) -> None:
    """A manifest's three words on the model must agree: its length decides how much an update may hold."""
    model = manifest.model
    signature = ModelSignature(tensors=tuple(TensorSpec(name=name, shape=shape) for name, shape in model.tensors))
    if (signature.sha256, signature.parameters) != (model.sha256, model.parameters):
        raise ProtocolError("model_mismatch", "the manifest's model contradicts itself")
