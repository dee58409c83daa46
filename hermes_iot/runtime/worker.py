"""Where training happens: beside the loop on one thread, or, for tests and scripts, inline.

A result is posted to the inbox like any other event; an exception is posted as a `Failed` and ends the process in the
loop's thread, never silently in the worker's.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from hermes_iot.runtime.loop import Inbox


@dataclass(frozen=True, slots=True)
class Failed:
    """The work raised."""

    error: BaseException


class Worker(Protocol):
    """Runs one piece of work at a time."""

    def submit(self, work: Callable[[], object]) -> None:
        """Run `work`; what it returns, or `Failed`, is posted."""

    def close(self) -> None:
        """Wait for the work that is running and start no more."""


class ThreadWorker:
    """One thread beside the loop."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")

    def submit(self, work: Callable[[], object]) -> None:
        """See `Worker`."""
        self._executor.submit(work).add_done_callback(self._done)

    def close(self) -> None:
        """See `Worker`."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _done(self, future: Future[object]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        self._inbox.post(future.result() if error is None else Failed(error))


class InlineWorker:
    """The caller's own thread: everything happens in the order it was asked for."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def submit(self, work: Callable[[], object]) -> None:
        """See `Worker`. What `work` raises is raised here."""
        self._inbox.post(work())

    def close(self) -> None:
        """Nothing to wait for."""
