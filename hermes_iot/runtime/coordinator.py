"""Runs the coordinator: a machine, a connection, a run directory."""

from __future__ import annotations

import logging
import platform
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hermes_iot import __version__
from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import Coordinator, CoordinatorSettings
from hermes_iot.core.effects import Checkpoint, Effect, Quit, Record, Remember, Send, SendKeyframe
from hermes_iot.domain import RunId, Sizing
from hermes_iot.errors import IdConflict, Incompatible, ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import CoordinatorStatus, DataInfo, ModelInfo, RunManifest
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import ROUTES
from hermes_iot.runtime import strategies
from hermes_iot.runtime.link import Link
from hermes_iot.runtime.loop import Inbox, pump
from hermes_iot.runtime.run_dir import RunDir
from hermes_iot.runtime.trainers import Bench
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Refused, Transport, Will

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0
PREFLIGHT_S = 5.0
SESSION_EXPIRY_S = 3600


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
        self._connect = connect
        self._takeover = takeover
        self._on_record = on_record
        self._clock = clock
        self._running = False
        self._keyframe_parts = 0
        self._session = secrets.token_hex(8)
        self.run_dir = RunDir(run_dir)
        try:
            self._open(config, settings or CoordinatorSettings())
        except BaseException:
            self.run_dir.close()
            raise

    def _open(self, config: RunConfig, settings: CoordinatorSettings) -> None:
        """Go on with the unfinished run in the directory, by its own settings, or begin a new one."""
        left = self.run_dir.unfinished(self.fleet)
        if left is not None:
            run, stored = left
            config = replace(stored, rules=config.rules)
        else:
            run = _new_run_id(self.bench.task.name)
        self.config = config
        strategy, info = strategies.resolve(config.strategy).build(config.constants)
        manifest = _manifest(run, config, self.bench, info)
        restored = self.run_dir.restored(run) if left is not None else None
        if restored is not None and restored.arrays["model"].size != manifest.model.parameters:
            raise Incompatible(
                f"run {run} in {self.run_dir.path} was of another model",
                why=f"{restored.arrays['model'].size} parameters there, {manifest.model.parameters} now",
                mend="Use the task as it was, or another --run-dir",
            )
        self.resumed_version = restored.version if restored is not None else None
        defaults = self.bench.defaults
        first = Sizing(
            samples=config.samples or defaults.samples or settings.first.samples,
            batch=config.batch or defaults.batch or settings.first.batch,
        )
        self.machine = Coordinator(
            manifest=manifest,
            status=CoordinatorStatus(
                state="online", session=self._session, host=platform.node()[:64], software=__version__
            ),
            strategy=strategy,
            initial=self.bench.trainer.initial(config.seed),
            score=lambda params: self.bench.trainer.score(params, "validation"),
            settings=replace(settings, rules=config.rules, first=first, lag_max=config.lag_max),
            shard_of=self.bench.shard_of,
            restored=restored,
            now=self._clock(),
        )
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.run_dir.begin(run, fleet=self.fleet, config=config, created_at=created_at)
        log.info("run=%s directory=%s resumed_at=%s", run, self.run_dir.path, self.resumed_version)

    # --- life -----------------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.machine.manifest.run

    def start(self) -> None:
        """Make sure nobody else leads the fleet, then connect and subscribe.

        Raises:
            BrokerError: the broker cannot be reached.
            IdConflict: another coordinator is online.
        """
        look_for_leader(self.topics, self._connect, takeover=self._takeover)
        death = CoordinatorStatus(state="offline", session=self._session, run=self.run_id)
        will = Will(topic=self.topics.all("coordinator"), payload=codec.encode_json(death))
        transport = self._connect(f"{self.fleet}-coordinator", will)
        self._link = Link(self.topics, transport)
        self._link.limit(chunk_bytes=self.machine.manifest.chunk_bytes)
        transport.subscribe(self.topics.of_coordinator())
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
        finally:
            self.close()

    def stop(self) -> None:
        """From a signal or another thread: leave; the run can be resumed."""
        self.inbox.post(_Stop())

    def close(self) -> None:
        """Disconnect and give the run directory back."""
        if hasattr(self, "_link"):
            self._link.transport.close()
        self.run_dir.close()

    # --- events ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the loop goes on."""
        return self._running

    def next_deadline(self) -> float | None:
        """The earliest of the machine's and the wire's deadlines."""
        deadlines = (self.machine.next_deadline(), self._link.wire.next_deadline())
        return min((one for one in deadlines if one is not None), default=None)

    def expire(self) -> None:
        """Whatever is due."""
        now = self._clock()
        self._link.wire.expire(now=now)
        self._perform(self.machine.expire(now=now))

    def handle(self, event: object) -> None:
        """One event from the inbox."""
        now = self._clock()
        match event:
            case Delivery():
                self._deliver(event, now)
            case Connected():
                self._link.limit(packet_bytes_max=event.packet_bytes_max)
                log.info("connected fleet=%s run=%s", self.fleet, self.run_id)
                self._perform(self.machine.connected(now=now))
            case Disconnected():
                log.warning("disconnected reason=%s", event.reason)
                self.machine.disconnected()
                if event.taken_over:
                    raise IdConflict(
                        f"another coordinator took over fleet {self.fleet!r}",
                        mend="Only one may lead; this one stops and its run can be resumed",
                    )
            case Refused():
                log.error("refused topic=%s reason=%s", event.topic, event.reason)
            case _Stop():
                self._perform(self.machine.stop(now=now))

    def _deliver(self, delivery: Delivery, now: float) -> None:
        address = self.topics.parse(delivery.topic)
        if address is None or not delivery.payload:
            return
        self.machine.carried(address.channel, up=len(delivery.payload))
        try:
            received = self._link.decode(delivery, now=now)
            if received is not None:
                self._perform(self.machine.received(received, now=now))
        except ProtocolError as error:
            log.warning("dropped topic=%s reason=%s detail=%s", delivery.topic, error.reason, error)
            self._perform(self.machine.malformed(address.device, address.channel, error.reason))

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message, device=device):
                    route = ROUTES[type(message)]
                    tensor = route.direction == "down" and route.channel in {"model", "data"}
                    sent = self._link.send(message, device=device)
                    self.machine.carried(route.channel, down=sent, tensor=tensor)
                case SendKeyframe(model=model):
                    tensors, head, self._keyframe_parts = self._link.send_keyframe(
                        model, parts_before=self._keyframe_parts
                    )
                    # What the coordinator hands over once; what devices fetch of it is in their own counters.
                    self.machine.carried("model_part", down=tensors)
                    self.machine.carried("model", down=head, tensor=False)
                case Checkpoint():
                    self.run_dir.save(self.run_id, effect)
                case Remember():
                    self.run_dir.remember(self.run_id, effect)
                case Record(event=event, fields=fields):
                    self._on_record(event, {"elapsed_s": self.machine.progress.elapsed_s, **fields})
                case Quit(error=error, reason=reason):
                    self._running = False
                    self.finished = self.machine.finished
                    log.info("end run=%s reason=%s", self.run_id, reason)
                    self._link.transport.flush(timeout_s=5.0)
                    if error is not None:
                        raise error

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


def look_for_leader(topics: Topics, connect: Callable[[str, Will | None], Transport], *, takeover: bool) -> None:
    """Make sure that there is a broker and that nobody leads the fleet (somebody may when we are to take over).

    Under a client id of its own: connecting under the coordinator's would push the other one out.

    Raises:
        BrokerError: the broker cannot be reached.
        IdConflict: another coordinator is online.
    """
    seen: list[bytes] = []
    fenced = threading.Event()
    me = f"look-{secrets.token_hex(8)}"
    fence, leader = topics.up(me, "rsp"), topics.all("coordinator")

    def look(event: object) -> None:
        if isinstance(event, Delivery) and event.topic == fence:
            fenced.set()
        elif isinstance(event, Delivery) and event.topic == leader and event.payload:
            seen.append(event.payload)

    transport = connect(me, None)
    try:
        # The broker answers in order: once our own word is back, the retained one before it has been delivered.
        transport.subscribe((leader, fence))
        transport.start(look, timeout_s=CONNECT_TIMEOUT_S)
        transport.publish(fence, b"{}")
        fenced.wait(PREFLIGHT_S)
    finally:
        transport.close()
    if takeover or not seen:
        return
    try:
        status = codec.decode_json(seen[-1], CoordinatorStatus, Limits())
    except ProtocolError as error:
        log.warning("dropped topic=%s reason=%s", leader, error.reason)
        return
    if status.state == "online":
        raise IdConflict(
            f"fleet {topics.fleet!r} is already led from host {status.host!r} (run {status.run!r})",
            mend="Stop that coordinator, use another --fleet, or take over with --takeover",
        )


def _manifest(run: str, config: RunConfig, bench: Bench, strategy: Any) -> RunManifest:
    signature = bench.trainer.signature
    sampling = config.sampling or ("kept" if config.data_mode == "local" else "fresh")
    return RunManifest(
        run=RunId(run),
        state="running",
        seed=config.seed,
        task=bench.task,
        strategy=strategy,
        model=ModelInfo(
            sha256=signature.sha256,
            parameters=signature.parameters,
            tensors=tuple((spec.name, spec.shape) for spec in signature.tensors),
        ),
        data=DataInfo(
            mode=config.data_mode,
            sampling=sampling,
            gate_split=config.gate_split or ("fresh" if sampling == "fresh" else "fixed"),
            rows=bench.rows,
            validation_fraction=config.validation_fraction,
            sha256=bench.data_sha256,
        ),
        epochs=config.epochs or bench.defaults.epochs or 5,
        learning_rate=config.learning_rate or bench.defaults.learning_rate or 0.1,
        codec=config.codec,
        chunk_bytes=config.chunk_bytes,
        telemetry=config.telemetry,
        software=__version__,
    )


def _new_run_id(task: str) -> str:
    word = "".join(one if one.isalnum() else "-" for one in Path(task).stem)[:30] or "run"
    return f"{word}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
