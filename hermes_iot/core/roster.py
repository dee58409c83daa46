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
        live: those that work now, see `Live`.
    """

    def __init__(self, run: str, devices_max: int) -> None:
        self.members: dict[DeviceId, Member] = {}
        self.live = Live()
        self._run = run
        self._devices_max = devices_max

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    @property
    def online(self) -> int:
        """How many are there now."""
        return self.live.online

    def note(self, member: Member) -> bool:
        """A member may have come, left, paused or resumed; whether the fleet that works has changed by it."""
        paused = member.state is not None and member.state.phase == "paused"
        return self.live.note(member.device, online=member.online, works=member.online and not paused)

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
        member = self.members.get(device)
        if member is None:
            member = self.members[device] = Member(device=device, index=len(self.members))
        return member

    def allocations(self) -> Mapping[DeviceId, Allocation]:
        """Everybody's, whether they are there or not."""
        return {member.device: member.allocation for member in self if member.allocation is not None}


class Live:
    """The devices that are online and not paused, as strategies see them (`strategies.base.Fleet`).

    Kept up to date instead of counted: a fleet of ten thousand is asked for its size at every update.

    Attributes:
        online: how many are connected, paused ones included.
    """

    def __init__(self) -> None:
        self._online: set[DeviceId] = set()
        self._working: dict[DeviceId, None] = {}

    @property
    def online(self) -> int:
        """See the class."""
        return len(self._online)

    def note(self, device: DeviceId, *, online: bool, works: bool) -> bool:
        """Whether a device is there, and works; True when the latter is news."""
        (self._online.add if online else self._online.discard)(device)
        news = works != (device in self._working)
        if works:
            self._working.setdefault(device)
        else:
            self._working.pop(device, None)
        return news

    def __len__(self) -> int:
        return len(self._working)

    def __iter__(self) -> Iterator[DeviceId]:
        return iter(self._working)

    def __contains__(self, device: object) -> bool:
        return device in self._working
