"""Waiting for room on a disk: when to try again, and what is said of it once rather than at every try.

Shared by both roles. A full disk is the one failure of a disk that mends itself (somebody clears a log, another
program ends), so it is waited out; every other one ends the process as it always did. Tries are as far apart as they
have been of late: a disk with room for one record and not for the next would else stop and start a fleet every second.
"""

from __future__ import annotations

import logging
import math
from typing import Final

from hermes_iot.storage.atomic import DiskFull

log = logging.getLogger(__name__)

FIRST_S: Final = 1.0
MOST_S: Final = 30.0
#: Room that lasted so long was room; what comes after it is another shortage.
LASTED_S: Final = 60.0


class Space:
    """Mutable, owned by one loop; pulled like every timer.

    Args:
        meanwhile: what the process does without room, for the log.

    Attributes:
        deadline: when to try again; None where nothing waits for room.
        reason: what the newest try failed with, in a few words; empty where nothing waits.
    """

    def __init__(self, meanwhile: str) -> None:
        self.deadline: float | None = None
        self.reason = ""
        self._meanwhile = meanwhile
        self._pause_s = 0.0
        self._back_at = -math.inf

    @property
    def wanted(self) -> bool:
        """Whether something waits to be written."""
        return self.deadline is not None

    def due(self, *, now: float) -> bool:
        """Whether to try again."""
        return self.deadline is not None and now >= self.deadline

    def missing(self, error: DiskFull, *, now: float) -> bool:
        """A try failed; whether that is news."""
        news = not self.wanted
        if news and now >= self._back_at + LASTED_S:
            self._pause_s = 0.0
            log.error("%s; %s until there is room", error, self._meanwhile)
        self._pause_s = min(max(FIRST_S, 2 * self._pause_s), MOST_S)
        self.deadline, self.reason = now + self._pause_s, error.why
        return news

    def back(self, *, now: float) -> None:
        """Everything could be written."""
        if self.wanted:
            log.warning("there is room on the disk again")
            self.deadline, self.reason, self._back_at = None, "", now
