"""The simulated coordinator: performs what its machine decides, beside the broker and at no cost of time.

The counterpart of `runtime.coordinator` without threads and disk; events and effects are handled in the same order.
Nobody else leads here and nothing is resumed, so checkpoints and the registry are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from hermes_iot.core.coordinator import Coordinator
from hermes_iot.core.effects import Effect, Quit, Record, Resend, Send, SendKeyframe
from hermes_iot.protocol import codec
from hermes_iot.protocol.messages import Allocation, CoordinatorStatus
from hermes_iot.runtime.coordinator_link import CoordinatorLink
from hermes_iot.runtime.simulation.clock import Timer
from hermes_iot.runtime.simulation.world import World
from hermes_iot.transport.base import Connected, Delivery, TransportEvent, Will

#: What the broker knows it by: no device may be called so, for the broker puts out whoever had an id before.
CLIENT_ID: Final = "$coordinator"
#: What it calls its session: there is only one.
SESSION: Final = "coordinator"


class SimulatedCoordinator:
    """See the module.

    Args:
        machine: makes the decisions.
        world: what everybody shares.
        observe: takes the machine's records.

    Attributes:
        running: until the machine quits.
    """

    def __init__(
        self, machine: Coordinator, *, world: World, observe: Callable[[str, Mapping[str, Any]], None] | None
    ) -> None:
        self.machine = machine
        self.running = True
        self._world = world
        self._observe = observe
        self._held: list[Send] = []
        self._timer = Timer(world.clock, self._expire)
        death = CoordinatorStatus(state="offline", session=SESSION, run=machine.manifest.run)
        will = Will(topic=world.topics.all("coordinator"), payload=codec.encode_json(death))
        self._transport = world.network.beside(CLIENT_ID, will)
        self._link = CoordinatorLink(machine, world.topics, self._transport)

    def start(self) -> None:
        """Connect and subscribe."""
        self._transport.subscribe(self._world.topics.of_coordinator())
        self._transport.start(self._hear, timeout_s=0.0)

    def finish(self, reason: str) -> None:
        """The simulation's own limits end the run, as one of its rules would."""
        if self.running and not self.machine.finished:
            self._perform(self.machine.finish(reason, now=self._world.clock.now))
            self._rest()

    # --- events ---------------------------------------------------------------------------------------------------

    def _hear(self, event: TransportEvent) -> None:
        # Behind what the broker still has to deliver, and outside its callback: there an error would only be logged.
        self._world.clock.at(self._world.clock.now, partial(self._handle, event))

    def _handle(self, event: TransportEvent) -> None:
        now = self._world.clock.now
        if not self.running:
            return
        if isinstance(event, Connected):
            self._link.connected(event)
            self._link.wire.hasten(now=now)
            self._perform(self.machine.connected(now=now))
        elif isinstance(event, Delivery):
            self._world.ledger.note(now, CLIENT_ID, event.topic, event.payload)
            self._perform(self._link.deliver(event, now=now))
        self._rest()

    def _expire(self) -> None:
        now = self._world.clock.now
        if self.running:
            self._perform(self._link.tend(now=now))
            self._perform(self.machine.expire(now=now))
            self._rest()

    def _rest(self) -> None:
        """Send the allocations that waited for the registry; then until the machine's or the wire's next deadline."""
        held, self._held = self._held, []
        for effect in held:
            self._link.perform(effect)
        deadline, transfer = self.machine.next_deadline(), self._link.next_deadline()
        if deadline is None or (transfer is not None and transfer < deadline):
            deadline = transfer
        self._timer.set(deadline)

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=Allocation()):
                    self._held.append(effect)
                case Send() | Resend():
                    self._link.perform(effect)
                case SendKeyframe(model=model):
                    self._link.perform_keyframe(model)
                case Record(event=event, fields=fields):
                    if self._observe is not None:
                        self._observe(event, {"elapsed_s": self.machine.progress.elapsed_s, **fields})
                case Quit():
                    self.running = False
