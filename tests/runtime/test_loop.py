"""The inbox is bounded for what the network posts, and the loop is fair to it."""

import threading

import pytest

from hermes_iot.runtime import loop
from hermes_iot.runtime.loop import Inbox, pump
from hermes_iot.transport.base import Connected, Delivery, Disconnected


def delivery(payload=b"", topic="t"):
    return Delivery(topic=topic, payload=payload)


def drained(inbox):
    events = []
    while (event := inbox.take(timeout_s=0)) is not None:
        events.append(event)
    return events


def test_more_messages_than_the_bound_are_dropped_and_counted():
    inbox = Inbox(messages_max=3)
    for number in range(5):
        inbox.deliver(delivery(str(number).encode()))
    assert inbox.dropped == 2
    assert [event.payload for event in drained(inbox)] == [b"0", b"1", b"2"]
    inbox.deliver(delivery(b"later"))
    assert [event.payload for event in drained(inbox)] == [b"later"]


def test_more_bytes_than_the_bound_are_dropped_and_counted():
    inbox = Inbox(bytes_max=2000)
    inbox.deliver(delivery(b"x" * 1000))
    inbox.deliver(delivery(b"y" * 1000))
    inbox.deliver(delivery(b"z" * 100))
    assert inbox.dropped == 1
    assert [event.payload[:1] for event in drained(inbox)] == [b"x", b"z"]
    inbox.deliver(delivery(b"y" * 1000))
    assert len(inbox) == 1, "the bytes of what was taken must be free again"


def test_many_empty_messages_count_for_what_they_cost():
    inbox = Inbox(bytes_max=10_000)
    for _ in range(1000):
        inbox.deliver(delivery(topic="hermes/v1/lab/up/pi-01/status"))
    assert len(inbox) < 50


def test_comings_and_goings_of_the_connection_fit_a_full_inbox():
    inbox = Inbox(messages_max=1)
    inbox.deliver(delivery(b"full"))
    inbox.deliver(Disconnected(reason="gone"))
    inbox.deliver(Connected())
    assert inbox.dropped == 0
    assert [type(event) for event in drained(inbox)] == [Delivery, Disconnected, Connected]


def test_what_this_process_posts_fits_a_full_inbox():
    inbox = Inbox(messages_max=1, bytes_max=1000)
    inbox.deliver(delivery(b"full"))
    for number in range(5):
        inbox.post(number)
    assert drained(inbox)[1:] == [0, 1, 2, 3, 4]
    inbox.post(delivery(b"x" * 2000))
    inbox.take(timeout_s=0)
    inbox.deliver(delivery(b"x" * 500))
    assert len(inbox) == 1, "a posted delivery must be taken out of the account it was entered in"


def test_taking_waits_for_another_thread():
    inbox = Inbox()
    thread = threading.Timer(0.02, inbox.post, args=["late"])
    thread.start()
    assert inbox.take(timeout_s=10) == "late"
    thread.join()


def test_an_idle_wait_ends_by_itself_because_a_signal_handler_may_wake_nobody(monkeypatch):
    inbox, waits = Inbox(), []

    def wait(seconds):
        waits.append(seconds)
        inbox._events.append("posted between the look and the wait, its notify went nowhere")

    monkeypatch.setattr(inbox._filled, "wait", wait)
    assert str(inbox.take(timeout_s=None)).startswith("posted")
    assert len(waits) == 1
    assert waits[0] <= 2.0


class Machine:
    """Counts, and stops the loop after so many events of any kind."""

    def __init__(self, stop_after, due):
        self.said = []
        self._left = stop_after
        self._due = due

    def handle(self, event):
        self._said(event)

    def expire(self):
        self._said("expired")

    def _said(self, what):
        self.said.append(what)
        self._left -= 1

    def run(self, inbox):
        pump(
            inbox,
            handle=self.handle,
            deadline=lambda: self._due,
            expire=self.expire,
            running=lambda: self._left > 0,
            clock=lambda: 0.0,
        )


def test_a_deadline_in_the_past_does_not_starve_the_inbox():
    inbox, machine = Inbox(), Machine(stop_after=7, due=-1.0)
    for number in range(3):
        inbox.post(number)
    machine.run(inbox)
    assert machine.said == ["expired", 0, "expired", 1, "expired", 2, "expired"]


def test_a_busy_inbox_does_not_starve_a_deadline():
    inbox, machine = Inbox(), Machine(stop_after=2, due=0.0)
    for number in range(10):
        inbox.post(number)
    machine.run(inbox)
    assert machine.said == ["expired", 0]


def test_a_timer_that_ends_the_loop_ends_it_before_the_next_event():
    inbox, machine = Inbox(), Machine(stop_after=1, due=-1.0)
    inbox.post("too late")
    machine.run(inbox)
    assert machine.said == ["expired"]


def test_events_come_in_order_while_no_deadline_is_due():
    inbox, machine = Inbox(), Machine(stop_after=3, due=None)
    for number in range(3):
        inbox.post(number)
    machine.run(inbox)
    assert machine.said == [0, 1, 2]


def test_what_was_dropped_is_said_once_the_flood_is_over(caplog):
    inbox, machine = Inbox(messages_max=2), Machine(stop_after=2, due=None)
    for number in range(5):
        inbox.deliver(delivery(str(number).encode()))
    with caplog.at_level("WARNING", logger=loop.__name__):
        machine.run(inbox)
    assert caplog.messages == ["inbox overflowed dropped=3"]


def test_an_error_in_a_handler_reaches_the_caller():
    inbox = Inbox()
    inbox.post("bad")

    def handle(_event):
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        pump(inbox, handle=handle, deadline=lambda: None, expire=lambda: None, running=lambda: True)
