"""Runs the coordinator: a machine, a connection, a run directory.

Nothing is told that a crash could forget: what was decided is in the journal, and what devices and allocations are
recorded as is in the registry, before anything that follows is sent. Both cost a disk's time, so they are settled, and
what waits for them sent, when the inbox is empty, or after 50 ms: a burst of updates or births is one write, not one
each.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hermes_iot import __version__
from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import Coordinator, CoordinatorSettings
from hermes_iot.core.effects import Checkpoint, Effect, Journal, Quit, Record, Remember, Send, SendKeyframe
from hermes_iot.errors import HermesError, IdConflict, Incompatible, ProtocolError, StorageError
from hermes_iot.protocol import codec
from hermes_iot.protocol.messages import Allocation, CoordinatorStatus
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime import strategies
from hermes_iot.runtime.coordinator_link import CoordinatorLink
from hermes_iot.runtime.leadership import CONNECT_TIMEOUT_S, Leadership, look_for_leader, taken_over
from hermes_iot.runtime.link import check_refusal
from hermes_iot.runtime.loop import Inbox, pump
from hermes_iot.runtime.manifest import first_size, manifest_of, new_run_id
from hermes_iot.runtime.run_dir import RunDir
from hermes_iot.runtime.trainers import Bench
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Refused, Transport, Will

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
    """See the module. `connect` gives a transport for a client id and a will (none for a look around)."""

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
        self._unsaved: list[Remember] = []
        self._held: list[Send | SendKeyframe] = []
        self._settle_by = 0.0
        self._session = secrets.token_hex(8)
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
        keyframe_parts = look_for_leader(self.topics, self._connect, takeover=self._takeover)
        death = CoordinatorStatus(state="offline", session=self._session, run=self.run_id)
        will = Will(topic=self.topics.all("coordinator"), payload=codec.encode_json(death))
        transport = self._connect(self.client_id, will)
        self._link = CoordinatorLink(
            self.machine, self.topics, transport, keyframe_parts=keyframe_parts, on_dropped=_dropped
        )
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
            self._give_up(error)
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

    def next_deadline(self) -> float | None:
        """The earliest deadline of the machine, the wire and the leadership."""
        deadlines = (self.machine.next_deadline(), self.link.wire.next_deadline(), self._leadership.next_deadline())
        return min((one for one in deadlines if one is not None), default=None)

    def expire(self) -> None:
        """Whatever is due."""
        now = self._clock()
        self.link.wire.expire(now=now)
        if self._leadership.expire(now=now):
            self._perform(self.machine.connected(now=now))
        self._perform(self.machine.expire(now=now))
        self._settle(now)

    def handle(self, event: object) -> None:
        """One event from the inbox."""
        now = self._clock()
        match event:
            case Delivery() if self._leadership.concerns(event):
                if self._leadership.heard(event):
                    self._perform(self.machine.connected(now=now))
            case Delivery():
                self._perform(self.link.deliver(event, now=now))
            case Connected():
                self.link.connected(event)
                log.info("connected fleet=%s run=%s", self.fleet, self.run_id)
                if self._leadership.connected(self.link.transport, now=now):
                    self._perform(self.machine.connected(now=now))
            case Disconnected():
                self._disconnected(event)
            case Refused():
                check_refusal(event)
            case _Stop():
                self._perform(self.machine.stop(now=now))
        self._settle(now)

    def _disconnected(self, event: Disconnected) -> None:
        log.warning("disconnected reason=%s", event.reason)
        self.link.disconnected()
        self._leadership.disconnected()
        self.machine.disconnected()
        if event.taken_over:
            raise taken_over(self.fleet)

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=Allocation()):
                    self._held.append(effect)
                case Send() | SendKeyframe():
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

    def _tell(self, effect: Send | SendKeyframe) -> None:
        if isinstance(effect, Send):
            self.link.perform(effect)
        else:
            self.link.perform_keyframe(effect.model)

    def _begin_to_settle(self) -> None:
        if not self._unsaved and not self.run_dir.unsynced:
            self._settle_by = self._clock() + _SETTLE_WITHIN_S

    def _settle(self, now: float) -> None:
        """Write what is to be written, then send what waited for it."""
        unsettled = bool(self._unsaved) or self.run_dir.unsynced
        if unsettled and len(self.inbox) and now < self._settle_by and self._running:
            return
        # Allocations before the decisions they came of: one without its entry is decided again, an entry without its
        # allocation would be a size that the strategy believes to have given.
        self._record_unsaved()
        self.run_dir.sync()
        held, self._held = self._held, []
        for effect in held:
            self._tell(effect)

    def _record_unsaved(self) -> None:
        if self._unsaved:
            unsaved, self._unsaved = self._unsaved, []
            self.run_dir.remember(self.run_id, unsaved)

    def _quit(self, error: HermesError | None, reason: str) -> None:
        self._running = False
        self.finished = self.machine.finished
        log.info("end run=%s reason=%s", self.run_id, reason)
        self._settle(self._clock())
        self.link.transport.flush(timeout_s=_FLUSH_S)
        if error is not None:
            raise error

    def _give_up(self, error: BaseException) -> None:
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
            self._link.transport.flush(timeout_s=_GOODBYE_S)

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
        self.run_dir.end(
            self.run_id,
            reason=machine.manifest.reason,
            summary=summary,
            model=machine.model,
            signature=self.bench.trainer.signature,
            about=about,
        )
        return summary


def _dropped(delivery: Delivery, error: ProtocolError) -> None:
    log.warning("dropped topic=%s reason=%s detail=%s", delivery.topic, error.reason, error)
