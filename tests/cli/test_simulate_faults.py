"""``hermes-iot simulate --faults``: what it prints, refuses, and gives back."""

import json
import os
from dataclasses import replace

import pytest

from hermes_iot.cli import main
from hermes_iot.core import aggregator
from hermes_iot.core.intake import judge


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("HERMES_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def careless(monkeypatch):
    """A coordinator that applies what it has handled already."""

    def forgetful(update, standing, merge):
        return judge(update, replace(standing, handled=(0, 0), session=0), merge)

    monkeypatch.setattr(aggregator, "judge", forgetful)


def simulated(capsys, *words):
    code = main(["simulate", *words])
    return code, *capsys.readouterr()


def test_a_person_sees_what_was_done_to_the_fleets_and_what_held(capsys):
    code, out, err = simulated(capsys, "--faults", "duplicate,clock", "--seeds", "1:3", "--jobs", "1", "--plain")
    assert code == 0, err
    assert "2 seeds under faults" in out
    assert "hermes 1, bsp 1" in out
    assert "duplicate" in out
    assert "broker-crash" not in out
    assert "VIOLATED" not in out
    assert "0 at a change of the disk and 0 at a message; " in " ".join(out.split())
    assert out.count(" held ") >= 10
    assert err == ""


def test_a_program_gets_one_document_that_is_the_same_each_time(capsys):
    words = ("--faults", "all", "--seeds", "4", "--jobs", "1", "--json", "--strategy", "asp")
    documents = []
    for _ in range(2):
        code, out, err = simulated(capsys, *words)
        assert (code, len(out.splitlines())) == (0, 1), err
        documents.append(json.loads(out))
        assert documents[-1].pop("real_s") > 0
    assert documents[0] == documents[1]
    assert documents[0]["schema"] == "hermes-iot/trials/1"
    assert documents[0]["ok"] is True
    assert documents[0]["strategies"] == {"asp": 1}
    assert sum(documents[0]["faults"].values()) > 0
    assert documents[0]["violated"] == []
    assert set(documents[0]["deaths"]) == {"disk", "message"}
    assert documents[0]["torn_tails"] >= 0


@pytest.mark.usefixtures("careless")
def test_what_is_violated_is_told_with_the_seed_the_event_and_the_command_that_does_it_again(capsys):
    words = ("--faults", "duplicate", "--seeds", "1:4", "--jobs", "1", "--strategy", "hermes")
    code, out, err = simulated(capsys, *words)
    again = "hermes-iot simulate --faults duplicate --seeds 1:2 --strategy hermes"
    assert code == 1
    assert "Seed 1: I1 is violated" in out
    assert "is applied a second time" in " ".join(out.split())
    assert "coordinator hermes/v1/trial/up/" in out
    assert again in " ".join(out.split())
    assert f"hermes-iot: seed 1: I1 is violated. {again}" in err
    code, out, _ = simulated(capsys, *words, "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["violated"][0]["replay"]) == (1, False, again)
    assert main(again.split()[1:]) == 1, "it does"


def test_each_fault_is_explained(capsys):
    code, out, _ = simulated(capsys, "--faults", "list")
    assert code == 0
    assert "torn-write" in out
    assert "a power cut leaves half of what was not synced" in out
    assert "disk-full" in json.loads(simulated(capsys, "--faults", "list", "--json")[1])["faults"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--faults", "torn-wrte"), "Did you mean 'torn-write'?"),
        (("--faults", "all", "--seeds", "5:5"), "--seeds '5:5' is not understood. Use START:STOP"),
        (("--faults", "all", "--seeds", "a:b"), "--seeds 'a:b' is not understood"),
        (("--faults", "all", "--fleet", "azure12"), "--faults and --fleet contradict each other"),
        (("--faults", "all", "--from", "runs/one"), "--faults and --from contradict each other"),
        (("--faults", "all", "--strategy", "hermse"), "Did you mean 'hermes'?"),
        (("--seeds", "0:5"), "--seeds belongs to --faults"),
    ],
)
def test_what_is_not_understood_is_one_line(capsys, words, said):
    code, out, err = simulated(capsys, *words)
    assert code == 2
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
