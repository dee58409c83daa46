"""``hermes-iot simulate``: what it prints, writes and refuses."""

import json
import os
import re
import textwrap

import pytest

from hermes_iot.cli import main

FLEET = """
    batch_s = 0.01
    task = "cost"

    [[groups]]
    name = "fast"
    count = 3
    slowness = 1.0

    [[groups]]
    name = "slow"
    slowness = 4.0
"""


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("HERMES_"):
            monkeypatch.delenv(name)
    (tmp_path / "four.toml").write_text(textwrap.dedent(FLEET))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulated(capsys, *words):
    code = main(["simulate", "--fleet", "four.toml", *words])
    return code, *capsys.readouterr()


def test_a_person_is_told_what_came_of_it(capsys):
    code, out, err = simulated(capsys, "--virtual", "60s")
    assert code == 0, err
    assert "Simulated 4 of 4 boards" in out
    assert re.search(r"modelled +accuracy [\d.]+ %, loss [\d.]+: nothing was trained", out)
    assert "test rows" not in out
    assert "losses of training" not in out
    assert "ended by: 60 virtual seconds" in out
    assert "slow-1" in out
    assert "control" in out


def test_a_program_gets_one_document_with_the_curve(capsys):
    code, out, err = simulated(capsys, "--virtual", "60s", "--json", "--link", "slow1")
    document = json.loads(out)
    assert (code, len(out.splitlines())) == (0, 1), err
    assert document["schema"] == "hermes-iot/simulation/1"
    assert document["ok"] is True
    assert (document["fleet"], document["link"], document["task"]) == ("four", "slow1", "cost")
    assert document["curve"][-1]["version"] == document["model_version"] > 0
    assert "timeline" not in document
    assert document["scored_on"] == document["gates"]["loss"] == "modelled"


def test_the_same_words_give_the_same_run(capsys):
    runs = [json.loads(simulated(capsys, "--virtual", "20s", "--json", "--seed", seed)[1]) for seed in "556"]
    for one in runs:
        assert one.pop("real_s") > 0
    assert runs[0] == runs[1]
    assert runs[0]["log_sha256"] != runs[2]["log_sha256"]


def test_files_hold_the_timeline_too(capsys, room):
    code, out, err = simulated(capsys, "--virtual", "20s", "--out", "results/here")
    assert code == 0, err
    document = json.loads((room / "results" / "here" / "simulation.json").read_text())
    assert "simulation.json" in out
    assert set(document["timeline"]) == {"fast-1", "fast-2", "fast-3", "slow-1"}


def test_a_rule_of_the_run_ends_it_and_constants_reach_the_strategy(capsys):
    code, out, _ = simulated(capsys, "--max-pushes", "5", "--set", "gate.max_age=1", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["reason"] == "5 updates applied"
    assert document["updates_published"] == document["iterations"]


def test_hours_are_virtual_time(capsys):
    _, out, _ = simulated(capsys, "--hours", "0.01", "--json")
    assert json.loads(out)["wall_s"] == pytest.approx(36)


def test_a_real_fleets_name_in_the_environment_is_no_profile(capsys, monkeypatch):
    monkeypatch.setenv("HERMES_FLEET", "lab")
    assert simulated(capsys, "--virtual", "5s")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--virtual", "1m", "--hours", "1"], "contradict"),
        (["--hours", "0"], "a finite number above 0"),
        (["--hours", "inf"], "a virtual time of inf s cannot be used: it must be a finite number"),
        (["--hours", "nan"], "a virtual time of nan s cannot be used"),
        (["--virtual", "soon"], "not a duration"),
        (["--data", "shipped"], "'cost'"),
        (["--dirichlet", "0.3"], "'cost'"),
        (["--dirichlet", "0.3", "--data", "indexed"], "--data local"),
        (["--link", "wifi"], "'wifi20'"),
        (["--task", "mnits"], "'mnist'"),
        (["--strategy", "hermse"], "'hermes'"),
        (["--strategy", "hermes", "--set", "gate.alhpa=-1"], "'alpha'"),
        (["--fleet", "five.toml"], "five.toml"),
        (["--out", "four.toml"], "four.toml"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(capsys, words, said):
    code, out, err = simulated(capsys, *words)
    assert code in {2, 8}
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_many_boards_are_shown_by_their_kind(capsys):
    assert main(["simulate", "--fleet", "edge1000", "--virtual", "2s"]) == 0
    out = capsys.readouterr().out
    assert "gateway" in out
    assert "pi3-" not in out
    assert len(out.splitlines()) < 40


def test_more_rows_than_a_task_has_are_refused(capsys):
    code, out, err = simulated(capsys, "--virtual", "10s", "--samples", "10000000")
    assert (code, out) == (2, "")
    assert "--samples 10000000 is more than there is: task cost has 1,000,000 rows to train on." in err
    assert simulated(capsys, "--virtual", "1s", "--samples", "1000000")[0] == 0


def test_a_simulation_that_is_stopped_says_how_far_it_was(capsys, monkeypatch):
    def interrupted(*_settings, observe, **_options):
        observe("time", {"t_s": 34.0})
        raise KeyboardInterrupt

    monkeypatch.setattr("hermes_iot.runtime.simulation.run.simulate", interrupted)
    code, out, err = simulated(capsys, "--virtual", "10m")
    assert (code, out) == (130, "")
    assert err.splitlines() == ["stopped at 34.0 s of 10m00s virtual time; nothing of it is kept"]
