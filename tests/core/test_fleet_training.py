"""A whole fleet in virtual time: does it learn, on whatever data it is given, and are the sizes evened out?"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.partition import rows_of
from hermes_iot.algorithms.strategies.hermes import Hermes, HermesConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Score, Sizing
from hermes_iot.protocol.messages import Allocation, Command, Shard
from hermes_iot.protocol.topics import Topics
from tests.core.peers import TOPICS, Fleet, manifest, toy

SMALL = Sizing(samples=60, batch=8)
SETTINGS = CoordinatorSettings(first=SMALL, checkpoint_interval_s=2.0, keyframe_interval_s=1.0)
DEMO = {"d0": 0.010, "d1": 0.012, "d2": 0.015, "d3": 0.060}


def fleet(about, *, speeds=DEMO, settings=SETTINGS, **options) -> Fleet:
    made = Fleet(about, settings=settings, latency_s=0.003, **options)
    made.lead()
    for name, speed in speeds.items():
        made.join(name, speed=speed)
    return made


def shards_sent(made: Fleet, name: str) -> int:
    return made.broker.published[TOPICS.down(name, "data")]


@pytest.mark.parametrize(
    ("mode", "sampling"),
    [("indexed", "fresh"), ("indexed", "kept"), ("shipped", "fresh"), ("shipped", "kept"), ("local", "kept")],
)
def test_the_fleet_learns_with_few_updates(mode, sampling):
    made = fleet(manifest(data_mode=mode, sampling=sampling), strategy=Hermes(HermesConfig()))
    made.run(18.0)
    machine = made.leader.machine
    score = toy().score(machine.model, "test")
    assert score.accuracy >= 0.82  # one device with all the data reaches 0.85
    assert toy().score(toy().initial(5), "test").accuracy < 0.5
    iterations = sum(node.trained for node in made.devices.values())
    assert machine.tally.applied < iterations / 2
    assert machine.tally.received == machine.tally.applied


def test_the_same_events_give_the_same_bits():
    models = []
    for _ in range(2):
        made = fleet(manifest(data_mode="shipped"))
        made.run(8.0)
        models.append(made.leader.machine.model.tobytes())
    assert models[0] == models[1]


def test_the_straggler_is_evened_out_once_everybody_was_measured():
    made = fleet(manifest())
    made.run(20.0)
    rows = {row["device"]: row for row in made.leader.machine.summary(Score(loss=1.0, accuracy=None))["devices"]}
    assert rows["d3"]["samples"] < rows["d3"]["samples_before"] == 60
    assert rows["d3"]["iteration_s"] < rows["d3"]["iteration_s_before"]
    assert rows["d0"]["allocations"] == 1
    first = next(one for one in made.events("allocation") if one["version"] == 2)
    assert first["device"] == "d3"


def test_nobody_is_re_sized_while_somebody_there_was_not_measured():
    made = Fleet(manifest(), settings=SETTINGS)
    made.lead()
    for name, speed in DEMO.items():
        made.join(name, speed=speed)
    made.join("slower", speed=3.0)  # 22 s for an iteration, and the first one does not count
    made.run(20.0)
    assert all(one["version"] == 1 for one in made.events("allocation"))
    made.run(35.0)
    assert {one["device"] for one in made.events("allocation") if one["version"] > 1} == {"slower"}


def test_a_size_reaches_its_end_and_stays_there():
    made = fleet(manifest())
    made.run(30.0)
    assert max(member.allocation.version for member in made.leader.machine.members.values()) <= 3


# --- rows -------------------------------------------------------------------------------------------------------------


def test_kept_rows_of_live_devices_are_disjoint():
    made = fleet(manifest(sampling="kept"))
    made.run(10.0)
    held = [range(*one) for member in made.leader.machine.members.values() for one in member.allocation.rows]
    rows = [row for one in held for row in one]
    assert len(rows) == len(set(rows)) == sum(rows_of(m.allocation.rows) for m in made.leader.machine.members.values())


def test_a_device_trains_on_the_rows_it_was_given():
    made = fleet(manifest(sampling="kept"))
    made.run(5.0)
    for name, node in made.devices.items():
        assert node.jobs[-1].rows == made.leader.machine.members[name].allocation.rows
        assert len({job.key for job in node.jobs}) == len(node.jobs)
        assert len({job.slice_key for job in node.jobs}) == 1


def test_local_rows_never_leave_and_cap_what_is_asked_for():
    made = Fleet(manifest(data_mode="local", sampling="kept"), settings=SETTINGS)
    made.lead()
    made.join("much", rows=500)
    made.join("little", rows=25)
    made.run(5.0)
    members = made.leader.machine.members
    assert (members["much"].allocation.samples, members["little"].allocation.samples) == (60, 25)
    assert all(job.rows == () and job.shard == "" for node in made.devices.values() for job in node.jobs)


# --- shipped shards ---------------------------------------------------------------------------------------------------


def test_fresh_shards_go_round_while_training_goes_on():
    made = fleet(manifest(data_mode="shipped"))
    made.run(18.0)
    for name, node in made.devices.items():
        used = [job.shard for job in node.jobs]
        changes = sum(a != b for a, b in itertools.pairwise(used))
        assert changes > 10
        assert node.trained > 50
        assert made.leader.machine.members[name].iteration_s > 0


def test_kept_shards_are_shipped_once_and_found_in_the_cache_after_a_restart():
    made = fleet(manifest(data_mode="shipped", sampling="kept"))
    made.run(5.0)
    node = made.devices["d0"]
    assert shards_sent(made, "d0") == 1
    node.crash()
    made.run(1.0)
    node.start()
    made.run(5.0)
    assert shards_sent(made, "d0") == 1
    assert node.machine.phase in {"training", "pushed"}


def test_a_fleet_whose_shards_are_the_whole_set_does_not_talk_itself_to_death():
    made = fleet(manifest(data_mode="shipped"), settings=CoordinatorSettings(first=Sizing(samples=320, batch=32)))
    made.run(15.0)
    assert made.broker.published[TOPICS.down("d0", "alloc")] <= 3
    assert shards_sent(made, "d0") == 1


def test_two_shards_in_turn_cost_at_most_one_allocation_per_iteration_and_are_shipped_once():
    settings = CoordinatorSettings(first=Sizing(samples=160, batch=16))
    made = fleet(manifest(data_mode="shipped"), settings=settings, speeds={"d0": 0.02})
    made.run(15.0)
    node = made.devices["d0"]
    assert len({job.shard for job in node.jobs}) == 2
    assert made.broker.published[TOPICS.down("d0", "alloc")] <= node.trained + 5
    assert shards_sent(made, "d0") == 2


@pytest.mark.parametrize("idle", ["paused", "pushed"])
def test_a_device_that_does_not_train_is_shipped_nothing(idle):
    settings = CoordinatorSettings(first=Sizing(samples=160, batch=16))
    made = fleet(manifest(data_mode="shipped"), settings=settings, speeds={"d0": 0.02})
    made.run(3.0)
    if idle == "paused":
        made.say(Command(id="1", name="pause"), "d0")
    else:
        made.fault = lambda _client, topic, _payload: 0 if topic.endswith(("/model", "/ack")) else 1
    made.run_until(lambda: made.devices["d0"].machine.phase == idle, within=10.0)
    made.run(1.0)
    before = made.broker.published[TOPICS.down("d0", "alloc")]
    made.run(8.0)
    assert made.broker.published[TOPICS.down("d0", "alloc")] == before


@pytest.mark.parametrize("sampling", ["fresh", "kept"])
def test_a_coordinator_that_comes_back_gives_shards_as_before(sampling):
    made = fleet(manifest(data_mode="shipped", sampling=sampling))
    made.run(6.0)
    for _ in range(2):
        made.leader.crash()
        made.run(1.0)
        made.lead()
        before = {name: node.trained for name, node in made.devices.items()}
        applied = {name: made.applied(name) for name in made.devices}
        made.run(7.0)
        for name, node in made.devices.items():
            assert node.trained > before[name] + 5
            assert made.applied(name) > applied[name]
            allocation = made.leader.machine.members[name].allocation
            assert bool(allocation.next_shard) == (sampling == "fresh")
    if sampling == "kept":
        assert all(shards_sent(made, name) <= 2 for name in made.devices)


def test_a_joiner_while_the_coordinator_has_lost_its_shards():
    made = fleet(manifest(data_mode="shipped"))
    made.run(5.0)
    made.leader.machine._assigner.allotment._shards.clear()
    node = made.join("late")
    made.run_until(lambda: made.applied("late") > 0, within=20.0)
    made.run(5.0)
    assert all(made.devices[name].machine.phase in {"training", "pushed"} for name in made.devices)
    assert node.quit is None


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_shard_that_does_not_arrive_is_asked_for_until_it_does(how):
    made = Fleet(manifest(data_mode="shipped"), settings=SETTINGS)
    made.lead()
    if how == "lost":
        made.fault = lambda _client, topic, _payload: 0 if topic.endswith("/data") else 1
    node = made.join("d0")
    if how == "damaged":
        deliver = node.machine.received

        def spoilt(received, *, now):
            message = received.message
            if isinstance(message, Shard):
                received = type(received)(
                    message=Shard(run=message.run, sha256=message.sha256, body=b"rubbish"), device="d0", tensor=True
                )
            return deliver(received, now=now)

        node.machine.received = spoilt
    made.run(60.0)
    assert node.trained == 0
    made.fault = lambda *_: 1
    node.machine.__dict__.pop("received", None)
    made.run_until(lambda: made.applied("d0") > 0, within=70.0)
    assert ("shard_hash" in node.dropped) == (how == "damaged")


def test_a_cache_that_has_evicted_the_shard_is_filled_again():
    made = fleet(manifest(data_mode="shipped", sampling="kept"))
    made.run(5.0)
    node = made.devices["d0"]
    node.cache.clear()
    before = made.applied("d0")
    made.run_until(lambda: made.applied("d0") > before + 1, within=30.0)
    assert shards_sent(made, "d0") == 2


def test_an_allocation_of_rows_that_do_not_exist_is_not_trained_on_in_a_loop():
    made = fleet(manifest())
    made.run(3.0)
    node = made.devices["d0"]
    made.say(Allocation(run="run-a", device="d0", version=90, samples=9, batch=3, rows=((9000, 9009),)), "d0")
    trained = node.trained
    made.run(0.5)
    made.run_until(lambda: node.trained > trained + 20, within=30.0)
    assert made.leader.machine.members["d0"].allocation.version > 90


def test_topics_of_this_fleet_are_those_of_the_wire():
    assert isinstance(TOPICS, Topics)
    made = fleet(manifest())
    made.run(1.0)
    assert all(TOPICS.parse(topic) for topic in made.broker.published)


def test_target_accuracy_ends_a_run_that_learns():
    rules = StopRules(target_accuracy=0.85, max_wall_s=120.0)
    made = fleet(manifest(), settings=CoordinatorSettings(first=SMALL, rules=rules))
    made.run(130.0)
    machine = made.leader.machine
    assert machine.manifest.reason == "target accuracy 0.85 reached"
    assert machine.score.accuracy >= 0.85
    assert np.array_equal(made.leader.checkpoint.arrays["model"], machine.model)


def test_without_a_forced_push_the_papers_gate_falls_silent_on_kept_rows():
    made = fleet(manifest(sampling="kept"), strategy=Hermes(HermesConfig(gate=GateConfig(max_age=None))))
    made.run(14.0)
    silent = made.leader.machine.tally.applied
    forced = fleet(manifest(sampling="kept"), strategy=Hermes(HermesConfig(gate=GateConfig(max_age=10))))
    forced.run(14.0)
    assert forced.leader.machine.tally.applied > silent
