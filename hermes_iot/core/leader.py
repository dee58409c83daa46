"""Whether somebody leads: what a device believes of its coordinator.

`all/coordinator` is retained and its last will may be published long after the next coordinator has come, so a death
counts only when it is the death of the session last seen alive.

A coordinator that was taken over may not know it yet. Its words carry a lower epoch than its successor's and are refused
while the successor is heard. Not for ever: a broker that lost its store, or came back with half of an old one, has lost
the count too, and the next coordinator begins it anew. So it is forgotten with the connection, and with a silence.

One that leads and says that it takes nothing in is, for a device, not there: what is sent to it would be thrown away.
The word that it does again is as good as its coming.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import CoordinatorStatus

#: Who leads says so every two seconds, but where it measures a large model.
SILENT_S: Final = 15.0


@dataclass(slots=True, kw_only=True)
class Leader:
    """Mutable, owned by one `Device`.

    Attributes:
        online: somebody leads, and takes in what is sent.
        session: of the coordinator last seen online; empty before the first.
        devices: how many it leads, as it said last.
        devices_most: the most there ever were: one that has just begun to lead has not met everybody yet.
        epoch, heard_at: the newest, and when a word of it was heard last.
    """

    online: bool = False
    session: str = ""
    devices: int = 0
    devices_most: int = 0
    epoch: int = 0
    heard_at: float = -math.inf

    def connected(self) -> None:
        """A connection begins."""
        self.epoch = 0

    def check(self, epoch: int, *, now: float) -> None:
        """A message of this epoch came.

        Raises:
            ProtocolError: ``epoch`` when a later coordinator has spoken.
        """
        if not epoch:
            return
        if epoch < self.epoch and now < self.heard_at + SILENT_S:
            raise ProtocolError("epoch", f"coordinator {epoch} was taken over by {self.epoch}")
        self.epoch, self.heard_at = epoch, now

    def heard(self, status: CoordinatorStatus) -> bool:
        """Take a status over; whether a coordinator has just come, or been replaced by another."""
        if status.state == "offline":
            if status.session == self.session:
                self.online = False
            return False
        there, came = not status.reason, not self.online or status.session != self.session
        self.online, self.session, self.devices = there, status.session, status.devices_online
        self.devices_most = max(self.devices_most, self.devices)
        return there and came
