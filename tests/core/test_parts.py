"""The small parts of the machines, each alone."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.core.leader import Leader
from hermes_iot.core.member import Member, Totals
from hermes_iot.core.outbox import Outbox
from hermes_iot.core.pace import Pace, Stopwatch
from hermes_iot.core.retry import Retry
from hermes_iot.core.roster import Roster
from hermes_iot.core.shelf import Shelf
from hermes_iot.core.sizing import fitted
from hermes_iot.core.stopping import Progress, StopRules, reason_to_stop
from hermes_iot.core.tally import Tally, kind_of
from hermes_iot.domain import DeviceId, Sizing
from hermes_iot.errors import UsageError
from tests.core.hand import allocation, offline, online, state, update

times = st.floats(-1e9, 1e9)
pauses = st.floats(1e-3, 1e6)


# --- timers never spin ------------------------------------------------------------------------------------------------


@given(times, pauses)
def test_a_pace_is_due_at_its_deadline_and_not_right_after_it_was_done(start, pause):
    pace = Pace(interval_s=pause, done_at=start)
    due = pace.deadline
    assert pace.due(now=due)
    pace.done_at = due
    assert pace.deadline > due


@given(times, pauses)
def test_a_stopwatch_has_reached_its_limit_at_its_deadline(start, limit):
    watch = Stopwatch(started_at=start, limit_s=limit)
    assert watch.elapsed_s(now=watch.deadline) >= limit
    assert watch.elapsed_s(now=start) == watch.elapsed_s(now=start - 1.0) == 0.0
    assert Stopwatch(started_at=start, limit_s=None).deadline is None


@given(times, pauses, pauses, st.integers(1, 20))
def test_a_retry_is_due_at_its_deadline_and_every_next_one_lies_ahead(start, first, most, turns):
    retry = Retry(first_s=first, most_s=max(first, most))
    assert not retry.due(now=start)
    retry.start(now=start)
    for _ in range(turns):
        due = retry.deadline
        assert retry.due(now=due)
        assert due < retry.deadline <= due + 2 * max(first, most)


def test_a_retry_doubles_up_to_its_cap_and_hastening_begins_anew():
    retry = Retry(first_s=1.0, most_s=5.0)
    retry.start(now=0.0)
    seen = []
    for _ in range(5):
        seen.append(retry.deadline)
        retry.due(now=retry.deadline)
    assert seen == [1.0, 3.0, 7.0, 12.0, 17.0]
    retry.hasten(now=18.0)
    assert retry.due(now=18.0)
    assert retry.deadline == 20.0
    retry.stop()
    retry.hasten(now=30.0)
    assert retry.deadline is None


# --- the outbox -------------------------------------------------------------------------------------------------------


def outbox(seq: int = 3) -> Outbox:
    box = Outbox(retry=Retry(first_s=1.0, most_s=8.0))
    box.put(update(seq), now=0.0)
    return box


@pytest.mark.parametrize(
    ("mark", "covered"), [((1, 2), False), ((1, 3), True), ((1, 9), True), ((0, 99), False), ((2, 0), True)]
)
def test_an_ack_covers_what_is_not_newer(mark, covered):
    box = outbox()
    box.acked(*mark)
    assert (box.update is None) == covered
    assert box.awaiting == (1, 3)


def test_ack_and_answer_may_come_in_either_order_or_only_the_answer():
    box = outbox()
    box.acked(1, 3)
    assert box.answered(1, 3)
    box = outbox()
    assert box.answered(1, 3)
    assert box.update is None
    box.acked(1, 3)
    assert not box.answered(1, 3)
    assert box.retry.deadline is None


def test_an_answer_to_a_request_counts_once_and_only_after_one_was_made():
    box = outbox()
    assert not box.answered(0, 0)
    assert box.due(now=1.001)  # the update itself is repeated
    assert not box.answered(0, 0)
    box.acked(1, 3)
    assert not box.answered(0, 0)
    assert box.due(now=3.001)  # now the model is asked for
    assert box.answered(0, 0)
    assert not box.answered(0, 0)


def test_a_newer_update_is_not_answered_by_what_was_asked_for_the_older():
    box = outbox(3)
    box.acked(1, 3)
    box.due(now=1.0)
    box.put(update(4), now=2.0)
    box.acked(1, 4)
    assert not box.answered(0, 0)
    assert not box.answered(1, 3)
    assert box.answered(1, 4)


# --- the shelf --------------------------------------------------------------------------------------------------------


def test_an_allocation_of_rows_at_hand_is_in_force_at_once():
    shelf = Shelf()
    assert shelf.offer(allocation(2))
    assert shelf.advance()
    assert shelf.allocation.version == 2
    assert not shelf.offer(allocation(2))
    assert not shelf.offer(allocation(1))
    assert not shelf.advance()


def test_the_old_allocation_serves_until_the_new_ones_shard_is_here():
    shelf = Shelf()
    shelf.offer(allocation(1))
    shelf.advance()
    shelf.offer(allocation(2, rows=(), shard="aa" * 32))
    assert not shelf.advance()
    assert shelf.wanted() == ["aa" * 32]
    assert shelf.wanted() == []
    assert shelf.missing() == ["aa" * 32]
    assert shelf.allocation.version == 1
    shelf.stored("aa" * 32)
    assert shelf.advance()
    assert shelf.shard(prefer_next=True) == "aa" * 32


def test_a_shard_nobody_looked_for_is_not_held():
    shelf = Shelf()
    shelf.stored("cc" * 32)
    shelf.offer(allocation(1, rows=(), shard="cc" * 32))
    assert not shelf.advance()


def test_no_shard_that_is_awaited_is_longer_than_the_allocations_say():
    shelf = Shelf()
    assert shelf.shard_bytes_max is None
    shelf.offer(allocation(1))
    shelf.advance()
    assert shelf.shard_bytes_max is None, "its rows are at hand"
    both = {"shard": "aa" * 32, "shard_bytes": 70, "next_shard": "bb" * 32, "next_shard_bytes": 71}
    shelf.offer(allocation(2, rows=(), **both))
    assert shelf.shard_bytes_max == 71
    shelf.stored("aa" * 32)
    shelf.wanted()
    shelf.stored("aa" * 32)
    shelf.advance()
    shelf.offer(allocation(3, rows=(), shards=("cc" * 32, "dd" * 32), shard_bytes=40))
    assert shelf.shard_bytes_max == 71, "the one in force may still be on its way"
    shelf.wanted()
    shelf.stored("cc" * 32)
    shelf.advance()
    assert shelf.shard_bytes_max == 40
    shelf.offer(allocation(4, rows=(), shards=("ee" * 32,)))
    assert shelf.shard_bytes_max is None, "an older coordinator does not say how long its pieces are"


def test_what_was_rejected_may_have_another_try_unless_there_is_something_newer():
    shelf = Shelf()
    shelf.offer(allocation(3))
    shelf.advance()
    shelf.reject("")
    assert shelf.allocation is None
    assert not shelf.offer(allocation(3))
    assert not shelf.advance()
    shelf.retry()
    assert shelf.advance()
    shelf.reject("")
    assert shelf.offer(allocation(4))
    shelf.retry()
    assert shelf.advance()
    assert shelf.allocation.version == 4


# --- who leads --------------------------------------------------------------------------------------------------------


def test_a_coordinator_comes_goes_and_is_replaced():
    leader = Leader()
    assert [leader.heard(one) for one in (offline("x"), online("a"), online("a"), offline("a"), online("a"))] == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert leader.heard(online("b"))
    assert not leader.heard(offline("a"))
    assert leader.online


# --- a member ---------------------------------------------------------------------------------------------------------


def test_counters_begin_anew_with_a_session_and_an_older_report_changes_nothing():
    member = Member(device="d1", index=0)
    for session, iterations in ((1, 5), (1, 9), (2, 3), (4, 1)):
        assert member.reported(state(session, iterations=iterations), now=0.0)
    assert not member.reported(state(2, iterations=100), now=0.0)
    assert member.totals().iterations == 9 + 3 + 1
    member.session = 6
    assert not member.reported(state(5, iterations=100), now=0.0)


def test_totals_add_up():
    one, other = Totals(iterations=1, bytes_up=10), Totals(iterations=2, published=3)
    assert one.plus(other) == Totals(iterations=3, published=3, bytes_up=10)


def test_handled_marks_only_grow_whatever_life_they_are_of():
    member = Member(device="d1", index=0, session=2)
    member.handle(1, 99)
    assert (member.handled, member.acked) == ((1, 99), (2, 0))
    member.handle(2, 5)
    member.handle(2, 3)
    member.handle(1, 100)
    assert (member.handled, member.acked) == ((2, 5), (2, 5))


def test_the_first_and_the_newest_times_are_kept():
    member = Member(device="d1", index=0)
    for turn in range(1, 101):
        member.allotted(allocation(turn, samples=turn), now=0.0)
        member.reported(state(1, samples=turn, batch=5, iteration_s=float(turn)), now=0.0)
        member.reported(state(1, samples=turn, batch=5, iteration_s=turn + 0.5), now=0.0)
    assert len(member.timings) <= 17
    assert [member.timings[0].iteration_s, member.timings[-1].iteration_s] == [1.5, 100.5]
    row = member.summary()
    assert (row["samples_before"], row["iteration_s_before"], row["iteration_s"]) == (1, 1.5, 100.5)


# --- sizes, rules, counters -------------------------------------------------------------------------------------------


@given(st.integers(1, 2**40), st.integers(1, 2**20), st.none() | st.integers(1, 2**40))
def test_a_fitted_size_has_at_least_one_row_and_no_batch_larger_than_its_rows(samples, batch, most):
    size = fitted(Sizing(samples=samples, batch=batch), most)
    assert 1 <= size.batch <= size.samples <= samples
    assert most is None or size.samples <= most
    assert fitted(size, most) == size


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_accuracy": 0.0},
        {"target_accuracy": 97},
        {"target_accuracy": math.nan},
        {"patience": 0},
        {"max_wall_s": -1.0},
        {"max_wall_s": math.inf},
        {"max_wall_s": math.nan},
        {"max_bytes": 0},
        {"max_pushes": -3},
    ],
)
def test_a_rule_that_could_never_or_always_hold_is_refused(wrong):
    with pytest.raises(UsageError):
        StopRules(**wrong)


def test_no_rule_never_stops_and_a_task_without_accuracy_reaches_no_target():
    much = Progress(elapsed_s=1e9, bytes_total=10**15, applied=10**9, accuracy=None, since_best=10**9)
    assert reason_to_stop(StopRules(), much) is None
    assert reason_to_stop(StopRules(target_accuracy=0.1), much) is None


def test_every_update_is_counted_once_and_bytes_by_what_they_carry():
    tally = Tally()
    for outcome, reason in (("applied", ""), ("stale", "lag"), ("rejected", "finite"), ("duplicate", "")):
        tally.count(outcome, reason)
    tally.carried("update", up=100)
    tally.carried("model", down=40)
    tally.carried("model", down=7, tensor=False)
    tally.carried("data", down=500)
    tally.carried("state", up=3)
    assert tally.received == 4
    assert tally.reasons == {"lag": 1, "finite": 1}
    assert tally.tensor_bytes == 640
    assert tally.up == Counter(model=100, control=3)
    assert tally.down == Counter(model=40, control=7, data=500)
    assert Tally.load(tally.dump()) == tally
    assert kind_of("model", tensor=False) == "control"


# --- who is there -----------------------------------------------------------------------------------------------------


def test_a_look_at_everybodys_allocations_copies_nobody_and_follows_what_changes():
    roster = Roster("run-a", 10)
    for name in ("a", "b"):
        roster.admit(DeviceId(name))
    held = roster.allocations()
    assert (len(held), list(held), held.get(DeviceId("a"))) == (0, [], None)
    roster.members[DeviceId("b")].allocation = allocation()
    assert (len(held), list(held)) == (1, ["b"])
    assert held[DeviceId("b")] == allocation()
    assert DeviceId("stranger") not in held


def test_all_is_said_when_every_device_that_is_there_has_finished():
    roster = Roster("run-a", 10)
    one, other = roster.admit(DeviceId("a")), roster.admit(DeviceId("b"))
    for member in (one, other):
        member.online = True
        roster.note(member)
    assert not roster.all_said
    one.state = state(phase="finished")
    roster.note(one)
    assert not roster.all_said
    other.online = False  # gone without a last word
    roster.note(other)
    assert roster.all_said
    other.online = True
    roster.note(other)
    assert not roster.all_said
