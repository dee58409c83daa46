"""What a transport said, in order; waiting has a limit, and the limit is a failure."""

import queue
import time

from hermes_iot.transport.base import Connected, Delivery, Disconnected

PATIENCE_S = 10.0


class Inbox:
    """An `on_event` that keeps everything."""

    def __init__(self):
        self._events = queue.SimpleQueue()

    def __call__(self, event):
        self._events.put(event)

    def next(self, timeout_s=PATIENCE_S):
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError("no event came in time") from None

    def first(self, kind, timeout_s=PATIENCE_S):
        """Skip to the first event of a kind."""
        deadline = time.monotonic() + timeout_s
        while not isinstance(event := self.next(max(0.0, deadline - time.monotonic())), kind):
            pass
        return event

    def delivery(self):
        return self.first(Delivery)

    def connected(self):
        return self.first(Connected)

    def disconnected(self):
        return self.first(Disconnected)

    def payloads_until(self, last):
        """The payloads of the deliveries up to and without the one that says `last`."""
        found = []
        while (payload := self.delivery().payload) != last:
            found.append(payload)
        return found

    def waiting(self):
        """What has come and was not looked at yet."""
        found = []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def silent_for(self, seconds):
        """Nothing comes for so long."""
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return True
        raise AssertionError(f"unexpected: {event}")
