"""Who takes part in the run: the devices the coordinator knows, by name.

A device is let in when it comes online or says something of this run. What the broker has retained of devices that
were here in earlier runs lets nobody in: a fleet's history is not this run's list of devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hermes_iot.core.member import Member
from hermes_iot.core.patience import excuse_of
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

    def at_work(self) -> Iterator[Member]:
        """The members that work now."""
        members = self.members
        return (members[device] for device in self.live)

    @property
    def online(self) -> int:
        """How many are there now."""
        return self.live.online

    def note(self, member: Member) -> bool:
        """A member may have come, left, paused, resumed, failed or recovered; whether the working fleet changed by it."""
        paused = member.state is not None and member.state.phase == "paused"
        over = member.state is not None and member.state.phase == "finished"
        return self.live.note(
            member.device,
            online=member.online,
            works=member.online and not paused and not excuse_of(member),
            speaks=member.online and not over,
        )

    @property
    def all_said(self) -> bool:
        """Every device that is there has reported that it has finished."""
        return not self.live.speaking

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
        """Everybody's, whether they are there or not: a look at the members, not a copy of them."""
        return _Allocations(self.members)


class _Allocations(Mapping[DeviceId, Allocation]):
    """Looking one up costs the same however many there are."""

    def __init__(self, members: Mapping[DeviceId, Member]) -> None:
        self._members = members

    def __getitem__(self, device: DeviceId) -> Allocation:
        member = self._members.get(device)
        if member is None or member.allocation is None:
            raise KeyError(device)
        return member.allocation

    def __iter__(self) -> Iterator[DeviceId]:
        return (member.device for member in self._members.values() if member.allocation is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Live:
    """The devices that are online, not paused and not excused, as strategies see them (`strategies.base.Fleet`).

    Kept up to date instead of counted: a fleet of ten thousand is asked for its size at every update.

    Attributes:
        online: how many are connected, paused and excused ones included.
        speaking: how many of them have not reported that they have finished.
    """

    def __init__(self) -> None:
        self._online: set[DeviceId] = set()
        self._speaking: set[DeviceId] = set()
        self._working: dict[DeviceId, None] = {}

    @property
    def online(self) -> int:
        """See the class."""
        return len(self._online)

    @property
    def speaking(self) -> int:
        """See the class."""
        return len(self._speaking)

    def note(self, device: DeviceId, *, online: bool, works: bool, speaks: bool) -> bool:
        """Whether a device is there, works, and has yet to finish; True when the second is news."""
        (self._online.add if online else self._online.discard)(device)
        (self._speaking.add if speaks else self._speaking.discard)(device)
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
