"""Virtual time: what is made when, and how a timer follows a deadline that moves."""

import pytest

from hermes_iot.errors import HermesError
from hermes_iot.runtime.simulation.clock import Timer, VirtualClock


def run(clock):
    while clock.step():
        pass


def test_calls_are_made_in_the_order_of_their_time_and_then_of_their_asking():
    clock, made = VirtualClock(), []
    for time_s, name in ((2.0, "b"), (1.0, "a"), (2.0, "c")):
        clock.at(time_s, lambda name=name: made.append((clock.now, name)))
    run(clock)
    assert made == [(1.0, "a"), (2.0, "b"), (2.0, "c")]
    assert clock.handled == 3


def test_what_is_asked_for_in_the_past_is_made_now_behind_what_is_due_already():
    clock, made = VirtualClock(), []
    clock.at(5.0, lambda: clock.at(1.0, lambda: made.append(("late", clock.now))))
    clock.at(5.0, lambda: made.append(("due", clock.now)))
    run(clock)
    assert made == [("due", 5.0), ("late", 5.0)]


def test_what_a_moments_last_call_asks_for_at_once_is_made_before_time_goes_on():
    clock, made = VirtualClock(), []
    clock.at(1.0, lambda: clock.at(1.0, lambda: made.append(clock.now)))
    clock.at(2.0, lambda: made.append(clock.now))
    run(clock)
    assert made == [1.0, 2.0]
    assert not clock.step()


def test_a_timer_rings_once_at_the_newest_deadline_wherever_it_was_moved():
    clock, rang = VirtualClock(), []
    timer = Timer(clock, lambda: rang.append(clock.now))
    timer.set(3.0)
    clock.at(1.0, lambda: timer.set(7.0))  # later
    clock.at(2.0, lambda: timer.set(4.0))  # earlier than that
    run(clock)
    assert rang == [4.0]


def test_a_timer_that_is_called_off_does_not_ring():
    clock, rang = VirtualClock(), []
    timer = Timer(clock, lambda: rang.append(clock.now))
    timer.set(3.0)
    timer.set(None)
    run(clock)
    assert rang == []


def test_moving_a_deadline_to_later_leaves_one_entry_in_the_queue():
    clock = VirtualClock()
    timer = Timer(clock, lambda: None)
    for step in range(10_000):
        timer.set(1.0 + step)
    run(clock)
    assert clock.handled == 2  # the first entry comes up too early and asks again


def test_a_machine_that_would_spin_is_found_out():
    clock = VirtualClock()
    timer = Timer(clock, lambda: timer.set(clock.now))
    timer.set(1.0)
    with pytest.raises(HermesError, match="woken at 1 s for ever"):
        run(clock)
