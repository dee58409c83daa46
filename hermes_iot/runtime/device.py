"""Runs one device: a machine, a connection, a worker that trains, and a directory that remembers.

All of it is performed here and nothing is decided here, with one exception that no machine can see: which of two
processes with the same client id is the intruder (`_taken_over`).
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
    Send,
    StoreMemory,
    StoreShard,
    Train,
)
from hermes_iot.domain import DeviceId, Trained, TrainJob
from hermes_iot.errors import IdConflict, ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.messages import DeviceStatus, RunManifest, StrategyInfo
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime.link import Link
from hermes_iot.runtime.loop import Inbox, pump
from hermes_iot.runtime.strategies import from_manifest
from hermes_iot.runtime.worker import Failed, ThreadWorker, Worker
from hermes_iot.storage.device_state import DeviceMemory, DeviceStateStore, ShardCache
from hermes_iot.training.base import Trainer
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Refused, Transport, Will

log = logging.getLogger(__name__)

WILL_DELAY_S = 15
CONNECT_TIMEOUT_S = 15.0
SHARD_CACHE_BYTES = 1024 * 1024 * 1024
#: A process connected for so long is the incumbent of its id; a younger one gives way.
INCUMBENT_AFTER_S = 10.0
RETAKE_AFTER_S = 2.0


class TrainerOf(Protocol):
    """Builds the trainer of a run: resolves the task, loads the data, checks both against the manifest."""

    def __call__(self, manifest: RunManifest, shards: Callable[[str], Any]) -> Trainer:
        """Raise HermesError when the run cannot be taken part in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """What the person at the board says.

    Attributes:
        slowdown: sleep after every iteration so that it takes so many times as long; emulates a slower board.
        strategy: path or module of a strategy of the person's own.
        rows_max: the most rows memory allows; 0 = not limited.
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
class _Prepared:
    run: str
    trainer: Trainer


@dataclass(frozen=True, slots=True)
class _Result:
    result: Trained
    seconds: float


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
        self._connect = connect
        self._trainer_of = trainer_of
        self._worker = worker_of(self.inbox)
        self._on_record = on_record
        self._clock = clock
        self._stopping = threading.Event()
        self._running = False
        self._trainer: Trainer | None = None
        self._keyframe_topics: tuple[str, ...] = ()
        self._in_service_s = 0.0
        self._connected_at: float | None = None
        self._retake_at: float | None = None
        self.reason = ""
        self._store = DeviceStateStore(config.state_dir)
        opened = self._store.open()
        if opened.warning:
            log.warning("state %s", opened.warning)
        self._instance = opened.memory.instance
        self._cache = ShardCache(config.state_dir / "shards", SHARD_CACHE_BYTES)
        self._cache_lock = threading.Lock()  # the loop stores shards, the worker reads them
        memory = opened.memory
        self.machine = Device(
            device=DeviceId(config.device),
            memory=StoreMemory(
                session=memory.session, seq=memory.seq, run=memory.run, allocation_version=memory.allocation_version
            ),
            birth=DeviceStatus(
                state="online",
                session=memory.session,
                instance=memory.instance,
                host=platform.node()[:64],
                software=__version__,
                slowdown=config.slowdown,
                rows=config.own_rows,
                memory_rows_max=config.rows_max,
            ),
            strategy_of=self._strategy_of,
            settings=config.settings,
        )

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and subscribe.

        Raises:
            BrokerError: the broker cannot be reached.
        """
        death = DeviceStatus(state="offline", session=self.machine.memory.session, reason="connection lost")
        topic = self.topics.up(self.config.device, "status")
        will = Will(topic=topic, payload=codec.encode_json(death), delay_s=WILL_DELAY_S)
        transport = self._connect(self.config.device, will)
        self._link = Link(self.topics, transport)
        transport.subscribe(self.topics.of_device(self.config.device))
        transport.start(self.inbox.deliver, timeout_s=CONNECT_TIMEOUT_S)
        self._running = True

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
        finally:
            self.close()
        return self.reason

    def stop(self, reason: str = "stopped") -> None:
        """From a signal or another thread: leave in good order."""
        self._stopping.set()
        self.inbox.post(_Stop(reason))

    def close(self) -> None:
        """Wait for the worker, disconnect, give the state directory back."""
        self._stopping.set()
        self._worker.close()
        if hasattr(self, "_link"):
            self._link.transport.close()
        self._store.close()

    # --- events ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the loop goes on."""
        return self._running

    def next_deadline(self) -> float | None:
        """The earliest of the machine's, the wire's and the take-over's deadlines."""
        deadlines = (self.machine.next_deadline(), self._link.wire.next_deadline(), self._retake_at)
        return min((one for one in deadlines if one is not None), default=None)

    def expire(self) -> None:
        """Whatever is due."""
        now = self._clock()
        if self._retake_at is not None and now >= self._retake_at:
            self._retake_at = None
            self._link.transport.reconnect()
        self._link.wire.expire(now=now)
        self._perform(self.machine.expire(now=now))

    def handle(self, event: object) -> None:
        """One event from the inbox."""
        now = self._clock()
        match event:
            case Delivery():
                self._deliver(event, now)
            case Connected():
                self._connected_at = now
                self._link.limit(packet_bytes_max=event.packet_bytes_max)
                log.info("connected device=%s session=%d", self.config.device, self.machine.memory.session)
                self._perform(self.machine.connected(now=now))
            case Disconnected():
                self._disconnected(event, now)
            case Refused():
                log.error("refused topic=%s reason=%s", event.topic, event.reason)
            case _Prepared():
                self._trainer = event.trainer
                sha256 = event.trainer.signature.sha256
                self._perform(self.machine.prepared(event.run, sha256, now=now))
            case _Result():
                self._perform(self.machine.trained(event.result, event.seconds, now=now))
            case Failed():
                self._failed(event.error, now)
            case _Stop():
                self._perform(self.machine.stop(event.reason, now=now))

    def _deliver(self, delivery: Delivery, now: float) -> None:
        self.machine.carried(down=len(delivery.payload))
        try:
            received = self._link.decode(delivery, now=now)
            if received is not None:
                self._perform(self.machine.received(received, now=now))
        except ProtocolError as error:
            self.machine.refused()
            log.warning("dropped topic=%s reason=%s detail=%s", delivery.topic, error.reason, error)

    def _disconnected(self, event: Disconnected, now: float) -> None:
        log.warning("disconnected device=%s reason=%s", self.config.device, event.reason)
        if self._connected_at is not None:
            self._in_service_s += now - self._connected_at
            self._connected_at = None
        self.machine.disconnected()
        if event.taken_over:
            self._taken_over(now)

    def _taken_over(self, now: float) -> None:
        """Another process connected under our id. The older one is in the right; the younger one leaves."""
        if self._in_service_s < INCUMBENT_AFTER_S:
            raise IdConflict(
                f"device id {self.config.device!r} is in use in fleet {self.config.fleet!r}",
                why="another process connected under it",
                mend="Give this device another --id, or stop the other one",
            )
        log.warning("taken over device=%s: taking the id back", self.config.device)
        self._retake_at = now + RETAKE_AFTER_S

    def _failed(self, error: BaseException, now: float) -> None:
        if not isinstance(error, ProtocolError):
            raise error
        log.error("training impossible reason=%s detail=%s", error.reason, error)
        self._perform(self.machine.untrainable(str(error), now=now))

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message, device=device):
                    self.machine.carried(up=self._link.send(message, device=device))
                case Train(job=job):
                    self._worker.submit(lambda job=job: self._train(job))  # type: ignore[misc]
                case Prepare(manifest=manifest):
                    self._link.limit(chunk_bytes=manifest.chunk_bytes)
                    log.info("run=%s task=%s strategy=%s", manifest.run, manifest.task.name, manifest.strategy.name)
                    self._worker.submit(lambda manifest=manifest: self._prepare(manifest))  # type: ignore[misc]
                case FetchKeyframe(parts=parts):
                    wanted = tuple(self.topics.model_part(part) for part in range(parts))
                    self._link.transport.subscribe(tuple(set(wanted) - set(self._keyframe_topics)))
                    self._keyframe_topics = wanted
                case ForgetKeyframe():
                    self._link.transport.unsubscribe(self._keyframe_topics)
                    self._keyframe_topics = ()
                case FindShard(sha256=sha256):
                    found = self._shard(sha256) is not None
                    self._perform(self.machine.shard_found(sha256, found=found, now=self._clock()))
                case StoreShard(sha256=sha256, body=body):
                    with self._cache_lock:
                        self._cache.put(sha256, body)
                    self._perform(self.machine.shard_found(sha256, found=True, now=self._clock()))
                case StoreMemory():
                    self._remember(effect)
                case Rebirth():
                    log.warning("session raised to %d: this device was known before", self.machine.memory.session)
                    self._link.transport.close()
                    self.start()
                case Record(event=event, fields=fields):
                    self._on_record(event, fields)
                case Quit(error=error, reason=reason):
                    self.reason = reason
                    self._running = False
                    self._link.transport.flush(timeout_s=5.0)
                    if error is not None:
                        raise error

    def _train(self, job: TrainJob) -> _Result:
        assert self._trainer is not None  # noqa: S101 - the machine trains only after it was prepared
        begun = time.perf_counter()
        result = self._trainer.train(job)
        seconds = time.perf_counter() - begun
        if self.config.slowdown > 1:
            self._stopping.wait((self.config.slowdown - 1) * seconds)
            seconds *= self.config.slowdown
        return _Result(result, seconds)

    def _prepare(self, manifest: RunManifest) -> _Prepared:
        return _Prepared(manifest.run, self._trainer_of(manifest, self._arrays))

    def _arrays(self, sha256: str) -> Any:
        from hermes_iot.training.shards import decode_shard  # noqa: PLC0415 - numpy, on the worker's thread

        body = self._shard(sha256)
        if body is None:
            raise ProtocolError("shard", f"shard {sha256[:12]} is not in the cache any more")
        return decode_shard(body)

    def _shard(self, sha256: str) -> bytes | None:
        with self._cache_lock:
            return self._cache.get(sha256)

    def _remember(self, memory: StoreMemory) -> None:
        self._store.save(
            DeviceMemory(
                session=memory.session,
                run=memory.run,
                seq=memory.seq,
                allocation_version=memory.allocation_version,
                instance=self._instance,
            )
        )

    def _strategy_of(self, info: StrategyInfo) -> Any:
        return from_manifest(info, self.config.strategy)
