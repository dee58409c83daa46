"""Whole comparisons of the cost task: seconds of virtual time, tens of milliseconds of ours."""

import copy
import json
import os
import shlex
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.errors import HermesError, UsageError
from hermes_iot.runtime.bench import cell_run
from hermes_iot.runtime.bench.rows import rows_of
from hermes_iot.runtime.bench.run import Comparison, Piece, command_of, data_sha256, run, work
from hermes_iot.runtime.bench.workers import Failure, each
from hermes_iot.runtime.bench.workloads import workload_of
from tests.support.benches import Here, cell, setting


def plan(text="bsp,hermes", seeds=(0, 1), **changed):
    return (Comparison(setting=setting(**changed), rows=rows_of(text), seeds=seeds),)


def ran(tmp_path, one=None, by=None, events=None):
    by = by or Here()

    def observe(event, fields):
        if events is not None:
            events.append((event, fields))

    return run(one or plan(), out=tmp_path, data_dir=None, jobs=1, observe=observe, by=by), by


def without_wall_times(results):
    results = copy.deepcopy(results)
    for one in results["comparisons"]:
        for each_cell in one["cells"]:
            assert each_cell.pop("real_s") > 0
    return results


def test_a_comparison_has_a_table_for_each_target_and_a_cell_for_each_row_and_seed(tmp_path):
    done, by = ran(tmp_path)
    (one,) = done.results["comparisons"]
    assert [table["target"] for table in one["tables"]] == [0.5, 0.7]
    assert [row["label"] for row in one["tables"][0]["rows"]] == ["bsp", "hermes"]
    assert [(each_cell["label"], each_cell["seed"]) for each_cell in one["cells"]] == [
        ("bsp", 0),
        ("bsp", 1),
        ("hermes", 0),
        ("hermes", 1),
    ]
    assert one["tables"][0]["rows"][0]["reached"] == 2
    assert one["tables"][0]["rows"][0]["speedup"]["value"] == 1.0
    assert one["failed"] == []
    assert by.begun[:2] == [("bsp", 0), ("bsp", 1)], "longest first"
    assert set(done.pictures[0]["gantt"]) == {"bsp", "hermes"}
    assert {len(done.pictures[0]["gantt"]["bsp"])} == {3}
    json.dumps(done.results, allow_nan=False)


def test_the_same_comparison_twice_gives_the_same_numbers(tmp_path):
    first, _ = ran(tmp_path / "a")
    second, _ = ran(tmp_path / "b")
    assert without_wall_times(first.results) == without_wall_times(second.results)
    assert first.pictures == second.pictures


def test_a_finished_cell_is_not_run_again_and_another_one_is(tmp_path):
    first, _ = ran(tmp_path)
    again, by = ran(tmp_path)
    assert by.begun == []
    assert again == first
    more, by = ran(tmp_path, plan("bsp,hermes,hermes[gate.alpha=-1.0]", seeds=(0, 1)))
    assert by.begun == [("hermes[gate.alpha=-1.0]", 0), ("hermes[gate.alpha=-1.0]", 1)]
    assert [*more.pictures[0]["gantt"]] == ["bsp", "hermes", "hermes[gate.alpha=-1.0]"], "variants are compared, too"
    assert more.results["comparisons"][0]["cells"][:4] == first.results["comparisons"][0]["cells"]


def test_one_cell_under_two_names_is_run_once(tmp_path):
    done, by = ran(tmp_path, plan("hermes-plus,hermes-plus[momentum=0.5]", seeds=(0,)))
    assert by.begun == [("hermes-plus", 0)]
    first, second = done.results["comparisons"][0]["cells"]
    assert (first["key"], first["targets"]) == (second["key"], second["targets"])


def without_seal(content):
    return {key: value for key, value in json.loads(content).items() if key != "sha256"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:200],
        lambda content: content + b" ",
        lambda _content: b"",
        lambda _content: b"[" * 200_000,
        lambda content: json.dumps(without_seal(content)).encode(),
        lambda content: json.dumps({**json.loads(content), "points": []}).encode(),
        lambda content: content.replace(b'"t_s":', b'"t_s":1', 1),
        lambda content: content[:-3] + (b"1" if content[-3:-2] == b"0" else b"0") + content[-2:],
    ],
    ids=["cut off", "longer", "empty", "nested", "unsealed", "without points", "faster", "another seal"],
)
def test_a_cell_that_is_not_as_it_was_written_is_run_again_and_that_is_said(tmp_path, spoil):
    first, _ = ran(tmp_path, plan("bsp", seeds=(0,)))
    (file,) = (tmp_path / "cells").iterdir()
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    assert file.read_bytes() != whole
    events = []
    again, by = ran(tmp_path, plan("bsp", seeds=(0,)), events=events)
    assert by.begun == [("bsp", 0)]
    assert without_wall_times(again.results) == without_wall_times(first.results)
    assert events[0] == ("spoilt", {"setting": "cost-three-lan", "label": "bsp", "seed": 0, "path": str(file)})
    assert ran(tmp_path, plan("bsp", seeds=(0,)))[1].begun == []


def test_a_cell_that_fails_is_told_with_its_command_and_the_others_go_on(tmp_path):
    events = []
    done, _ = ran(tmp_path, by=Here(fails=("hermes",)), events=events)
    (one,) = done.results["comparisons"]
    assert [(lost["label"], lost["seed"], lost["why"]) for lost in one["failed"]] == [
        ("hermes", 0, "it was told to"),
        ("hermes", 1, "it was told to"),
    ]
    assert one["failed"][0]["command"].startswith("hermes-iot bench --only --workload cost --fleet three")
    assert one["tables"][0]["rows"][0]["reached"] == 2
    assert one["tables"][0]["rows"][1]["seeds"] == 0
    kinds = [event for event, _ in events]
    assert (kinds.count("started"), kinds.count("finished"), kinds.count("failed")) == (4, 2, 2)
    _, by = ran(tmp_path)
    assert by.begun == [("hermes", 0), ("hermes", 1)]


def test_a_cell_of_hermes_plus_tells_what_each_gate_would_have_pushed(tmp_path):
    done, _ = ran(tmp_path, plan("bsp,hermes-plus norm", seeds=(0,)))
    bsp, plus = done.results["comparisons"][0]["cells"]
    assert bsp["gates"] is None
    own = plus["gates"]["would_push"]["norm"]
    assert own["pushes"] == own["both"] == plus["gates"]["published"] > 0
    assert plus["gates"]["would_push"]["paired"] is None


def test_progress_is_told_with_the_time_left(tmp_path):
    events = []
    ran(tmp_path, events=events)
    assert events[0] == ("plan", {"cells": 4, "found": 0, "jobs": 1})
    left = [fields["left_s"] for event, fields in events if event == "finished"]
    assert left[-1] == 0.0
    assert left[0] > 0


def test_a_cells_command_names_all_that_was_chosen():
    digits = {"task": "digits"}
    one = cell(
        "hermes", label="hermes-plus lean", seed=3, workload=digits, dirichlet=0.3, long=True, await_patience=False
    )
    words = shlex.split(command_of(one))
    assert words[words.index("--strategies") + 1] == "hermes-plus lean"
    assert words[words.index("--dirichlet") + 1] == "0.3"
    assert words[words.index("--patience") + 1] == "0"
    assert words[words.index("--targets") + 1] == "0.5,0.7"
    assert "--long" in words
    assert "--data" not in words


TASK = """
import numpy as np
from torch import nn


def build_model():
    return nn.Linear(2, 2)


def load_data():
    x = np.arange(200, dtype=np.float32).reshape(100, 2)
    y = np.arange(100) % 2
    return x, y, x[:10], {targets}
"""


def test_other_test_rows_are_other_data(tmp_path):
    def digest(targets):
        (tmp_path / "mine.py").write_text(TASK.replace("{targets}", "np.load('y.npy')".replace("y.npy", str(file))))
        np.save(file, targets)
        return data_sha256(str(tmp_path / "mine.py"), None)

    file = tmp_path / "y.npy"
    first = digest(np.arange(10) % 2)
    assert digest(np.arange(10) % 2) == first
    assert digest(np.zeros(10, dtype=np.int64)) != first


# --- one cell ---------------------------------------------------------------------------------------------------------


def finished(**changed):
    return cell_run.run_cell(cell("bsp", **changed), key="k", data_dir=None)


def test_a_cell_says_why_it_ended():
    assert finished(await_patience=False)["end"]["kind"] == "target"
    capped = finished(virtual_s=3.0)
    assert capped["end"]["kind"] == "cap"
    assert capped["end"]["reason"] == "3 virtual seconds"


def test_a_cell_ends_after_so_many_rounds_of_its_slowest_board():
    # The cost task proposes 256 rows, 16 a mini-batch, 5 passes: 256 - 38 for the gate are 14 mini-batches a pass, 70
    # in all; the slowest board takes 40 ms each.
    one = cell("bsp", virtual_s=None, workload={"rounds_max": 2.5})
    assert cell_run.run_cell(one, key="k", data_dir=None)["end"]["reason"] == "7 virtual seconds"


def test_validation_numbers_come_with_the_curve():
    document = finished(virtual_s=10.0)
    column = document["columns"].index("validation_loss")
    losses = [one[column] for one in document["points"]]
    assert losses[0] is None
    assert losses[-1] < losses[1]


def test_a_timeline_is_kept_up_to_where_it_is_shown():
    document = finished(workload={"gantt_s": 5.0}, virtual_s=20.0)
    assert {stretches[-1][1] for stretches in document["timeline"].values()} == {5.0}


def test_boards_with_rows_of_their_own_train_real_data():
    workload = workload_of("digits-mlp")
    pytest.importorskip("sklearn")
    settings = setting(workload={"task": "digits"}, dirichlet=0.5, virtual_s=6.0)
    one = cell(
        "hermes-plus",
        constants={"shares": {"target_s": 1.0}},
        dirichlet=0.5,
        virtual_s=6.0,
        workload={"task": "digits"},
    )
    assert settings.name == "cost-three-lan-dirichlet0.5"
    assert workload.task == one.config().task == "digits"
    assert one.config().data_mode == "local"
    document = cell_run.run_cell(one, key="k", data_dir=None)
    assert document["summary"]["links"]["down"]["data"] == 0
    assert document["points"][-1][document["columns"].index("accuracy")] > 0.3


@pytest.mark.parametrize("strategy", ["hermes-plus", "bsp", "fedavg"])
def test_real_training_run_twice_gives_the_same_cell_but_for_the_time_it_took(strategy):
    pytest.importorskip("sklearn")
    one = cell(strategy, virtual_s=4.0, workload={"task": "digits"})
    first, second = ({**cell_run.run_cell(one, key="k", data_dir=None), "real_s": 0} for _ in range(2))
    assert first == second
    assert first["points"][-1][first["columns"].index("pushes")] > 3
    assert first != {**cell_run.run_cell(replace(one, seed=1), key="k", data_dir=None), "real_s": 0}


def test_the_task_of_a_comparison_must_be_there(tmp_path):
    with pytest.raises(UsageError):
        ran(tmp_path, plan(workload={"task": "no-such-task"}))


# --- processes --------------------------------------------------------------------------------------------------------


def length(word):
    """Work for a process: some of it goes wrong."""
    if word == "raise":
        raise ValueError(word)
    if word == "refuse":
        raise HermesError("no", why="because")
    if word == "die":
        os._exit(7)
    return len(word), os.environ["OMP_NUM_THREADS"]


def test_processes_do_everything_and_say_what_went_wrong(capfd):
    started = []
    words = ["ab", "raise", "die", "abc", "refuse", "abcd"]
    found = dict(each(words, length, jobs=2, started=started.append))
    assert started == words
    assert found["ab"] == (2, "1")
    assert found["abc"] == (3, "1")
    assert found["abcd"] == (4, "1")
    assert found["raise"] == "ValueError: raise"
    assert found["refuse"] == "no: because"
    assert found["die"] == "its process ended with exit code 7"
    assert all(isinstance(found[word], Failure) for word in ("raise", "refuse", "die"))
    assert "ValueError" in capfd.readouterr().err


def test_a_cell_done_in_a_process_is_the_same_as_here(tmp_path):
    one = cell("hermes", virtual_s=8.0)
    piece = Piece(cell=one, key="k" * 20, path=tmp_path / "cell.json", data_dir=None)
    ((_, there),) = list(each([piece], work, jobs=1))
    here = cell_run.run_cell(one, key="k" * 20, data_dir=None)
    assert there["log_sha256"] == here["log_sha256"]
    assert cell_run.read(piece.path, "k" * 20) == there
    assert cell_run.read(piece.path, "other") is None
