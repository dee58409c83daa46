"""Who takes part in the run: the devices the coordinator knows, by name.

A device is let in when it comes online or says something of this run. What the broker has retained of devices that
were here in earlier runs lets nobody in: a fleet's history is not this run's list of devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hermes_iot.core.member import Member
from hermes_iot.domain import DeviceId
from hermes_iot.protocol.messages import Allocation, DeviceState, DeviceStatus, Message, Request, Update


class Roster:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        members: in the order they joined.
    """

    def __init__(self, run: str, devices_max: int) -> None:
        self.members: dict[DeviceId, Member] = {}
        self._run = run
        self._devices_max = devices_max

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    @property
    def online(self) -> int:
        """How many are there now."""
        return sum(member.online for member in self)

    @property
    def full(self) -> bool:
        """Nobody new is let in."""
        return len(self.members) >= self._devices_max

    def admits(self, message: Message) -> bool:
        """Whether what a stranger says lets it in."""
        match message:
            case DeviceStatus():
                return message.state == "online"
            case DeviceState() | Update() | Request():
                return message.run == self._run
        return False

    def admit(self, device: DeviceId) -> Member:
        """The member of this name, new if need be."""
        return self.members.setdefault(device, Member(device=device, index=len(self.members)))

    def allocations(self) -> Mapping[DeviceId, Allocation]:
        """Everybody's, whether they are there or not."""
        return {member.device: member.allocation for member in self if member.allocation is not None}
