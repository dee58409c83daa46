"""Runs the coordinator: a machine, a connection, a run directory.

Nothing is told that a crash could forget: what was decided is in the journal, and what devices and allocations are
recorded as is in the registry, before anything that follows is sent. Both cost a disk's time, so they are settled, and
what waits for them sent, when the inbox is empty, or after 50 ms: a burst of updates or births is one write, not one
each. Only then is the broker told that it may forget what led to them: a coordinator that dies before is given it again.
(A part of a larger message is acknowledged before the message is whole. Its sender repeats what we did not answer.)

A full disk is waited out (`space`). What could not be written stays first in line, everything that comes from devices
meanwhile is dropped unread and unanswered, so nothing piles up here, and devices are told to keep what they have;
they say it again when they are told that it is taken.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hermes_iot import __version__
from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import Coordinator, CoordinatorSettings
from hermes_iot.core.effects import Checkpoint, Effect, Journal, Quit, Record, Remember, Resend, Send, SendKeyframe
from hermes_iot.errors import HermesError, IdConflict, Incompatible, ProtocolError, StorageError
from hermes_iot.protocol import codec
from hermes_iot.protocol.messages import Allocation, CoordinatorStatus
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime import malloc, strategies
from hermes_iot.runtime.coordinator_link import CoordinatorLink
from hermes_iot.runtime.leadership import CONNECT_TIMEOUT_S, Leadership, look_for_leader, taken_over
from hermes_iot.runtime.link import check_refusal
from hermes_iot.runtime.loop import Inbox, pump
from hermes_iot.runtime.manifest import first_size, manifest_of, new_run_id
from hermes_iot.runtime.run_dir import RunDir
from hermes_iot.runtime.space import Space
from hermes_iot.runtime.trainers import Bench
from hermes_iot.storage.atomic import DiskFull
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Refused, Room, Transport, Will

log = logging.getLogger(__name__)

SESSION_EXPIRY_S: Final = 3600
_HOST_CHARACTERS_MAX: Final = 64
_SETTLE_WITHIN_S: Final = 0.05
_FLUSH_S: Final = 3.0
_GOODBYE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class CoordinatorRunner:
    """See the module. `connect` gives a transport for a client id and a will (none for a look around).

    `session` names this process; None = nobody else has its name.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        fleet: str,
        run_dir: Path,
        bench: Bench,
        connect: Callable[[str, Will | None], Transport],
        prefix: str = "hermes",
        settings: CoordinatorSettings | None = None,
        takeover: bool = False,
        session: str | None = None,
        on_record: Callable[[str, Mapping[str, Any]], None] = lambda _event, _fields: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fleet = fleet
        self.topics = Topics(fleet, prefix=prefix)
        self.inbox = Inbox()
        self.bench = bench
        self.finished = False
        # Fleets of one name under two prefixes are two fleets; a broker knows its clients by their id alone.
        self.client_id = f"{fleet}-coordinator" if prefix == "hermes" else f"{prefix}-{fleet}-coordinator"
        self._connect = connect
        self._takeover = takeover
        self._on_record = on_record
        self._clock = clock
        self._running = False
        self._stopping = False
        self._space = Space("updates are not taken in")
        self._todo: deque[Effect] = deque()
        self._unsaved: list[Remember] = []
        self._held: list[Send | Resend | SendKeyframe] = []
        self._receipts: list[int] = []
        self._settle_by = 0.0
        self._session = session or secrets.token_hex(8)
        self._leadership = Leadership(self.topics, client_id=self.client_id, session=self._session)
        self._link: CoordinatorLink | None = None
        self.run_dir = RunDir(run_dir)
        try:
            self._open(config, settings or CoordinatorSettings())
        except BaseException:
            self.run_dir.close()
            raise

    def _open(self, config: RunConfig, settings: CoordinatorSettings) -> None:
        """Go on with the unfinished run in the directory, or begin a new one."""
        left = self.run_dir.unfinished(self.fleet, config)
        run = left if left is not None else new_run_id(self.bench.task.name)
        self.config = config
        strategy, info = strategies.resolve(config.strategy).build(config.constants, seed=config.seed)
        manifest = manifest_of(run, config, self.bench, info, strategy.regime)
        restored = self.run_dir.restored(run) if left is not None else None
        if restored is not None and restored.arrays["model"].size != manifest.model.parameters:
            raise Incompatible(
                f"run {run} in {self.run_dir.path} was of another model",
                why=f"{restored.arrays['model'].size} parameters there, {manifest.model.parameters} now",
                mend="Use the task as it was, or another --run-dir",
            )
        self.machine = Coordinator(
            manifest=manifest,
            status=CoordinatorStatus(
                state="online",
                session=self._session,
                host=platform.node()[:_HOST_CHARACTERS_MAX],
                software=__version__,
            ),
            strategy=strategy,
            initial=self.bench.trainer.initial(config.seed),
            score=lambda params: self.bench.trainer.score(params, config.score_on),
            settings=replace(
                settings,
                rules=config.rules,
                first=first_size(config, self.bench, strategy.regime, settings.first),
                codec_for=config.codec_for,
                lag_max=config.lag_max,
            ),
            shard_of=self.bench.shard_of,
            restored=restored,
            now=self._clock(),
        )
        self.resumed_version = self.machine.version if restored is not None else None
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.run_dir.begin(run, fleet=self.fleet, config=config, created_at=created_at)
        log.info("run=%s directory=%s resumed_at=%s", run, self.run_dir.path, self.resumed_version)

    # --- life -----------------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.machine.manifest.run

    @property
    def link(self) -> CoordinatorLink:
        """The connection; there is none before `start`."""
        if self._link is None:
            raise RuntimeError("the coordinator was not started")
        return self._link

    def start(self) -> None:
        """Make sure nobody else leads the fleet, then connect and subscribe.

        Raises:
            BrokerError: the broker cannot be reached.
            IdConflict: another coordinator is online.
        """
        malloc.keep_freed_memory()
        left = look_for_leader(self.topics, self._connect, takeover=self._takeover)
        self._leadership.epoch = epoch = left.epoch + 1
        death = CoordinatorStatus(state="offline", session=self._session, run=self.run_id, epoch=epoch)
        will = Will(topic=self.topics.all("coordinator"), payload=codec.encode_json(death))
        transport = self._connect(self.client_id, will)
        self._link = CoordinatorLink(
            self.machine, self.topics, transport, keyframe_parts=left.keyframe_parts, on_dropped=_dropped
        )
        self._link.wire.epoch = epoch
        transport.subscribe((*self._leadership.filters, *self.topics.of_coordinator()))
        transport.start(self.inbox.deliver, timeout_s=CONNECT_TIMEOUT_S)
        self._running = True

    def run(self) -> dict[str, Any] | None:
        """Lead the run to its end: its summary, or None when it was stopped before and can be resumed."""
        try:
            self.start()
            pump(
                self.inbox,
                handle=self.handle,
                deadline=self.next_deadline,
                expire=self.expire,
                running=lambda: self._running,
                clock=self._clock,
            )
            return self.conclude() if self.finished else None
        except BaseException as error:
            self.give_up(error)
            raise
        finally:
            self.close()

    def stop(self) -> None:
        """From a signal or another thread: leave; the run can be resumed."""
        self.inbox.post(_Stop())

    def close(self) -> None:
        """Disconnect and give the run directory back."""
        self._running = False
        if self._link is not None:
            self._link.transport.close()
        self.run_dir.close()

    # --- events ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the loop goes on."""
        return self._running

    @property
    def suspended(self) -> bool:
        """Whether nothing is taken in for want of room on the disk."""
        return self._space.wanted

    @property
    def bounded(self) -> dict[str, tuple[int, int]]:
        """What the machine and the connection keep, by name: how much, and how much at most (reliability.md, I8)."""
        return self.machine.bounded | (self._link.bounded if self._link is not None else {})

    def next_deadline(self) -> float | None:
        """The earliest deadline of the machine, the wire and the leadership."""
        deadlines = (
            self.machine.next_deadline(),
            self.link.next_deadline(),
            self._leadership.next_deadline(),
            self._space.deadline,
        )
        return min((one for one in deadlines if one is not None), default=None)

    def expire(self) -> None:
        """Whatever is due."""
        now = self._clock()
        try:
            self._expire(now)
            if self._space.due(now=now):
                self._try_again(now)
        except DiskFull as error:
            self._wait_for_space(error, now)

    def handle(self, event: object) -> None:
        """One event from the inbox."""
        now = self._clock()
        try:
            self._take(event, now)
        except DiskFull as error:
            self._wait_for_space(error, now)

    def _expire(self, now: float) -> None:
        self._perform(self.link.tend(now=now))
        if self._leadership.expire(now=now):
            self._perform(self.machine.connected(now=now))
        self._perform(self.machine.expire(now=now))
        self._settle(now)

    def _take(self, event: object, now: float) -> None:
        if isinstance(event, Delivery) and event.receipt:
            self._receive(event)
        match event:
            case Delivery() if self._leadership.concerns(event):
                if self._leadership.heard(event, now=now):
                    self._perform(self.machine.connected(now=now))
            case Delivery() if self._space.wanted:
                pass  # not counted, not answered: who sent it says it again
            case Delivery():
                self._perform(self.link.deliver(event, now=now))
            case Connected():
                self.link.connected(event)
                self.link.wire.hasten(now=now)
                log.info("connected fleet=%s run=%s", self.fleet, self.run_id)
                if self._leadership.connected(self.link.transport, now=now):
                    self._perform(self.machine.connected(now=now))
            case Disconnected():
                self._disconnected(event)
            case Room():
                self.link.feed()
            case Refused():
                check_refusal(event)
            case _Stop() if self._space.wanted:
                self._leave_unsaved(now)
            case _Stop():
                self._stopping = True
                self._perform(self.machine.stop(now=now))
        self._settle(now)

    def _receive(self, delivery: Delivery) -> None:
        """Remember what is to be acknowledged; at once where it is dropped."""
        if self._space.wanted:
            self.link.transport.acknowledge([delivery.receipt])
        else:
            self._receipts.append(delivery.receipt)

    def _disconnected(self, event: Disconnected) -> None:
        self._receipts.clear()  # the broker delivers these again
        log.warning("disconnected reason=%s", event.reason)
        self.link.disconnected()
        self._leadership.disconnected()
        self.machine.disconnected()
        if event.taken_over:
            raise taken_over(self.fleet)

    # --- a full disk ----------------------------------------------------------------------------------------------

    def _wait_for_space(self, error: DiskFull, now: float) -> None:
        """What could not be written stays first in line, and nothing else is begun."""
        if self._stopping:
            self._leave_unsaved(now)
        elif self._space.missing(error, now=now):
            self._say(self.machine.suspend(error.why, now=now))

    def _try_again(self, now: float) -> None:
        self._carry_on()
        self._settle_now()
        self._space.back(now=now)
        # Births and states that came meanwhile are retained: whoever subscribes anew is given them again.
        self.link.transport.subscribe(self.topics.of_coordinator())
        self._perform(self.machine.resume(now=now))
        self._settle(now)

    def _leave_unsaved(self, now: float) -> None:
        """A person wants to go, and nothing can be written: what is lost was told to nobody."""
        log.warning("stopped on a full disk: what was not saved yet comes again from the devices")
        self._say(self.machine.stop(now=now))
        self.link.transport.flush(timeout_s=_GOODBYE_S)
        self._running = False

    def _say(self, effects: list[Effect]) -> None:
        """Past everything that waits to be written."""
        for effect in effects:
            if isinstance(effect, Send | Resend):
                self._tell(effect)
            elif isinstance(effect, Record):
                self._do(effect)

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        if self._space.wanted:
            self._say(effects)
            return
        self._todo += effects
        self._carry_on()

    def _carry_on(self) -> None:
        while self._todo:
            self._do(self._todo[0])
            self._todo.popleft()

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send(message=Allocation()):
                self._held.append(effect)
            case Send() | Resend() | SendKeyframe():
                if self.run_dir.unsynced or self._held:
                    self._held.append(effect)
                else:
                    self._tell(effect)
            case Checkpoint():
                self._record_unsaved()
                self.run_dir.save(self.run_id, effect)
            case Journal(entries=entries):
                self._begin_to_settle()
                self.run_dir.log(entries)
            case Remember():
                self._begin_to_settle()
                self._unsaved.append(effect)
            case Record(event=event, fields=fields):
                self._on_record(event, {"elapsed_s": self.machine.progress.elapsed_s, **fields})
            case Quit(error=error, reason=reason):
                self._quit(error, reason)

    def _tell(self, effect: Send | Resend | SendKeyframe) -> None:
        if isinstance(effect, SendKeyframe):
            self.link.perform_keyframe(effect.model)
        else:
            self.link.perform(effect)

    def _begin_to_settle(self) -> None:
        if not self._unsaved and not self.run_dir.unsynced:
            self._settle_by = self._clock() + _SETTLE_WITHIN_S

    def _settle(self, now: float) -> None:
        """Write what is to be written, then send what waited for it."""
        unsettled = bool(self._unsaved) or self.run_dir.unsynced
        if self._space.wanted or (unsettled and len(self.inbox) and now < self._settle_by and self._running):
            return
        self._settle_now()

    def _settle_now(self) -> None:
        # Allocations before the decisions they came of: one without its entry is decided again, an entry without its
        # allocation would be a size that the strategy believes to have given.
        self._record_unsaved()
        self.run_dir.sync()
        # Receipts first: who waits for room to publish must not keep the broker waiting meanwhile.
        receipts, self._receipts = [*self._receipts, *self.inbox.dropped_receipts()], []
        if receipts:
            self.link.transport.acknowledge(receipts)
        held, self._held = self._held, []
        for effect in held:
            self._tell(effect)

    def _record_unsaved(self) -> None:
        if self._unsaved:
            self.run_dir.remember(self.run_id, self._unsaved)
            self._unsaved = []

    def _quit(self, error: HermesError | None, reason: str) -> None:
        self._settle_now()
        self._running = False
        self.finished = self.machine.finished
        log.info("end run=%s reason=%s", self.run_id, reason)
        self.link.flush(timeout_s=_FLUSH_S)
        if error is not None:
            raise error

    def give_up(self, error: BaseException) -> None:
        """What ends us must not cost what was learnt since the last checkpoint, nor let devices wait for answers."""
        if self._link is None:
            return
        # A bug may have left the machine half-way, and a disk that is full stays so.
        sound = isinstance(error, HermesError) and not isinstance(error, StorageError)
        ours = not isinstance(error, IdConflict)  # else the fleet is another's, and so is the last word
        with contextlib.suppress(HermesError):
            for effect in self.machine.stop(now=self._clock()):
                if isinstance(effect, Journal):
                    self.run_dir.log(effect.entries)
                elif isinstance(effect, Checkpoint) and sound:
                    self.run_dir.save(self.run_id, effect)
                elif isinstance(effect, Send) and ours:
                    self._link.perform(effect)
            self._link.flush(timeout_s=_GOODBYE_S)

    def conclude(self) -> dict[str, Any]:
        """Measure on the test rows, write the model, record the end; the run's summary."""
        machine = self.machine
        test = self.bench.trainer.score(machine.model, "test")
        summary = {
            "run": self.run_id,
            "fleet": self.fleet,
            "task": machine.manifest.task.name,
            "strategy": machine.manifest.strategy.name,
            "seed": machine.manifest.seed,
            "reason": machine.manifest.reason,
            "scored_on": self.config.score_on,
            **machine.summary(test),
            "run_dir": str(self.run_dir.path),
            "software": __version__,
        }
        about = {"run": self.run_id, "task": machine.manifest.task.name, "version": machine.version}
        while True:
            try:
                self.run_dir.end(
                    self.run_id,
                    reason=machine.manifest.reason,
                    summary=summary,
                    model=machine.model,
                    signature=self.bench.trainer.signature,
                    about=about,
                )
            except DiskFull as error:
                self._space.missing(error, now=self._clock())
                if self._stopped_before(self._space.deadline or 0.0):
                    raise
            else:
                self._space.back(now=self._clock())
                return summary

    def _stopped_before(self, deadline: float) -> bool:
        """Wait; whether a person lost patience meanwhile."""
        while (left_s := deadline - self._clock()) > 0:
            if isinstance(self.inbox.take(timeout_s=left_s), _Stop):
                return True
        return False


def _dropped(delivery: Delivery, error: ProtocolError) -> None:
    log.warning("dropped topic=%s reason=%s detail=%s", delivery.topic, error.reason, error)
