"""One inbox, one owner: how a machine is driven.

Network and worker threads only post; the loop alone touches the machine. It blocks until something is posted or the
machine's next deadline is due, so an idle process uses next to no processor time. The inbox is bounded in messages
and in bytes: what the network posts beyond that is dropped and counted (the sender repeats what was not
acknowledged); what this process posts to itself always fits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from hermes_iot.transport.base import Delivery, TransportEvent

log = logging.getLogger(__name__)

#: Births and states of some ten thousand devices arrive in one burst when a coordinator starts.
MESSAGES_MAX: Final = 100_000
BYTES_MAX: Final = 512 * 1024 * 1024

#: What a waiting message costs beside its topic and payload (CPython, measured).
_MESSAGE_BYTES: Final = 256

#: The longest uninterrupted wait. A signal handler posts from the very thread that waits; one that runs between the
#: look for events and the wait for them wakes nobody, so the wait must end by itself, within a drain's ten seconds.
_WAIT_MAX_S: Final = 2.0


class Inbox:
    """A bounded queue of events for one consumer.

    Attributes:
        dropped: deliveries that found it full.
    """

    def __init__(self, *, messages_max: int = MESSAGES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.dropped = 0
        self._dropped_receipts: list[int] = []
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._events: deque[object] = deque()
        self._filled = threading.Condition()

    def __len__(self) -> int:
        return len(self._events)

    def deliver(self, event: TransportEvent) -> None:
        """From the network thread; never blocks. What says that a connection came or went always fits."""
        size = _size(event)
        with self._filled:
            full = len(self._events) >= self._messages_max or self._bytes + size > self._bytes_max
            if full and isinstance(event, Delivery):
                self.dropped += 1
                if event.receipt:
                    self._dropped_receipts.append(event.receipt)
                return
            self._bytes += size
            self._events.append(event)
            self._filled.notify()

    def dropped_receipts(self) -> list[int]:
        """Of what was dropped since the last call: a broker that goes on waiting for these delivers no more."""
        if not self._dropped_receipts:
            return []
        with self._filled:
            receipts, self._dropped_receipts = self._dropped_receipts, []
            return receipts

    def post(self, event: object) -> None:
        """From this process, a signal handler included; never dropped."""
        with self._filled:
            self._bytes += _size(event)
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
            self._bytes -= _size(event)
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
    said = 0
    while running():
        due = deadline()
        if due is not None and due <= clock():
            expire()
            # One event between two expiries at least, so that a deadline in the past cannot starve the inbox.
            event = inbox.take(timeout_s=0) if running() else None
        else:
            event = inbox.take(timeout_s=None if due is None else due - clock())
        if event is not None:
            handle(event)
        if inbox.dropped != said and not len(inbox):
            log.warning("inbox overflowed dropped=%d", inbox.dropped - said)
            said = inbox.dropped


def _size(event: object) -> int:
    return len(event.topic) + len(event.payload) + _MESSAGE_BYTES if isinstance(event, Delivery) else 0
