"""Whether somebody leads: what a device believes of its coordinator.

`all/coordinator` is retained and its last will may be published long after the next coordinator has come, so a death
counts only when it is the death of the session last seen alive.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_iot.protocol.messages import CoordinatorStatus


@dataclass(slots=True, kw_only=True)
class Leader:
    """Mutable, owned by one `Device`.

    Attributes:
        online: somebody leads.
        session: of the coordinator last seen online; empty before the first.
        devices: how many it leads, as it said last.
    """

    online: bool = False
    session: str = ""
    devices: int = 0

    def heard(self, status: CoordinatorStatus) -> bool:
        """Take a status over; whether a coordinator has just come, or been replaced by another."""
        if status.state == "offline":
            if status.session == self.session:
                self.online = False
            return False
        came = not self.online or status.session != self.session
        self.online, self.session, self.devices = True, status.session, status.devices_online
        return came
