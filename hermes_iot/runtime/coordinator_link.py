"""A coordinator's link: what passes over it is told to its machine, which counts every byte of a run's traffic.

Shared by a coordinator and a simulated one, so that a run and its simulation count alike.
"""

from __future__ import annotations

from collections.abc import Callable

from hermes_iot.core.coordinator import Coordinator
from hermes_iot.core.effects import Effect, Resend, Send
from hermes_iot.domain import DeviceId
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import Model, Shard, TensorMessage
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import ROUTES
from hermes_iot.runtime.link import Link
from hermes_iot.transport.base import Delivery, Transport


class CoordinatorLink(Link):
    """See the module.

    Args:
        machine: counts, and decides what a delivery means.
        topics: of the fleet.
        transport: moves the bytes.
        keyframe_parts: chunks of an earlier keyframe that the broker may hold.
        on_dropped: told of a delivery that breaks the rules.
    """

    def __init__(
        self,
        machine: Coordinator,
        topics: Topics,
        transport: Transport,
        *,
        keyframe_parts: int = 0,
        on_dropped: Callable[[Delivery, ProtocolError], None] = lambda _delivery, _error: None,
    ) -> None:
        super().__init__(topics, transport)
        self.take_part(machine.manifest)
        self._machine = machine
        self._keyframe_parts = keyframe_parts
        self._on_dropped = on_dropped

    def deliver(self, delivery: Delivery, *, now: float) -> list[Effect]:
        """Hand a delivery to the machine; what it wants done about it."""
        address = self.topics.parse(delivery.topic)
        if address is None or not delivery.payload:
            return []
        self._machine.carried(address.channel, up=len(delivery.payload))
        try:
            received = self.decode(delivery, now=now)
            return self._machine.received(received, now=now) if received is not None else []
        except ProtocolError as error:
            self._on_dropped(delivery, error)
            return self._machine.malformed(address.device, address.channel, error.reason)

    def tend(self, *, now: float) -> list[Effect]:
        """Half-received updates: drop those that are late, and say what is missing of the others."""
        self.expire(now=now)
        return self._machine.stalled(self.gaps(now=now))

    def perform(self, effect: Send | Resend) -> None:
        """Send a message of the machine's, or parts of one."""
        if isinstance(effect, Resend):
            self.resend(effect)
            return
        sent = self.send(effect.message, device=effect.device)
        if not isinstance(effect.message, Model | Shard):  # of those, whatever was handed over is counted already
            self._machine.carried(ROUTES[type(effect.message)].channel, down=sent, tensor=False)

    def _carried(self, message: TensorMessage, sent: int) -> None:
        self._machine.carried(ROUTES[type(message)].channel, down=sent)

    def _sending(self, message: TensorMessage, device: str, transfer: str) -> None:
        if isinstance(message, Model | Shard):
            self._machine.shipped(DeviceId(device), transfer, message)

    def perform_keyframe(self, model: Model) -> None:
        """Send a keyframe: counted once, as handed over; what devices fetch of it is in their own counters."""
        tensors, head, self._keyframe_parts = self.send_keyframe(model, parts_before=self._keyframe_parts)
        self._machine.carried("model_part", down=tensors)
        self._machine.carried("model", down=head, tensor=False)
