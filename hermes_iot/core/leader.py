"""Whether somebody leads: what a device believes of its coordinator.

`all/coordinator` is retained and its last will may be published long after the next coordinator has come, so a death
counts only when it is the death of the session last seen alive.

One that leads and says that it takes nothing in is, for a device, not there: what is sent to it would be thrown away.
The word that it does again is as good as its coming.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_iot.protocol.messages import CoordinatorStatus


@dataclass(slots=True, kw_only=True)
class Leader:
    """Mutable, owned by one `Device`.

    Attributes:
        online: somebody leads, and takes in what is sent.
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
        there, came = not status.reason, not self.online or status.session != self.session
        self.online, self.session, self.devices = there, status.session, status.devices_online
        return there and came
