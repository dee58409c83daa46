"""A fleet without threads, sockets or waiting: one coordinator and its devices over an in-memory broker, virtual time.

The nodes do what the shells in runtime/ do - encode with `Wire`, perform effects in order, keep a memory, a cache, a
checkpoint, a registry - and nothing else, so what is found here is the machines' own doing. `Fleet.fault` decides the
fate of every delivery; links, processes and disks can fail between any two steps, the coordinator between any two
effects. `Audit` holds the invariants of reliability.md against every single event, with the auditor that the faulty
simulator has (`runtime.simulation.audit`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.strategies.hermes import Hermes, HermesConfig
from hermes_iot.core.coordinator import Coordinator, CoordinatorSettings, Restored
from hermes_iot.core.device import Device, DeviceSettings
from hermes_iot.core.effects import (
    Checkpoint,
    Effect,
    FetchKeyframe,
    FindShard,
    ForgetKeyframe,
    Journal,
    Prepare,
    Quit,
    Rebirth,
    Record,
    Remember,
    Resend,
    Send,
    SendKeyframe,
    StoreMemory,
    StoreShard,
    Train,
)
from hermes_iot.core.redo import Entry
from hermes_iot.domain import DeviceId, RunId, Trained, TrainJob
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import unpack_parts
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    CoordinatorStatus,
    DataInfo,
    DeviceStatus,
    Message,
    Model,
    ModelInfo,
    RunManifest,
    Shard,
    StrategyInfo,
    TaskInfo,
    Update,
)
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import ROUTES, Packet, Wire
from hermes_iot.runtime.simulation.audit import Auditor
from hermes_iot.training.data import lay_out
from hermes_iot.training.shards import decode_shard, encode_shard
from hermes_iot.training.toy import ToyTrainer

TOPICS = Topics("lab")
LEADER = "coordinator"
WILL_DELAY_S = 3.0
#: Nothing but a loop makes so many things happen at one moment of virtual time.
STEPS_PER_MOMENT_MAX = 3000

_toys: dict[int, ToyTrainer] = {}


def toy(seed: int = 0) -> ToyTrainer:
    if seed not in _toys:
        _toys[seed] = ToyTrainer(seed=seed, rows=400, features=6, classes=3, spread=0.8)
    return _toys[seed]


def manifest(run: str = "run-a", **changes: Any) -> RunManifest:
    """A run of the toy; `data_mode`, `sampling` and `gate_split` may be given as well."""
    signature = toy().signature
    mode, sampling = changes.pop("data_mode", "indexed"), changes.pop("sampling", "fresh")
    info = DataInfo(
        mode=mode,
        sampling=sampling,
        gate_split=changes.pop("gate_split", "fresh" if sampling == "fresh" else "fixed"),
        rows=0 if mode == "local" else toy().train_rows,
        validation_fraction=0.1,
    )
    fields: dict[str, Any] = {
        "run": RunId(run),
        "state": "running",
        "seed": 5,
        "task": TaskInfo(name="toy", source_sha256="0" * 64),
        "strategy": StrategyInfo(name="hermes"),
        "model": ModelInfo(
            sha256=signature.sha256,
            parameters=signature.parameters,
            tensors=tuple((spec.name, spec.shape) for spec in signature.tensors),
        ),
        "data": info,
        "epochs": 1,
        "learning_rate": 0.1,
        "codec": "fp16",
        "chunk_bytes": 120_000,
    }
    return RunManifest(**{**fields, **changes})


class Crash(Exception):
    """The process died between two effects."""


@dataclass(slots=True, kw_only=True)
class Client:
    """The broker's end of one connection."""

    name: str
    filters: set[str] = field(default_factory=set)
    inbox: deque[tuple[float, int, str, bytes]] = field(default_factory=deque)
    online: bool = False
    will: tuple[str, bytes] | None = None
    will_at: float | None = None

    def wants(self, topic: str) -> bool:
        return any(one == topic or ("+" in one and _matches(one, topic)) for one in self.filters)


def _matches(wanted: str, topic: str) -> bool:
    ours, theirs = wanted.split("/"), topic.split("/")
    return len(ours) == len(theirs) and all(a in ("+", b) for a, b in zip(ours, theirs, strict=True))


class Broker:
    """Retained messages, wills, clean sessions. `fault` says how often a message is delivered to a client."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.retained: dict[str, bytes] = {}
        self.clients: dict[str, Client] = {}
        self.count = 0
        self.published: Counter[str] = Counter()

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        self.published[topic] += 1
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for client in self.clients.values():
            if client.online and client.wants(topic):
                self.push(client, topic, payload)

    def push(self, client: Client, topic: str, payload: bytes) -> None:
        for _ in range(self.fleet.fault(client.name, topic, payload)):
            self.count += 1
            client.inbox.append((self.fleet.now + self.fleet.latency_s, self.count, topic, payload))

    def subscribe(self, client: Client, topics: Iterable[str]) -> None:
        for topic in topics:
            client.filters.add(topic)
            if client.online:
                self._bring(client, topic)

    def connect(self, client: Client) -> None:
        client.online, client.will_at = True, None
        for topic in tuple(client.filters):
            self._bring(client, topic)

    def lose(self, client: Client, *, will_delay_s: float | None) -> None:
        """The connection is gone, with whatever was on its way; no will where the client said goodbye."""
        client.online = False
        client.inbox.clear()
        client.will_at = None if will_delay_s is None else self.fleet.now + will_delay_s

    def _bring(self, client: Client, wanted: str) -> None:
        topics = [wanted] if "+" not in wanted else [topic for topic in self.retained if _matches(wanted, topic)]
        for topic in self.fleet.arrange(topics):
            if topic in self.retained:
                self.push(client, topic, self.retained[topic])


@dataclass(frozen=True, slots=True)
class Work:
    """What the training thread does next: a preparation or an iteration."""

    kind: str
    seconds: float
    effect: Prepare | Train


class DeviceNode:
    """One board: a machine, a wire, a training thread, and a disk that survives the process."""

    def __init__(self, fleet: Fleet, name: str, *, speed: float, **birth: Any) -> None:
        self.fleet, self.name, self.speed, self.birth = fleet, name, speed, birth
        self.disk = StoreMemory(session=0, seq=0, run="", allocation_version=0)
        self.cache: dict[str, bytes] = {}
        self.records: list[Record] = []
        self.quit: Quit | None = None
        self.alive = False
        self.diverge = 0
        self.trained = 0
        self.dropped: list[str] = []
        self.jobs: list[TrainJob] = []
        self.client = Client(name=name)
        fleet.broker.clients[name] = self.client

    # --- life

    @property
    def arriving(self) -> bool:
        return self.alive and self.client.online and bool(self.client.inbox)

    def start(self) -> None:
        self.disk = replace(self.disk, session=self.disk.session + 1)
        self.work: deque[Work] = deque()
        self.free_at: float | None = None
        self.keyframe_topics: tuple[str, ...] = ()
        self.wire = Wire(TOPICS, chunk_bytes=self.fleet.chunk_bytes, resumes=True)
        self.alive, self.quit = True, None
        self.machine = Device(
            device=DeviceId(self.name),
            memory=self.disk,
            birth=DeviceStatus(state="online", session=self.disk.session, **self.birth),
            strategy_of=lambda _info: self.fleet.strategy,
            settings=self.fleet.device_settings,
        )
        self.dial()

    def dial(self) -> None:
        """Connect for the first time, or anew after a Rebirth: another will, fresh subscriptions."""
        death = DeviceStatus(state="offline", session=self.machine.memory.session, reason="connection lost")
        self.client.will = (TOPICS.up(self.name, "status"), codec.encode_json(death))
        self.client.filters = set()
        self.client.inbox.clear()
        self.client.online, self.client.will_at = True, None
        self.keyframe_topics = ()
        self.hear(lambda: self.machine.connected(now=self.fleet.now))
        self.fleet.broker.subscribe(self.client, self.fleet.arrange(TOPICS.of_device(self.name)))

    def crash(self) -> None:
        """SIGKILL: the will comes after its delay."""
        self.alive = False
        self.fleet.broker.lose(self.client, will_delay_s=WILL_DELAY_S)

    def wipe(self) -> None:
        """A new card: nothing is remembered."""
        self.disk = StoreMemory(session=0, seq=0, run="", allocation_version=0)
        self.cache.clear()
        self.fleet.audit.invariants.wiped(self.name)

    def disconnect(self) -> None:
        self.fleet.broker.lose(self.client, will_delay_s=WILL_DELAY_S)
        self.machine.disconnected()

    def reconnect(self) -> None:
        self.fleet.broker.connect(self.client)
        self.wire.hasten(now=self.fleet.now)
        self.hear(lambda: self.machine.connected(now=self.fleet.now, arriving=self.wire.arriving()))

    def leave(self) -> None:
        self.hear(lambda: self.machine.stop("stopped", now=self.fleet.now))

    # --- events

    def hear(self, event: Callable[[], list[Effect]]) -> list[Effect]:
        effects = event()
        self.perform(effects)
        if self.alive:
            self.fleet.audit.device(self)
        return effects

    def deliver(self, topic: str, payload: bytes) -> None:
        self.machine.carried(down=len(payload))
        try:
            received = self.wire.incoming(topic, payload, now=self.fleet.now)
            if received is not None:
                self.hear(lambda: self.machine.received(received, now=self.fleet.now))
            elif (until := self.wire.awaited_until) is not None:
                self.machine.arriving(topic.rpartition("/")[2], until=until)
        except ProtocolError as error:
            self.machine.refused()
            self.dropped.append(error.reason)
            self.fleet.audit.device(self)

    def expire(self) -> list[Effect]:
        self.wire.expire(now=self.fleet.now)
        if self.client.online:
            self.hear(lambda: self.machine.stalled(self.wire.gaps(now=self.fleet.now)))
        return self.hear(lambda: self.machine.expire(now=self.fleet.now))

    def next_deadline(self) -> float | None:
        times = (self.machine.next_deadline(), self.wire.next_deadline(asking=self.client.online))
        return min((one for one in times if one is not None), default=None)

    def submit(self, kind: str, seconds: float, effect: Prepare | Train) -> None:
        self.work.append(Work(kind, seconds, effect))
        if self.free_at is None:
            self.free_at = self.fleet.now + seconds

    def finish_work(self) -> None:
        done = self.work.popleft()
        self.free_at = self.fleet.now + self.work[0].seconds if self.work else None
        now = self.fleet.now
        match done.effect:
            case Prepare(manifest=about):
                self.hear(lambda: self.machine.prepared(about.run, about.model.sha256, now=now))
            case Train(job=job):
                self.trained += 1
                try:
                    result = self.train(job)
                except ProtocolError as error:
                    why = str(error)
                    self.hear(lambda: self.machine.untrainable(why, now=now))
                else:
                    self.hear(lambda: self.machine.trained(result, done.seconds, now=now))

    def train(self, job: TrainJob) -> Trained:
        self.jobs.append(job)
        if self.diverge > 0:
            self.diverge -= 1
            return Trained(params=job.start, loss=math.nan, samples=job.samples, mini_batches=1)
        if job.shard:
            if job.shard not in self.cache:
                raise ProtocolError("shard", "it is not in the cache any more")
            arrays = decode_shard(self.cache[job.shard])
            source = ToyTrainer(seed=0, rows=400, features=6, classes=3, spread=0.8, shards=lambda _digest: arrays)
            return source.train(job)
        return toy().train(job)

    # --- effects

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.fleet.audit.about_to(self, effect)
            match effect:
                case Send(message=message, device=device):
                    self.machine.carried(up=self.publish(message, device, reminder=effect.reminder))
                case Resend():
                    self.machine.carried(up=self.fleet.publish(again(self.wire, effect)))
                case Train(job=job):
                    seconds = self.speed * max(1, job.samples / job.batch) * job.epochs
                    self.submit("train", seconds, effect)
                case Prepare():
                    self.submit("prepare", self.fleet.prepare_s, effect)
                case FetchKeyframe(parts=parts):
                    wanted = tuple(TOPICS.model_part(part) for part in range(parts))
                    self.fleet.broker.subscribe(self.client, set(wanted) - set(self.keyframe_topics))
                    self.keyframe_topics = wanted
                case ForgetKeyframe():
                    self.client.filters -= set(self.keyframe_topics)
                    self.keyframe_topics = ()
                case FindShard(sha256=sha256):
                    found = sha256 in self.cache
                    self.perform(self.machine.shard_found(sha256, found=found, now=self.fleet.now))
                case StoreShard(sha256=sha256, body=body):
                    if hashlib.sha256(body).hexdigest() != sha256:
                        raise ProtocolError("shard_hash", "the shard is not what it is called")
                    self.cache[sha256] = body
                    self.perform(self.machine.shard_found(sha256, found=True, now=self.fleet.now))
                case StoreMemory():
                    self.disk = effect
                case Rebirth():
                    self.fleet.broker.lose(self.client, will_delay_s=None)
                    self.dial()
                case Record():
                    self.records.append(effect)
                case Quit():
                    self.quit, self.alive = effect, False
                    self.fleet.broker.lose(self.client, will_delay_s=None)

    def publish(self, message: Message, device: str, *, reminder: bool = False) -> int:
        if not self.client.online:
            return 0
        if reminder and isinstance(message, Update):
            cut = self.wire.cut(message)
            return self.fleet.publish(self.wire.packets(message, cut, device=device, parts=[cut.parts - 1]))
        return self.fleet.publish(self.wire.outgoing(message, device=device))


class LeaderNode:
    """The coordinator: a machine, a wire, and a disk with the last checkpoint, the journal since then and the registry."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.checkpoint: Checkpoint | None = None
        self.journal: list[Entry] = []
        self.allocations: dict[str, Allocation] = {}
        self.records: list[Record] = []
        self.quit: Quit | None = None
        self.alive = False
        self.lives = 0
        self.effects_left: int | None = None
        self.client = Client(name=LEADER, filters=set(TOPICS.of_coordinator()))
        fleet.broker.clients[LEADER] = self.client

    @property
    def arriving(self) -> bool:
        return self.alive and self.client.online and bool(self.client.inbox)

    def start(self, about: RunManifest, *, fresh: bool = False) -> None:
        if fresh:
            self.checkpoint, self.journal, self.allocations = None, [], {}
        self.lives += 1
        self.wire = Wire(TOPICS, chunk_bytes=self.fleet.chunk_bytes, resumes=True)
        self.alive, self.quit, self.effects_left = True, None, None
        self.parts = 0
        session = f"s{self.lives}"
        death = CoordinatorStatus(state="offline", session=session, run=about.run)
        self.client.will = (TOPICS.all("coordinator"), codec.encode_json(death))
        restored = None
        if self.checkpoint is not None:
            restored = Restored(
                version=self.checkpoint.version,
                arrays=self.checkpoint.arrays,
                scalars=self.checkpoint.scalars,
                allocations=dict(self.allocations),
                entries=tuple(self.journal),
            )
        self.machine = Coordinator(
            manifest=about,
            status=CoordinatorStatus(state="online", session=session),
            strategy=self.fleet.strategy,
            initial=toy().initial(5),
            score=lambda params: toy().score(params, "validation"),
            settings=self.fleet.settings,
            shard_of=_shard_of if about.data.mode == "shipped" else None,
            restored=restored,
            now=self.fleet.now,
        )
        self.fleet.audit.led(self)
        self.reconnect()

    def crash(self) -> None:
        self.alive = False
        self.fleet.broker.lose(self.client, will_delay_s=0.0)

    def lose_journal(self) -> None:
        self.journal = []
        self.fleet.audit.invariants.forgiven()

    def disconnect(self) -> None:
        self.fleet.broker.lose(self.client, will_delay_s=0.0)
        self.machine.disconnected()

    def reconnect(self) -> None:
        self.fleet.broker.connect(self.client)
        self.wire.hasten(now=self.fleet.now)
        self.hear(lambda: self.machine.connected(now=self.fleet.now))

    def hear(self, event: Callable[[], list[Effect]]) -> list[Effect]:
        effects = event()
        try:
            self.perform(effects)
        except Crash:
            self.crash()
            return effects
        self.fleet.audit.leader(self)
        return effects

    def deliver(self, topic: str, payload: bytes) -> None:
        address = TOPICS.parse(topic)
        assert address is not None
        self.machine.carried(address.channel, up=len(payload))
        try:
            received = self.wire.incoming(topic, payload, now=self.fleet.now)
        except ProtocolError as error:
            if address.channel == "update":
                self.fleet.audit.invariants.arrived()
            reason = error.reason
            self.hear(lambda: self.machine.malformed(address.device, address.channel, reason))
            return
        if received is not None:
            if isinstance(received.message, Update):
                self.fleet.audit.invariants.arrived()
            self.hear(lambda: self.machine.received(received, now=self.fleet.now))

    def expire(self) -> list[Effect]:
        self.wire.expire(now=self.fleet.now)
        if self.client.online:
            self.hear(lambda: self.machine.stalled(self.wire.gaps(now=self.fleet.now)))
        return self.hear(lambda: self.machine.expire(now=self.fleet.now))

    def next_deadline(self) -> float | None:
        times = (self.machine.next_deadline(), self.wire.next_deadline(asking=self.client.online))
        return min((one for one in times if one is not None), default=None)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if self.effects_left is not None:
                self.effects_left -= 1
                if self.effects_left < 0:
                    raise Crash
            self.fleet.audit.about_to_say(self, effect)
            match effect:
                case Send(message=message, device=device):
                    if isinstance(message, Model | Shard) and (cut := self.wire.cut(message)).parts > 1:
                        self.machine.shipped(DeviceId(device), cut.id.hex(), message)
                    sent = self.publish(self.wire.outgoing(message, device=device))
                    channel = ROUTES[type(message)].channel
                    tensor = ROUTES[type(message)].direction == "down" and channel in {"model", "data"}
                    self.machine.carried(channel, down=sent, tensor=tensor)
                case Resend(message=message):
                    sent = self.publish(again(self.wire, effect))
                    self.machine.carried(ROUTES[type(message)].channel, down=sent)
                case SendKeyframe(model=model):
                    packets, head = self.wire.keyframe(model)
                    self.publish(packets)
                    self.publish(self.wire.outgoing(head))
                    for part in range(len(packets), self.parts):
                        self.publish([Packet(topic=TOPICS.model_part(part), payload=b"", qos=1, retain=True)])
                    self.parts = len(packets)
                case Journal(entries=entries):
                    self.journal += entries
                case Checkpoint():
                    # Through JSON and copies: what a file keeps.
                    scalars = json.loads(json.dumps(effect.scalars, allow_nan=False))
                    arrays = {name: np.array(array, dtype=np.float32) for name, array in effect.arrays.items()}
                    self.checkpoint = Checkpoint(version=effect.version, arrays=arrays, scalars=scalars)
                    self.journal = []
                case Remember(allocations=allocations):
                    for device, one in allocations.items():
                        self.allocations[device] = _as_registered(one)
                case Record():
                    self.records.append(effect)
                case Quit():
                    self.quit, self.alive = effect, False
                    self.fleet.broker.lose(self.client, will_delay_s=None)

    def publish(self, packets: Iterable[Packet]) -> int:
        return self.fleet.publish(packets) if self.client.online else 0


def again(wire: Wire, wanted: Resend) -> Iterable[Packet]:
    """Those parts, if the message is still what it was."""
    cut = wire.cut(wanted.message, parts=wanted.parts)
    parts = unpack_parts(wanted.missing, wanted.parts) if cut.id.hex() == wanted.transfer else ()
    return wire.packets(wanted.message, cut, device=wanted.device, parts=parts)


def _as_registered(one: Allocation) -> Allocation:
    """What the registry keeps of an allocation: see runtime/run_dir.py."""
    return Allocation(
        run=one.run,
        device=one.device,
        version=one.version,
        samples=one.samples,
        batch=one.batch,
        rows=one.rows,
        shard=one.shard,
    )


def _shard_of(ranges: tuple[tuple[int, int], ...]) -> bytes:
    layout = lay_out(toy().data, seed=0, validation_fraction=0.1)
    part = toy().data.train.take(layout.allotted(ranges))
    return encode_shard(part.x, part.y)


class Audit:
    """The package's auditor, and what only these nodes can be asked."""

    def __init__(self) -> None:
        self.invariants = Auditor()

    def led(self, node: LeaderNode) -> None:
        self.invariants.led(node.machine, fresh=node.checkpoint is None)

    def about_to(self, node: DeviceNode, effect: Effect) -> None:
        match effect:
            case Send(message=Update() as update):
                # On disk before it is said.
                assert (node.disk.session, node.disk.seq) >= (update.session, update.seq)
                assert math.isfinite(update.loss)
            case Train(job=job):
                assert not any(work.kind == "train" for work in node.work), "two iterations at once"
                assert np.isfinite(job.start).all()
                assert job.samples >= 1
                assert (
                    1 <= job.batch <= job.samples or job.sampling == "walk"
                )  # of a walk over few rows there is no end

    def about_to_say(self, node: LeaderNode, effect: Effect) -> None:
        match effect:
            case Journal(entries=entries):
                one_each = not node.machine.regime.waits
                self.invariants.decided(node.machine.manifest, entries, one_each=one_each)
            case Send(message=Allocation() as one, device=device):
                # A restart must not forget what a device obeys.
                known = node.allocations.get(one.device)
                assert known is not None
                assert known.version >= one.version
                self.invariants.told(one, device)
            case Send(message=Ack() as ack, device=device):
                assert ack.seq >= 1 or ack.outcome != "applied"
                self.invariants.told(ack, device)
            case Send(message=Model()) | SendKeyframe():
                self.invariants.published(node.machine.version)

    def device(self, node: DeviceNode) -> None:
        self.invariants.device(node.name, node.machine)

    def leader(self, node: LeaderNode) -> None:
        self.invariants.leader(node.machine)


class Fleet:
    """Everything, and the clock.

    Attributes:
        fault: (client, topic, payload) -> how many copies of a delivery arrive.
        latency_s: from a publisher to everybody else.
        arrange: the order in which retained messages of several subscriptions arrive.
    """

    def __init__(
        self,
        about: RunManifest | None = None,
        *,
        strategy: Any = None,
        settings: CoordinatorSettings | None = None,
        device_settings: DeviceSettings | None = None,
        prepare_s: float = 0.1,
        chunk_bytes: int = 120_000,
        latency_s: float = 0.0,
    ) -> None:
        self.now = 100.0
        self.latency_s = latency_s
        self.manifest = about or manifest()
        self.strategy = strategy or Hermes(HermesConfig(gate=GateConfig(max_age=4)))
        self.settings = settings or CoordinatorSettings()
        self.device_settings = device_settings or DeviceSettings()
        self.prepare_s = prepare_s
        self.chunk_bytes = chunk_bytes
        self.fault: Callable[[str, str, bytes], int] = lambda _client, _topic, _payload: 1
        self.arrange: Callable[[Iterable[str]], Iterable[str]] = lambda topics: topics
        self.audit = Audit()
        self.broker = Broker(self)
        self.leader = LeaderNode(self)
        self.devices: dict[str, DeviceNode] = {}

    # --- casting

    def lead(self, about: RunManifest | None = None, *, fresh: bool = False) -> Coordinator:
        self.manifest = about or self.manifest
        self.leader.start(self.manifest, fresh=fresh)
        return self.leader.machine

    def join(self, name: str, *, speed: float = 0.02, **birth: Any) -> DeviceNode:
        node = self.devices[name] = DeviceNode(self, name, speed=speed, **birth)
        node.start()
        return node

    def say(self, message: Message, device: str = "") -> None:
        """Somebody publishes this message, whoever it is."""
        self.publish(Wire(TOPICS).outgoing(message, device=device))

    def publish(self, packets: Iterable[Packet]) -> int:
        sent = 0
        for packet in packets:
            sent += len(packet.payload)
            self.broker.publish(packet.topic, packet.payload, retain=packet.retain)
        return sent

    # --- time

    def deliver(self) -> bool:
        """The oldest message on its way anywhere arrives."""
        waiting = [(node.client.inbox[0][:2], node) for node in self.nodes() if node.arriving]
        waiting = [one for one in waiting if one[0][0] <= self.now]
        if not waiting:
            return False
        _, node = min(waiting, key=lambda one: one[0])
        *_, topic, payload = node.client.inbox.popleft()
        node.deliver(topic, payload)
        return True

    def next_moment(self) -> float | None:
        times: list[float | None] = [client.will_at for client in self.broker.clients.values()]
        times += [node.next_deadline() for node in self.nodes() if node.alive]
        times += [node.client.inbox[0][0] for node in self.nodes() if node.arriving]
        times += [device.free_at for device in self.devices.values() if device.alive]
        return min((one for one in times if one is not None), default=None)

    def step(self) -> bool:
        """One thing happens; False when nothing ever will."""
        if self.deliver():
            return True
        moment = self.next_moment()
        if moment is None:
            return False
        self.now = max(self.now, moment)
        for client in self.broker.clients.values():
            if client.will is not None and client.will_at is not None and client.will_at <= self.now:
                client.will_at = None
                self.broker.publish(*client.will, retain=True)
        for device in tuple(self.devices.values()):
            if device.alive and device.free_at is not None and device.free_at <= self.now:
                device.finish_work()
        for node in self.nodes():
            deadline = node.next_deadline() if node.alive else None
            if deadline is not None and deadline <= self.now:
                effects = node.expire()
                after = node.next_deadline() if node.alive else None
                assert effects or after is None or after > self.now, f"{node} spins at {self.now}"
        return True

    def run(self, seconds: float = math.inf, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass."""
        end, moment, steps = self.now + seconds, self.now, 0
        while not until():
            following = self.next_moment()
            if following is None or following > end:
                break
            steps = steps + 1 if self.now == moment else 0
            moment = self.now
            assert steps < STEPS_PER_MOMENT_MAX, f"a storm at {self.now}: {self.broker.published.most_common(4)}"
            self.step()
        if math.isfinite(end) and not until():
            self.now = max(self.now, end)

    def run_until(self, condition: Callable[[], bool], *, within: float = 120.0) -> None:
        self.run(within, until=condition)
        assert condition(), f"not within {within} s"

    def settle(self) -> None:
        """Deliver what is on its way; no time passes."""
        steps = 0
        while self.deliver():
            steps += 1
            assert steps < STEPS_PER_MOMENT_MAX, f"a storm: {self.broker.published.most_common(4)}"

    def nodes(self) -> list[DeviceNode | LeaderNode]:
        return [self.leader, *self.devices.values()]

    # --- looking

    def applied(self, name: str) -> int:
        member = self.leader.machine.members.get(DeviceId(name))
        return member.applied if member is not None else 0

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        return [record.fields for record in self.leader.records if record.event == kind]
