"""What a device is apart from any run: its name and memory, its connection, and what it was told to do.

A run comes and goes (`participation`); this stays, and is shared by the machine and by whatever run it takes part in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hermes_iot.core.effects import Send, StoreMemory
from hermes_iot.core.leader import Leader
from hermes_iot.core.settings import DeviceSettings
from hermes_iot.domain import DeviceId
from hermes_iot.protocol.messages import DeviceState, DeviceStatus, Metrics, Request, Response, Update


@dataclass(slots=True, kw_only=True)
class Board:
    """Mutable, owned by one `Device`.

    Attributes:
        memory: what the shell has been asked to write down.
        birth: what is said at every connection.
        busy: an iteration is running, maybe still one of an earlier run.
        paused, draining: as commanded.
        uploading: an update is still on its way to the broker.
    """

    device: DeviceId
    settings: DeviceSettings
    memory: StoreMemory
    birth: DeviceStatus
    leader: Leader = field(default_factory=Leader)
    connected: bool = False
    busy: bool = False
    paused: bool = False
    draining: bool = False
    uploading: bool = False

    @property
    def heard(self) -> bool:
        """Whether somebody who leads is likely to get what is sent now."""
        return self.connected and self.leader.online

    def send(self, message: DeviceStatus | DeviceState | Update | Request | Metrics | Response) -> Send:
        """On this device's own topics."""
        return Send(message=message, device=self.device)
