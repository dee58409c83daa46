"""Signals end a process in good order: SIGTERM drains and exits 0, Ctrl-C drains and exits 130; twice is at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from hermes_iot.cli import INTERRUPTED


@dataclass(slots=True)
class Caught:
    """Which signal came, if any."""

    number: int | None = None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 0."""
        return INTERRUPTED if self.number == signal.SIGINT else 0


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
