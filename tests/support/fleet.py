"""Fleets for tests: runners with the toy trainer, on any broker, in threads or in lockstep.

In lockstep the script alone gives the order of everything: the device whose turn it is runs exactly one iteration, and
everything it caused has come to rest on both sides before the next one moves. Time is virtual and only moves while
somebody trains. So two runs can be compared bit for bit, whatever broker they went over.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Command, Response, TaskInfo
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime.coordinator import SESSION_EXPIRY_S, CoordinatorRunner
from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
from hermes_iot.runtime.trainers import Bench
from hermes_iot.training.tasks import TaskDefaults
from hermes_iot.training.toy import ToyTrainer
from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.backoff import Backoff
from hermes_iot.transport.base import Connected, Delivery, Transport, Will
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from hermes_iot.transport.mqtt import MqttTransport

Connect = Callable[[str, Will | None], Transport]

TOY = TaskInfo(name="toy", source_sha256="0" * 64)
PATIENCE_S = 10.0
QUICK = Backoff(base_s=0.05, cap_s=0.2)
_NUMBERS = itertools.count(1)


def in_memory(broker: MemoryBroker | None = None) -> Connect:
    broker = broker or MemoryBroker(clock=time.monotonic)
    return lambda client_id, will: MemoryTransport(broker, client_id=client_id, will=will)


def over_mqtt(url: str, **options: object) -> Connect:
    """Connections as the commands make them: who leads has a session that outlasts it, and says himself what is safe."""
    address = BrokerAddress.parse(url)
    options.setdefault("backoff", QUICK)

    def connect(client_id: str, will: Will | None) -> Transport:
        leads = will is not None and client_id.endswith("coordinator")
        more = {"session_expiry_s": SESSION_EXPIRY_S, "manual_ack": True} if leads else {}
        return MqttTransport(address, client_id=client_id, will=will, **(more | options))

    return connect


def toy_bench(config: RunConfig, **toy: object) -> Bench:
    trainer = ToyTrainer(seed=config.seed, **toy)
    return Bench(
        trainer=trainer,
        task=TOY,
        defaults=TaskDefaults(samples=120, batch=16, epochs=2, learning_rate=0.1),
        data_sha256="0" * 64,
        rows=trainer.train_rows,
        shard_of=None,
    )


def toy_config(**changes: object) -> RunConfig:
    return replace(RunConfig(task="toy", strategy="hermes", seed=3, rules=StopRules(max_pushes=12)), **changes)


def toy_coordinator(
    connect: Connect,
    run_dir: Path,
    *,
    fleet: str = "lab",
    config: RunConfig | None = None,
    toy: dict[str, object] | None = None,
    bench: Bench | None = None,
    **options: object,
) -> CoordinatorRunner:
    config = config or toy_config()
    options.setdefault("settings", CoordinatorSettings(linger_s=2.0))
    bench = bench or toy_bench(config, **(toy or {}))
    return CoordinatorRunner(config, fleet=fleet, run_dir=run_dir, bench=bench, connect=connect, **options)


def toy_device(
    connect: Connect,
    state_dir: Path,
    name: str,
    *,
    fleet: str = "lab",
    once: bool = True,
    toy: dict[str, object] | None = None,
    strategy: str | None = None,
    settings: DeviceSettings | None = None,
    **options: object,
) -> DeviceRunner:
    settings = settings or DeviceSettings(once=once, state_interval_s=0.05)
    options.setdefault(
        "trainer_of", lambda manifest, shards: ToyTrainer(seed=manifest.seed, shards=shards, **(toy or {}))
    )
    config = DeviceConfig(fleet=fleet, device=name, state_dir=state_dir / name, strategy=strategy, settings=settings)
    return DeviceRunner(config, connect=connect, **options)


class Running:
    """A runner in a thread of its own; what it gave or raised is kept."""

    def __init__(self, runner: CoordinatorRunner | DeviceRunner) -> None:
        self.runner = runner
        self.error: BaseException | None = None
        self.outcome: object = None
        self._thread = threading.Thread(target=self._run, name=f"test-{type(runner).__name__}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.runner.run()
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it again
            self.error = error

    def wait(self, timeout_s: float = 2 * PATIENCE_S) -> object:
        """What `run` returned; what it raised is raised here."""
        self.ended(timeout_s)
        if self.error is not None:
            raise self.error
        return self.outcome

    def ended(self, timeout_s: float = 2 * PATIENCE_S) -> BaseException | None:
        """What `run` raised, if it did."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{self.runner} did not end in time"
        return self.error

    def leave(self) -> None:
        self.runner.stop()
        self._thread.join(2 * PATIENCE_S)


@contextmanager
def running(*runners: CoordinatorRunner | DeviceRunner):
    """Run them beside the test, and end whatever still runs after it."""
    threads = [Running(runner) for runner in runners]
    try:
        yield threads[0] if len(threads) == 1 else threads
    finally:
        for one in threads:
            one.leave()


class Records:
    """An `on_record` that a test can wait on."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, object]]] = []
        self._changed = threading.Condition()

    def __call__(self, event: str, fields: object) -> None:
        with self._changed:
            self.all.append((event, dict(fields)))
            self._changed.notify_all()

    def of(self, event: str) -> list[dict[str, object]]:
        with self._changed:
            return [fields for name, fields in self.all if name == event]

    def wait(self, event: str, count: int = 1, timeout_s: float = 2 * PATIENCE_S, **having: object):
        """Until so many records of an event with these fields are there; the newest of them."""
        return self.until(
            event, lambda fields: all(fields.get(key) == value for key, value in having.items()), count, timeout_s
        )

    def until(self, event: str, having: Callable[[dict], bool], count: int = 1, timeout_s: float = 2 * PATIENCE_S):
        """The same, for fields that are like this."""

        def found():
            return [fields for name, fields in self.all if name == event and having(fields)]

        with self._changed:
            came = self._changed.wait_for(lambda: len(found()) >= count, timeout_s)
            assert came, f"no {count} x {event} in {self.all[-5:]}"
            return found()[count - 1]


class Watcher:
    """A client that sees everything a fleet says, in order, and can be waited on."""

    def __init__(self, connect: Connect, *, fleet: str) -> None:
        self.topics = Topics(fleet)
        self.all: list[Delivery] = []
        self._newest: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._transport = connect(f"watch-{next(_NUMBERS)}", None)
        self._transport.subscribe((self.topics.all("#"), self.topics.up("+", "#"), self.topics.down("+", "#")))
        self._transport.start(self._on_event, timeout_s=PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._transport.close()

    def _on_event(self, event: object) -> None:
        if isinstance(event, Delivery):
            with self._changed:
                self.all.append(event)
                self._newest[event.topic] = event.payload
                self._changed.notify_all()

    def newest(self, topic: str, kind: type):
        """The newest message on a topic; None when there is none."""
        payload = self._newest.get(topic)
        return codec.decode_json(payload, kind, Limits()) if payload else None

    def said(self, topic: str, kind: type) -> list[object]:
        """Every message there was on a topic, oldest first."""
        with self._changed:
            payloads = [one.payload for one in self.all if one.topic == topic and one.payload]
        return [codec.decode_json(payload, kind, Limits()) for payload in payloads]

    def wait(self, topic: str, kind: type, having: Callable[[object], bool], timeout_s: float = 2 * PATIENCE_S):
        """Until the newest message on a topic is like this."""
        with self._changed:
            came = self._changed.wait_for(
                lambda: (found := self.newest(topic, kind)) is not None and having(found), timeout_s
            )
            assert came, f"{topic} says {self.newest(topic, kind)}"
            return self.newest(topic, kind)

    def settled(self) -> None:
        """Until everything that was published before now has come."""
        topic = self.topics.down("nobody", "cmd")
        number = f"fence-{next(_NUMBERS)}"
        self._transport.publish(topic, codec.encode_json(Command(id=number, name="ping")))
        self.wait(topic, Command, lambda fence: fence.id == number)


# --- lockstep -------------------------------------------------------------------------------------------------------


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class HeldWorker:
    """Work waits until the script lets it run."""

    def __init__(self, inbox) -> None:
        self._inbox = inbox
        self.waiting: list[Callable[[], object]] = []

    def submit(self, work: Callable[[], object]) -> None:
        self.waiting.append(work)

    def run_one(self) -> None:
        self._inbox.post(self.waiting.pop(0)())

    def close(self) -> None:
        self.waiting.clear()


class PacedTrainer(ToyTrainer):
    """A toy whose iterations take virtual time: so many seconds a row."""

    def __init__(self, *, clock: Clock, row_s: float, **options: object) -> None:
        super().__init__(**options)
        self._clock = clock
        self._row_s = row_s

    def train(self, job):
        trained = super().train(job)
        self._clock.now += self._row_s * trained.samples * job.epochs
        return trained


class Lockstep:
    """One coordinator and several devices, all of them in the test's thread.

    Attributes:
        models: SHA-256 of every model vector the coordinator has had, with its version, oldest first.
        allocations: every (device, version, samples, batch) given, in order.
    """

    def __init__(self, connect: Connect, directory: Path, *, fleet: str, paces: dict[str, float], toy: dict, **changes):
        self.models: list[tuple[int, str]] = []
        self.allocations: list[tuple[object, ...]] = []
        self.clock = Clock()
        self._workers: dict[str, HeldWorker] = {}
        self.coordinator = toy_coordinator(
            connect,
            directory / "run",
            fleet=fleet,
            config=toy_config(**changes),
            toy=toy,
            clock=self.clock,
            on_record=self._on_record,
            settings=CoordinatorSettings(linger_s=2.0, resize_interval_s=0.0),
        )
        self.devices = {
            name: toy_device(
                connect,
                directory,
                name,
                fleet=fleet,
                clock=self.clock,
                worker_of=lambda inbox, name=name: self._workers.setdefault(name, HeldWorker(inbox)),
                trainer_of=lambda manifest, shards, row_s=row_s: PacedTrainer(
                    clock=self.clock, row_s=row_s, seed=manifest.seed, shards=shards, **toy
                ),
            )
            for name, row_s in paces.items()
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for runner in (*self.devices.values(), self.coordinator):
            runner.close()

    @property
    def final(self) -> str:
        """SHA-256 of the global vector now."""
        return hashlib.sha256(self.coordinator.machine.model.tobytes()).hexdigest()

    def run(self, turns_max: int = 1000) -> dict[str, object]:
        """Devices take turns until the run's rules end it; the summary."""
        self.coordinator.start()
        self._note()
        self._settle(())
        for name, device in self.devices.items():
            device.start()
            # Its birth comes behind its subscriptions: from here on a ping reaches it.
            self._until(device, lambda event: isinstance(event, Connected))
            birth = device.topics.up(name, "status")
            self._until(self.coordinator, lambda event, topic=birth: getattr(event, "topic", "") == topic)
            self._settle(self._started)
            self._workers[name].run_one()  # builds its trainer
            self._settle(self._started)
        for name in itertools.islice(itertools.cycle(self.devices), turns_max):
            if not self.coordinator.running:
                return self.coordinator.conclude()
            if self._workers[name].waiting:
                self._workers[name].run_one()
            self._settle(self._started)
        raise AssertionError(f"{turns_max} turns and no end")

    @property
    def _started(self) -> tuple[str, ...]:
        return tuple(name for name, device in self.devices.items() if device.running)

    def _settle(self, names: tuple[str, ...]) -> None:
        """Let messages go to and fro, and timers fire, until a whole round brings nothing new."""
        quiet = False
        while not quiet:
            quiet = self._drain(self.coordinator) == 0
            for name in names:
                device = self.devices[name]
                if device.running:
                    quiet &= self._round_trip(name, device)
            for runner in (self.coordinator, *(self.devices[name] for name in names)):
                due = runner.next_deadline() if runner.running else None
                if due is not None and due <= self.clock():
                    runner.expire()
                    quiet = False

    def _round_trip(self, name: str, device: DeviceRunner) -> bool:
        """A ping to the device and back: what either side said before has arrived. Whether there was nothing else."""
        if not self.coordinator.running:
            return self._drain(device) == 0
        number = f"fence-{next(_NUMBERS)}"
        self.coordinator.link.send(Command(id=number, name="ping"), device=name)
        others = self._until(device, lambda event: _is(event, Command, number))
        if device.running:
            return others + self._until(self.coordinator, lambda event: _is(event, Response, number)) == 0
        # It left because the run is over: its farewell is the last that comes.
        member = self.coordinator.machine.members[name]
        self._until(self.coordinator, lambda _event: not member.online)
        return False

    def _until(self, runner: CoordinatorRunner | DeviceRunner, last: Callable[[object], bool]) -> int:
        """Handle events up to `last`; how many others there were."""
        others = 0
        while runner.running:
            event = runner.inbox.take(timeout_s=PATIENCE_S)
            assert event is not None, f"{runner} waits for something that does not come"
            runner.handle(event)
            if last(event):
                break
            others += 1
        return others

    def _drain(self, runner: CoordinatorRunner | DeviceRunner) -> int:
        count = 0
        while runner.running and (event := runner.inbox.take(timeout_s=0)) is not None:
            runner.handle(event)
            count += 1
        return count

    def _on_record(self, event: str, fields: object) -> None:
        if event == "merge":
            self._note()
        elif event == "allocation":
            self.allocations.append(tuple(fields[key] for key in ("device", "version", "samples", "batch")))

    def _note(self) -> None:
        self.models.append((self.coordinator.machine.version, self.final))


def _is(event: object, kind: type, number: str) -> bool:
    """Whether this delivery is that ping, or that answer."""
    if not (isinstance(event, Delivery) and event.topic.endswith(("/cmd", "/rsp")) and event.payload):
        return False
    return codec.decode_json(event.payload, kind, Limits()).id == number
