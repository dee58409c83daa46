"""The device's machine by hand: events in, effects out."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.strategies.hermes import Hermes, HermesConfig
from hermes_iot.algorithms.trees import sha256
from hermes_iot.core.effects import (
    FetchKeyframe,
    FindShard,
    ForgetKeyframe,
    Prepare,
    Quit,
    Rebirth,
    StoreMemory,
    StoreShard,
    Train,
)
from hermes_iot.errors import Incompatible, ProtocolError
from hermes_iot.protocol.messages import Ack, DeviceState, DeviceStatus, Metrics, Request, Response, Shard, Update
from tests.core.hand import (
    NEVER,
    Board,
    ack,
    allocation,
    body,
    head,
    kinds,
    manifest,
    model,
    of,
    offline,
    online,
    recorded,
    sent,
    vector,
)

SHARD_A, SHARD_B, SHARD_C = "aa" * 32, "bb" * 32, "cc" * 32


# --- coming into a run ------------------------------------------------------------------------------------------------


def test_a_connection_begins_with_the_birth():
    board = Board()
    (status,) = sent(board.machine.connected(now=1.0), DeviceStatus)
    assert (status.state, status.session) == ("online", 1)


def test_a_manifest_is_written_down_then_prepared_then_reported():
    board = Board()
    board.machine.connected(now=1.0)
    effects = board.tell(manifest())
    assert kinds(effects) == ["StoreMemory", "Prepare", "DeviceState"]
    assert of(effects, StoreMemory) == [StoreMemory(session=1, seq=0, run="run-a", allocation_version=0)]
    assert board.tell(manifest()) == []


@pytest.mark.parametrize("order", list(itertools.permutations(["run", "status", "head", "alloc", "ack"])))
def test_retained_messages_lead_to_training_in_any_order(order):
    board = Board()
    board.machine.connected(now=board.now)
    messages = {"run": manifest(), "status": online(), "head": head(), "alloc": allocation(), "ack": ack(1, 0)}
    effects = [effect for name in order for effect in board.tell(messages[name])]
    effects += board.prepare()
    assert [one.parts for one in of(effects, FetchKeyframe)] == [1]
    effects = board.tell(model(), keyframe=True)
    assert "ForgetKeyframe" in kinds(effects)
    (train,) = of(effects, Train)
    assert (train.job.samples, train.job.batch, train.job.rows) == (20, 5, ((0, 100),))
    assert np.array_equal(train.job.start, vector(1.0))


def test_the_allocation_is_written_down_before_it_is_obeyed():
    board = Board()
    board.machine.connected(now=board.now)
    for message in (online(), manifest(), head()):
        board.tell(message)
    board.prepare()
    board.tell(model(), keyframe=True)
    effects = board.tell(allocation(3))
    assert kinds(effects) == ["StoreMemory", "DeviceState", "Train"]
    assert of(effects, StoreMemory)[0].allocation_version == 3
    assert sent(effects, DeviceState)[0].allocation_version == 3


def test_a_task_of_another_layout_ends_it():
    board = Board()
    board.tell(manifest())
    with pytest.raises(Incompatible, match="not the coordinator's"):
        board.machine.prepared("run-a", "9" * 64, now=1.0)


def test_a_preparation_of_another_run_changes_nothing():
    board = Board()
    board.machine.connected(now=board.now)
    board.tell(manifest("run-a"))
    board.tell(manifest("run-b"))
    assert board.machine.prepared("run-a", "9" * 64, now=1.0) == []
    assert board.machine.phase == "starting"


def test_what_belongs_to_another_run_is_ignored_and_counted():
    board = Board().at_work()
    for message in (allocation(9, run="old"), model(run="old"), Shard(run="old", sha256=SHARD_A, body=b"x")):
        effects = board.tell(message)
        assert recorded(effects, "ignored")
        assert not of(effects, Train)
    board.trained()
    board.machine.disconnected()
    (state,) = sent(board.machine.connected(now=board.now), DeviceState)
    assert state.dropped == 3


def test_a_coordinator_that_was_taken_over_is_not_obeyed_any_more():
    board = Board(NEVER).at_work()
    board.tell(replace(online("c2"), epoch=4))
    for message in (
        replace(manifest("run-b"), epoch=3),
        replace(allocation(9, samples=7), epoch=3),
        replace(model(run="run-a", version=9), epoch=3),
        replace(offline("c2"), epoch=3),
    ):
        with pytest.raises(ProtocolError, match="coordinator 3 was taken over by 4") as caught:
            board.tell(message)
        assert caught.value.reason == "epoch"
    assert board.machine.manifest.run == "run-a"
    board.tell(replace(allocation(9, samples=30), epoch=4))
    (train,) = of(board.trained(), Train)
    assert train.job.samples == 30


def test_a_coordinator_that_is_heard_no_more_holds_nobody_up():
    board = Board(NEVER).at_work()
    board.tell(replace(online("c2"), epoch=4))
    board.wait(10.0)
    with pytest.raises(ProtocolError, match="was taken over"):
        board.tell(replace(manifest("run-b"), epoch=1))
    board.tell(replace(online("c2"), epoch=4))
    board.wait(16.0)
    board.tell(replace(manifest("run-b"), epoch=1))
    assert board.machine.manifest.run == "run-b"


def test_a_broker_that_forgot_who_led_begins_to_count_anew():
    board = Board(NEVER).at_work()
    board.tell(replace(online("c2"), epoch=4))
    board.machine.disconnected()
    board.machine.connected(now=board.now)
    board.tell(replace(online("c3"), epoch=1))
    board.tell(replace(manifest("run-b"), epoch=1))
    assert board.machine.manifest.run == "run-b"


def test_an_older_or_repeated_allocation_is_not_obeyed():
    board = Board(NEVER).at_work()
    assert board.tell(allocation(1, samples=7)) == []
    board.tell(allocation(3, samples=30))
    assert board.tell(allocation(2, samples=8)) == []
    (train,) = of(board.trained(), Train)
    assert train.job.samples == 30


def test_after_a_restart_nothing_older_than_what_was_obeyed_is_obeyed():
    memory = StoreMemory(session=2, seq=4, run="run-a", allocation_version=5)
    board = Board(memory=memory)
    board.machine.connected(now=board.now)
    board.tell(manifest())
    board.prepare()
    board.tell(model(), keyframe=True)
    assert recorded(board.tell(allocation(4)), "ignored")
    assert of(board.tell(allocation(5)), Train)


def test_a_restarted_device_without_allocation_reports_the_version_it_obeyed_before():
    board = Board(memory=StoreMemory(session=2, seq=4, run="run-a", allocation_version=5))
    board.machine.connected(now=board.now)
    (state,) = sent(board.tell(manifest()), DeviceState)
    assert (state.allocation_version, state.samples) == (5, 0)


def test_a_new_run_forgets_the_allocation_version_of_the_old_one():
    board = Board(memory=StoreMemory(session=2, seq=4, run="run-0", allocation_version=5))
    board.machine.connected(now=board.now)
    (memory,) = of(board.tell(manifest()), StoreMemory)
    assert memory == StoreMemory(session=2, seq=4, run="run-a", allocation_version=0)


# --- training and pushing ---------------------------------------------------------------------------------------------


def test_a_push_is_written_down_before_it_is_said_and_then_waited_for():
    board = Board().at_work()
    effects = board.trained()
    names = kinds(effects)
    assert names.index("StoreMemory") < names.index("Update")
    assert "Train" not in names
    (update,) = sent(effects, Update)
    assert (update.session, update.seq, update.base_version, update.iterations) == (1, 1, 0, 1)
    assert update.body == body(2.0)
    assert board.machine.phase == "pushed"


def test_iterations_the_gate_keeps_go_on_from_the_local_model():
    board = Board(NEVER).at_work()
    (train,) = of(board.trained(value=2.5), Train)
    assert np.array_equal(train.job.start, vector(2.5))
    assert train.job.key[-1] == 1


def test_the_answer_is_adopted_and_training_goes_on_from_it():
    board = Board().at_work()
    board.trained()
    (train,) = of(board.tell(model(1, value=7.0, session=1, seq=1)), Train)
    assert np.array_equal(train.job.start, vector(7.0))
    (update,) = sent(board.trained(), Update)
    assert (update.seq, update.base_version) == (2, 1)


def test_a_repeated_or_older_answer_changes_nothing():
    board = Board().at_work()
    board.trained()
    board.tell(model(1, value=7.0, session=1, seq=1))
    assert board.tell(model(1, value=7.0, session=1, seq=1)) == []
    board.trained()
    assert board.tell(model(1, value=7.0, session=1, seq=1)) == []
    assert board.machine.phase == "pushed"


def test_an_answer_to_an_earlier_session_changes_nothing():
    board = Board(memory=StoreMemory(session=4, seq=0, run="", allocation_version=0)).at_work()
    board.trained()
    assert board.tell(model(1, session=3, seq=1)) == []
    assert board.machine.phase == "pushed"


def test_a_model_from_an_older_checkpoint_is_adopted_too():
    board = Board().at_work()
    board.trained()
    board.tell(model(9, session=1, seq=1))
    board.trained()
    board.tell(model(4, value=5.0, session=1, seq=2))
    assert board.machine.learner.base_version == 4


@pytest.mark.parametrize("bad", [{"body": body()[:-1]}, {"body": np.full(4, np.nan, "<f4").tobytes()}])
def test_a_damaged_answer_is_refused_and_a_good_one_still_awaited(bad):
    board = Board().at_work()
    board.trained()
    with pytest.raises(ProtocolError):
        board.tell(replace(model(1, session=1, seq=1), **bad))
    assert of(board.tell(model(1, session=1, seq=1)), Train)


@pytest.mark.parametrize("bad", [{"model": "3c" * 32}, {"parameters": 5}])
def test_a_model_of_another_layout_is_refused(bad):
    board = Board().at_work()
    with pytest.raises(ProtocolError, match="not this run's") as caught:
        board.tell(replace(model(), **bad))
    assert caught.value.reason == "model_mismatch"


def test_an_unacked_update_is_repeated_with_growing_pauses_then_the_model_is_asked_for():
    board = Board(retry_s=2.0, retry_max_s=8.0, alone_after_s=1000.0).at_work()
    board.trained()
    begun, times = board.now, []
    for _ in range(4):
        board.now = board.machine.next_deadline()
        while not sent(effects := board.machine.expire(now=board.now), Update):
            board.now = board.machine.next_deadline()
        times.append(round(board.now - begun))
        assert sent(effects, Update)[0].seq == 1
    assert times == [2, 6, 14, 22]
    board.tell(ack(1, 1))
    effects = board.wait(8.0)
    assert not sent(effects, Update)
    assert [one.want for one in sent(effects, Request)] == ["model"]
    assert of(board.tell(model(3)), Train)


def test_an_unasked_answer_to_nobody_leaves_the_update_under_way():
    # A late repetition of an answer to an earlier request: it holds a model from before this update.
    board = Board(alone_after_s=1000.0).at_work()
    board.trained()
    assert board.tell(model(5, value=9.0)) == []
    assert board.machine.phase == "pushed"
    assert sent(board.wait(10.0), Update)


def test_an_answer_proves_the_update_was_handled_even_if_the_ack_is_lost():
    board = Board(alone_after_s=1000.0).at_work()
    board.trained()
    board.tell(model(1, session=1, seq=1))
    assert board.machine.part.outbox.update is None
    assert board.machine.part.outbox.retry.deadline is None


@pytest.mark.parametrize(("pushed", "named"), [("delta", sha256(vector(1.0))), ("model", "")])
def test_an_update_made_from_the_model_received_names_it_by_digest(pushed, named):
    board = Board(Hermes(HermesConfig(gate=GateConfig(max_age=1), pushed=pushed))).at_work()
    assert sent(board.trained(), Update)[0].base == named


def test_gradients_pushed_without_an_answer_are_counted_once():
    """From 1 to 2, and alone on to 4: 1 pushed, then 3 in all."""
    board = Board(Hermes(HermesConfig(gate=GateConfig(max_age=1), pushed="gradients")), alone_after_s=15.0).at_work()
    (first,) = sent(board.trained(2.0), Update)
    board.wait(15.0)
    (second,) = sent(board.trained(4.0), Update)
    assert (first.body, second.body) == (body(1.0), body(3.0))


def test_without_an_answer_it_goes_on_alone_and_the_newest_update_replaces_the_older():
    board = Board(retry_s=5.0, alone_after_s=15.0).at_work()
    board.trained(value=2.0)
    effects = board.wait(15.0)
    (train,) = of(effects, Train)
    assert np.array_equal(train.job.start, vector(2.0))
    effects = board.trained(value=3.0)
    (update,) = sent(effects, Update)
    assert (update.seq, update.body) == (2, body(3.0))
    repeated = sent(board.wait(14.0), Update)
    assert repeated
    assert {one.seq for one in repeated} == {2}


def test_with_nobody_leading_it_does_not_wait_at_all():
    board = Board().at_work()
    board.trained()
    assert of(board.tell(offline()), Train)
    assert board.machine.phase == "training"


def test_a_coordinator_that_comes_back_is_told_at_once():
    board = Board(retry_s=50.0, retry_max_s=100.0).at_work()
    board.trained()
    board.tell(offline())
    assert [one.seq for one in sent(board.tell(online("c2")), Update)] == [1]


def test_another_coordinator_in_place_of_the_first_is_told_at_once_even_if_no_death_was_seen():
    board = Board(retry_s=50.0, retry_max_s=100.0, alone_after_s=1000.0).at_work()
    board.trained()
    assert sent(board.tell(online("c1")), Update) == []
    assert [one.seq for one in sent(board.tell(online("c2")), Update)] == [1]


def test_the_late_death_of_an_earlier_coordinator_is_not_the_death_of_this_one():
    board = Board(alone_after_s=1000.0).at_work()
    board.tell(online("c2"))
    board.trained()
    assert board.tell(offline("c1")) == []
    assert board.machine.phase == "pushed"


def test_an_answer_during_an_iteration_wins_over_the_local_work():
    board = Board(alone_after_s=5.0).at_work()
    board.trained(value=2.0)
    board.wait(5.0)
    board.tell(model(4, value=7.0, session=1, seq=1))
    effects = board.trained(value=99.0)
    assert sent(effects, Update) == []
    (train,) = of(effects, Train)
    assert np.array_equal(train.job.start, vector(7.0))
    assert recorded(effects, "iteration")[0]["gate"] == "superseded"
    (update,) = sent(board.trained(), Update)
    assert update.iterations == 1  # the superseded one is in no update


def test_disconnected_while_training_the_update_goes_out_at_the_next_connection():
    board = Board().at_work()
    board.machine.disconnected()
    effects = board.trained(value=2.0)
    assert sent(effects, Update) == []
    assert of(effects, Train)
    effects = board.machine.connected(now=board.now)
    assert kinds(effects)[0] == "DeviceStatus"
    assert [one.seq for one in sent(effects, Update)] == [1]


def test_disconnected_while_pushed_it_goes_on_and_asks_again_when_connected():
    board = Board(alone_after_s=1000.0).at_work()
    board.trained()
    board.machine.disconnected()
    assert of(board.wait(0.0), Train)
    board.tell(ack(1, 1))  # retained, and comes with the connection
    assert [one.want for one in sent(board.machine.connected(now=board.now), Request)] == ["model"]


def test_nothing_is_said_without_a_connection():
    board = Board(NEVER).at_work()
    board.machine.disconnected()
    effects = []
    for _ in range(5):
        effects += board.trained(seconds=2.0)
    board.tell(allocation(2, samples=10))
    effects += board.trained()
    assert not [name for name in kinds(effects) if name not in {"Record", "Train", "StoreMemory"}]
    assert sent(board.machine.connected(now=board.now), DeviceState)[0].iterations == 6


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"loss": math.inf}, {"value": math.nan}, {"value": math.inf}])
def test_divergence_goes_back_to_the_base_at_half_the_rate_and_is_never_pushed(bad):
    board = Board().at_work()
    effects = board.trained(**bad)
    assert sent(effects, Update) == []
    assert recorded(effects, "iteration")[0]["gate"] == "diverged"
    (train,) = of(effects, Train)
    assert train.job.learning_rate == 0.25
    assert np.array_equal(train.job.start, vector(1.0))
    (train,) = of(board.trained(**bad), Train)
    assert train.job.learning_rate == 0.125
    board.trained()
    (train,) = of(board.tell(model(1, session=1, seq=1)), Train)
    assert train.job.learning_rate == 0.5
    assert board.machine.learner.diverged == 2


def test_a_device_that_diverges_again_and_again_is_still_forced_to_publish():
    board = Board(Hermes(HermesConfig(gate=GateConfig(alpha=-1e6, max_age=6)))).at_work()
    pushed = []
    for turn in range(8):
        pushed += sent(board.trained(loss=math.nan if turn % 2 else 0.5), Update)
    assert [one.iterations for one in pushed] == [7]


def test_a_contribution_that_overflows_is_a_divergence():
    board = Board(Hermes(HermesConfig(gate=GateConfig(max_age=1), pushed="delta"))).at_work()
    board.trained()
    board.tell(model(1, value=3e38, session=1, seq=1))
    effects = board.trained(value=-3e38)
    assert sent(effects, Update) == []
    assert recorded(effects, "iteration")[0]["gate"] == "diverged"
    assert np.array_equal(of(effects, Train)[0].job.start, vector(3e38))


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("telemetry", "expected"), [("off", []), ("sampled", [10, 20]), ("full", list(range(1, 21)))])
def test_telemetry_is_off_sampled_or_full(telemetry, expected):
    board = Board(NEVER).at_work(telemetry=telemetry)
    said = [one.iteration for _ in range(20) for one in sent(board.trained(), Metrics)]
    assert said == expected


def test_the_state_is_said_at_most_once_per_interval():
    board = Board(NEVER, state_interval_s=1.0).at_work()
    said = 0
    for _ in range(100):
        said += len(sent(board.trained(seconds=0.05), DeviceState))
    assert 4 <= said <= 6


def test_the_larger_the_fleet_the_rarer_a_device_reports():
    """A hundred devices at 0.05 s each: every 5 s instead of every second, beginning with the next report."""
    board = Board(NEVER, state_interval_s=1.0, state_s_per_device=0.05).at_work()
    board.tell(replace(online(), devices_online=100))
    board.trained(seconds=2.0)
    board.trained(seconds=2.0)  # its first known time
    said = sum(len(sent(board.trained(seconds=0.5), DeviceState)) for _ in range(100))
    assert 9 <= said <= 10


def test_a_time_that_is_known_for_the_first_time_is_reported_at_once():
    board = Board(NEVER, state_interval_s=100.0).at_work()
    assert not sent(board.trained(), DeviceState)  # no measurement
    (told,) = sent(board.trained(seconds=2.0), DeviceState)
    assert told.iteration_s == 2.0
    assert not sent(board.trained(seconds=2.0), DeviceState)
    board.tell(allocation(2, samples=10))
    board.trained()  # still of the size before
    (told,) = sent(board.trained(seconds=3.0), DeviceState)
    assert (told.iteration_s, told.samples) == (3.0, 10)


def test_a_push_is_reported_together_with_its_answer():
    board = Board(state_interval_s=1.0).at_work()
    board.wait(2.0)
    effects = board.trained()
    (pushed,) = sent(effects, Update)
    assert not sent(effects, DeviceState)
    board.wait(0.1)
    board.tell(model(3, session=pushed.session, seq=pushed.seq))
    (told,) = sent(board.wait(1.0), DeviceState)
    assert (told.phase, told.published, told.model_version, told.iterations) == ("training", 1, 3, 1)


def test_a_push_that_nobody_answers_is_reported_after_the_interval():
    board = Board(state_interval_s=1.0).at_work()
    board.wait(2.0)
    board.trained()
    (told,) = sent(board.wait(1.0), DeviceState)
    assert (told.phase, told.published) == ("pushed", 1)


def test_pushes_in_quick_succession_do_not_keep_a_device_silent():
    board = Board(state_interval_s=1.0).at_work()
    said = 0
    for seq in range(1, 101):
        effects = board.trained(seconds=0.1)
        effects += board.tell(model(seq, session=1, seq=seq)) + board.wait(0.0)
        said += len(sent(effects, DeviceState))
    assert 5 <= said <= 11


def test_a_status_without_news_moves_nothing():
    board = Board(NEVER).at_work()
    for elapsed_s in (1.0, 2.0):
        assert board.tell(replace(online(), elapsed_s=elapsed_s)) == []


def test_counters_of_a_run_begin_with_it():
    board = Board(NEVER).at_work()
    board.machine.carried(up=1000, down=2000)
    board.machine.refused()
    board.trained()
    (state,) = sent(board.tell(manifest("run-b")), DeviceState)
    assert (state.run, state.iterations, state.bytes_up, state.bytes_down, state.dropped) == ("run-b", 0, 0, 0, 0)


def test_the_first_iteration_of_a_process_is_no_measurement_and_a_new_size_forgets_the_old_times():
    board = Board(NEVER, state_interval_s=0.0).at_work()
    (state,) = sent(board.trained(seconds=30.0), DeviceState)
    assert state.iteration_s == 0
    (state,) = sent(board.trained(seconds=2.0), DeviceState)
    assert state.iteration_s == 2.0
    board.tell(allocation(2, samples=10))
    assert sent(board.trained(seconds=2.0), DeviceState)[-1].iteration_s == 0
    assert sent(board.trained(seconds=1.0), DeviceState)[-1].iteration_s == 1.0


# --- commands ---------------------------------------------------------------------------------------------------------


def test_ping_is_answered_with_the_transaction_id_and_the_phase():
    board = Board().at_work()
    (response,) = sent(board.command("ping"), Response)
    assert (response.id, response.status, response.detail) == ("c-ping", "ok", "training")


def test_pause_takes_effect_after_the_iteration_and_resume_goes_on():
    board = Board(NEVER).at_work()
    assert not of(board.command("pause"), Train)
    effects = board.trained(seconds=2.0)
    assert not of(effects, Train)
    assert board.machine.phase == "paused"
    assert sent(effects, DeviceState)[-1].phase == "paused"
    effects = board.command("resume")
    assert of(effects, Train)
    assert sent(effects, Response)[0].detail == "training"


def test_an_answer_while_paused_is_adopted_and_not_trained_on():
    board = Board().at_work()
    board.command("pause")
    board.trained()
    assert not of(board.tell(model(1, value=7.0, session=1, seq=1)), Train)
    (train,) = of(board.command("resume"), Train)
    assert np.array_equal(train.job.start, vector(7.0))


def test_resend_repeats_the_update_at_once():
    board = Board(retry_s=50.0, retry_max_s=100.0, alone_after_s=1000.0).at_work()
    board.trained()
    assert [one.seq for one in sent(board.command("resend"), Update)] == [1]


def test_drain_ends_the_iteration_says_it_and_quits():
    board = Board().at_work()
    assert not of(board.command("drain"), Quit)
    effects = board.trained()
    names = kinds(effects)
    assert names.index("StoreMemory") < names.index("Update") < names.index("DeviceState") < names.index("Quit")
    assert sent(effects, DeviceState)[-1].phase == "finished"
    assert sent(effects, DeviceStatus)[-1].state == "offline"
    assert names[-1] == "Quit"


def test_drain_quits_at_once_where_nothing_runs():
    board = Board().at_work()
    board.trained()
    assert [one.reason for one in of(board.command("drain"), Quit)] == ["drained"]


def test_drain_during_an_iteration_of_an_earlier_run_still_quits():
    board = Board().at_work()
    board.tell(manifest("run-b"))
    board.command("drain")
    assert of(board.trained(), Quit)


# --- the end, and the next run ----------------------------------------------------------------------------------------


def ended(run: str = "run-a"):
    return manifest(run, state="finished", reason="enough")


def test_the_end_of_the_run_is_reported_and_nothing_more_is_trained_or_repeated():
    board = Board(retry_s=1.0).at_work()
    board.trained()
    (state,) = sent(board.tell(ended()), DeviceState)
    assert state.phase == "finished"
    assert board.wait(300.0) == []
    assert board.machine.next_deadline() is None


def test_an_iteration_that_ends_after_the_run_is_not_pushed():
    board = Board(retry_s=1.0).at_work()
    board.tell(ended())
    assert not sent(board.trained(), Update)
    assert not sent(board.wait(300.0), Update)


def test_once_quits_with_the_run_and_says_goodbye():
    board = Board(once=True).at_work()
    effects = board.tell(ended())
    assert kinds(effects) == ["DeviceState", "DeviceStatus", "Quit"]
    assert of(effects, Quit)[0].reason == "run ended: enough"


def test_a_run_that_was_over_before_is_waited_out_even_with_once_and_reported_so():
    board = Board(once=True)
    board.machine.connected(now=board.now)
    effects = board.tell(ended())
    assert kinds(effects) == ["DeviceState"]
    assert sent(effects, DeviceState)[0].phase == "finished"
    assert of(board.tell(manifest("run-b")), Prepare)


def test_a_run_of_an_unknown_strategy_that_is_over_harms_nobody():
    def unknown(_info):
        raise Incompatible("never heard of it")

    board = Board()
    board.machine._strategy_of = unknown
    board.tell(ended())
    with pytest.raises(Incompatible):
        board.tell(manifest("run-b"))


def test_a_new_run_on_the_same_topics_begins_anew():
    board = Board().at_work()
    effects = board.tell(manifest("run-b"))
    assert [one.manifest.run for one in of(effects, Prepare)] == ["run-b"]
    assert not sent(board.trained(), Update)  # that was the old run's
    board.tell(allocation(1, run="run-b"))
    board.tell(head(run="run-b"))
    board.prepare("run-b")
    (train,) = of(board.tell(model(run="run-b"), keyframe=True), Train)
    assert train.job.start[0] == 1.0
    (update,) = sent(board.trained(), Update)
    assert (update.run, update.seq) == ("run-b", 1)


def test_a_keyframe_not_yet_come_is_unsubscribed_with_its_run():
    # Only a new subscription brings the next run's retained chunks.
    board = Board()
    board.machine.connected(now=board.now)
    board.tell(manifest())
    board.prepare()
    assert of(board.tell(head()), FetchKeyframe)
    assert of(board.tell(manifest("run-b")), ForgetKeyframe)
    board.prepare("run-b")
    assert of(board.tell(head(run="run-b")), FetchKeyframe)


def test_a_run_that_goes_on_after_its_end_was_announced_is_gone_on_with():
    # The coordinator died between saying it and recording it; its checkpoint takes the run up again.
    board = Board(NEVER).at_work()
    board.trained(value=4.0)
    board.tell(ended())
    board.trained(value=5.0)
    effects = board.tell(manifest())
    (train,) = of(effects, Train)
    assert np.array_equal(train.job.start, vector(4.0))
    assert sent(effects, DeviceState)[-1].iterations == 1


def test_a_run_first_seen_over_that_goes_on_is_joined():
    board = Board()
    board.machine.connected(now=board.now)
    board.tell(ended())
    assert of(board.tell(manifest()), Prepare)


# --- what is lost is asked for again ----------------------------------------------------------------------------------


def waiting(board: Board) -> Board:
    board.machine.connected(now=board.now)
    board.tell(online())
    board.tell(manifest())
    board.prepare()
    assert board.machine.phase == "waiting"
    return board


def test_without_a_model_it_asks_until_it_has_one():
    board = waiting(Board(retry_s=5.0, retry_max_s=20.0))
    board.tell(allocation())
    wanted = sent(board.wait(60.0), Request)
    assert [one.want for one in wanted] == ["model"] * 4
    assert of(board.tell(model(3)), Train)
    assert not sent(board.wait(100.0), Request)


def test_without_an_allocation_it_is_born_again_until_it_has_one():
    board = waiting(Board(retry_s=5.0, retry_max_s=20.0))
    board.tell(model(), keyframe=True)
    assert [one.state for one in sent(board.wait(60.0), DeviceStatus)] == ["online"] * 4
    board.tell(allocation())
    assert not sent(board.wait(100.0), DeviceStatus)


def test_once_it_has_all_it_needs_no_timer_is_left():
    board = Board(NEVER).at_work()
    board.wait(100.0)
    assert board.machine.next_deadline() is None


# --- memory lost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [False, True])
def test_an_ack_above_everything_it_remembers_starts_a_session_above_that(early):
    board = Board()
    board.machine.connected(now=board.now)
    effects = []
    for message in [ack(7, 3), manifest()] if early else [manifest(), ack(7, 3)]:
        effects += board.tell(message)
    names = kinds(effects)
    assert names.index("Rebirth") == len(names) - 1
    assert of(effects, StoreMemory)[-1] == StoreMemory(session=8, seq=0, run="run-a", allocation_version=0)
    (status,) = sent(board.machine.connected(now=board.now), DeviceStatus)
    assert status.session == 8
    assert not of(board.tell(ack(7, 3)), Rebirth)


def test_an_ack_of_another_run_starts_no_session():
    board = Board()
    assert board.tell(ack(7, 3, run="old")) == []
    assert not of(board.tell(manifest()), Rebirth)


def test_a_coordinator_that_has_forgotten_acks_starts_no_session():
    board = Board(memory=StoreMemory(session=3, seq=9, run="run-a", allocation_version=0)).at_work()
    board.trained()
    for mark in ((3, 2), (1, 50), (3, 10)):
        assert board.tell(ack(*mark)) == []
    assert board.machine.part.outbox.update is None


# --- shards -----------------------------------------------------------------------------------------------------------


def shipped(board: Board, sampling: str = "fresh") -> Board:
    board.machine.connected(now=board.now)
    board.tell(online())
    board.tell(manifest(data={"mode": "shipped", "sampling": sampling}))
    board.prepare()
    board.tell(model(), keyframe=True)
    return board


def ship(version: int, shard: str, following: str = ""):
    return allocation(version, rows=(), shard=shard, next_shard=following)


def test_an_allocation_whose_shard_is_not_here_waits_while_the_shard_is_asked_for():
    board = shipped(Board(NEVER))
    effects = board.tell(ship(1, SHARD_A, SHARD_B))
    assert [one.sha256 for one in of(effects, FindShard)] == [SHARD_A]
    assert not of(effects, Train)
    (request,) = sent(board.machine.shard_found(SHARD_A, found=False, now=board.now), Request)
    assert (request.want, request.sha256) == ("shard", SHARD_A)
    effects = board.tell(Shard(run="run-a", sha256=SHARD_A, body=b"rows"))
    assert [one.sha256 for one in of(effects, StoreShard)] == [SHARD_A]
    effects = board.machine.shard_found(SHARD_A, found=True, now=board.now)
    (train,) = of(effects, Train)
    assert train.job.shard == SHARD_A
    assert [one.sha256 for one in of(effects, FindShard)] == [SHARD_B]


def test_a_shard_that_does_not_come_is_asked_for_again():
    board = shipped(Board(NEVER, retry_s=5.0, retry_max_s=20.0))
    board.tell(ship(1, SHARD_A))
    board.machine.shard_found(SHARD_A, found=False, now=board.now)
    asked = [one for one in sent(board.wait(60.0), Request) if one.want == "shard"]
    assert [one.sha256 for one in asked] == [SHARD_A] * 4


def test_the_prefetched_shard_is_trained_on_as_soon_as_it_is_here_and_only_then_reported():
    board = shipped(Board(NEVER, state_interval_s=0.0))
    board.tell(ship(1, SHARD_A, SHARD_B))
    board.machine.shard_found(SHARD_A, found=True, now=board.now)
    effects = board.machine.shard_found(SHARD_B, found=True, now=board.now)
    assert not sent(effects, DeviceState)
    assert {one.shard for one in sent(board.wait(5.0), DeviceState)} <= {SHARD_A}
    effects = board.trained()
    (train,) = of(effects, Train)
    assert train.job.shard == SHARD_B
    assert sent(effects, DeviceState)[-1].shard == SHARD_B


def test_a_kept_shard_is_kept_although_a_next_one_is_here():
    board = shipped(Board(NEVER), sampling="kept")
    board.tell(ship(1, SHARD_A, SHARD_B))
    board.machine.shard_found(SHARD_A, found=True, now=board.now)
    board.machine.shard_found(SHARD_B, found=True, now=board.now)
    (train,) = of(board.trained(), Train)
    assert train.job.shard == SHARD_A


@pytest.mark.parametrize("phase", ["paused", "pushed"])
def test_a_device_that_does_not_train_moves_on_to_no_shard(phase):
    # It would be shipped shard after shard without training on one.
    board = shipped(Board(alone_after_s=1e6, retry_s=1e5, retry_max_s=1e6, state_interval_s=0.0))
    board.tell(ship(1, SHARD_A, SHARD_B))
    board.machine.shard_found(SHARD_A, found=True, now=board.now)
    if phase == "paused":
        board.command("pause")
    board.trained()
    assert board.machine.phase == phase
    board.machine.shard_found(SHARD_B, found=True, now=board.now)
    effects = board.wait(100.0)
    board.machine.disconnected()
    effects += board.machine.connected(now=board.now)
    assert {one.shard for one in sent(effects, DeviceState)} == {SHARD_A}


def test_a_new_shard_of_the_same_size_keeps_the_measured_time():
    board = shipped(Board(NEVER, state_interval_s=0.0))
    board.tell(ship(1, SHARD_A, SHARD_B))
    board.machine.shard_found(SHARD_A, found=True, now=board.now)
    board.machine.shard_found(SHARD_B, found=True, now=board.now)
    board.trained()
    board.tell(ship(2, SHARD_B, SHARD_C))
    assert sent(board.trained(seconds=3.0), DeviceState)[-1].iteration_s == 3.0


def test_a_shard_nobody_asked_for_is_not_stored():
    board = shipped(Board(NEVER))
    effects = board.tell(Shard(run="run-a", sha256=SHARD_C, body=b"rows"))
    assert not of(effects, StoreShard)
    assert recorded(effects, "ignored")


def test_a_shard_the_cache_has_lost_is_looked_for_again_but_not_in_a_loop():
    board = shipped(Board(NEVER, retry_s=5.0))
    board.tell(ship(1, SHARD_A))
    board.machine.shard_found(SHARD_A, found=True, now=board.now)
    effects = board.machine.untrainable("shard aa is not in the cache any more", now=board.now)
    assert not of(effects, FindShard)
    assert board.machine.phase == "waiting"
    assert [one.sha256 for one in of(board.wait(5.0), FindShard)] == [SHARD_A]
    board.machine.shard_found(SHARD_A, found=False, now=board.now)
    assert of(board.machine.shard_found(SHARD_A, found=True, now=board.now), Train)


def test_an_allocation_of_rows_that_are_not_there_waits_for_another():
    board = Board(NEVER, retry_s=5.0).at_work()
    effects = board.machine.untrainable("rows 0 to 100 of 50", now=board.now)
    assert recorded(effects, "ignored")[0]["which"] == "rows 0 to 100 of 50"
    assert board.machine.phase == "waiting"
    assert of(board.tell(allocation(2, rows=((0, 50),))), Train)


def test_the_shelf_remembers_no_more_shards_than_its_allocations_name():
    board = shipped(Board(NEVER))
    for turn in range(200):
        one, following = f"{turn:064x}", f"{turn + 1:064x}"
        board.tell(ship(turn + 1, one, following))
        board.machine.shard_found(one, found=True, now=board.now)
        board.machine.shard_found(following, found=True, now=board.now)
        board.trained()
    shelf = board.machine.part._shelf
    assert len(shelf._held | shelf._sought) <= 3


@pytest.mark.parametrize("changes", [{"parameters": 3}, {"sha256": "5c" * 32}, {"tensors": (("w", (2, 3)),)}])
def test_a_manifest_whose_model_contradicts_itself_is_refused(changes):
    board = Board()
    board.machine.connected(now=board.now)
    wrong = replace(manifest(), model=replace(manifest().model, **changes))
    with pytest.raises(ProtocolError) as caught:
        board.tell(wrong)
    assert caught.value.reason == "model_mismatch"
    assert board.machine.phase == "starting"
    assert board.tell(manifest()), "a right one is still welcome"


def test_counters_begin_anew_with_a_raised_session():
    """They are of a session: the coordinator adds sessions up."""
    board = Board().at_work()
    board.machine.carried(up=100, down=200)
    board.trained()
    effects = board.tell(Ack(run="run-a", session=9, seq=3, outcome="applied"))
    assert of(effects, Rebirth)
    states = sent(board.machine.connected(now=board.now), DeviceState)
    assert [(one.session, one.iterations, one.published, one.bytes_up) for one in states] == [(10, 0, 0, 0)]
