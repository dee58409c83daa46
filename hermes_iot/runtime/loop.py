"""One inbox, one owner: how a machine is driven.

Network and worker threads only post; the loop alone touches the machine. It blocks until something is posted or the
machine's next deadline is due, so an idle process uses no processor time. The inbox is bounded in messages and in
bytes: what the network posts beyond that is dropped and counted (the sender repeats what was not acknowledged);
what this process posts to itself always fits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from hermes_iot.transport.base import Delivery, TransportEvent

E = TypeVar("E")

MESSAGES_MAX = 20_000
BYTES_MAX = 512 * 1024 * 1024

#: The longest uninterrupted wait; only a bound for `Condition.wait`, which refuses very long ones.
_WAIT_MAX_S = 3600.0


class Inbox:
    """A bounded queue of events for one consumer.

    Attributes:
        dropped: deliveries that found it full.
    """

    def __init__(self, *, messages_max: int = MESSAGES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.dropped = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._events: deque[object] = deque()
        self._filled = threading.Condition()

    def __len__(self) -> int:
        return len(self._events)

    def deliver(self, event: TransportEvent) -> None:
        """From the network thread; never blocks."""
        size = len(event.payload) if isinstance(event, Delivery) else 0
        with self._filled:
            full = len(self._events) >= self._messages_max or self._bytes + size > self._bytes_max
            if full and isinstance(event, Delivery):
                self.dropped += 1
                return
            self._bytes += size
            self._events.append(event)
            self._filled.notify()

    def post(self, event: object) -> None:
        """From this process; never dropped."""
        with self._filled:
            self._events.append(event)
            self._filled.notify()

    def take(self, *, timeout_s: float | None) -> object | None:
        """The oldest event; None when none came in time."""
        with self._filled:
            until = None if timeout_s is None else time.monotonic() + timeout_s
            while not self._events:
                left = _WAIT_MAX_S if until is None else min(_WAIT_MAX_S, until - time.monotonic())
                if left <= 0:
                    return None
                self._filled.wait(left)
            event = self._events.popleft()
            if isinstance(event, Delivery):
                self._bytes -= len(event.payload)
            return event


def pump(
    inbox: Inbox,
    *,
    handle: Callable[[object], None],
    deadline: Callable[[], float | None],
    expire: Callable[[], None],
    running: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Drive a machine until `running` says no: events as they come, timers when they are due."""
    while running():
        due = deadline()
        if due is not None and due <= clock():
            expire()
            # One event between two expiries at least, so that a deadline in the past cannot starve the inbox.
            event = inbox.take(timeout_s=0)
        else:
            event = inbox.take(timeout_s=None if due is None else due - clock())
        if event is not None:
            handle(event)
