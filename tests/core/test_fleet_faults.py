"""A whole fleet in virtual time, one fault at a time: it must go on, and the audit must hold at every event."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.strategies.hermes import Hermes, HermesConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Score, Sizing
from hermes_iot.protocol.messages import Allocation, Command, DeviceStatus
from tests.core.peers import LEADER, TOPICS, Fleet, manifest

SMALL = Sizing(samples=48, batch=8)
SETTINGS = CoordinatorSettings(first=SMALL, checkpoint_interval_s=2.0, keyframe_interval_s=1.0)
SPEEDS = {"d0": 0.02, "d1": 0.03, "d2": 0.05}


def fleet(about=None, *, speeds=SPEEDS, settings=SETTINGS, **options) -> Fleet:
    made = Fleet(about, settings=settings, latency_s=options.pop("latency_s", 0.003), **options)
    made.lead()
    for name, speed in speeds.items():
        made.join(name, speed=speed)
    return made


def all_progress(made: Fleet, *, within: float = 120.0) -> None:
    """Every live device trains on, and something new of it is applied."""
    before = {name: (node.trained, made.applied(name)) for name, node in made.devices.items() if node.alive}
    assert before
    made.run_until(
        lambda: all(
            made.devices[name].trained > trained + 2 and made.applied(name) > applied
            for name, (trained, applied) in before.items()
        ),
        within=within,
    )


def channel(topic: str) -> str:
    address = TOPICS.parse(topic)
    return address.channel if address is not None else ""


def losing(*channels: str, of: str | None = None):
    return lambda client, topic, _payload: 0 if channel(topic) in channels and of in (None, client) else 1


def test_a_calm_fleet_trains_and_every_update_is_applied_once():
    made = fleet()
    made.run(20.0)
    tally = made.leader.machine.tally
    assert tally.applied == tally.received > 50
    summary = made.leader.machine.summary(Score(loss=1.0, accuracy=None))
    assert summary["updates_published"] <= sum(node.trained for node in made.devices.values())
    assert summary["bytes_bsp"] > 0
    all_progress(made)


# --- what the broker does ---------------------------------------------------------------------------------------------


def test_every_delivery_twice():
    made = fleet()
    made.fault = lambda _client, _topic, _payload: 2
    made.run(20.0)
    tally = made.leader.machine.tally
    assert tally.duplicate == tally.applied > 50
    all_progress(made)


def test_retained_messages_in_any_order():
    for seed in range(12):
        chance = random.Random(seed)
        made = Fleet(settings=SETTINGS, chunk_bytes=100)

        def shuffled(topics, chance=chance):
            mixed = list(topics)
            chance.shuffle(mixed)
            return mixed

        made.lead()
        made.join("d0")
        made.run(3.0)  # so that there is something of everything to be retained
        made.arrange = shuffled
        made.join("d1")
        made.run_until(lambda made=made: made.applied("d1") > 0, within=10.0)
        assert made.devices["d1"].machine.learner.base is not None


@pytest.mark.parametrize(
    "lost", ["model", "ack", "update", "alloc", "status", "state", "request", "run", "coordinator"]
)
def test_a_channel_that_loses_everything_for_a_while(lost):
    made = fleet()
    made.run(5.0)
    made.fault = losing(lost)
    made.run(20.0)
    made.join("late")
    made.run(5.0)
    made.fault = lambda *_: 1
    for node in made.devices.values():  # what is retained is only seen again with a new connection
        if lost in {"run", "coordinator"}:
            node.disconnect()
            node.reconnect()
    all_progress(made)


def test_a_keyframe_that_never_arrives_whole_is_asked_for():
    made = Fleet(settings=SETTINGS, chunk_bytes=100)
    made.lead()
    made.fault = lambda _client, topic, _payload: 0 if topic.endswith("/all/model/3") else 1
    made.join("d0")
    all_progress(made)


def test_lost_replies_and_acks_together_cost_no_update_twice():
    made = fleet()
    chance = random.Random(3)
    made.fault = lambda _client, topic, _payload: 1 if channel(topic) not in {"model", "ack"} else chance.randrange(3)
    made.run(60.0)
    assert made.leader.machine.tally.duplicate >= 3
    made.fault = lambda *_: 1
    all_progress(made)


def test_a_lossy_duplicating_bus():
    made = fleet()
    chance = random.Random(9)
    made.fault = lambda *_: chance.choices([0, 1, 2, 3], [0.2, 0.6, 0.1, 0.1])[0]
    made.run(60.0)
    made.fault = lambda *_: 1
    all_progress(made)


def test_a_broker_that_has_lost_its_store_is_given_everything_again():
    made = fleet()
    made.run(5.0)
    made.broker.retained.clear()
    for node in (*made.devices.values(), made.leader):
        node.disconnect()
        node.reconnect()
    made.join("late")
    made.run(1.0)
    assert made.broker.retained[TOPICS.down("d0", "alloc")]
    assert made.broker.retained[TOPICS.all("run")]
    all_progress(made)


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_device_that_crashes_takes_up_its_retained_allocation():
    made = fleet()
    made.run(5.0)
    node = made.devices["d1"]
    allocation = node.machine.part._shelf.allocation
    node.crash()
    made.run(4.0)  # its will is published
    assert not made.leader.machine.members["d1"].online
    all_progress(made)
    node.start()
    made.run(1.0)
    assert node.machine.part._shelf.allocation == allocation
    assert node.machine.memory.session == 2
    all_progress(made)


def test_a_device_that_the_runs_manifest_never_reached_asks_for_it():
    made = fleet()
    made.run(5.0)
    made.fault = losing("run", of="late")
    late = made.join("late")
    made.run(1.0)
    assert late.machine.manifest is None
    said = made.broker.published[TOPICS.all("run")]
    made.fault = lambda _client, _topic, _payload: 1
    all_progress(made)
    assert made.broker.published[TOPICS.all("run")] == said + 1, "it is said to all, so once is enough"


def test_a_device_boots_and_trains_while_the_coordinator_is_away():
    made = fleet()
    made.run(5.0)
    made.leader.crash()
    node = made.devices["d1"]
    node.crash()
    made.run(1.0)
    node.start()
    before = node.trained
    made.run(5.0)
    assert node.trained > before + 5
    made.lead()
    all_progress(made)


@pytest.mark.parametrize("gone_s", [0.5, 10.0])
def test_a_device_with_a_wiped_memory_starts_a_session_above_its_old_ones(gone_s):
    made = fleet()
    made.run(5.0)
    node = made.devices["d1"]
    for _ in range(3):
        node.crash()
        made.run(1.0)
        node.start()
        made.run(2.0)
    node.crash()
    node.wipe()
    made.run(gone_s)
    node.start()
    made.run(2.0)
    assert node.disk.session == 5
    all_progress(made)
    assert made.leader.machine.tally.reasons["session"] <= 1


@pytest.mark.parametrize("acked", [True, False])
def test_a_wiped_device_in_a_new_run_is_let_in(acked):
    # Its retained birth names a session above the new one's, and nothing of the new run was acked.
    made = fleet()
    made.run(5.0)
    node = made.devices["d1"]
    node.crash()
    node.start()
    made.run(1.0)
    made.leader.crash()
    made.run(1.0)
    node.crash()
    node.wipe()
    if acked:
        made.broker.retained.pop(TOPICS.down("d1", "ack"))
    for client in made.broker.clients.values():
        client.will_at = None  # the broker died with it
    made.lead(manifest("run-b"), fresh=True)
    node.start()
    all_progress(made)


def test_a_device_that_joins_late_contributes():
    made = fleet()
    made.run(10.0)
    made.join("late")
    all_progress(made)


def test_a_device_that_leaves_in_order_is_not_missed():
    made = fleet()
    made.run(5.0)
    made.devices["d1"].leave()
    made.run(1.0)
    assert [one["reason"] for one in made.events("left")] == ["stopped"]
    all_progress(made)


def test_a_will_of_an_earlier_session_that_comes_late_takes_nobody_away():
    made = fleet()
    made.run(5.0)
    node = made.devices["d1"]
    node.crash()
    node.start()
    made.run(1.0)
    made.say(DeviceStatus(state="offline", session=1), device="d1")
    made.run(0.1)
    assert made.leader.machine.members["d1"].online
    all_progress(made)


@pytest.mark.parametrize("phase", ["training", "pushed"])
@pytest.mark.parametrize("gone_s", [0.2, 8.0])
def test_a_line_that_is_cut_while(phase, gone_s):
    made = fleet(latency_s=0.05)
    made.run(5.0)
    node = made.devices["d1"]
    made.run_until(lambda: node.machine.phase == phase, within=20.0)
    node.disconnect()
    trained = node.trained
    made.run(gone_s)
    if gone_s > 1:
        assert node.trained > trained
    node.reconnect()
    all_progress(made)


def test_a_flapping_line():
    made = fleet(latency_s=0.02)
    node = made.devices["d1"]
    for _ in range(40):
        made.run(0.37)
        node.disconnect()
        made.run(0.11)
        node.reconnect()
    assert node.machine.memory.session == 1
    all_progress(made)


def test_a_device_that_diverges_for_a_while():
    made = fleet()
    made.run(3.0)
    node = made.devices["d1"]
    node.diverge = 30
    made.run(20.0)
    assert node.machine.learner.diverged == 30
    all_progress(made)


def test_commands_on_the_wire():
    made = fleet()
    made.run(3.0)
    node = made.devices["d1"]
    made.say(Command(id="1", name="pause"), device="d1")
    made.run(2.0)
    trained = node.trained
    made.run(10.0)
    assert node.trained == trained
    assert made.leader.machine.members["d1"].state.phase == "paused"
    made.say(Command(id="2", name="resume"), device="d1")
    all_progress(made)
    made.say(Command(id="3", name="drain"), device="d1")
    made.run(5.0)
    assert node.quit is not None
    assert not made.leader.machine.members["d1"].online


def test_sixty_devices_join_at_once():
    made = Fleet(settings=SETTINGS)
    made.lead()
    for number in range(60):
        made.join(f"n{number}", speed=0.05)
    made.run(2.0)
    assert all(made.applied(f"n{number}") for number in range(60))


# --- the coordinator --------------------------------------------------------------------------------------------------


PUSHED = ["model", "delta", "gradients"]


@pytest.mark.parametrize("pushed", PUSHED)
def test_a_coordinator_restarted_from_an_older_checkpoint(pushed):
    strategy = Hermes(HermesConfig(gate=GateConfig(max_age=4), pushed=pushed))
    made = fleet(strategy=strategy)
    made.run(11.0)
    version = made.leader.machine.version
    made.leader.crash()
    made.run(3.0)
    assert made.leader.checkpoint.version < version
    made.leader.lose_journal()
    machine = made.lead()
    assert machine.version < version
    all_progress(made)
    assert {node.machine.memory.session for node in made.devices.values()} == {1}
    assert [one["device"] for one in made.events("joined")[3:]] == ["d0", "d1", "d2"]


def test_a_coordinator_that_dies_again_and_again():
    made = fleet()
    for _ in range(12):
        made.run(1.7)
        made.leader.crash()
        made.run(0.3)
        made.lead()
    all_progress(made)


@pytest.mark.parametrize("mode", ["indexed", "shipped"])
def test_a_coordinator_that_dies_between_any_two_effects(mode):
    about = manifest(data_mode=mode, sampling="kept")
    for fatal in range(24):
        made = Fleet(about, settings=SETTINGS, latency_s=0.003)
        made.lead()
        made.leader.effects_left = fatal
        for name, speed in SPEEDS.items():
            made.join(name, speed=speed)
        made.run(3.0)
        if made.leader.alive:
            made.leader.crash()
        made.run(1.0)
        made.lead()
        all_progress(made)


def test_an_allocation_that_the_registry_has_lost_is_numbered_anew():
    # A device reads the lost one as newer than all that comes after.
    made = fleet()
    made.run(5.0)
    known = dict(made.leader.allocations)
    for number in range(3):
        made.say(Allocation(run="run-a", device="d1", version=2 + number, samples=16, batch=4, rows=((0, 320),)), "d1")
        made.run(1.0)
    made.leader.crash()
    made.leader.allocations = known
    made.audit.invariants.forgiven()
    node = made.devices["d1"]
    node.crash()
    made.run(0.5)
    made.lead()
    made.run(1.0)
    node.start()
    all_progress(made)
    assert node.machine.part._shelf.allocation.version > 4
    made.run(2.0)
    assert made.leader.machine.members["d1"].iteration_s > 0


def test_a_silent_coordinator_is_not_waited_for():
    made = fleet(device_settings=DeviceSettings(alone_after_s=4.0))
    made.run(5.0)
    made.fault = lambda client, _topic, _payload: 0 if client == LEADER else 1
    made.run(6.0)
    seqs = {name: node.machine.memory.seq for name, node in made.devices.items()}
    trained = {name: node.trained for name, node in made.devices.items()}
    made.run(60.0)
    for name, node in made.devices.items():
        assert node.trained > trained[name] + 10
        assert node.machine.memory.seq > seqs[name] + 1
        assert node.machine.part.outbox.update.seq == node.machine.memory.seq
    applied = made.leader.machine.tally.applied
    made.fault = lambda *_: 1
    made.run(0.01)
    assert made.leader.machine.tally.applied <= applied + 3
    all_progress(made)


def test_a_coordinator_whose_line_is_cut():
    made = fleet()
    made.run(5.0)
    made.leader.disconnect()
    made.run(40.0)
    made.leader.reconnect()
    all_progress(made)


# --- the end, and the next run ----------------------------------------------------------------------------------------


def test_a_run_ends_with_everybodys_last_counters():
    made = fleet(settings=CoordinatorSettings(first=SMALL, rules=StopRules(max_pushes=60)))
    made.run(60.0)
    assert made.leader.quit is not None
    summary = made.leader.machine.summary(Score(loss=1.0, accuracy=None))
    assert summary["updates_applied"] == 60
    assert summary["updates_received"] == sum(
        summary[f"updates_{outcome}"] for outcome in ("applied", "duplicate", "stale", "rejected")
    )
    for row in summary["devices"]:
        node = made.devices[row["device"]]
        assert row["iterations"] == node.machine.learner.iterations
        assert row["updates_published"] == node.machine.learner.published
        assert node.machine.phase == "finished"
    assert summary["updates_published"] >= 60
    status = made.broker.retained[TOPICS.all("coordinator")]
    assert b'"offline"' in status


def test_devices_told_to_end_with_the_run_do():
    made = fleet(
        settings=CoordinatorSettings(first=SMALL, rules=StopRules(max_pushes=30), linger_s=5.0),
        device_settings=DeviceSettings(once=True),
    )
    made.run(60.0)
    assert all(node.quit is not None for node in made.devices.values())
    assert made.leader.quit is not None
    assert made.leader.machine.progress.elapsed_s < 10.0


def test_a_new_run_on_the_same_topics():
    made = fleet(settings=CoordinatorSettings(first=SMALL, rules=StopRules(max_pushes=30), linger_s=1.0))
    made.run(30.0)
    assert made.leader.quit is not None
    made.join("between")
    made.run(2.0)
    made.settings = SETTINGS
    made.lead(manifest("run-b", seed=6), fresh=True)
    all_progress(made)
    assert {node.machine.manifest.run for node in made.devices.values()} == {"run-b"}
    assert set(made.leader.machine.members) == {"d0", "d1", "d2", "between"}


def test_a_new_run_begins_while_devices_are_in_the_middle_of_the_old_one():
    made = fleet(latency_s=0.02, prepare_s=0.7)
    made.run(5.0)
    made.leader.crash()
    made.lead(manifest("run-b"), fresh=True)
    all_progress(made)
    made.leader.crash()
    made.lead(manifest("run-c", data_mode="shipped"), fresh=True)
    all_progress(made)
    assert made.leader.machine.tally.reasons.keys() <= {"run"}


def test_a_run_whose_end_was_said_but_not_recorded_goes_on():
    made = fleet(settings=CoordinatorSettings(first=SMALL, rules=StopRules(max_pushes=30), linger_s=60.0))
    made.leader.checkpoint = None
    made.run_until(lambda: made.leader.machine.finished)
    made.run(1.0)
    made.leader.crash()
    made.settings = SETTINGS  # the person gave the same run other rules
    made.lead()
    all_progress(made)


def test_nobody_who_left_long_ago_is_in_the_summary():
    made = fleet()
    made.run(5.0)
    for node in made.devices.values():
        node.leave()
    made.leader.crash()
    made.lead(manifest("run-b"), fresh=True)
    made.join("new")
    all_progress(made)
    summary = made.leader.machine.summary(Score(loss=1.0, accuracy=None))
    assert [row["device"] for row in summary["devices"]] == ["new"]


def test_counters_add_up_over_restarts_of_everybody():
    made = fleet()
    counted = 0
    for _ in range(4):
        made.run(3.0)
        for node in made.devices.values():
            # Its last state is out before it dies.
            made.run_until(
                lambda node=node: (
                    made.leader.machine.members[node.name].counted.iterations == node.machine.learner.iterations
                ),
                within=5.0,
            )
            counted += node.machine.learner.iterations
            node.crash()
        made.run(2.5)
        for node in made.devices.values():
            node.start()
        made.run(0.5)
        made.leader.machine.stop(now=made.now)
        made.leader.perform(made.leader.machine._checkpoint(made.now))
        made.leader.crash()
        made.lead()
    made.run(2.0)
    now = sum(member.counted.iterations for member in made.leader.machine.members.values())
    total = made.leader.machine.summary(Score(loss=1.0, accuracy=None))["iterations"]
    assert total == counted + now
    assert np.isfinite(made.leader.machine.model).all()
