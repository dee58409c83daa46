"""Where training happens: beside the loop, on one thread.

A result is posted to the inbox like any other event; an exception is posted as a `Failed` and ends the process in the
loop's thread, never silently in the worker's.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from hermes_iot.runtime.loop import Inbox

#: The name of the thread that trains.
TRAINING: Final = "training"
#: How long a process that was told to leave waits for the iteration that is running.
LEAVE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Failed:
    """The work raised."""

    error: BaseException


class Worker(Protocol):
    """Runs one piece of work at a time."""

    def submit(self, work: Callable[[], object]) -> None:
        """Run `work`; what it returns, or `Failed`, is posted."""

    def close(self) -> None:
        """Start no more work, and wait a little for what is running."""


class ThreadWorker:
    """One daemon thread beside the loop: an iteration may take minutes, and must not hold up a process that leaves."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=TRAINING, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], object]) -> None:
        """See `Worker`."""
        self._work.put(work)

    def close(self) -> None:
        """See `Worker`."""
        self._closed = True
        self._work.put(None)
        self._thread.join(LEAVE_S)

    def _run(self) -> None:
        while (work := self._work.get()) is not None and not self._closed:
            self._inbox.post(_outcome(work))


def _outcome(work: Callable[[], object]) -> object:
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 - whatever it is, a task's sys.exit() included, the loop must hear of it
        return Failed(error)
