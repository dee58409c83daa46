"""The coordinator's machine by hand: events in, effects out."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.algorithms.compression import unpack
from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.strategies.hermes import Hermes, HermesConfig
from hermes_iot.algorithms.trees import sha256
from hermes_iot.core.coordinator import STRANGERS_TOLD, Restored
from hermes_iot.core.effects import Checkpoint, Quit, SendKeyframe
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Score, Sizing
from hermes_iot.errors import StorageError
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    CoordinatorStatus,
    Metrics,
    Model,
    Request,
    Response,
    RunManifest,
    Shard,
)
from tests.core.hand import (
    ALWAYS,
    ME,
    Desk,
    birth,
    body,
    death,
    kinds,
    manifest,
    of,
    recorded,
    rows_as_bytes,
    sent,
    state,
    update,
    vector,
)

DELTA = Hermes(HermesConfig(gate=GateConfig(max_age=1), pushed="delta"))
SHIPPED = manifest(data={"mode": "shipped", "sampling": "fresh"})


def restored_from(desk: Desk, effects, **changes) -> Restored:
    """As the runtime restores: the newest checkpoint through JSON, allocations from the registry."""
    saved = of(effects, Checkpoint)[-1]
    allocations = {
        name: replace(member.allocation, next_shard="", next_shard_bytes=0, shard_bytes=0, reason="")
        for name, member in desk.machine.members.items()
        if member.allocation is not None
    }
    fields = {
        "version": saved.version,
        "arrays": dict(saved.arrays),
        "scalars": json.loads(json.dumps(saved.scalars, allow_nan=False)),
        "allocations": allocations,
    }
    return Restored(**{**fields, **changes})


# --- connecting -------------------------------------------------------------------------------------------------------


def test_everything_retained_is_published_at_every_connection_and_the_run_is_on_disk_before():
    desk = Desk()
    effects = desk.machine.connected(now=desk.now)
    assert kinds(effects) == ["Checkpoint", "RunManifest", "SendKeyframe", "CoordinatorStatus"]
    desk.hear(birth())
    desk.machine.disconnected()
    effects = desk.machine.connected(now=desk.now)
    assert kinds(effects) == ["RunManifest", "SendKeyframe", "Allocation", "CoordinatorStatus"]


def test_status_and_keyframe_are_said_at_their_intervals():
    desk = Desk(status_interval_s=2.0, keyframe_interval_s=5.0).up()
    desk.hear(birth())
    effects = desk.wait(10.0)
    assert len(sent(effects, CoordinatorStatus)) == 5
    assert not of(effects, SendKeyframe)  # nothing new
    effects = desk.hear(update())
    effects += desk.wait(10.0)
    assert [one.model.version for one in of(effects, SendKeyframe)] == [1]


def test_the_larger_the_fleet_the_rarer_what_is_said_to_everybody():
    """Ten devices at 1.5 s each: every 15 s instead of every 2 and 5."""
    desk = Desk(status_interval_s=2.0, keyframe_interval_s=5.0, announce_s_per_device=1.5).up()
    for number in range(10):
        desk.hear(birth(), f"d{number}")
    desk.hear(update(), "d0")
    desk.wait(5.0)  # what was planned for a fleet of nobody
    effects = []
    for seq in range(2, 32):
        effects += desk.hear(update(seq), "d0")
        effects += desk.wait(1.0)
    assert len(sent(effects, CoordinatorStatus)) == len(of(effects, SendKeyframe)) == 2


def test_checkpoints_that_nobody_wants_set_no_timer():
    desk = Desk(checkpoint_interval_s=math.inf).up()
    desk.hear(birth())
    desk.hear(update())
    assert math.isfinite(desk.machine.next_deadline())
    assert not of(desk.wait(1000.0), Checkpoint)
    desk.machine.disconnected()
    assert desk.machine.next_deadline() is None
    assert kinds(desk.machine.stop(now=desk.now))[0] == "Checkpoint"


def test_without_a_connection_nothing_is_said_and_no_timer_spins():
    desk = Desk(checkpoint_interval_s=10.0).up()
    desk.hear(birth())
    desk.hear(update())
    desk.machine.disconnected()
    assert kinds(desk.wait(1000.0)) == ["Checkpoint"]
    assert desk.machine.next_deadline() is None


# --- joining and leaving ----------------------------------------------------------------------------------------------


def test_a_birth_is_answered_with_a_first_allocation_that_is_remembered_before_it_is_said():
    desk = Desk(first=Sizing(samples=40, batch=8)).up()
    effects = desk.hear(birth(slowdown=2.0))
    names = kinds(effects)
    assert names.index("Remember") < names.index("Allocation")
    (one,) = sent(effects, Allocation)
    assert (one.version, one.samples, one.batch, one.rows) == (1, 40, 8, ((0, 100),))
    assert recorded(effects, "joined") == [{"device": "d1", "session": 1, "slowdown": 2.0}]


def test_a_repeated_birth_asks_for_its_allocation_and_joins_nobody_twice():
    desk = Desk().up()
    desk.hear(birth())
    effects = desk.hear(birth())
    assert kinds(effects) == ["Allocation"]


@pytest.mark.parametrize(
    ("about", "status", "samples"),
    [
        ({"rows": 100}, {}, 100),
        ({"rows": 100}, {"memory_rows_max": 30}, 30),
        ({"rows": 100}, {"memory_rows_max": 300}, 100),
        ({"rows": 0, "mode": "local", "sampling": "kept"}, {"rows": 70}, 70),
        ({"rows": 0, "mode": "local", "sampling": "kept"}, {"rows": 70, "memory_rows_max": 50}, 50),
        ({"rows": 0, "mode": "local", "sampling": "kept"}, {}, 256),
    ],
)
def test_nobody_is_told_to_use_more_rows_than_there_are_or_its_memory_takes(about, status, samples):
    desk = Desk(about=manifest(data=about)).up()
    (one,) = sent(desk.hear(birth(**status)), Allocation)
    assert (one.samples, one.batch) == (samples, 16)


def test_a_device_that_comes_back_with_less_memory_is_re_sized():
    desk = Desk().up()
    desk.hear(birth())
    desk.hear(death())
    (one,) = sent(desk.hear(birth(session=2, memory_rows_max=10)), Allocation)
    assert (one.version, one.samples, one.batch) == (2, 10, 10)


def test_a_will_makes_a_device_leave_and_coming_back_brings_the_same_allocation():
    desk = Desk().up()
    (first,) = sent(desk.hear(birth()), Allocation)
    assert recorded(desk.hear(death()), "left") == [{"device": "d1", "reason": "connection lost"}]
    assert desk.hear(death()) == []
    effects = desk.hear(birth(session=2))
    assert sent(effects, Allocation) == [first]
    assert recorded(effects, "joined")


def test_the_late_will_of_an_earlier_session_takes_nobody_away():
    desk = Desk().up()
    desk.hear(birth(session=1))
    desk.hear(birth(session=2))
    assert desk.hear(death(session=1)) == []
    assert desk.machine.members["d1"].online


def test_what_is_retained_of_earlier_runs_lets_nobody_in():
    desk = Desk().up()
    for message in (
        death(),
        state(run="old"),
        Request(run="old", session=1, want="model"),
        Metrics(
            run="old", session=1, iteration=1, seconds=1, samples=1, batch=1, mini_batches=1,
            loss=None, z=None, threshold=None, published=False,
        ),
        Response(id="x", status="ok"),
    ):  # fmt: skip
        assert desk.hear(message) == []
    assert desk.machine.members == {}


def test_an_update_of_another_run_is_counted_whoever_sends_it():
    desk = Desk().up()
    assert recorded(desk.hear(update(run="old")), "refused")
    desk.hear(birth())
    effects = desk.hear(update(run="old"))
    assert recorded(effects, "dropped")[0]["reason"] == "run"
    assert not sent(effects, Ack)
    assert desk.machine.tally.reasons == {"run": 2}
    assert list(desk.machine.members) == ["d1"]


def test_no_more_devices_than_allowed_are_let_in():
    desk = Desk(devices_max=2).up()
    for name in ("a", "b"):
        desk.hear(birth(), name)
    effects = desk.hear(birth(), "c")
    assert recorded(effects, "refused") == [{"device": "c", "channel": "status", "reason": "devices"}]
    desk.hear(update(), "c")
    assert desk.machine.tally.reasons == {"devices": 1}
    assert set(desk.machine.members) == {"a", "b"}
    assert sent(desk.hear(birth(2), "a"), Allocation)


def test_a_device_that_lost_its_memory_is_told_the_session_it_must_exceed():
    desk = Desk().up()
    desk.hear(birth(session=5))
    desk.hear(update(4, session=5))
    (one,) = sent(desk.hear(birth(session=1)), Ack)
    assert (one.session, one.seq, one.outcome) == (5, 4, "stale")
    (one,) = sent(desk.hear(update(1, session=1)), Ack)
    assert (one.session, one.seq, one.outcome, one.reason) == (5, 4, "stale", "session")


def test_in_a_new_run_too_where_nothing_was_handled_yet():
    desk = Desk().up()
    desk.hear(death(session=5))  # retained
    assert sent(desk.hear(birth(session=1)), Allocation)
    desk = Desk().up()
    desk.hear(birth(session=5))  # retained: its process died unnoticed
    (one,) = sent(desk.hear(birth(session=1)), Ack)
    assert (one.session, one.seq) == (5, 0)


# --- updates ----------------------------------------------------------------------------------------------------------


def test_the_first_update_becomes_the_model_and_is_acked_then_answered():
    desk = Desk().up()
    desk.hear(birth())
    effects = desk.hear(update(value=2.0))
    assert kinds(effects) == ["Journal", "Ack", "Model", "Record"]
    (answer,) = sent(effects, Model)
    assert (answer.version, answer.session, answer.seq, answer.body) == (1, 1, 1, body(2.0))
    assert desk.machine.version == 1
    assert desk.machine.score == Score(loss=1.0, accuracy=math.exp(-1.0))


def test_a_repeated_update_is_a_duplicate_answered_again():
    desk = Desk().up()
    desk.hear(birth())
    desk.hear(update())
    effects = desk.hear(update())
    (one,) = sent(effects, Ack)
    assert (one.session, one.seq, one.outcome) == (1, 1, "duplicate")
    assert [(one.session, one.seq) for one in sent(effects, Model)] == [(1, 1)]
    assert (desk.machine.version, desk.machine.tally.duplicate) == (1, 1)


def test_a_repetition_that_nobody_can_be_waiting_for_costs_no_model():
    desk = Desk().up()
    desk.hear(birth())
    for seq in (1, 2):
        desk.hear(update(seq))
    effects = desk.hear(update(1))
    assert [(one.session, one.seq) for one in sent(effects, Ack)] == [(1, 2)]
    assert not sent(effects, Model)


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        ({"model": "3c" * 32}, "rejected", "model_mismatch"),
        ({"parameters": 5}, "rejected", "model_mismatch"),
        ({"codec": "fp16"}, "rejected", "codec"),
        ({"session": 1}, "stale", "session"),
        ({"body": body()[:-1]}, "rejected", "size"),
        ({"body": np.array([1, np.nan, 1, 1], "<f4").tobytes()}, "rejected", "finite"),
        ({"body": np.array([1, 1, np.inf, 1], "<f4").tobytes()}, "rejected", "finite"),
        ({"base_version": 0}, "stale", "lag"),
    ],
)
def test_what_cannot_be_applied_is_counted_acked_and_answered_with_the_present_model(change, outcome, reason):
    desk = Desk(lag_max=2).up()
    desk.hear(birth(session=2))
    for seq in (1, 2, 3):
        desk.hear(update(seq, session=2, base_version=seq - 1))
    before = desk.machine.model.copy()
    effects = desk.hear(update(4, **{"session": 2, "base_version": 3, **change}))
    (one,) = sent(effects, Ack)
    assert (one.outcome, one.reason) == (outcome, reason)
    assert getattr(desk.machine.tally, outcome) == 1
    assert desk.machine.tally.reasons == {reason: 1}
    assert np.array_equal(desk.machine.model, before)
    assert desk.machine.version == 3
    if reason != "session":
        (answer,) = sent(effects, Model)
        assert (answer.version, answer.seq) == (3, 4)


def test_a_future_base_is_no_lag():
    # The coordinator came back from an older checkpoint than the device has seen.
    desk = Desk(lag_max=0).up()
    desk.hear(birth())
    assert recorded(desk.hear(update(base_version=99)), "merge")[0]["lag"] == 0


@pytest.mark.parametrize("base", ["", sha256(vector(7.0))])
def test_a_displacement_from_an_unknown_base_is_refused_and_answered(base):
    desk = Desk(DELTA).up()
    desk.hear(birth())
    effects = desk.hear(update(base=base))
    assert sent(effects, Ack)[0].reason == "base"
    assert sent(effects, Model)[0].version == 0
    effects = desk.hear(update(2, value=1.5, base=sha256(vector(0.0))))
    assert sent(effects, Ack)[0].outcome == "applied"
    assert np.array_equal(desk.machine.model, vector(1.5))


def test_a_base_whose_version_was_given_to_another_model_is_not_known():
    """Version 1 was (2, 2, ...) before the restart and is (1, 1, ...) now: a displacement from the one is lost."""
    desk = Desk(DELTA)
    before = restored_from(desk, desk.machine.connected(now=desk.now))
    desk.hear(birth())
    desk.hear(update(value=2.0, base=sha256(vector(0.0))))
    assert (desk.machine.version, desk.machine.model[0]) == (1, 2.0)
    desk = Desk(DELTA, restored=before).up()
    desk.hear(birth())
    desk.hear(update(value=1.0, base=sha256(vector(0.0))), "other")
    effects = desk.hear(update(2, value=0.5, base_version=1, base=sha256(vector(2.0))))
    assert sent(effects, Ack)[0].reason == "base"
    assert np.array_equal(unpack(sent(effects, Model)[0].body, "fp32", 4), vector(1.0))
    assert (desk.machine.version, desk.machine.model[0]) == (1, 1.0)


def test_bases_are_kept_for_a_bounded_number_of_versions():
    desk = Desk(DELTA).up()
    desk.hear(birth())
    digests = [sha256(vector(0.0))]
    for seq in range(1, 101):
        desk.hear(update(seq, value=0.001, base_version=seq - 1, base=digests[-1]))
        digests.append(sha256(desk.machine.model))
    assert desk.machine.version == 100
    assert len(set(digests)) == 101
    kept = update(101, base_version=100 - 63, base=digests[100 - 63])
    assert sent(desk.hear(kept), Ack)[0].outcome == "applied"
    assert sent(desk.hear(update(102, base_version=20, base=digests[20])), Ack)[0].reason == "base"


def test_an_update_without_a_finite_loss_leaves_everything_as_it_was():
    desk = Desk().up()
    desk.hear(birth())
    desk.hear(update(1, value=2.0))
    desk.score = lambda _params: Score(loss=math.nan, accuracy=0.0)
    desk.machine._aggregator._score_of = desk.score
    assert sent(desk.hear(update(2, value=9.0)), Ack)[0].reason == "loss"
    assert np.array_equal(desk.machine.model, vector(2.0))
    assert desk.machine.version == 1


def test_a_strategy_that_would_make_an_infinite_model_is_not_followed():
    class Reckless(Hermes):
        def merge(self, state, model, contribution, fleet, score):
            state, merged = super().merge(state, model, contribution, fleet, score)
            return state, replace(merged, model=merged.model + np.float32(np.inf))

    desk = Desk(Reckless(ALWAYS.config)).up()
    desk.hear(birth())
    assert sent(desk.hear(update()), Ack)[0].reason == "finite"
    assert np.isfinite(desk.machine.model).all()
    assert desk.machine._aggregator._state.loss is None


def test_devices_that_are_answered_for_anothers_update_are_answered_for_their_own():
    class Both(Hermes):
        def merge(self, state, model, contribution, fleet, score):
            state, merged = super().merge(state, model, contribution, fleet, score)
            return state, replace(merged, reply_to=("a", "b") if contribution.device == "b" else ())

    desk = Desk(Both(ALWAYS.config)).up()
    for name in ("a", "b"):
        desk.hear(birth(), name)
    assert not sent(desk.hear(update(7), "a"), Model)
    effects = desk.hear(update(3), "b")
    answered = [(one.device, one.message.session, one.message.seq) for one in effects if kinds([one]) == ["Model"]]
    assert answered == [("a", 1, 7), ("b", 1, 3)]


def test_an_update_that_only_waits_for_others_is_no_aggregation_for_the_patience_rule():
    class Waits(Hermes):
        def merge(self, state, model, contribution, fleet, score):
            _, merged = super().merge(state, model, contribution, fleet, score)
            return state, replace(merged, model=None, score=None)

    desk = Desk(Waits(ALWAYS.config), rules=StopRules(patience=2)).up()
    desk.hear(birth())
    for seq in range(1, 10):
        desk.hear(update(seq))
    assert not desk.machine.finished
    assert (desk.machine.progress.applied, desk.machine.version) == (9, 0)


def test_refusals_of_who_is_no_member_are_recorded_so_often_and_no_more_but_all_are_counted():
    desk = Desk(status_interval_s=1.0).up()
    desk.hear(birth())

    def told(count, device):
        effects = [one for _ in range(count) for one in desk.machine.malformed(device, "update", "msgpack")]
        return len(recorded(effects, "refused"))

    assert told(100, "stranger") == STRANGERS_TOLD
    assert told(100, "another") == 0
    assert told(100, "d1") == 100
    desk.wait(5.5)
    assert told(100, "stranger") == 5
    assert desk.machine.tally.reasons == {"msgpack": 400}


def test_malformed_updates_are_counted_and_other_malformed_messages_recorded():
    desk = Desk().up()
    assert recorded(desk.machine.malformed("d1", "update", "msgpack"), "refused")
    assert recorded(desk.machine.malformed("d1", "state", "json"), "refused")
    assert (desk.machine.tally.received, desk.machine.tally.reasons) == (1, {"msgpack": 1})


def test_a_request_for_the_model_is_answered():
    desk = Desk().up()
    desk.hear(birth())
    (answer,) = sent(desk.hear(Request(run="run-a", session=1, want="model")), Model)
    assert (answer.version, answer.session, answer.seq) == (0, 0, 0)
    assert desk.hear(Request(run="old", session=1, want="model")) == []


# --- sizes ------------------------------------------------------------------------------------------------------------


def fleet_of(desk: Desk, seconds: dict[str, float]) -> list:
    for name in seconds:
        desk.hear(birth(), name)
    return measure(desk, seconds)


def measure(desk: Desk, seconds: dict[str, float], **changes) -> list:
    effects = []
    for name, one in seconds.items():
        allocation = desk.machine.members[name].allocation
        desk.now += 0.01
        changes["iterations"] = desk.machine.members[name].counted.iterations + 1
        effects += desk.hear(
            state(
                allocation_version=allocation.version,
                samples=allocation.samples,
                batch=allocation.batch,
                iteration_s=one,
                **changes,
            ),
            name,
        )
    return effects


EVEN = {"a": 1.0, "b": 1.1, "c": 1.2, "d": 1.15}


def test_an_outlier_is_re_sized_once_everybody_was_measured():
    desk = Desk(first=Sizing(samples=100, batch=10)).up()
    fleet_of(desk, {**EVEN, "slow": 0.0})
    assert desk.wait(5.0)
    assert desk.machine.members["slow"].allocation.version == 1
    effects = measure(desk, {"slow": 4.0})
    (one,) = sent(effects, Allocation)
    assert (one.device, one.version) == ("slow", 2)
    assert one.samples == 32
    assert recorded(effects, "allocation")[0]["reason"] == "100 rows took 4 s"
    assert kinds(effects).index("Remember") < kinds(effects).index("Allocation")


def test_a_new_size_counts_only_when_it_was_measured_itself():
    desk = Desk(first=Sizing(samples=100, batch=10)).up()
    fleet_of(desk, {**EVEN, "slow": 4.0})
    desk.wait(2.0)
    desk.hear(state(allocation_version=1, samples=100, batch=10, iteration_s=4.0), "slow")
    assert not sent(desk.wait(5.0), Allocation)
    assert desk.machine.members["slow"].iteration_s == 0


@pytest.mark.parametrize("excuse", ["left", "paused", "absurd", "silent"])
def test_nobody_holds_up_the_sizes_of_the_others_for_ever(excuse):
    desk = Desk(first=Sizing(samples=100, batch=10), measure_patience_s=60.0).up()
    fleet_of(desk, {**EVEN, "slow": 4.0, "odd": 1e8 if excuse == "absurd" else 0.0})
    if excuse == "left":
        desk.hear(death(), "odd")
    elif excuse == "paused":
        desk.hear(state(phase="paused"), "odd")
    elif excuse == "silent":
        desk.wait(10.0)
        assert desk.machine.members["slow"].allocation.version == 1
        for _ in range(6):  # everybody else goes on
            measure(desk, {**EVEN, "slow": 4.0})
            desk.wait(10.0)
    desk.wait(2.0)
    assert desk.machine.members["slow"].allocation.version == 2
    assert desk.machine.members["odd"].allocation.version == 1


def test_a_fast_device_is_never_offered_more_rows_than_there_are():
    offered = []

    class Watched(Hermes):
        def resize(self, state, reports, fleet):
            state, sizes = super().resize(state, reports, fleet)
            offered.append(sizes)
            return state, sizes

    desk = Desk(Watched(ALWAYS.config), first=Sizing(samples=100, batch=10)).up()
    fleet_of(desk, {"a": 4.0, "b": 4.1, "c": 4.2, "d": 4.15, "fast": 0.5})
    for _ in range(5):
        desk.wait(2.0)
        measure(desk, {"fast": 0.5})
    assert offered
    assert all(not sizes for sizes in offered)


class Counted(Hermes):
    """Sizes nobody, early, and counts how often and for how many."""

    @property
    def regime(self):
        return replace(super().regime, sizes_early=True)

    def resize(self, state, reports, fleet):  # noqa: ARG002 - the strategy's signature
        asked.append(len(reports))
        return state, {}


asked: list[int] = []


def test_a_large_fleet_is_sized_seldom_but_at_once_when_much_of_it_is_measured_for_the_first_time():
    """Sixteen devices at 10 s each: every 160 s, or, with more than two of them new, after 1 s."""
    asked.clear()
    desk = Desk(Counted(ALWAYS.config), announce_s_per_device=10.0, resize_interval_s=1.0).up()
    for number in range(16):
        desk.hear(birth(), f"d{number:02}")
    report = state(samples=256, batch=16, batch_s=0.1)
    desk.wait(1.0)  # nobody was measured yet
    for number in (0, 1):
        desk.hear(report, f"d{number:02}")
        desk.wait(2.0)
    assert asked == []  # two of sixteen are no news
    desk.hear(report, "d02")
    assert asked == [3]  # three are
    for _ in range(22):  # and that one of them reports again is none
        desk.wait(7.0)
        desk.hear(report, "d02")
    assert asked == [3]
    desk.wait(7.0)
    assert asked == [3, 3]  # who is heard of that seldom is not silent yet


def test_who_is_silent_for_longer_than_two_reports_is_not_counted_on():
    """Four devices at 10 s each report every 40 s."""
    asked.clear()
    desk = Desk(Counted(ALWAYS.config), announce_s_per_device=10.0, resize_interval_s=1.0).up()
    for number in range(4):
        desk.hear(birth(), f"d{number:02}")
        desk.hear(state(samples=256, batch=16, batch_s=0.1), f"d{number:02}")
    desk.wait(1.0)
    for iterations, after_s in ((2, 78.0), (3, 40.0)):
        desk.wait(after_s)
        desk.hear(state(iterations=iterations, samples=256, batch=16, batch_s=0.1), "d00")
    assert asked == [4, 4, 1]


def test_versions_of_an_allocation_rise_by_one():
    desk = Desk(first=Sizing(samples=100, batch=10)).up()
    fleet_of(desk, {**EVEN, "slow": 1.6})
    desk.wait(2.0)
    measure(desk, {**EVEN, "slow": 4.0})
    desk.wait(2.0)
    assert desk.machine.members["slow"].allocation.version == 3


def test_a_device_that_obeys_what_is_not_known_here_is_numbered_above_it():
    desk = Desk().up()
    desk.hear(birth())
    effects = desk.hear(state(allocation_version=7))
    (one,) = sent(effects, Allocation)
    assert one.version == 8
    assert not sent(desk.hear(state(allocation_version=8)), Allocation)


def test_a_device_that_is_born_after_saying_so_is_numbered_above_it_too():
    desk = Desk().up()
    desk.hear(state(allocation_version=7))  # retained, before the birth
    (one,) = sent(desk.hear(birth()), Allocation)
    assert one.version == 8


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"target_accuracy": 0.9}, "target accuracy 0.9 reached"),
        ({"patience": 3}, "no better loss in 3 aggregations"),
        ({"max_pushes": 4}, "4 updates applied"),
        ({"max_bytes": 500}, "500 bytes transferred"),
        ({"max_wall_s": 7.0}, "7 s of wall time"),
    ],
)
def test_each_rule_ends_the_run(rules, reason):
    desk = Desk(rules=StopRules(**rules)).up()
    desk.hear(birth())
    effects = []
    for seq in range(1, 20):
        # The first is right on target; from there on it gets worse again.
        value = {"target_accuracy": 3.0, "patience": 3.0}.get(next(iter(rules)), 2.0) if seq < 2 else 1.0
        desk.machine.carried("update", up=60)
        effects += desk.hear(update(seq, value=value))
        effects += desk.wait(1.0)
        if desk.machine.finished:
            break
    assert desk.machine.finished
    assert recorded(effects, "finished") == [{"reason": reason}]
    (about,) = sent(effects, RunManifest)
    assert (about.state, about.reason) == ("finished", reason)


@pytest.mark.parametrize("started", [0.1, 0.3, 1e9 + 0.7])
@pytest.mark.parametrize("wall_s", [0.7, 0.1, 1.1, 3600.3])
def test_wall_time_ends_the_run_at_its_deadline_whatever_rounding_does(started, wall_s):
    desk = Desk(rules=StopRules(max_wall_s=wall_s), checkpoint_interval_s=1e6, now=started)
    due = desk.machine.next_deadline()
    desk.machine.expire(now=due)
    assert desk.machine.finished


def test_at_the_end_the_last_model_is_on_disk_and_retained():
    desk = Desk(rules=StopRules(max_pushes=1), linger_s=5.0).up()
    desk.hear(birth())
    effects = desk.hear(update(value=2.0))
    names = kinds(effects)
    assert names[-5:] == ["Checkpoint", "SendKeyframe", "RunManifest", "CoordinatorStatus", "Record"]
    assert of(effects, Checkpoint)[0].version == of(effects, SendKeyframe)[0].model.version == 1
    assert not of(effects, Quit)


def test_it_lingers_for_the_last_counters_and_then_leaves_with_a_word():
    desk = Desk(rules=StopRules(max_pushes=1), linger_s=5.0).up()
    for name in ("a", "b"):
        desk.hear(birth(), name)
    desk.hear(update(), "a")
    assert not of(desk.hear(state(phase="finished", iterations=9), "a"), Quit)
    assert not of(desk.hear(state(phase="training"), "b"), Quit)
    effects = desk.hear(state(phase="finished", iterations=4), "b")
    assert kinds(effects)[-2:] == ["CoordinatorStatus", "Quit"]
    assert sent(effects, CoordinatorStatus)[0].state == "offline"
    assert desk.machine.next_deadline() is None
    assert desk.machine.expire(now=desk.now) == []
    assert desk.hear(birth(2), "a") == []


def test_it_lingers_no_longer_than_told():
    desk = Desk(rules=StopRules(max_pushes=1), linger_s=5.0).up()
    desk.hear(birth())
    desk.hear(update())
    assert not of(desk.wait(4.9), Quit)
    assert of(desk.wait(0.2), Quit)


def test_lingering_is_no_part_of_the_runs_wall_time():
    desk = Desk(rules=StopRules(max_pushes=1), linger_s=5.0).up()
    desk.hear(birth())
    desk.wait(3.0)
    desk.hear(update())
    assert of(desk.wait(10.0), Quit)
    assert desk.machine.summary(Score(loss=1.0, accuracy=None))["wall_s"] == 3.0


def test_a_device_that_leaves_is_not_waited_for():
    desk = Desk(rules=StopRules(max_pushes=1), linger_s=5.0).up()
    desk.hear(birth())
    desk.hear(update())
    assert of(desk.hear(death()), Quit)


def test_with_nobody_there_it_leaves_at_once():
    desk = Desk(rules=StopRules(max_wall_s=3.0), linger_s=5.0).up()
    effects = desk.wait(3.0)
    assert kinds(effects)[-2:] == ["CoordinatorStatus", "Quit"]


def test_after_the_end_births_get_no_allocation_and_updates_are_stale():
    desk = Desk(rules=StopRules(max_pushes=1), linger_s=5.0).up()
    desk.hear(birth(), "a")
    desk.hear(update(), "a")
    effects = desk.hear(birth(), "late")
    assert not sent(effects, Allocation)
    assert recorded(effects, "joined")
    assert not sent(desk.hear(birth(), "late"), Allocation)
    (one,) = sent(desk.hear(update(2), "a"), Ack)
    assert (one.outcome, one.reason) == ("stale", "finished")
    assert not sent(desk.hear(state(allocation_version=9), "late"), Allocation)


def test_stopping_keeps_the_run_for_later():
    desk = Desk().up()
    effects = desk.machine.stop(now=desk.now)
    assert kinds(effects) == ["Checkpoint", "CoordinatorStatus", "Quit"]
    assert sent(effects, CoordinatorStatus)[0].state == "offline"
    assert not desk.machine.finished


# --- coming back ------------------------------------------------------------------------------------------------------


def used() -> tuple[Desk, list]:
    desk = Desk(first=Sizing(samples=40, batch=8)).up()
    desk.hear(birth(session=3))
    desk.hear(update(1, session=3, value=2.0))
    desk.hear(state(session=3, iterations=50, published=5, samples=40, batch=8, iteration_s=2.0, bytes_up=1000))
    desk.hear(update(1, session=3))
    desk.wait(4.0)
    return desk, desk.machine._checkpoint(desk.now)


def test_a_checkpoint_brings_back_model_counters_and_what_was_handled():
    before, effects = used()
    desk = Desk(restored=restored_from(before, effects))
    machine = desk.machine
    assert np.array_equal(machine.model, vector(2.0))
    assert machine.version == 1
    assert machine.tally.dump() == before.machine.tally.dump()
    assert machine.score == before.machine.score
    machine.expire(now=desk.now)
    assert machine.progress == replace(before.machine.progress, elapsed_s=machine.progress.elapsed_s)
    assert machine.progress.elapsed_s == pytest.approx(4.0)
    (one,) = sent(desk.hear(update(1, session=3)), Ack)
    assert one.outcome == "duplicate"


def test_counters_of_earlier_sessions_and_times_survive_a_restart():
    before, effects = used()
    desk = Desk(restored=restored_from(before, effects)).up()
    # The device was restarted meanwhile: what is retained is its new session's.
    desk.hear(birth(session=4))
    desk.hear(state(session=4, iterations=7, published=1, samples=40, batch=8, iteration_s=3.0, bytes_up=10))
    (row,) = desk.machine.summary(Score(loss=1.0, accuracy=None))["devices"]
    assert (row["iterations"], row["updates_published"], row["bytes_up"]) == (57, 6, 1010)
    assert (row["iteration_s_before"], row["iteration_s"], row["updates_applied"]) == (3.0, 3.0, 1)


def test_a_checkpoint_of_an_older_version_without_counters_is_read():
    before, effects = used()
    restored = restored_from(before, effects)
    for row in restored.scalars["members"].values():
        for name in ("counted_session", "counted", "earlier", "timings"):
            del row[name]
    desk = Desk(restored=restored)
    assert desk.machine.members["d1"].totals().iterations == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"strategy": {}},
        {"tally": {"nonsense": 1}},
        {"tally": "nonsense"},
        {"members": {"d1": {}}},
        {"elapsed_s": {}},
        {"cursor": math.inf},
        {"crew": [["d1"]]},
        {"crew": "d1"},
        {"summoned": ["somebody else"]},
    ],
)
def test_a_checkpoint_that_others_wrote_is_refused_in_one_line(changed):
    before, effects = used()
    restored = restored_from(before, effects)
    with pytest.raises(StorageError, match=r"cannot be read.*Go on with the software that wrote it"):
        Desk(restored=replace(restored, scalars={**restored.scalars, **changed}))


def test_a_run_restored_on_its_target_ends_at_once():
    # Nobody would push any more: the devices have heard that the run is over.
    desk = Desk(rules=StopRules(target_accuracy=0.9)).up()
    desk.hear(birth())
    effects = desk.hear(update(value=3.0))
    assert desk.machine.finished
    again = Desk(rules=StopRules(target_accuracy=0.9), restored=restored_from(desk, effects)).up()
    assert not of(again.machine.expire(now=again.now), Quit)  # the device that was there has its time to answer
    assert again.machine.finished
    assert of(again.wait(again.machine.settings.linger_s), Quit)


def test_a_restored_allocation_is_said_again_as_it_was():
    before, effects = used()
    desk = Desk(restored=restored_from(before, effects))
    (one,) = sent(desk.machine.connected(now=desk.now), Allocation)
    assert (one.version, one.samples, one.rows) == (1, 40, ((0, 100),))
    assert sent(desk.hear(birth(session=4)), Allocation) == [one]


@pytest.mark.parametrize("lost", ["extras", "shards"])
def test_a_restored_shipped_allocation_that_cannot_be_served_is_numbered_anew_and_not_said_before(lost):
    before = Desk(about=SHIPPED, shard_of=rows_as_bytes, first=Sizing(samples=20, batch=5)).up()
    before.hear(birth())
    restored = restored_from(before, before.machine._checkpoint(before.now))
    if lost == "shards":  # the checkpoint is older than the registry
        whole = {name: member.allocation for name, member in before.machine.members.items()}
        restored = replace(restored, allocations=whole, scalars={**restored.scalars, "shards": {}})
    desk = Desk(about=SHIPPED, shard_of=rows_as_bytes, restored=restored)
    assert not sent(desk.machine.connected(now=desk.now), Allocation)
    (one,) = sent(desk.hear(birth()), Allocation)
    assert one.version == 2
    assert one.shard_bytes > 0
    assert one.next_shard


def test_a_restored_shipped_allocation_that_is_whole_is_said_as_it_was():
    before = Desk(about=SHIPPED, shard_of=rows_as_bytes, first=Sizing(samples=20, batch=5)).up()
    (one,) = sent(before.hear(birth()), Allocation)
    restored = restored_from(before, before.machine._checkpoint(before.now), allocations={"d1": one})
    desk = Desk(about=SHIPPED, shard_of=rows_as_bytes, restored=restored)
    assert sent(desk.machine.connected(now=desk.now), Allocation) == [one]
    assert sent(desk.hear(birth()), Allocation) == [one]
    assert sent(desk.hear(ask(one.next_shard)), Shard)


def test_devices_of_the_registry_alone_are_known():
    before, effects = used()
    members = {"members": {}}
    restored = restored_from(before, effects)
    restored = replace(restored, scalars={**restored.scalars, **members})
    desk = Desk(restored=restored).up()
    assert [one.version for one in sent(desk.hear(birth(session=3)), Allocation)] == [1]


# --- shards -----------------------------------------------------------------------------------------------------------


def ask(sha256: str) -> Request:
    return Request(run="run-a", session=1, want="shard", sha256=sha256)


def shipping(sampling: str = "fresh", samples: int = 20, **options) -> tuple[Desk, Allocation]:
    about = manifest(data={"mode": "shipped", "sampling": sampling})
    desk = Desk(about=about, shard_of=rows_as_bytes, first=Sizing(samples=samples, batch=5), **options).up()
    (one,) = sent(desk.hear(birth()), Allocation)
    return desk, one


def test_a_device_is_sent_the_shards_its_allocation_names():
    desk, one = shipping()
    assert (one.rows, one.shard_bytes) == ((), len(rows_as_bytes(((0, 20),))))
    for name, rows in ((one.shard, ((0, 20),)), (one.next_shard, ((20, 40),))):
        (shard,) = sent(desk.hear(ask(name)), Shard)
        assert (shard.sha256, shard.body) == (name, rows_as_bytes(rows))


def test_nobody_is_sent_anothers_shard():
    desk, one = shipping()
    desk.hear(birth(), "spy")
    effects = desk.hear(ask(one.shard), "spy")
    assert not sent(effects, Shard)
    assert recorded(effects, "refused")[0]["reason"] == "unknown shard"
    assert [known.device for known in sent(effects, Allocation)] == ["spy"]  # perhaps it missed it


def test_a_named_shard_that_is_not_known_any_more_is_replaced():
    desk, one = shipping()
    desk.machine._assigner.allotment._shards.clear()
    (new,) = sent(desk.hear(ask(one.shard)), Allocation)
    assert new.version == 2
    assert sent(desk.hear(ask(new.shard)), Shard)


def test_a_device_on_its_next_shard_is_told_the_one_after_it():
    desk, one = shipping()
    effects = desk.hear(state(shard=one.next_shard))
    assert kinds(effects).index("Remember") < kinds(effects).index("Allocation")
    (two,) = sent(effects, Allocation)
    assert (two.version, two.shard, two.samples, two.batch) == (2, one.next_shard, 20, 5)
    assert two.next_shard not in {one.shard, one.next_shard}
    assert not sent(desk.hear(state(shard=one.next_shard)), Allocation)  # the same report again


def test_a_late_report_of_an_earlier_allocation_moves_nobody_on():
    desk, one = shipping(samples=50)  # two shards make the set: the next one's next is this one
    desk.hear(state(shard=one.shard))
    (two,) = sent(desk.hear(state(shard=one.next_shard)), Allocation)
    assert two.next_shard == one.shard
    assert not sent(desk.hear(state(shard=one.shard)), Allocation)


def test_a_shard_two_devices_were_given_is_known_until_neither_is():
    desk, one = shipping(samples=50)  # two shards make the set
    (other,) = sent(desk.hear(birth(), "d2"), Allocation)
    assert other.shard == one.shard
    desk.hear(state(shard=one.next_shard))
    (two,) = sent(desk.hear(state(allocation_version=2, shard=one.shard)), Allocation)
    assert two.version == 3
    assert sent(desk.hear(ask(other.shard), "d2"), Shard)


def test_a_shard_that_is_the_whole_set_has_no_next_and_rotates_never():
    desk, one = shipping(samples=100)
    assert one.next_shard == ""
    assert not sent(desk.hear(state(shard=one.shard)), Allocation)


def test_kept_shards_are_disjoint_and_have_no_next():
    desk, one = shipping("kept", samples=30)
    (other,) = sent(desk.hear(birth(), "d2"), Allocation)
    assert one.next_shard == other.next_shard == ""
    bodies = [sent(desk.hear(ask(each.shard), each.device), Shard)[0].body for each in (one, other)]
    assert [json.loads(each) for each in bodies] == [[[0, 30]], [[30, 60]]]


def test_shards_that_nobody_is_given_any_more_are_forgotten():
    desk, one = shipping()
    present = one
    for _ in range(50):
        (present,) = sent(desk.hear(state(allocation_version=present.version, shard=present.next_shard)), Allocation)
    assert len(desk.machine._assigner.allotment.shards()) == 2


def test_a_shard_that_a_restart_finds_named_by_nobody_is_forgotten():
    before = Desk(about=SHIPPED, shard_of=rows_as_bytes, first=Sizing(samples=20, batch=5)).up()
    (one,) = sent(before.hear(birth()), Allocation)
    restored = restored_from(before, before.machine.stop(now=before.now))
    shards = {**restored.scalars["shards"], "f" * 64: [[0, 5]]}
    whole = {"dev-1": one}
    desk = Desk(
        about=SHIPPED,
        shard_of=rows_as_bytes,
        restored=replace(restored, allocations=whole, scalars={**restored.scalars, "shards": shards}),
    )
    assert desk.machine._assigner.allotment.shards().keys() == {one.shard, one.next_shard}


# --- the end while the broker is away ---------------------------------------------------------------------------------


def test_a_run_that_ends_while_the_broker_is_away_waits_to_tell_the_devices():
    desk = Desk(rules=StopRules(max_wall_s=10.0), linger_s=5.0, farewell_s=100.0).up()
    desk.hear(birth())
    desk.machine.disconnected()
    assert not of(desk.wait(50.0), Quit)
    effects = desk.machine.connected(now=desk.now)
    (told,) = sent(effects, RunManifest)
    assert told.state == "finished"
    assert of(desk.wait(5.0), Quit)
    assert desk.machine.progress.elapsed_s == pytest.approx(10.0), "waiting is no part of the run"


def test_a_broker_that_never_comes_back_is_not_waited_for_for_ever():
    desk = Desk(rules=StopRules(max_wall_s=10.0), farewell_s=100.0).up()
    desk.hear(birth())
    desk.machine.disconnected()
    assert not of(desk.wait(105.0), Quit)
    assert of(desk.wait(6.0), Quit)


def test_telemetry_of_a_run_is_recorded_and_that_of_another_is_not():
    desk = Desk().up()
    desk.hear(birth())
    values = {"session": 1, "iteration": 4, "seconds": 0.5, "samples": 20, "batch": 5, "mini_batches": 4}
    values |= {"loss": 0.25, "z": -1.5, "threshold": -1.3, "published": True}
    (line,) = recorded(desk.hear(Metrics(run="run-a", **values)), "iteration")
    assert (line["device"], line["iteration"], line["z"], line["published"]) == (ME, 4, -1.5, True)
    assert not recorded(desk.hear(Metrics(run="run-z", **values)), "iteration")
