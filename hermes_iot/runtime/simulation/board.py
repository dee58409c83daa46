"""A simulated board: performs what its machine decides, and takes virtual time for it.

The counterpart of `runtime.device` without threads and disk; events and effects are handled in the same order. An
iteration is computed the moment it begins, and its result is handed to the machine when the board would have had it::

    k = batch_s * slowness;   seconds = noise * k * (mini_batches + f * rows evaluated / batch)

where a forward pass of one row costs f = 1/3 of training on it (the backward pass costs two), and noise is lognormal
with mean 1. Power may go at any time: the machine is then gone with all it held, and a new one of a later session
begins from what was written down, as after a real power cut.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hermes_iot import __version__
from hermes_iot.core.device import Device
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
from hermes_iot.domain import DeviceId, Trained, TrainJob
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import CHUNK_BYTES_DEFAULT
from hermes_iot.protocol.messages import DeviceStatus
from hermes_iot.runtime.device import WILL_DELAY_S
from hermes_iot.runtime.link import Link
from hermes_iot.runtime.simulation.clock import Timer
from hermes_iot.runtime.simulation.network import LinkTransport
from hermes_iot.runtime.simulation.profiles import Group, LinkProfile
from hermes_iot.runtime.simulation.shelf import Card
from hermes_iot.runtime.simulation.timeline import Timeline
from hermes_iot.runtime.simulation.world import World
from hermes_iot.training.base import Trainer
from hermes_iot.transport.base import Connected, Delivery, Disconnected, TransportEvent, Will


class SimulatedBoard:
    """See the module.

    Args:
        name: the device's id.
        group: what kind of board it is.
        world: what all boards share.
        batch_s: its seconds per mini-batch.
        jitter: sigma of the noise on an iteration's time.
        forward_share: f in the module's header.
        link: its way to the broker.
        trainer: does the real training.
        timeline: notes what it does when.

    Attributes:
        machine: of its present life; None without power.
        energy_j: used by training so far.
    """

    def __init__(
        self,
        name: str,
        *,
        group: Group,
        world: World,
        batch_s: float,
        jitter: float,
        forward_share: float,
        link: LinkProfile,
        trainer: Callable[[], Trainer],
        timeline: Timeline,
    ) -> None:
        self.name = name
        self.group = group
        self.timeline = timeline
        self.machine: Device | None = None
        self.energy_j = 0.0
        self._world = world
        self._batch_s = batch_s
        self._jitter = jitter
        self._forward_share = forward_share
        self._noise = world.chance(name, "noise")
        self._losses = world.chance(name, "loss") if link.loss else None
        self._profile = link
        self._trainer = trainer
        self._card = Card()
        self._memory = StoreMemory(session=0, seq=0, run="", allocation_version=0)
        self._instance = hashlib.sha256(f"{world.seed}/{name}".encode()).hexdigest()[:32]
        self._timer = Timer(world.clock, self._expire)
        self._transport: LinkTransport | None = None
        self._life = 0
        self._keyframe_parts = 0
        self._own_status = world.topics.up(name, "status")

    # --- power ----------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """A new life begins: a session above all before, then the connection. Nothing where the battery is empty."""
        if self.machine is not None or self._is_empty:
            return
        self._life += 1
        self._memory = replace(self._memory, session=self._memory.session + 1)
        self.machine = Device(
            device=DeviceId(self.name),
            memory=self._memory,
            birth=DeviceStatus(
                state="online",
                session=self._memory.session,
                instance=self._instance,
                host=self.group.name,
                software=__version__,
                slowdown=max(1.0, self.group.slowness),
                rows=self._trainer().train_rows if self._world.rows_are_own else 0,
                memory_rows_max=self.group.memory_rows_max,
            ),
            strategy_of=self._world.strategy_of,
            settings=self._world.settings,
        )
        self.timeline.enter("wait", now=self._world.clock.now)
        self._dial(self.machine, CHUNK_BYTES_DEFAULT)

    def power_off(self) -> None:
        """Power is cut: no word, nothing kept but what was written down."""
        if self.machine is None:
            return
        self._world.ledger.note(self._world.clock.now, self.name, "power cut")
        if self._transport is not None:
            self._transport.cut()
        self._end()

    def leave(self) -> None:
        """Leave in good order."""
        if self.machine is not None:
            self._perform(self.machine, self.machine.stop("leaves", now=self._world.clock.now))

    def _dial(self, machine: Device, chunk_bytes: int) -> None:
        death = DeviceStatus(state="offline", session=machine.memory.session, reason="connection lost")
        will = Will(topic=self._own_status, payload=codec.encode_json(death), delay_s=WILL_DELAY_S)
        transport = self._world.network.over(self._profile, self.name, will, self._losses)
        self._transport = transport
        self._link = Link(self._world.topics, transport, chunk_bytes=chunk_bytes)
        self._keyframe_parts = 0
        transport.subscribe((*self._world.topics.of_device(self.name), self._own_status))
        transport.start(partial(self._handle, machine), timeout_s=0.0)

    def _end(self) -> None:
        self.machine = self._transport = None
        self._timer.set(None)
        self.timeline.enter("off", now=self._world.clock.now)

    # --- events ---------------------------------------------------------------------------------------------------

    def _handle(self, machine: Device, event: TransportEvent) -> None:
        now = self._world.clock.now
        match event:
            case Delivery():
                self._world.ledger.note(now, self.name, event.topic, event.payload)
                self._deliver(machine, event, now)
            case Connected():
                self._world.ledger.note(now, self.name, "connected")
                self._link.connected(event)
                self._link.wire.hasten(now=now)
                self._perform(machine, machine.connected(now=now, arriving=self._link.wire.arriving()))
            case Disconnected():
                self._world.ledger.note(now, self.name, "disconnected")
                self._link.disconnected()
                machine.disconnected()
        self._rest(machine)

    def _deliver(self, machine: Device, delivery: Delivery, now: float) -> None:
        machine.carried(down=len(delivery.payload))
        if delivery.topic == self._own_status:
            return  # in the field this tells a device of a twin under its id; here every id is one board's
        try:
            received = self._world.decoded(self._link, delivery, now=now)
            effects = machine.received(received, now=now) if received is not None else []
            if received is None and (until := self._link.wire.awaited_until) is not None:
                machine.arriving(delivery.topic.rpartition("/")[2], until=until)
        except ProtocolError:
            machine.refused()
            return
        self._perform(machine, effects)

    def _expire(self) -> None:
        machine = self.machine
        if machine is None:
            return
        now = self._world.clock.now
        if self._link.next_deadline() is not None:  # something is half received
            self._link.expire(now=now)
            self._perform(machine, machine.stalled(self._link.gaps(now=now)))
        self._perform(machine, machine.expire(now=now))
        self._rest(machine)

    def _prepared(self, machine: Device, run: str) -> None:
        if machine is self.machine:
            now = self._world.clock.now
            self._perform(machine, machine.prepared(run, self._trainer().signature.sha256, now=now))
            self._rest(machine)

    def _trained(self, machine: Device, job: TrainJob, result: Trained, seconds: float) -> None:
        if machine is not self.machine:
            return
        now, work = self._world.clock.now, self._world.ledger.work
        self._world.ledger.note(now, self.name, f"trained {result.mini_batches} {result.loss!r}")
        self.timeline.enter("wait", now=now)
        work.iterations += 1
        work.samples += result.samples if job.sampling == "walk" else (result.samples - result.evaluated) * job.epochs
        if self.group.battery is not None:
            self.energy_j += result.mini_batches * self.group.battery.batch_j
        self._perform(machine, machine.trained(result, seconds, now=now))
        self._rest(machine)

    def _untrainable(self, machine: Device, why: str) -> None:
        if machine is self.machine:
            self.timeline.enter("wait", now=self._world.clock.now)
            self._perform(machine, machine.untrainable(why, now=self._world.clock.now))
            self._rest(machine)

    def _emptied(self, machine: Device, capacity_j: float) -> None:
        if machine is self.machine:
            self.energy_j = capacity_j
            self.power_off()

    def _rest(self, machine: Device) -> None:
        """Until the next deadline, of the machine or of the wire."""
        if machine is not self.machine:
            return
        deadline, transfer = machine.next_deadline(), self._link.next_deadline()
        if deadline is None or (transfer is not None and transfer < deadline):
            deadline = transfer
        self._timer.set(deadline)

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, machine: Device, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message, device=device, reminder=reminder):
                    machine.carried(up=self._link.send(message, device=device, reminder=reminder))
                case Resend():
                    machine.carried(up=self._link.resend(effect))
                case Train(job=job):
                    self._train(machine, job)
                case Record(event="iteration", fields=fields):
                    if self._world.gates is not None:
                        self._world.gates.iterated(self.name, machine.memory.session, fields)
                case StoreMemory():
                    self._memory = effect
                case Prepare(manifest=manifest):
                    self._link.use_chunks_of(manifest.chunk_bytes)
                    ready_s = self._world.clock.now + self.group.prepare_s
                    self._world.clock.at(ready_s, partial(self._prepared, machine, manifest.run))
                case FetchKeyframe(parts=parts):
                    self._listen_for_keyframe(parts)
                case ForgetKeyframe():
                    self._listen_for_keyframe(0)
                case FindShard(sha256=sha256):
                    found = self._card.has(sha256)
                    self._perform(machine, machine.shard_found(sha256, found=found, now=self._world.clock.now))
                case StoreShard(sha256=sha256, body=body):
                    self._card.put(sha256, len(body))
                    self._perform(machine, machine.shard_found(sha256, found=True, now=self._world.clock.now))
                case Rebirth():
                    self._be_reborn(machine)
                case Quit():
                    if self._transport is not None:
                        self._transport.close()
                    self._end()

    def _train(self, machine: Device, job: TrainJob) -> None:
        clock = self._world.clock
        self.timeline.enter("train", now=clock.now)
        try:
            result = self._trainer().train(job)
        except ProtocolError as error:
            clock.at(clock.now, partial(self._untrainable, machine, str(error)))
            return
        seconds = self._seconds(result, job)
        battery = self.group.battery
        if battery is not None and battery.capacity_j:
            needed_j, left_j = result.mini_batches * battery.batch_j, battery.capacity_j - self.energy_j
            if needed_j >= left_j:
                lasts_s = seconds * left_j / needed_j
                clock.at(clock.now + lasts_s, partial(self._emptied, machine, battery.capacity_j))
                return
        clock.at(clock.now + seconds, partial(self._trained, machine, job, result, seconds))

    def _seconds(self, result: Trained, job: TrainJob) -> float:
        """See the module's header."""
        sigma = self._jitter
        noise = math.exp(sigma * float(self._noise.standard_normal()) - sigma * sigma / 2) if sigma else 1.0
        return noise * self._batch_s * (result.mini_batches + result.evaluated * self._forward_share / job.batch)

    @property
    def _is_empty(self) -> bool:
        battery = self.group.battery
        return battery is not None and 0 < battery.capacity_j <= self.energy_j

    def _listen_for_keyframe(self, parts: int) -> None:
        before, self._keyframe_parts = self._keyframe_parts, parts
        if self._transport is None:
            return
        topics = [self._world.topics.model_part(part) for part in range(max(before, parts))]
        if surplus := tuple(topics[parts:]):
            self._transport.unsubscribe(surplus)
        if new := tuple(topics[before:]):
            self._transport.subscribe(new)

    def _be_reborn(self, machine: Device) -> None:
        """The will names the session, and a will can only be changed by connecting anew."""
        if self._transport is not None:
            self._transport.close()
        self._link.disconnected()
        machine.disconnected()
        self._dial(machine, self._link.wire.chunk_bytes)
