"""Signals end a process in good order: SIGTERM drains and exits 0, Ctrl-C drains and exits 130; twice is at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from hermes_iot.cli import INTERRUPTED


class Terminated(BaseException):
    """SIGTERM came while there was nothing to drain yet, or nothing any more. Like KeyboardInterrupt no error."""


@dataclass(slots=True)
class Caught:
    """Which signal came, if any."""

    number: int | None = None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 0."""
        return INTERRUPTED if self.number == signal.SIGINT else 0


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that what was started is ended and what was locked is freed."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def leaving(stop: Callable[[], None]) -> Iterator[Caught]:
    """Call `stop` at the first SIGINT or SIGTERM; a second one interrupts whatever is running."""
    caught = Caught()

    def handle(number: int, _frame: FrameType | None) -> None:
        if caught.number is not None:
            raise KeyboardInterrupt
        caught.number = number
        stop()

    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def still_training() -> bool:
    """Whether an iteration goes on beside us."""
    worker = sys.modules.get("hermes_iot.runtime.worker")  # not loaded, not training
    return worker is not None and any(thread.name == worker.TRAINING for thread in threading.enumerate())
