"""``hermes-iot simulate --from``: what was beside what would have been."""

import json
import os
import re
from pathlib import Path

import pytest

from hermes_iot.cli import main
from hermes_iot.cli.app import command
from hermes_iot.cli.run_options import chosen_constants
from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.strategies import resolve
from tests.support.recorded import record

RULES = StopRules(max_wall_s=60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    config = RunConfig(
        task="cost", strategy="hermes", seed=4, telemetry="full", constants={"gate": {"max_age": 7}}, rules=RULES
    )
    record(base / "one", config, virtual_s=60)
    record(base / "plus", RunConfig(task="cost", seed=4, telemetry="full", rules=RULES), virtual_s=60)
    bsp = RunConfig(task="cost", strategy="bsp", seed=4, telemetry="full", rules=StopRules(max_wall_s=5))
    record(base / "bsp", bsp, virtual_s=5)
    record(base / "silent", RunConfig(task="cost", seed=4, rules=StopRules(max_wall_s=5)), virtual_s=5)
    return base


@pytest.fixture(autouse=True)
def room(runs, monkeypatch):
    for name in list(os.environ):
        if name.startswith("HERMES_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(runs)


def simulated(capsys, *words):
    code = main(["simulate", "--from", "one", *words])
    return code, *capsys.readouterr()


def test_the_same_settings_give_about_the_same_run(capsys):
    code, out, err = simulated(capsys, "--json")
    document = json.loads(out)
    assert code == 0, err
    assert (document["task"], document["seed"], document["fleet"]) == ("cost", 4, "recorded-1")
    assert document["link"] == "as measured"
    recorded = document["recorded"]
    for name in ("iterations", "updates_published", "bytes_up"):
        assert document[name] == pytest.approx(recorded[name], rel=0.1), name
    assert document["wall_s"] == pytest.approx(60)
    regate = document["regate"]
    # Its own constants are the recorded ones.
    assert regate["would_publish"] == regate["published"] == regate["both"] > 0


def test_another_constant_is_taken_and_the_others_stay(capsys):
    _, out, _ = simulated(capsys, "--json", "--set", "gate.alpha=-3", "--set", "gate.beta=0")
    document = json.loads(out)
    assert document["updates_published"] < document["recorded"]["updates_published"]
    assert document["regate"]["would_publish"] < document["regate"]["published"]
    # alpha alone would never fire: a push is an age, and that is still the recorded 7.
    rows = [row for row in document["regate"]["devices"] if row["device"] == "fast-1"]
    assert rows[0]["iterations"][:2] == [[1, 7], [1, 14]]


def test_another_strategy_runs_on_the_same_boards(capsys):
    code, out, err = simulated(capsys, "--json", "--strategy", "bsp", "--seed", "9", "--max-pushes", "40")
    document = json.loads(out)
    assert code == 0, err
    assert (document["strategy"], document["seed"], document["recorded"]["strategy"]) == ("bsp", 9, "hermes")
    assert document["reason"] == "40 updates applied"
    assert "regate" not in document


def test_a_person_sees_both_runs_in_one_table(capsys):
    code, out, err = simulated(capsys)
    assert code == 0, err
    assert "Recorded run recorded-1 beside it" in out
    row = next(line for line in out.splitlines() if "updates published" in line)
    assert len(row.split()) == 5
    assert "This gate on the recorded losses" in out
    assert "slow-1" in out
    assert "accuracy and loss are modelled: nothing was trained" in " ".join(out.split())


def test_what_each_gate_would_have_pushed_is_told_of_both_runs(capsys):
    assert main(["simulate", "--from", "plus", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for found in (document["gates"], document["recorded_gates"]):
        own = found["would_push"]["paired"]
        assert own["pushes"] == own["both"] == found["published"] > 10
        assert found["would_push"]["strict"] is None
    assert document["recorded_gates"]["published"] == pytest.approx(document["recorded"]["updates_published"], abs=8)
    assert main(["simulate", "--from", "plus"]) == 0
    out = capsys.readouterr().out
    assert "What each gate would have pushed of the recorded iterations" in out
    assert re.search(r"strict +not recorded", out)
    assert re.search(r"paired \(it ran\) +\d+", out)
    assert "an open-loop count" in out


def test_a_run_without_telemetry_says_that_its_gates_were_not_recorded(capsys):
    assert main(["simulate", "--from", "silent"]) == 0
    assert "was not recorded: that takes --telemetry full" in capsys.readouterr().out


def test_a_run_whose_strategy_has_no_such_gate_says_why_there_is_no_table(capsys):
    assert main(["simulate", "--from", "bsp"]) == 0
    assert "is told of runs of hermes-plus" in (out := " ".join(capsys.readouterr().out.split()))
    assert "this run was of bsp" in out
    assert main(["simulate", "--from", "silent"]) == 0
    assert "this run was of" not in " ".join(capsys.readouterr().out.split())


def test_the_environment_says_nothing_about_a_run_that_was(capsys, monkeypatch):
    monkeypatch.setenv("HERMES_SEED", "77")
    monkeypatch.setenv("HERMES_STRATEGY", "bsp")
    document = json.loads(simulated(capsys, "--json")[1])
    assert (document["seed"], document["strategy"]) == (4, "hermes")


def test_a_recorded_run_is_named_by_hand_alone(capsys, monkeypatch):
    monkeypatch.setenv("HERMES_FROM", "one")
    assert main(["simulate", "--task", "cost", "--virtual", "2s", "--json"]) == 0
    assert "recorded" not in json.loads(capsys.readouterr().out)


def test_a_link_that_is_named_is_taken(capsys):
    document = json.loads(simulated(capsys, "--json", "--link", "slow1")[1])
    assert document["link"] == "slow1"
    assert document["updates_published"] < document["recorded"]["updates_published"]


def test_rows_of_the_boards_own_take_no_other_word_than_in_a_run_of_no_record(capsys):
    pytest.importorskip("sklearn")
    words = ["--task", "digits", "--dirichlet", "0.3", "--virtual", "2s", "--json"]
    code, out, err = simulated(capsys, *words)
    assert code == 0, err
    assert json.loads(out)["links"]["down"]["data"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dirichlet", "0.3"], "task 'cost' has no rows that could be local"),
        (["--dirichlet", "0.3", "--data", "shipped"], "--data local"),
        (["--fleet", "azure12"], "contradict"),
        (["--set", "gate.alhpa=-1"], "'alpha'"),
        (["--strategy", "bps"], "'bsp'"),
        (["--from", "two"], "two/registry.json"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(capsys, words, said):
    code, out, err = simulated(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_constants_shown_to_people_belong_to_the_strategy_that_runs_by_default():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    lines = [line for line in readme.splitlines() if "simulate --from" in line]
    lines += [
        str(option.help) for one in command().commands.values() for option in one.params if "--set" in option.opts
    ]
    words = [word for line in lines for word in re.findall(r"--set ([\w.]+=[-\w.]*\w)", line)]
    assert len(words) == 4  # README, coordinator, demo, simulate
    default = RunConfig(task="cost").strategy
    for word in words:
        resolve(default).build(chosen_constants(default, [word], {}))
