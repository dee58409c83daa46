"""Devices that were asked to push and have not: asked again, with a growing pause, until they do or are gone.

The broker may lose a command like anything else, and a barrier would wait for whoever never heard it. Every summons has
a name of its own that is repeated with it, so a device follows it once however often it comes. An update is the only
answer that counts: a device may die between saying yes and pushing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hermes_iot.algorithms.strategies.base import Fleet
from hermes_iot.core.effects import Send
from hermes_iot.core.retry import Retry
from hermes_iot.domain import DeviceId
from hermes_iot.protocol.messages import Command

#: Of the coordinator's session in a summons' name, which has no room for more.
_SESSION_MAX = 40


@dataclass(slots=True, kw_only=True)
class Summons:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        session: the coordinator's: another process must not give names again that devices have followed.
        first_s, most_s: the first and the longest pause.
    """

    session: str
    first_s: float
    most_s: float
    _count: int = 0
    _open: dict[DeviceId, tuple[Command, Retry]] = field(default_factory=dict)

    def ask(self, device: DeviceId, *, now: float, allow_s: float) -> Send:
        """A device is summoned; it is given `allow_s` for the iteration it is at."""
        self._count += 1
        command = Command(id=f"push-{self.session[:_SESSION_MAX]}-{self._count}", name="push")
        retry = Retry(first_s=self.first_s, most_s=self.most_s)
        retry.start(now=now, allow_s=allow_s)
        self._open[device] = (command, retry)
        return Send(message=command, device=device)

    @property
    def pending(self) -> tuple[DeviceId, ...]:
        """Who was asked and has not pushed yet."""
        return tuple(self._open)

    def followed(self, device: DeviceId) -> None:
        """It has pushed."""
        self._open.pop(device, None)

    def again(self, fleet: Fleet, *, now: float) -> list[Send]:
        """What is to be said again now; who is not in the fleet any more is summoned anew when it comes back."""
        self._open = {device: one for device, one in self._open.items() if device in fleet}
        return [
            Send(message=command, device=device)
            for device, (command, retry) in self._open.items()
            if retry.due(now=now)
        ]
