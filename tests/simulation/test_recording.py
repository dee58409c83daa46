"""A run read back from its files: boards as fast, as noisy and as present as they were."""

import json
import math
from dataclasses import replace
from statistics import NormalDist

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import UsageError
from hermes_iot.reporting.metrics import read_metrics
from hermes_iot.runtime.simulation.measured import Told, fleet_of_records
from hermes_iot.runtime.simulation.profiles import Group, Stay
from hermes_iot.runtime.simulation.recording import Recording, recording_of
from tests.simulation.fleets import toy_run
from tests.support.fleet import toy_config
from tests.support.recorded import LINK, record

CONFIG = RunConfig(task="cost", seed=4, rules=StopRules(max_wall_s=120))
JOINED = {"event": "joined", "elapsed_s": 1.0, "device": "pi", "session": 1}


def merge(seconds, *, mini_batches=10, at=2.0):
    return {"event": "merge", "elapsed_s": at, "device": "pi", "seconds": seconds, "mini_batches": mini_batches}


def measured(*records, told=None, wall_s=100.0, links=False):
    fleet, left_out = fleet_of_records(
        [JOINED, *records],
        told={"pi": told or Told(batch_s=None, mini_batches=0)},
        wall_s=wall_s,
        links=links,
        name="x",
        task="toy",
    )
    assert (fleet is None) == (left_out == ("pi",))
    return fleet


@pytest.fixture(scope="module", params=["full", "off"])
def recorded(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "one"
    summary = record(directory, replace(CONFIG, telemetry=request.param))
    return recording_of(directory, read_metrics(directory / "metrics.jsonl")), summary


def test_boards_are_as_fast_and_as_noisy_as_they_were(recorded):
    recording, _ = recorded
    groups = {group.name: group for group in recording.fleet.groups}
    assert set(groups) == {"fast-1", "fast-2", "slow-1", "late-1", "lost-1"}
    assert {name for group in groups.values() for name in group.devices} == set(groups)
    for name, batch_s in (("fast-1", 0.01), ("fast-2", 0.01), ("slow-1", 0.04), ("late-1", 0.02), ("lost-1", 0.02)):
        # Without telemetry some tens of pushes tell of a board with a tenth of noise.
        assert recording.fleet.batch_s * groups[name].slowness == pytest.approx(batch_s, rel=0.06), name
    assert groups["slow-1"].jitter == pytest.approx(0.0, abs=1e-6)
    assert groups["fast-1"].jitter == pytest.approx(0.1, rel=0.5)
    assert recording.fleet.forward_share == 0.0


def test_boards_come_and_go_as_they_did(recorded):
    stays = {group.name: group.stays for group in recorded[0].fleet.groups}
    assert [stay.until_s for stay in stays["fast-1"]] == [None]
    assert stays["fast-1"][0].from_s < 1.5
    (late,), (lost,) = stays["late-1"], stays["lost-1"]
    assert late.from_s == pytest.approx(20, abs=1.5)
    assert (late.until_s, late.orderly) == (pytest.approx(60, abs=0.5), True)
    # The last that was heard: at most an iteration before the cut.
    assert (lost.until_s, lost.orderly) == (pytest.approx(30, abs=6), False)
    assert lost.until_s <= 30


def test_what_the_broker_took_to_notice_is_that_links(recorded):
    links = {group.name: group.link for group in recorded[0].fleet.groups}
    until = {group.name: group.stays[0].until_s for group in recorded[0].fleet.groups}
    assert links["lost-1"].notice_s == pytest.approx(30 + LINK.notice_s - until["lost-1"], abs=0.5)
    assert links["fast-1"].notice_s is None


def test_waiting_tells_of_the_latency(recorded):
    links = {group.name: group.link for group in recorded[0].fleet.groups}
    for name in ("fast-1", "fast-2", "slow-1"):
        # Both ways, and once more where a packet does not fit with the one before; no iteration is 100 % training.
        assert LINK.latency_s * 0.6 < links[name].latency_s < LINK.latency_s * 4, name


def test_the_same_run_again_is_about_the_same_run(tmp_path):
    before = record(tmp_path / "one", CONFIG)
    recording = recording_of(tmp_path / "one", read_metrics(tmp_path / "one" / "metrics.jsonl"))
    after = record(tmp_path / "two", recording.config, fleet=recording.fleet, virtual_s=recording.virtual_s)
    for name in ("iterations", "updates_published", "bytes_up", "bytes_down"):
        assert after[name] == pytest.approx(before[name], rel=0.1), name
    rows = [{row["device"]: row["iterations"] for row in summary["devices"]} for summary in (before, after)]
    assert rows[0].keys() == rows[1].keys()
    assert rows[1] == {name: pytest.approx(count, rel=0.25) for name, count in rows[0].items()}


def test_what_a_person_gave_anew_replaces_what_was():
    config = RunConfig(
        task="digits", strategy="bsp", seed=7, telemetry="full", rules=StopRules(max_pushes=5, patience=3)
    )
    settings = RunConfig(task="mnist", strategy="asp", seed=8, constants={"a": 1}, rules=StopRules(max_pushes=9))
    recording = recorded_as(config)
    assert recording.changed(settings, {"seed", "max_pushes", "virtual"}) == replace(
        config, seed=8, constants={"a": 1}, rules=StopRules(max_pushes=9, patience=3)
    )
    assert recording.changed(settings, {"strategy"}).strategy == "asp"


def recorded_as(config):
    return Recording(config=config, summary={"wall_s": 3.0}, fleet=toy_fleet(), left_out=(), iterations=())


def toy_fleet():
    return measured(merge(1.0))


def test_a_run_that_a_rule_ended_is_given_time_to_come_to_the_same_end():
    assert recorded_as(RunConfig(task="x", rules=StopRules(max_wall_s=42.0))).virtual_s == 42.0
    assert recorded_as(RunConfig(task="x", rules=StopRules(max_pushes=4))).virtual_s == 30.0


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_seconds_per_mini_batch_are_the_lognormals_mean():
    """exp(quantiles): median 0.1, and the distances from the median have sigma * 0.6745 as their own median."""
    sigma = 0.2
    times = [0.1 * math.exp(sigma * NormalDist().inv_cdf((one + 0.5) / 401)) for one in range(401)]
    (group,) = measured(*(merge(10 * time_s) for time_s in times)).groups
    assert group.jitter == pytest.approx(sigma, rel=0.01)
    fleet = measured(*(merge(10 * time_s) for time_s in times))
    assert fleet.batch_s == pytest.approx(0.1 * math.exp(sigma**2 / 2), rel=0.01)


def test_what_no_board_takes_for_a_mini_batch_is_no_measurement():
    rubbish = [merge(1e30), merge(1e-30), merge(1e308, mini_batches=1e-320), merge("1"), merge(True), merge(math.inf)]
    assert measured(*rubbish) is None
    assert measured(merge(1.0), *rubbish).batch_s == pytest.approx(0.1)


def test_noise_beyond_all_noise_is_taken_for_the_most_there_is():
    """Half of them a thousandth, half of them a thousand: the median of the logarithms is 0, all are far from it."""
    fleet = measured(*[merge(10 * time_s) for time_s in (1e-3, 1e3)] * 10)
    assert fleet.groups[0].jitter == 2.0
    assert fleet.batch_s == pytest.approx(math.exp(2.0))


def test_one_iteration_that_loaded_libraries_moves_nothing():
    assert measured(merge(500.0), *[merge(1.0)] * 6).batch_s == pytest.approx(0.1)


def test_few_measurements_give_no_noise_and_the_boards_own_word_comes_first():
    state = {"event": "state", "elapsed_s": 3.0, "device": "pi", "phase": "training", "batch_s": 0.3}
    fleet = measured(merge(1.0), merge(2.0), state)
    assert (fleet.batch_s, fleet.groups[0].jitter) == (0.3, 0.0)
    assert measured(merge(1.0), merge(3.0)).batch_s == pytest.approx(0.2)


def test_records_of_an_older_version_leave_the_summary_to_tell():
    old = {"event": "merge", "elapsed_s": 2.0, "device": "pi"}
    assert measured(old, told=Told(batch_s=0.7, mini_batches=3)).batch_s == 0.7


def test_a_board_nobody_measured_is_left_out():
    assert measured({"event": "state", "elapsed_s": 2.0, "device": "pi", "phase": "waiting", "batch_s": 0.0}) is None


def test_half_of_the_waiting_per_push_is_the_latency():
    """From 2 s (when ready) to 100 s; 900 mini-batches of 0.1 s; 8 s left for 5 pushes."""
    told = Told(batch_s=0.1, mini_batches=900)
    fleet = measured(*[merge(1.0)] * 5, told=told, links=True)
    assert fleet.groups[0].link.latency_s == pytest.approx(8 / 5 / 2)
    assert measured(*[merge(1.0)] * 5, told=told).groups[0].link is None
    assert measured(*[merge(1.0)] * 4, told=told, links=True).groups[0].link is None


def test_a_later_session_ends_the_life_before_it_and_the_same_one_does_not():
    again, reborn = {**JOINED, "elapsed_s": 5.0}, {**JOINED, "elapsed_s": 9.0, "session": 2}
    (group,) = measured(merge(1.0, at=4.0), again, merge(1.0, at=7.0), reborn, merge(1.0, at=10.0)).groups
    assert group.stays == (Stay(from_s=1.0, until_s=7.0, orderly=False), Stay(from_s=9.0))
    assert group.prepare_s == 2.0, "3 s the first time, then 1 s"


def test_until_it_is_ready_a_board_prepares():
    starting, training = (
        {"event": "state", "elapsed_s": at, "device": "pi", "phase": phase, "batch_s": 0.0}
        for at, phase in ((2.0, "starting"), (6.0, "training"))
    )
    (group,) = measured(starting, training, merge(1.0, at=8.0)).groups
    assert (group.stays, group.prepare_s) == ((Stay(from_s=1.0),), 5.0)


def test_farewells_after_the_end_are_no_departures():
    ends = ({"event": "finished", "elapsed_s": 50.0}, {"event": "left", "elapsed_s": 50.1, "device": "pi"})
    assert measured(merge(1.0), *ends).groups[0].stays == (Stay(from_s=1.0),)


def test_records_tell_a_boards_speed_three_times():
    """An iteration, the update made of it, and the state after it: 14 mini-batches of 10 ms without noise."""
    fleet = replace(toy_fleet(), batch_s=0.01, groups=(Group(name="one", slowness=1.0),))
    records = {"iteration": [], "merge": [], "state": []}

    def observe(event, fields):
        records.get(event, []).append(fields)

    toy_run(fleet, virtual_s=10, config=toy_config(telemetry="full", rules=StopRules()), observe=observe)
    for event in ("iteration", "merge"):
        assert {one["mini_batches"] for one in records[event]} == {14}, event
        assert [one["seconds"] for one in records[event]] == pytest.approx([0.14] * len(records[event])), event
    assert records["state"][-1]["batch_s"] == pytest.approx(0.01)


# --- boards with a plan -----------------------------------------------------------------------------------------------


def test_a_board_keeps_to_its_stays_and_to_its_name():
    stays = (Stay(from_s=2.0, until_s=8.0), Stay(from_s=12.0, until_s=20.0, orderly=False))
    fleet = replace(toy_fleet(), batch_s=0.01, groups=(Group(name="a", names=("pi-x",), slowness=1.0, stays=stays),))
    outcome = toy_run(fleet, virtual_s=30)
    off = [(start, end) for start, end, doing in outcome.timeline["pi-x"] if doing == "off"]
    assert off == [(0.0, 2.0), (pytest.approx(8, abs=0.2), 12.0), (20.0, pytest.approx(30, abs=6))]


def test_a_board_trains_once_it_is_prepared_each_time_it_gets_power():
    stays = (Stay(from_s=2.0, until_s=8.0), Stay(from_s=12.0))
    group = Group(name="a", names=("pi-x",), slowness=1.0, stays=stays, prepare_s=3.0)
    outcome = toy_run(replace(toy_fleet(), batch_s=0.01, groups=(group,)), virtual_s=20)
    begun = [start for start, _, doing in outcome.timeline["pi-x"] if doing == "train"]
    assert begun[0] == pytest.approx(5.0, abs=0.3)
    assert min(start for start in begun if start > 8) == pytest.approx(15.0, abs=0.3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"names": ("a", "b")}, "2 names for 1"),
        ({"names": ("a b",)}, "topic"),
    ],
)
def test_plans_that_cannot_be_kept_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        Group(name="a", slowness=1.0, **wrong)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"from_s": 3.0, "until_s": 3.0}, "later"), ({"from_s": -1.0}, "negative")]
)
def test_stays_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        Stay(**wrong)


# --- files that do not do ---------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path):
    record(tmp_path / "run", CONFIG, virtual_s=10.0)
    return tmp_path / "run"


def refused(directory):
    with pytest.raises(UsageError) as caught:
        recording_of(directory, read_metrics(directory / "metrics.jsonl"))
    return str(caught.value)


@pytest.mark.parametrize("name", ["registry.json", "summary.json", "metrics.jsonl"])
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()
    with pytest.raises(UsageError, match=name):
        recording_of(directory, [])


def test_a_summary_without_what_is_compared_says_what_it_lacks(directory):
    path = directory / "summary.json"
    summary = json.loads(path.read_text())
    del summary["bytes_up"], summary["wall_s"]
    path.write_text(json.dumps(summary))
    words = refused(directory)
    assert "summary.json lacks bytes_up, wall_s" in words
    path.write_text("{")
    assert "summary.json cannot be read" in refused(directory)
    path.write_text("[]")
    assert "summary.json cannot be read" in refused(directory)
    path.write_text('{"devices":' + "[" * 100_000)
    assert "summary.json cannot be read" in refused(directory)


HUGE = 10**400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("wall_s", value) for value in ("abc", None, [1], -5, HUGE, 1e10)),
        *(("iterations", value) for value in (None, -1, 2.5, HUGE)),
        *(("bytes_up", value) for value in ("abc", None, -5)),
        ("updates_applied", True),
        ("accuracy", "x"),
        ("loss", HUGE),
        *((name, 5) for name in ("run", "strategy", "reason", "devices")),
    ],
)
def test_a_summary_that_tells_something_else_is_refused_by_the_name_of_it(directory, name, value):
    path = directory / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    words = refused(directory)
    assert "summary.json cannot be used" in words
    assert f"`$.{name}`" in words
    assert len(words) < 400


@pytest.mark.parametrize(
    ("name", "value"), [("batch_s", HUGE), ("batch_s", "x"), ("mini_batches", HUGE), ("device", 3)]
)
def test_what_a_summary_tells_of_a_device_is_checked_as_well(directory, name, value):
    path = directory / "summary.json"
    summary = json.loads(path.read_text())
    summary["devices"][1][name] = value
    path.write_text(json.dumps(summary))
    assert f"`$.devices[1].{name}`" in refused(directory)


def test_a_summary_without_an_accuracy_is_one(directory):
    path = directory / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "accuracy": None, "loss": None}))
    recording = recording_of(directory, read_metrics(directory / "metrics.jsonl"))
    assert recording.summary["accuracy"] is None


def test_metrics_that_tell_of_no_speed_are_named(directory):
    """Those of an older version, and a summary of one."""
    path = directory / "summary.json"
    summary = json.loads(path.read_text())
    for row in summary["devices"]:
        del row["batch_s"]
    path.write_text(json.dumps(summary))
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    bare = [{key: value for key, value in line.items() if key not in {"seconds", "batch_s"}} for line in lines]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))
    assert "metrics.jsonl tells of no board's speed" in refused(directory)
