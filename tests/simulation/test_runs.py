"""Whole runs in virtual time: determinism, time, bytes, comings and goings."""

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import UsageError
from hermes_iot.runtime.simulation import network
from hermes_iot.runtime.simulation.ledger import KINDS
from hermes_iot.runtime.simulation.outcome import SimLimits
from hermes_iot.runtime.simulation.profiles import Availability, Battery, FleetProfile, Group, LinkProfile
from hermes_iot.runtime.simulation.shelf import Shards
from hermes_iot.training.shards import encode_shard
from hermes_iot.training.toy import ToyTrainer
from tests.simulation.fleets import FOUR, devices, four_for_half_a_minute, toy_run
from tests.support.fleet import toy_bench, toy_config

ROOT = Path(__file__).parents[2]
CHURN = FleetProfile(
    batch_s=0.01,
    jitter=0.07,
    groups=(
        Group(name="steady", slowness=1.0, count=2),
        Group(name="flaky", slowness=2.0, count=2, availability=Availability(up_s=8.0, down_s=3.0)),
        Group(name="late", slowness=1.0, join_at_s=10.0),
        Group(name="leaver", slowness=1.0, leave_at_s=12.0),
    ),
)


def started(outcome, name, doing):
    return [start for start, _, what in outcome.timeline[name] if what == doing]


def test_a_board_may_be_called_as_the_coordinator_is():
    group = Group(name="late", names=("coordinator",), slowness=1.0, join_at_s=5.0)
    outcome = toy_run(replace(FOUR, groups=(*FOUR.groups, group)))
    rows = devices(outcome)
    assert (outcome.summary["reason"], len(rows)) == ("30 virtual seconds", 5)
    assert all(row["iterations"] > 10 for row in rows.values()), rows


# --- determinism ------------------------------------------------------------------------------------------------------


def test_one_seed_makes_one_run_whatever_the_hash_seed():
    """Two processes that number their strings differently."""
    code = (
        "import json; from tests.simulation.fleets import *; from tests.simulation.test_runs import CHURN;"
        "out = toy_run(CHURN, virtual_s=15, link=LinkProfile(up_mbit=1, down_mbit=2, latency_s=.05, loss=.02, notice_s=2));"
        "print(out.log_sha256); print(json.dumps(out.document()))"
    )

    def saying(hash_seed):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )

    processes = [saying("1"), saying("2")]
    try:
        one, other = (process.communicate()[0] for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    assert len(one) > 5_000
    assert one == other


def test_another_seed_makes_another_run():
    runs = [toy_run(virtual_s=5, config=toy_config(seed=seed, rules=StopRules())) for seed in (3, 3, 4)]
    assert runs[0].log_sha256 == runs[1].log_sha256 != runs[2].log_sha256
    assert runs[0].document() == runs[1].document()


# --- learning and counting --------------------------------------------------------------------------------------------


def test_a_fleet_of_four_learns():
    outcome = four_for_half_a_minute()
    first, last = outcome.curve[0], outcome.curve[-1]
    assert first.version == 0
    assert first.loss > 1.3  # four classes, guessed: ln 4 = 1.39
    assert last.loss < 0.5
    assert last.accuracy == outcome.summary["accuracy"] > 0.8
    assert last.pushes == outcome.summary["updates_received"] > 20
    # An iteration may end between the last look and the devices' last words: one of each of the four at most.
    assert last.pushes < last.iterations <= outcome.summary["iterations"] <= last.iterations + 4
    times = [point.t_s for point in outcome.curve]
    assert times == sorted(times)
    assert all(time_s == round(time_s) for time_s in times[:-1])  # on the grid of a second
    versions = [point.version for point in outcome.curve]
    assert len(set(versions)) == len(versions)


def test_every_update_received_met_its_end():
    for outcome in (four_for_half_a_minute(), toy_run(CHURN, virtual_s=20)):
        summary = outcome.summary
        fates = sum(summary[f"updates_{fate}"] for fate in ("applied", "duplicate", "stale", "rejected"))
        assert summary["updates_received"] == fates > 0


@pytest.fixture
def carried(monkeypatch):
    """Payload lengths of all publishes that reached the broker from a board, and of all that came to one."""
    sums = {"up": 0, "down": 0}
    came, arrived = network.LinkTransport._come, network.LinkTransport._arrived

    def _arrived(self, topic, payload, *rest, **options):
        sums["up"] += len(payload)
        arrived(self, topic, payload, *rest, **options)

    def _come(self, event, size):
        sums["down"] += len(getattr(event, "payload", b"")) if self._on_event is not None else 0
        came(self, event, size)

    monkeypatch.setattr(network.LinkTransport, "_arrived", _arrived)
    monkeypatch.setattr(network.LinkTransport, "_come", _come)
    return sums


def test_bytes_counted_are_the_sums_of_packet_payloads(carried):
    outcome = toy_run(CHURN, virtual_s=20)
    links = outcome.summary["links"]
    assert {way: sum(links[way].values()) for way in ("up", "down")} == carried
    each = [row["link"] for row in outcome.summary["devices"]]
    for way, kind in itertools.product(("up", "down"), KINDS):
        assert sum(one[way][kind] for one in each) == links[way][kind]
    last = outcome.curve[-1]
    assert 0 < last.bytes_model <= links["up"]["model"] + links["down"]["model"]


def test_the_coordinator_and_the_links_count_the_same_upload():
    """Nothing is lost without a power cut; what is still under way at the end is a state or two."""
    outcome = four_for_half_a_minute()
    assert outcome.summary["bytes_by_kind"]["up"] == {
        kind: count for kind, count in outcome.summary["links"]["up"].items() if count
    }


@pytest.mark.parametrize("strategy", ["hermes", "hermes-plus", "bsp"])
def test_boards_count_what_came_over_their_links(strategy):
    """But for what came and went after their last report."""
    constants = {"hermes-plus": {"shares": {"target_s": 0.5}}}.get(strategy, {})
    outcome = toy_run(config=toy_config(strategy=strategy, constants=constants, rules=StopRules()), virtual_s=10)
    for way in ("up", "down"):
        counted = sum(row[f"bytes_{way}"] for row in outcome.summary["devices"])
        over_links = sum(outcome.summary["links"][way].values())
        assert 0.95 * over_links < counted <= over_links


def test_shipped_rows_cost_bytes_and_time_and_are_trained_on():
    config = toy_config(data_mode="shipped", rules=StopRules())
    bench = toy_bench(config)
    data, pool = bench.trainer.data, bench.trainer._layout

    def shard_of(ranges):
        part = data.train.take(pool.allotted(ranges))
        return encode_shard(part.x, part.y)

    shards = Shards(shard_of)
    trainer = ToyTrainer(seed=config.seed, shards=shards.arrays)
    shipped = toy_run(config=config, bench=replace(bench, shard_of=shards.encode), trainer_of=lambda _number: trainer)
    held = four_for_half_a_minute()
    assert shipped.summary["links"]["down"]["data"] > 100_000
    assert held.summary["links"]["down"]["data"] == 0
    assert shipped.curve[-1].bytes_data == shipped.summary["links"]["down"]["data"]
    assert started(shipped, "fast-1", "train")[0] > started(held, "fast-1", "train")[0]
    assert shipped.curve[-1].accuracy > 0.8


def test_boards_with_rows_of_their_own_say_how_many_and_are_given_no_more():
    """A tenth of 100 rows each is held out for validation and test: 80 are left, the first size would be 120."""
    config = toy_config(data_mode="local", rules=StopRules())
    own = ToyTrainer(seed=config.seed, rows=100)
    bench = replace(toy_bench(config), rows=0)
    outcome = toy_run(config=config, bench=bench, trainer_of=lambda number: own if number == 0 else bench.trainer)
    rows = devices(outcome)
    assert rows["fast-1"]["samples_before"] == 80
    assert rows["fast-2"]["samples_before"] == 120
    assert outcome.summary["links"]["down"]["data"] == 0


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_slow_board_takes_so_many_times_as_long_for_its_first_iteration():
    """120 rows, 15 % of them for the gate: 102 rows in 16s are 7 mini-batches, twice; 14 times 10 ms. Then 18 forward passes."""
    fleet = FleetProfile(batch_s=0.01, groups=(Group(name="one", slowness=1.0), Group(name="six", slowness=6.0)))
    rows = devices(toy_run(fleet, virtual_s=5))
    assert rows["six-1"]["iteration_s_before"] == pytest.approx(6 * rows["one-1"]["iteration_s_before"])
    assert rows["one-1"]["iteration_s_before"] == pytest.approx(0.14 + 18 / (3 * 16) * 0.01)


def test_noise_has_mean_one():
    fleet = FleetProfile(batch_s=0.001, groups=(Group(name="one", slowness=1.0, jitter=0.3),))
    row = devices(toy_run(fleet))["one-1"]
    # k mini-batches of 1 ms: trained time over mini-batches, a mean of some hundred lognormal factors.
    assert row["train_s"] / row["mini_batches"] == pytest.approx(0.001, rel=0.06)


def test_rows_evaluated_take_a_third_of_a_training_pass():
    """16 rows evaluated at mini-batches of 16 are a third of a mini-batch more."""

    class Evaluating(ToyTrainer):
        def train(self, job):
            return replace(super().train(job), evaluated=job.batch)

    fleet = FleetProfile(batch_s=0.03, groups=(Group(name="one", slowness=1.0),))
    trainer = Evaluating(seed=3)
    outcome = toy_run(fleet, virtual_s=5, trainer_of=lambda _number: trainer)
    assert devices(outcome)["one-1"]["iteration_s_before"] == pytest.approx(14 * 0.03 + 0.01)


def test_a_slow_link_makes_boards_wait():
    fast, slow = (
        toy_run(link=LinkProfile(up_mbit=mbit, down_mbit=mbit, latency_s=0.01), virtual_s=20) for mbit in (10, 0.02)
    )
    assert devices(slow)["fast-1"]["train_s"] < 0.8 * devices(fast)["fast-1"]["train_s"]


# --- comings and goings -----------------------------------------------------------------------------------------------


def test_a_board_that_crashes_leaves_its_will_and_the_run_goes_on():
    fleet = replace(FOUR, groups=(*FOUR.groups, Group(name="doomed", slowness=1.0, crash_at_s=5.0)))
    left = []

    def observe(event, fields):
        if event == "left":
            left.append((fields["device"], fields["reason"], fields["elapsed_s"]))

    outcome = toy_run(fleet, virtual_s=40, observe=observe)
    # 1 s until the broker notices, 15 s of the will's delay.
    assert left == [("doomed-1", "connection lost", pytest.approx(5 + 1 + 15, abs=0.1))]
    assert outcome.timeline["doomed-1"][-1] == [5.0, pytest.approx(40, abs=6), "off"]
    after = [point for point in outcome.curve if point.t_s > 25]
    assert after[-1].pushes > after[0].pushes + 10


def test_boards_come_and_go_and_are_given_their_work_again():
    outcome = toy_run(CHURN, virtual_s=45)
    rows = devices(outcome)
    assert rows["flaky-1"]["sessions"] > 2
    assert rows["steady-1"]["sessions"] == 1
    assert len(started(outcome, "flaky-1", "off")) >= rows["flaky-1"]["sessions"] - 1
    assert started(outcome, "late-1", "off") == [0.0]
    assert started(outcome, "late-1", "train")[0] > 10
    assert max(started(outcome, "leaver-1", "train")) < 12 < outcome.timeline["leaver-1"][-1][1]
    assert rows["flaky-1"]["iterations"] > 20
    assert outcome.curve[-1].accuracy > 0.8


def test_a_board_whose_battery_is_empty_is_off_for_good():
    """100 mini-batches of 2 J: 1 s of training at 10 ms each, jitter apart."""
    battery = Battery(batch_j=2.0, capacity_j=200.0)
    fleet = FleetProfile(
        batch_s=0.01,
        groups=(
            Group(name="mains", slowness=1.0, battery=Battery(batch_j=2.0)),
            Group(name="cell", slowness=1.0, battery=battery, availability=Availability(up_s=5, down_s=1)),
        ),
    )
    rows = devices(outcome := toy_run(fleet, virtual_s=60))
    assert rows["cell-1"]["energy_j"] == 200.0
    assert rows["cell-1"]["train_s"] == pytest.approx(
        1.0, abs=0.3
    )  # an iteration that a cut ended counts for no energy
    assert outcome.timeline["cell-1"][-1][2] == "off"
    assert rows["mains-1"]["energy_j"] == 2.0 * rows["mains-1"]["mini_batches"] > 200


def test_energy_is_known_of_boards_with_power_figures_alone():
    groups = (Group(name="metered", slowness=1.0, battery=Battery(batch_j=2.0)), Group(name="plain", slowness=1.0))
    rows = devices(outcome := toy_run(FleetProfile(batch_s=0.01, groups=groups), virtual_s=10))
    assert rows["plain-1"]["energy_j"] is None
    assert outcome.summary["energy_j"] == rows["metered-1"]["energy_j"] > 0
    none = toy_run(FleetProfile(batch_s=0.01, groups=groups[1:]), virtual_s=10)
    assert none.summary["energy_j"] is None


# --- the end ----------------------------------------------------------------------------------------------------------


def test_the_runs_own_rules_end_it():
    outcome = toy_run(config=toy_config(rules=StopRules(max_pushes=7)))
    assert (outcome.summary["reason"], outcome.summary["updates_applied"]) == ("7 updates applied", 7)
    assert outcome.summary["virtual_s"] < 30


def test_a_hook_that_looks_at_the_curve_ends_it():
    seen = []

    def stop(points):
        seen.append(len(points))
        return "good enough" if points[-1].accuracy > 0.7 else None

    outcome = toy_run(stop=stop)
    assert outcome.summary["reason"] == "good enough"
    assert seen == list(range(1, len(seen) + 1))
    assert outcome.curve[len(seen) - 1].accuracy > 0.7


def test_the_virtual_time_ends_it_and_devices_still_say_their_last_counters():
    outcome = toy_run(virtual_s=10)
    assert outcome.summary["reason"] == "10 virtual seconds"
    assert outcome.summary["wall_s"] == outcome.curve[-1].t_s == 10
    assert outcome.summary["iterations"] == outcome.curve[-1].iterations


def test_an_outcome_is_a_json_document():
    document = json.loads(json.dumps(toy_run(virtual_s=3).document()))
    assert len(document["log_sha256"]) == len(hashlib.sha256().hexdigest())
    assert [stretch[2] for stretch in document["timeline"]["slow-2"][:2]] == ["wait", "train"]
    assert document["curve"][0]["version"] == 0


def test_limits_that_end_nothing_are_refused():
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(UsageError, match="virtual_s"):
            SimLimits(virtual_s=wrong)
    assert SimLimits(virtual_s=36_000).interval_s == 18


# --- codecs -----------------------------------------------------------------------------------------------------------


def test_devices_that_are_told_another_codec_send_its_bytes_and_nothing_is_refused():
    config = toy_config(strategy="asp", codec="fp32", codec_for=(("slow-*", "int4"),), rules=StopRules())
    outcome = toy_run(virtual_s=5.0, config=config, bench=toy_bench(config, features=400))
    rows = devices(outcome)
    assert all(row["updates_published"] > 3 for row in rows.values()), rows
    assert (outcome.summary["updates_rejected"], outcome.summary["reasons"]) == (0, {})
    each = {name: row["bytes_up"] / row["updates_published"] for name, row in rows.items()}
    # 1,203 parameters: 4,812 bytes in fp32, 610 in int4, and a few hundred of everything else that is said
    assert min(each["fast-1"], each["fast-2"]) > 4_812 * 0.9
    assert max(each["slow-1"], each["slow-2"]) < 0.5 * 4_812


def test_whole_models_are_in_nobodys_case_sent_in_a_codec_that_keeps_too_little():
    with pytest.raises(UsageError, match=r"--codec-for slow-\*=topk5 cannot be used with this strategy"):
        toy_run(config=toy_config(codec_for=(("slow-*", "topk5"),), rules=StopRules()))
