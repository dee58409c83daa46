"""``hermes-iot bench``: what it prints, writes and refuses. The cost task, in processes of its own."""

import copy
import json
import os
import textwrap

import pytest

from hermes_iot.cli import main
from hermes_iot.cli.app import command
from hermes_iot.errors import UsageError
from hermes_iot.runtime.bench.presets import PRESETS, STRATEGIES
from hermes_iot.runtime.bench.rows import row_of

FLEET = """
    batch_s = 0.01

    [[groups]]
    name = "fast"
    count = 2
    slowness = 1.0

    [[groups]]
    name = "slow"
    slowness = 4.0
"""
SHORT = ["--workload", "cost", "--fleet", "three.toml", "--targets", "0.5,0.7", "--virtual", "30s", "--jobs", "1"]


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("HERMES_"):
            monkeypatch.delenv(name)
    (tmp_path / "three.toml").write_text(textwrap.dedent(FLEET))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paint_nothing(monkeypatch):
    """Where nobody looks at the pictures: they take longer than the cells of a cost model."""
    monkeypatch.setattr("hermes_iot.reporting.bench_plots.write_pictures", lambda *_: ([], ""))


def benched(capsys, *words):
    code = main(["bench", *words])
    return code, *capsys.readouterr()


def test_a_comparison_from_one_end_to_the_other(capsys, room, monkeypatch):
    rows = ["--strategies", "bsp,hermes-plus,hermes-plus[shares.target_s=1]", "--seeds", "0,1"]
    code, out, err = benched(capsys, *SHORT, *rows, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["schema"], document["ok"], len(out.splitlines())) == ("hermes-iot/bench/1", True, 1)
    (one,) = document["comparisons"]
    labels = ["bsp", "hermes-plus", "hermes-plus[shares.target_s=1]", "single", "single averaged", "bsp-tuned"]
    assert [row["label"] for row in one["tables"][0]["rows"]] == labels
    assert "12 cells, 1 at a time" in err
    folder = room / "bench" / "cost-three-wifi20"
    assert json.loads((folder / "results.json").read_text()) == document
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 6 * 2 * 2
    assert document["command"] in (folder / "report.md").read_text()
    for kind in ("time", "bytes", "boards"):
        assert (folder / f"{one['name']}-{kind}.png").stat().st_size > 10_000
        assert (folder / f"{one['name']}-{kind}.svg").stat().st_size > 1_000

    # The same again: nothing is run, and all is equal.
    paint_nothing(monkeypatch)
    code, again, err = benched(capsys, *SHORT, *rows, "--json")
    assert (code, again) == (0, out)
    assert "12 of them finished before" in err

    # From the beginning: equal but for wall times.
    code, anew, _ = benched(capsys, *SHORT, *rows, "--json", "--out", "anew")
    first, second = copy.deepcopy(document), json.loads(anew)
    for each in (first, second):
        for cell in each["comparisons"][0]["cells"]:
            cell.pop("real_s")
    assert first == second

    # A person reads the tables.
    code, out, _ = benched(capsys, *SHORT, *rows)
    assert code == 0
    assert "To 70 % test accuracy" in out
    assert "report.md" in out


def test_a_cell_that_fails_is_shown_and_told_by_the_exit_code(capsys, room):
    (room / "broken.py").write_text(
        "from hermes_iot.algorithms.strategies.bsp import Bsp, Config\n\n\n"
        "class Broken(Bsp):\n    def coordinator_start(self, initial):\n        raise RuntimeError('out of order')\n\n\n"
        "def build_strategy(config):\n    return Broken(config)\n"
    )
    words = [*SHORT, "--only", "--strategies", "bsp,broken.py", "--seeds", "0", "--json"]
    code, out, err = benched(capsys, *words)
    document = json.loads(out)
    assert (code, document["ok"]) == (1, False)
    (failed,) = document["comparisons"][0]["failed"]
    assert (failed["label"], failed["why"]) == ("broken.py", "RuntimeError: out of order")
    assert document["comparisons"][0]["tables"][0]["rows"][0]["reached"] == 1
    assert "to run it alone: hermes-iot bench --only --workload cost --fleet three.toml" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--preset", "huge"], "there is no preset 'huge'. Use paper or fleets or gates or quick"),
        (["--workload", "mnist-mpl"], "Did you mean 'mnist-mlp'?"),
        (["--workload", ","], "--workload names nothing"),
        (["--fleet", "azure13"], "Did you mean 'azure12'?"),
        (["--link", "wifi21"], "Did you mean 'wifi20'?"),
        (["--strategies", "hermes-pluss"], "Did you mean 'hermes-plus'?"),
        (["--strategies", "hermes-plus[momentum=7]"], "row 'hermes-plus[momentum=7]'"),
        (["--ablate", "--strategies", "bsp"], "contradict each other"),
        (["--strategies", ""], "--strategies names nothing"),
        (["--seeds", ""], "--seeds names nothing"),
        (["--seeds", "one"], "--seeds 'one' is not understood"),
        (["--seeds", "-1"], "--seeds '-1' is not understood"),
        (["--seeds", "²"], "'²' is no whole number from 0"),
        (["--seeds", "0," + "9" * 5000], "is no whole number from 0 to 9007199254740991. Write e.g. 0,1,2"),
        (["--seeds", ","], "--seeds names nothing"),
        (["--strategies", "hermes-plus[momentum=" + "{a=" * 3000 + "]"], "cannot be read: brackets are nested"),
        (["--strategies", "hermes-plus[momentum=" + "9" * 5000 + "]"], "or a number has thousands of digits"),
        (["--strategies", "hermes-plus[" + ".".join("a" * 3000) + "=1]"], "unknown key 'a' in hermes-plus"),
        (["--seeds", ",".join(map(str, range(101)))], "101 seeds are too many"),
        (["--targets", "97%"], "--targets '97%' is not understood"),
        (["--targets", "97"], "target 97 is not in (0, 1]"),
        (["--dirichlet", "0"], "--dirichlet 0 cannot be used"),
        (["--data", "cloud"], "Use indexed or local or shipped"),
        (["--data", "shipped", "--dirichlet", "0.3"], "--dirichlet and --data shipped contradict each other"),
        (["--workload", "cost", "--dirichlet", "0.3"], "workload 'cost' has no rows that could be skewed"),
        (["--workload", "cost", "--data", "local"], "workload 'cost' has no rows that could be local"),
        (["--virtual", "0"], "a virtual time of 0 s cannot be used"),
        (["--virtual", "soon"], "is not a duration"),
        (["--jobs", "0"], "--jobs"),
        (["--data-dir", "nowhere"], "there is no directory nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_run(capsys, room, words, expected):
    code, out, err = benched(capsys, *words)
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not (room / "bench").exists()


def test_an_ablation_switches_one_part_off_at_a_time(capsys, room, monkeypatch):
    paint_nothing(monkeypatch)
    words = [word for word in SHORT if word not in {"--jobs", "1"}]
    code, out, err = benched(capsys, *words, "--ablate", "--seeds", "0", "--json", "--jobs", "1")
    assert code == 0, err
    labels = [row["label"] for row in json.loads(out)["comparisons"][0]["tables"][0]["rows"]]
    assert labels[:2] == ["bsp", "hermes-plus"]
    assert {"hermes-plus - momentum", "hermes-plus + barrier", "hermes-plus no gate"} <= set(labels)
    assert (room / "bench" / "cost-three-wifi20-ablation" / "report.md").is_file()


def test_a_comparison_that_is_stopped_says_what_is_kept_and_how_it_goes_on(capsys, monkeypatch):
    def interrupted(_plan, *, observe, **_options):
        observe("plan", {"cells": 4, "found": 1, "jobs": 1})
        end = {"kind": "target", "reason": "got there", "t_s": 1.0}
        who = {"setting": "s", "label": "bsp", "seed": 0, "reached": {"target": 0.9, "reached": None}}
        observe("finished", {**who, "end": end, "real_s": 1.0, "left_s": None})
        raise KeyboardInterrupt

    monkeypatch.setattr("hermes_iot.runtime.bench.run.run", interrupted)
    code, out, err = benched(capsys, *SHORT, "--out", "here")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "stopped; 2 of 4 cells are kept in here, the same command goes on"


def test_help_tells_how_a_row_is_written_and_what_is_run_where_nothing_is_said():
    helped = {str(one.name): str(one.help) for one in command().commands["bench"].params}
    assert "name[key=value;…]" in helped["chosen"]
    assert row_of("hermes-plus[gate.z=2;codec=int8]").codec == "int8"
    assert f"[default: {STRATEGIES}, or" in helped["chosen"]


def test_a_comparison_of_nothing_in_particular_says_that_it_is_the_quick_one(capsys, monkeypatch):
    plan = planned(monkeypatch)
    assert plan == planned(monkeypatch, "--preset", "quick")
    capsys.readouterr()
    planned(monkeypatch)
    assert "this is --preset quick" in capsys.readouterr().err
    planned(monkeypatch, "--preset", "quick")
    planned(monkeypatch, "--workload", "cost")
    assert "this is --preset quick" not in capsys.readouterr().err


# --- presets ----------------------------------------------------------------------------------------------------------


def planned(monkeypatch, *words):
    """What the command would run."""
    plans = []

    def refused(plan, **_options):
        plans.append(plan)
        raise UsageError("enough seen")

    monkeypatch.setattr("hermes_iot.runtime.bench.run.run", refused)
    assert main(["bench", *words]) == 2
    return plans[0]


def about(plan):
    return [(one.setting.name, [f"{target:g}" for target in one.setting.workload.targets]) for one in plan]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_parts_of_a_preset_have_names_of_their_own(monkeypatch, preset):
    plan = planned(monkeypatch, "--preset", preset)
    names = [one.setting.name for one in plan]
    assert len(set(names)) == len(names) == len(PRESETS[preset])
    assert all(one.rows[0].label == "bsp" for one in plan), "what everything is held against"


def test_a_part_names_its_boards_link_rows_and_targets(monkeypatch):
    plan = planned(monkeypatch, "--preset", "fleets")
    assert about(plan) == [
        ("mnist-mlp-equal12-wifi20", ["0.97", "0.98"]),
        ("mnist-mlp-extreme12-wifi20", ["0.97"]),
        ("mnist-mlp-mild12-wifi20", ["0.97", "0.98"]),
        ("mnist-mlp-azure12-wifi20-dirichlet0.3", ["0.97"]),
        ("mnist-mlp-azure12-slow1", ["0.97", "0.98"]),
    ]
    assert max(group.slowness for group in plan[1].setting.fleet.groups) == 30
    assert plan[4].setting.link.up_mbit == 1
    assert [row.label for row in plan[4].rows][-1] == "hermes-plus lean"
    assert {one.seeds for one in plan} == {(0, 1, 2)}
    assert not any(one.setting.await_patience for one in plan)


def test_what_is_said_on_the_command_line_wins_over_a_part(monkeypatch):
    words = ["--targets", "0.9", "--patience", "7", "--seeds", "5", "--strategies", "bsp", "--only"]
    plan = planned(monkeypatch, "--preset", "fleets", *words)
    assert {targets[0] for _, targets in about(plan)} == {"0.9"}
    assert {(one.setting.patience, one.setting.await_patience, one.seeds, len(one.rows)) for one in plan} == {
        (7, True, (5,), 1)
    }
    # Three of its parts differ in their fleets alone.
    names = [name for name, _ in about(planned(monkeypatch, "--preset", "fleets", "--fleet", "pi-mix"))]
    assert names == ["mnist-mlp-pi-mix-wifi20", "mnist-mlp-pi-mix-wifi20-dirichlet0.3", "mnist-mlp-pi-mix-slow1"]


def test_a_preset_goes_to_workloads_of_ones_own(monkeypatch):
    (one,) = planned(monkeypatch, "--preset", "paper", "--workload", "mnist-cnn")
    assert len(one.rows) == 8, "its own part for that workload"
    two = planned(monkeypatch, "--preset", "gates", "--workload", "digits-mlp")
    assert about(two) == [
        ("digits-mlp-azure12-wifi20", ["0.93", "0.95"]),
        ("digits-mlp-azure12-wifi20-dirichlet0.3", ["0.93", "0.95"]),
    ]
