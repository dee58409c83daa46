"""The receiving ends that `benchmarks.ingest` compares, each in a process of its own: bare paho, and a coordinator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from benchmarks import flood
from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Codec, ModelSignature, Params, Score, Split, TensorSpec, Trained, TrainJob
from hermes_iot.protocol.messages import TaskInfo
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime import malloc
from hermes_iot.runtime.coordinator import SESSION_EXPIRY_S, CoordinatorRunner
from hermes_iot.runtime.loop import pump
from hermes_iot.runtime.trainers import Bench
from hermes_iot.training.tasks import TaskDefaults
from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.base import Delivery, OnEvent, TransportEvent, Will
from hermes_iot.transport.mqtt import MqttTransport

#: Longer than any measurement: what the coordinator does by the clock it does not do here.
NEVER_S = 1e6

Kind = Literal["shipped", "tuned", "ingest", "unjournalled", "answering"]
BARE: Final = frozenset({"shipped", "tuned"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        kind: "shipped": bare paho as it comes. "tuned": after `malloc.keep_freed_memory`. "ingest": a coordinator whose
            answers and acks go nowhere. "unjournalled": the same, with nothing written. "answering": it answers.
        parameters, codec, updates, chunk_bytes: see `flood.Order`; of a bare sink, what its packets hold.
    """

    kind: Kind
    parameters: int
    codec: Codec
    updates: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """From the first packet of the first update to the end of the last. cpu_s: of the receiver, all threads."""

    updates: int
    wall_s: float
    cpu_s: float
    rss_mib: float


class Weightless:
    """A trainer whose scores cost nothing: what a task's rows cost is no part of the pipe."""

    train_rows = 1_000_000

    def __init__(self, parameters: int) -> None:
        self.signature = ModelSignature(tensors=(TensorSpec(name="all", shape=(parameters,)),))

    def initial(self, seed: int) -> Params:
        """Shape (P,)."""
        return np.random.default_rng(seed).standard_normal(self.signature.parameters, dtype=np.float32)

    def train(self, job: TrainJob) -> Trained:
        """A coordinator does not."""
        raise NotImplementedError

    def score(self, params: Params, split: Split) -> Score:  # noqa: ARG002 - Trainer's signature
        """Always the same."""
        return Score(loss=1.0, accuracy=None)


class Tap:
    """The coordinator's real transport; tells when the first update comes in, and lets nothing out unless `speaks`."""

    def __init__(self, transport: MqttTransport, *, speaks: bool) -> None:
        self._transport = transport
        self._speaks = speaks
        self.first: tuple[float, float] | None = None
        self.publish = transport.publish if speaks else self._swallow
        self.subscribe, self.unsubscribe = transport.subscribe, transport.unsubscribe
        self.reconnect, self.flush, self.close = transport.reconnect, transport.flush, transport.close
        self.room, self.acknowledge = transport.room, transport.acknowledge

    def start(self, on_event: OnEvent, *, timeout_s: float) -> None:
        """As `Transport`."""

        def noted(event: TransportEvent) -> None:
            if self.first is None and isinstance(event, Delivery) and event.topic.endswith("/update"):
                self.first = time.perf_counter(), time.process_time()
            on_event(event)

        self._transport.start(noted, timeout_s=timeout_s)

    def _swallow(self, topic: str, payload: bytes, **options: Any) -> bool:
        silenced = "/down/" in topic and not topic.endswith("/cmd")  # a coordinator's words to itself come back
        return True if silenced else self._transport.publish(topic, payload, **options)


def sink(case: Case, port: int, fleet: str, parent: Connection) -> None:
    """Bare paho: subscribe, count."""
    if case.kind == "tuned":
        malloc.keep_freed_memory()
    ready, done = threading.Event(), threading.Event()
    packets = parent.recv()
    first: list[tuple[float, float]] = []
    seen = 0

    def on_message(_client: Client, _: object, _message: object) -> None:
        nonlocal seen
        if not seen:
            first.append((time.perf_counter(), time.process_time()))
        seen += 1
        if seen == packets:
            parent.send(since(first[0], case))
            done.set()

    client = Client(CallbackAPIVersion.VERSION2, client_id=f"{fleet}-sink", protocol=MQTTProtocolVersion.MQTTv5)
    client.on_message = on_message
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", port, keepalive=600)
    client.subscribe(Topics(fleet).up("+", "update"), qos=1)
    threading.Thread(target=client.loop_forever, daemon=True).start()
    ready.wait()
    parent.send(None)
    done.wait()
    client.disconnect()


def coordinator(case: Case, port: int, fleet: str, directory: Path, parent: Connection) -> None:
    """A run of its own: what a coordinator does with updates, with its journal on the disk of `directory`."""
    if case.codec == "fp16":  # a coordinator has torch loaded; nothing else of it matters here
        import torch  # noqa: PLC0415 - seconds of import, for those rows only

        from hermes_iot.training import half_casts  # noqa: PLC0415 - the same

        torch.set_num_threads(1)
        half_casts.use_torch()
    taps: list[Tap] = []
    address = BrokerAddress.parse(f"mqtt://127.0.0.1:{port}")

    def connect(client_id: str, will: Will | None) -> Tap:
        theirs = MqttTransport(
            address,
            client_id=client_id,
            will=will,
            session_expiry_s=SESSION_EXPIRY_S if will is not None else 0,
            manual_ack=will is not None,
        )
        taps.append(Tap(theirs, speaks=case.kind == "answering"))
        return taps[-1]

    runner = led(case, fleet, directory, connect)
    if case.kind == "unjournalled":
        runner.run_dir.log = lambda _entries: None  # type: ignore[method-assign]
    machine = runner.machine
    try:
        runner.start()
        parent.send((machine.manifest.run, machine.manifest.model.sha256))
        until(runner, lambda: len(machine.members) >= flood.DEVICES)
        parent.send(None)
        until(runner, lambda: machine.tally.received >= case.updates and not runner.run_dir.unsynced)
        first = taps[-1].first
        if first is None or machine.tally.applied != case.updates:
            raise RuntimeError(f"of {case.updates} updates {machine.tally}")
        parent.send(since(first, case))
    finally:
        runner.close()


def led(
    case: Case,
    fleet: str,
    directory: Path,
    connect: Callable[[str, Will | None], Any],
    *,
    checkpoint_interval_s: float = NEVER_S,
) -> CoordinatorRunner:
    """A coordinator that merges like hermes-plus and does nothing by the clock, but what is said here."""
    trainer = Weightless(case.parameters)
    bench = Bench(
        trainer=trainer,
        task=TaskInfo(name="weightless", source_sha256="0" * 64),
        defaults=TaskDefaults(samples=256, batch=16, epochs=1, learning_rate=0.1),
        data_sha256="0" * 64,
        rows=trainer.train_rows,
        shard_of=None,
    )
    strategy = "hermes-plus" if case.kind == "answering" else str(Path(__file__).with_name("unanswered.py"))
    config = RunConfig(
        task="weightless",
        strategy=strategy,
        constants={"lag_per_device": 2**31},
        codec=case.codec,
        codec_down="deadzone",
        chunk_bytes=case.chunk_bytes,
        rules=StopRules(),
    )
    settings = CoordinatorSettings(
        keyframe_interval_s=NEVER_S,
        status_interval_s=NEVER_S,
        resize_interval_s=NEVER_S,
        checkpoint_interval_s=checkpoint_interval_s,
        measure_patience_s=NEVER_S,
        announce_s_per_device=0.0,
    )
    return CoordinatorRunner(config, fleet=fleet, run_dir=directory, bench=bench, connect=connect, settings=settings)


def until(runner: CoordinatorRunner, done: Callable[[], bool]) -> None:
    """Run the coordinator's loop until something has come about."""
    pump(
        runner.inbox,
        handle=runner.handle,
        deadline=runner.next_deadline,
        expire=runner.expire,
        running=lambda: not done(),
    )


def since(first: tuple[float, float], case: Case) -> Measured:
    """What passed since then."""
    wall_s, cpu_s = time.perf_counter() - first[0], time.process_time() - first[1]
    return Measured(updates=case.updates, wall_s=wall_s, cpu_s=cpu_s, rss_mib=rss_mib())


def rss_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
