"""Whose device id is it? The one question no machine can answer: two processes under one client id.

The broker lets the newest connection win, so two such processes push each other out. Brokers say so, but Mosquitto
before 2.0.15 does not (its issue 2607): there both only see lost connections. So a device listens to its own
``status`` too: once its own birth has come back, a birth that is not its own proves that somebody else lives under the
id. (Before that it may be this board's earlier life, whose will is still to come, with a state directory that was
lost since.) A session that must be raised twice in one life proves the same: after the first time only somebody else
can have said more. The one who has once served undisturbed for a while is in the right; the younger one gives way.
"""

from __future__ import annotations

import logging
from typing import Final

from hermes_iot.errors import IdConflict
from hermes_iot.protocol.messages import DeviceStatus

log = logging.getLogger(__name__)

#: A process that was once connected for so long at a stretch is the incumbent of its id; a younger one gives way. (Not
#: in all: two who push each other out every second would both get there.)
INCUMBENT_AFTER_S = 10.0
RETAKE_AFTER_S: Final = 2.0
_SHOWN_CHARACTERS_MAX: Final = 64


class Claim:
    """One process's claim on its device id.

    Attributes:
        retake_at: when to take the id back; None when there is nothing to take back.
    """

    def __init__(self, device: str, fleet: str, *, instance: str, host: str = "") -> None:
        self.retake_at: float | None = None
        self._host = host
        self._other_host = ""  # of whoever was born under the id last and is not us
        self._device = device
        self._fleet = fleet
        self._instance = instance
        self._served_s = 0.0
        self._reborn = False
        self._since: float | None = None
        self._told = False

    def connected(self, *, now: float) -> None:
        """Service begins, or goes on on a new connection."""
        self._pause(now)
        self._since = now

    def disconnected(self, *, taken_over: bool, now: float) -> None:
        """Service is interrupted.

        Raises:
            IdConflict: another process connected under the id, and it is not ours.
        """
        self._pause(now)
        if taken_over:
            self._defend(now)
            self.retake_at = now + RETAKE_AFTER_S

    def reborn(self, *, now: float) -> None:
        """Our session has changed: its birth has still to come back.

        Raises:
            IdConflict: it has changed before, so another process lives under the id, and it is not ours.
        """
        if self._reborn:
            self._defend(now)
        self._told, self._reborn = False, True

    def heard(self, status: DeviceStatus, *, session: int, now: float) -> None:
        """A word on our own ``status``.

        Raises:
            IdConflict: another process lives under the id, and it is not ours.
        """
        if status.state != "online":
            return
        if status.instance == self._instance and status.session < session:
            return  # our own earlier life: a broker may repeat it, or come back from a crash with it
        if (status.instance, status.session) == (self._instance, session):
            self._told = True
            return
        if self._told or status.instance != self._instance:  # else it may be what we said ourselves, earlier
            self._other_host = status.host[:_SHOWN_CHARACTERS_MAX]
        if self._told:
            self._defend(now)

    def _defend(self, now: float) -> None:
        served_s = max(self._served_s, now - self._since if self._since is not None else 0.0)
        if served_s < INCUMBENT_AFTER_S:
            where = f"on host {self._other_host!r} " if self._other_host else ""
            here = f"; this one runs on host {self._host!r}" if self._host else ""
            raise IdConflict(
                f"device id {self._device!r} is in use in fleet {self._fleet!r}",
                why=f"another process {where}connected under it{here}",
                mend="Give this device another --id, or stop the other one",
            )
        other = self._other_host or "unknown"
        log.warning("another process uses device id %s host=%s: it should give way", self._device, other)

    def _pause(self, now: float) -> None:
        if self._since is not None:
            self._served_s = max(self._served_s, now - self._since)
            self._since = None
