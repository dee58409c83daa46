"""Runs one device: a machine, a connection, a worker that trains, and a directory that remembers.

All of it is performed here and nothing is decided here. A full disk stops no training: what would be written down is
kept in memory, the newest only, and written when there is room. Ids stay unique all the same: a session is on disk
before the first of it is used, so whatever is forgotten with the process is never numbered again.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hermes_iot import __version__
from hermes_iot.core.device import Device, DeviceSettings
from hermes_iot.core.effects import (
    Effect,
    FetchKeyframe,
    FindShard,
    ForgetKeyframe,
    Prepare,
    Quit,
    Rebirth,
    Record,
    Resend,
    Send,
    StoreMemory,
    StoreShard,
    Train,
)
from hermes_iot.domain import DeviceId
from hermes_iot.errors import (
    HermesError,
    IdConflict,
    Incompatible,
    OtherVersion,
    ProtocolError,
    StorageError,
    UsageError,
)
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import VERSION, DeviceStatus, RunManifest, Shard, StrategyInfo, Update
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime.claim import Claim
from hermes_iot.runtime.link import Link, check_refusal
from hermes_iot.runtime.loop import Inbox, pump
from hermes_iot.runtime.space import Space
from hermes_iot.runtime.strategies import from_manifest
from hermes_iot.runtime.worker import Failed, ThreadWorker, Worker
from hermes_iot.runtime.workshop import Prepared, Result, TrainerOf, Workshop
from hermes_iot.storage.atomic import DiskFull
from hermes_iot.storage.device_state import UPDATE_BYTES_MAX, DeviceMemory, DeviceStateStore
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Refused, Room, Transport, Will

log = logging.getLogger(__name__)

WILL_DELAY_S: Final = 15
CONNECT_TIMEOUT_S: Final = 15.0
_FLUSH_S: Final = 3.0
_GOODBYE_S: Final = 1.0
_STORED: Final = Limits(message_bytes_max=UPDATE_BYTES_MAX, inflated_bytes_max=UPDATE_BYTES_MAX)
_HOST_CHARACTERS_MAX: Final = 64
_REASON_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """What the person at the board says.

    Attributes:
        slowdown: idle after every iteration so that it takes so many times as long; emulates a slower board.
        strategy: path or module of a strategy of the person's own.
        rows_max: the most rows memory allows; 0 = not limited.
        own_rows: rows this device holds itself, in local mode; 0 = not said.
    """

    fleet: str
    device: str
    state_dir: Path
    prefix: str = "hermes"
    slowdown: float = 1.0
    strategy: str | None = None
    rows_max: int = 0
    own_rows: int = 0
    settings: DeviceSettings = field(default_factory=DeviceSettings)


@dataclass(frozen=True, slots=True)
class _Stop:
    reason: str


class DeviceRunner:
    """See the module. `connect` gives a new transport for a will: a changed session needs a new connection."""

    def __init__(
        self,
        config: DeviceConfig,
        *,
        connect: Callable[[str, Will], Transport],
        trainer_of: TrainerOf,
        worker_of: Callable[[Inbox], Worker] = ThreadWorker,
        on_record: Callable[[str, Mapping[str, Any]], None] = lambda _event, _fields: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.topics = Topics(config.fleet, prefix=config.prefix)
        self.inbox = Inbox()
        self.reason = ""
        self._own_status = self.topics.up(config.device, "status")
        self._later_run = 0  # the protocol version of a run that is not for us
        self._connect = connect
        self._on_record = on_record
        self._clock = clock
        self._running = False
        self._uploading = False
        self._link: Link | None = None
        self._part_in: RunManifest | None = None
        self._keyframe_topics: tuple[str, ...] = ()
        self._space = Space("training goes on, what a restart would need is kept in memory")
        self._unsaved: StoreMemory | None = None
        self._written: DeviceMemory | None = None
        self._written_update = (0, 0)
        self._store = DeviceStateStore(config.state_dir)
        opened = self._store.open()
        worker = worker_of(self.inbox)
        try:
            self._workshop = Workshop(
                worker,
                trainer_of=trainer_of,
                shards_dir=config.state_dir / "shards",
                slowdown=config.slowdown,
                clock=clock,
            )
        except BaseException:
            worker.close()
            self._store.close()
            raise
        if opened.warning:
            log.warning("state %s", opened.warning)
        memory = self._written = opened.memory
        update = _decoded(opened.update) if opened.update is not None else None
        if update is not None:
            self._written_update = (update.session, update.seq)
        self._instance = memory.instance
        host = platform.node()[:_HOST_CHARACTERS_MAX]
        self._claim = Claim(config.device, config.fleet, instance=memory.instance, host=host)
        self.machine = Device(
            device=DeviceId(config.device),
            memory=StoreMemory(
                session=memory.session,
                seq=memory.seq,
                run=memory.run,
                allocation_version=memory.allocation_version,
                update=update,
            ),
            birth=DeviceStatus(
                state="online",
                session=memory.session,
                instance=memory.instance,
                host=host,
                software=__version__,
                slowdown=config.slowdown,
                rows=config.own_rows,
                memory_rows_max=config.rows_max,
            ),
            strategy_of=self._strategy_of,
            settings=config.settings,
        )

    # --- life -----------------------------------------------------------------------------------------------------

    @property
    def link(self) -> Link:
        """The connection; there is none before `start`."""
        if self._link is None:
            raise RuntimeError("the device was not started")
        return self._link

    def start(self) -> None:
        """Connect and subscribe.

        Raises:
            BrokerError: the broker cannot be reached.
        """
        self._dial()
        self._running = True

    def _dial(self) -> None:
        death = DeviceStatus(state="offline", session=self.machine.memory.session, reason="connection lost")
        will = Will(topic=self._own_status, payload=codec.encode_json(death), delay_s=WILL_DELAY_S)
        transport = self._connect(self.config.device, will)
        self._link = Link(self.topics, transport)
        if self._part_in is not None:
            self._link.take_part(self._part_in)
        self._keyframe_topics = ()
        transport.subscribe((*self.topics.of_device(self.config.device), self._own_status))
        transport.start(self.inbox.deliver, timeout_s=CONNECT_TIMEOUT_S)

    def run(self) -> str:
        """Connect, take part until told to stop or the run ends, disconnect. The reason of the end.

        Raises:
            HermesError: what ended it, where it was not a person.
        """
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
        except BaseException as error:
            self.give_up(error)
            raise
        finally:
            self.close()
        return self.reason

    def stop(self, reason: str = "stopped") -> None:
        """From a signal or another thread: leave in good order. Only posts: a handler must not wait for a lock."""
        self.inbox.post(_Stop(reason))

    def close(self) -> None:
        """Wait for the worker, disconnect, give the state directory back."""
        self._running = False
        self._workshop.close()
        if self._link is not None:
            self._link.transport.close()
        if self._unsaved is not None:
            with contextlib.suppress(StorageError):
                self._write(self._unsaved)
        self._store.close()

    # --- events ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the loop goes on."""
        return self._running

    @property
    def bounded(self) -> dict[str, tuple[int, int]]:
        """What the machine and the connection keep, by name: how much, and how much at most (reliability.md, I8)."""
        return self.machine.bounded | (self._link.bounded if self._link is not None else {})

    def next_deadline(self) -> float | None:
        """The earliest of the machine's, the wire's, the claim's and the disk's deadlines."""
        deadlines = (
            self.machine.next_deadline(),
            self.link.next_deadline(),
            self._claim.retake_at,
            self._space.deadline,
        )
        return min((one for one in deadlines if one is not None), default=None)

    def expire(self) -> None:
        """Whatever is due."""
        now = self._clock()
        if self._claim.retake_at is not None and now >= self._claim.retake_at:
            self._claim.retake_at = None
            self.link.transport.reconnect()
        if self._space.due(now=now):
            self._save(now)
        self.link.expire(now=now)
        self._perform(self.machine.stalled(self.link.gaps(now=now)))
        self._perform(self.machine.expire(now=now))
        self._note_upload(now)

    def _note_upload(self, now: float) -> None:
        """Nothing is repeated while it is still on its way to the broker."""
        if self._uploading != self.link.flowing:
            self._uploading = not self._uploading
            self.machine.uploading(active=self._uploading, now=now)

    def handle(self, event: object) -> None:
        """One event from the inbox."""
        now = self._clock()
        match event:
            case Delivery():
                self._deliver(event, now)
            case Connected():
                self._claim.connected(now=now)
                self.link.connected(event)
                self.link.wire.hasten(now=now)
                log.info("connected device=%s session=%d", self.config.device, self.machine.memory.session)
                self._perform(self.machine.connected(now=now, arriving=self.link.wire.arriving()))
            case Disconnected():
                log.warning("disconnected device=%s reason=%s", self.config.device, event.reason)
                self.link.disconnected()
                self.machine.disconnected()
                self._claim.disconnected(taken_over=event.taken_over, now=now)
            case Room():
                self.machine.carried(up=self.link.feed())
            case Refused():
                self._refused(event)
            case Prepared():
                self._workshop.adopt(event)
                sha256 = event.trainer.signature.sha256
                self._perform(self.machine.prepared(event.run, sha256, now=now))
            case Result():
                self._perform(self.machine.trained(event.result, event.seconds, now=now))
            case Failed():
                self._failed(event.error, now)
            case _Stop():
                self._workshop.leave()
                self._perform(self.machine.stop(event.reason[:_REASON_CHARACTERS_MAX], now=now))
        self._note_upload(now)

    def _deliver(self, delivery: Delivery, now: float) -> None:
        self.machine.carried(down=len(delivery.payload))
        effects: list[Effect] = []
        self.link.wire.expect(Shard, body_bytes_max=self.machine.shard_bytes_max)
        try:
            received = self.link.decode(delivery, now=now)
            if received is not None and isinstance(received.message, DeviceStatus):
                self._claim.heard(received.message, session=self.machine.memory.session, now=now)
            elif received is not None:
                effects = self.machine.received(received, now=now)
            elif (until := self.link.wire.awaited_until) is not None:
                self.machine.arriving(delivery.topic.rpartition("/")[2], until=until)
        except ProtocolError as error:
            self._dropped(delivery.topic, error)
            self._check_version(delivery, error)
        self._perform(effects)

    def _dropped(self, where: str, error: ProtocolError) -> None:
        self.machine.refused()
        log.warning("dropped topic=%s reason=%s detail=%s", where, error.reason, error)

    def _check_version(self, delivery: Delivery, error: ProtocolError) -> None:
        """A run of a later protocol: nothing that is said in it will ever be understood here. An older one may give way.

        What is retained may be left of a run that is over, so it takes a coordinator's word beside it, said now.

        Raises:
            Incompatible: it is.
        """
        if not isinstance(error, OtherVersion) or (version := error.version or 0) <= VERSION:
            return
        if delivery.topic == self.topics.all("run"):
            self._later_run = version
        elif delivery.topic == self.topics.all("coordinator") and not delivery.retain and self._later_run:
            raise Incompatible(
                f"fleet {self.config.fleet!r} is led in protocol version {version}",
                why=f"hermes-iot {__version__} on this board speaks version {VERSION}",
                mend="Install the coordinator's hermes-iot here",
            )

    def _refused(self, event: Refused) -> None:
        if event.topic == self._own_status:  # we also write there, and a refusal does not say which of the two it was
            log.warning("refused topic=%s reason=%s", event.topic, event.reason)
        else:
            check_refusal(event)

    def _failed(self, error: BaseException, now: float) -> None:
        """Training, or getting ready for it, raised."""
        if isinstance(error, ProtocolError):
            log.error("training impossible reason=%s detail=%s", error.reason, error)
            self._perform(self.machine.untrainable(str(error), now=now))
            return
        if isinstance(error, (HermesError, KeyboardInterrupt)):
            raise error
        task = self.machine.manifest.task.name if self.machine.manifest is not None else ""
        log.debug("training failed", exc_info=error)
        raise UsageError(
            f"task {task!r} failed while training",
            why=f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS_MAX],
            mend="--verbose shows where",
        ) from error

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message, device=device, reminder=reminder):
                    self.machine.carried(up=self.link.send(message, device=device, reminder=reminder))
                case Resend():
                    self.machine.carried(up=self.link.resend(effect))
                case Train(job=job):
                    self._workshop.train(job)
                case Prepare(manifest=manifest):
                    self._part_in = manifest
                    self.link.take_part(manifest)
                    log.info("run=%s task=%s strategy=%s", manifest.run, manifest.task.name, manifest.strategy.name)
                    self._workshop.prepare(manifest)
                case FetchKeyframe(parts=parts):
                    self._listen_for_keyframe(parts)
                case ForgetKeyframe():
                    self._listen_for_keyframe(0)
                case FindShard(sha256=sha256):
                    found = self._workshop.has(sha256)
                    self._perform(self.machine.shard_found(sha256, found=found, now=self._clock()))
                case StoreShard():
                    self._store_shard(effect)
                case StoreMemory():
                    self._remember(effect)
                case Rebirth():
                    self._be_reborn()
                case Record(event=event, fields=fields):
                    self._on_record(event, fields)
                case Quit(error=error, reason=reason):
                    self.reason = reason
                    self._running = False
                    self.link.flush(timeout_s=_FLUSH_S)
                    if error is not None:
                        raise error

    def _listen_for_keyframe(self, parts: int) -> None:
        wanted = tuple(self.topics.model_part(part) for part in range(parts))
        before, self._keyframe_topics = self._keyframe_topics, wanted
        if surplus := tuple(topic for topic in before if topic not in set(wanted)):
            self.link.transport.unsubscribe(surplus)
        if new := tuple(topic for topic in wanted if topic not in set(before)):
            self.link.transport.subscribe(new)

    def _store_shard(self, effect: StoreShard) -> None:
        try:
            self._workshop.put(effect.sha256, effect.body)
        except ProtocolError as error:
            self._dropped(self.topics.down(self.config.device, "data"), error)
            return
        except DiskFull as error:  # it is asked for again, ever more rarely
            log.warning("shard not kept: %s", error)
            return
        self._perform(self.machine.shard_found(effect.sha256, found=True, now=self._clock()))

    def _be_reborn(self) -> None:
        """The will names the session, and a will can only be changed by connecting anew."""
        log.warning("session raised to %d: this device was known before", self.machine.memory.session)
        self._claim.reborn(now=self._clock())
        self.link.transport.close()
        self.link.disconnected()
        self._dial()

    def give_up(self, error: BaseException) -> None:
        """What ends us must not leave a device behind that seems online: others would wait for its word."""
        if self._link is None or isinstance(error, IdConflict):
            return  # never connected, or the id is another's
        reason = error.what if isinstance(error, HermesError) else type(error).__name__
        with contextlib.suppress(HermesError):
            for effect in self.machine.stop(reason[:_REASON_CHARACTERS_MAX], now=self._clock()):
                if isinstance(effect, Send):
                    self._link.send(effect.message, device=effect.device)
            self._link.flush(timeout_s=_GOODBYE_S)

    def _remember(self, memory: StoreMemory) -> None:
        self._unsaved = memory
        now = self._clock()
        if not self._space.wanted or self._space.due(now=now):
            self._save(now)

    def _save(self, now: float) -> None:
        if self._unsaved is None:
            return
        try:
            self._write(self._unsaved)
        except DiskFull as error:
            self._space.missing(error, now=now)
        else:
            self._unsaved = None
            self._space.back(now=now)

    def _write(self, memory: StoreMemory) -> None:
        """One file for a push, the other for anything else: the update says what number it is."""
        update, seq = memory.update, memory.seq
        if update is not None and (update.session, update.seq) != self._written_update:
            self._store.save_update(update.session, update.seq, codec.encode_tensors(update))
            self._written_update = (update.session, update.seq)
        if self._written is not None and (memory.session, seq) == self._written_update:
            seq = self._written.seq
        wanted = DeviceMemory(
            session=memory.session,
            run=memory.run,
            seq=seq,
            allocation_version=memory.allocation_version,
            instance=self._instance,
        )
        if wanted != self._written:
            self._store.save(wanted)
            self._written = wanted

    def _strategy_of(self, info: StrategyInfo) -> Any:
        return from_manifest(info, self.config.strategy)


def _decoded(stored: bytes) -> Update | None:
    """An update that an earlier life wrote down; None where another version did, in another way."""
    try:
        return codec.decode_tensors(stored, Update, _STORED)
    except ProtocolError as error:
        log.warning("the update of an earlier life cannot be read and is lost: %s", error)
        return None
