import csv
import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from hermes_iot.reporting import bench_figure, bench_plots
from hermes_iot.reporting.bench_figure import ticks_of
from hermes_iot.reporting.bench_plots import (
    LANES_MAX,
    ROWS_MAX,
    Line,
    chosen,
    lanes_of,
    lines_of,
    time_shares,
    write_pictures,
)
from hermes_iot.reporting.bench_report import csv_of, findings, report
from hermes_iot.reporting.bench_view import Progress, render
from hermes_iot.reporting.bench_words import megabytes, speedup, times

SETUP = {
    "workload": "mnist-mlp",
    "task": "mnist",
    "modelled": False,
    "train_rows": 54000,
    "data": "indexed",
    "dirichlet": None,
    "targets": [0.98],
    "seeds": [0, 1],
    "fleet": {
        "name": "azure12",
        "boards": 12,
        "batch_s": 0.01,
        "jitter": 0.07,
        "groups": [{"name": "fast", "count": 2, "slowness": 1.0}, {"name": "crawl", "count": 2, "slowness": 8.0}],
    },
    "link": {"name": "wifi20", "up_mbit": 20, "down_mbit": 20, "latency_s": 0.02},
    "grid_s": 1.0,
    "measure_s": 0.0,
    "await_patience": True,
    "rows": [
        {"label": "bsp", "changed": {}, "strategy": "bsp", "codec": None, "codec_down": None},
        {
            "label": "hermes-plus lean",
            "changed": {"codec_up": "topk5", "gate": {"kind": "none"}},
            "strategy": "hermes-plus",
            "codec": None,
            "codec_down": "int8",
        },
    ],
}


def spread(median, least=None, most=None):
    return {"median": median, "least": median if least is None else least, "most": median if most is None else most}


def row(label, t_s, *, reached=2, ratio=None, bound="", model=2e7, share=None, ends=("target",)):
    lost = reached < 2
    return {
        "label": label,
        "reached": reached,
        "seeds": 2,
        "t_s": {"median": t_s, "least": t_s, "most": None if lost else t_s},
        "bytes_model": spread(model if t_s is not None else None),
        "bytes_data": spread(0),
        "bytes_control": spread(1.5e5),
        "pushes": spread(1234),
        "samples": spread(5.2e5),
        "iterations_per_push": spread(1.5),
        "accuracy": spread(0.9812),
        "speedup": {"value": ratio, "bound": bound} if ratio is not None else None,
        "model_share": share,
        "final_accuracy": spread(0.9812),
        "best_accuracy": spread(0.99),
        "ends": list(ends),
    }


BSP = row("bsp", 1200.0, ratio=1.0, model=2.3e8, share=1.0)
LEAN = row("hermes-plus lean", 100.0, ratio=12.0, share=0.087)
SINGLE = row("single", 80.0, ratio=15.0)
TUNED = row("bsp-tuned", 430.0, ratio=2.8)
LOST = row("asp", None, reached=0, ends=("plateau",))


def effort(t_s):
    names = ("bytes_model", "bytes_data", "bytes_control", "pushes", "iterations", "samples")
    return {"t_s": t_s, **dict.fromkeys(names, 7), "iterations_per_push": 1.0, "accuracy": 0.98}


def results(rows=(BSP, LEAN, SINGLE, TUNED, LOST), failed=()):
    cells = [
        {
            "label": label,
            "seed": seed,
            "targets": [{"target": 0.98, "reached": effort(9.0) if label == "bsp" else None}],
            "end": {"kind": "target", "t_s": 10.0},
            "at_end": effort(10.0),
            "best_accuracy": 0.981,
            "gates": None,
        }
        for label in ("bsp", "asp")
        for seed in (0, 1)
    ]
    one = {
        "name": "mnist-mlp-azure12-wifi20",
        "setup": SETUP,
        "cells": cells,
        "tables": [{"target": 0.98, "rows": list(rows)}],
        "paper_stop": {"patience": 10, "rows": list(rows)},
        "stop_rule": {"rows": [BSP, LOST]},
        "failed": list(failed),
    }
    return {
        "software": "9.9",
        "source_sha256": "ab" * 32,
        "versions": {"python": "3.11.2", "torch": "2.4"},
        "stop_rule": {"fleet_rounds": 12, "improvement": 0.001},
        "comparisons": [one],
    }


def test_a_table_shows_times_bytes_and_how_many_seeds_got_there():
    text = report(results(), pictures={}, command="hermes-iot bench")
    lines = text.splitlines()
    assert (
        "| hermes-plus lean | 1m40s | 2/2 | 12x | 20 | 8.7 % | 0 | 0.15 | 1,234 | 1.50 | 520,000 | 98.12 % |" in lines
    )
    assert "| asp | not reached | 0/2 | - | - | - | 0 | 0.15 | 1,234 | 1.50 | 520,000 | 98.12 % |" in lines
    heads = next(line for line in lines if line.startswith("| strategy"))
    assert heads.count("|") == lines[lines.index(heads) + 2].count("|")


def test_several_parts_begin_with_one_table_of_them_all():
    (one,) = results()["comparisons"]
    some = row("hermes", 100.0, reached=1, ratio=2.0)
    other = {**one, "name": "mnist-mlp-equal12-wifi20", "tables": [{"target": 0.97, "rows": [BSP, some]}]}
    text = report({**results(), "comparisons": [one, other]}, pictures={}, command="")
    table = text[text.index("## Overview") : text.index("## mnist-mlp-azure12-wifi20")].splitlines()
    assert table[4:] == [
        "| strategy | mnist-mlp-azure12-wifi20, 98 % | mnist-mlp-equal12-wifi20, 97 % |",
        "|---|---:|---:|",
        "| bsp | 1x, 20m00s, 230 MB | 1x, 20m00s, 230 MB |",
        "| hermes-plus lean | 12x, 1m40s, 20 MB | - |",
        "| single | 15x, 1m20s, 20 MB | - |",
        "| bsp-tuned | 2.8x, 7m10s, 20 MB | - |",
        "| asp | not reached | - |",
        "| hermes | - | 2x, 1m40s, 20 MB (1/2) |",
        "",
    ]
    assert "## Overview" not in report(results(), pictures={}, command="")


def test_a_report_says_what_was_run():
    text = report(results(), pictures={"mnist-mlp-azure12-wifi20": ["a-time.png"]}, command="hermes-iot bench --x")
    assert "    hermes-iot bench --x" in text
    assert "12 boards, boards x slowness 2 x 1, 2 x 8" in text
    assert "`hermes-plus lean` is hermes-plus with codec_up = topk5, gate.kind = none, codec_down = int8" in text
    assert "![a-time.png](a-time.png)" in text
    assert "python 3.11.2, torch 2.4" in text
    assert "hermes-iot 9.9 (sources abababababab)" in text


def test_what_a_cost_model_made_up_is_called_modelled():
    document = results()
    assert "modelled" not in report(document, pictures={}, command="")
    document["comparisons"][0]["setup"] = {**SETUP, "task": "cost", "modelled": True}
    assert "nothing was trained, losses and accuracies are modelled" in report(document, pictures={}, command="")


def test_the_papers_rule_is_never_shown_without_what_is_wrong_with_it():
    text = report(results(), pictures={}, command="")
    heading = text.index("Stopped by the paper's rule: 10 aggregations")
    assert "Not comparable" in text[heading:].splitlines()[2]


def gates(pushes, *, strict=None, forced=0, loss="training"):
    counts = {"paired": pushes, "strict": strict, "none": 40}
    would = {
        kind: {"pushes": count, "forced": forced if kind == "paired" else 0, "both": 0} if count is not None else None
        for kind, count in counts.items()
    }
    return {
        "gate": "paired",
        "iterations": 40,
        "passed_over": 0,
        "published": 10,
        "loss": loss,
        "would_push": would,
    }


def test_what_each_gate_would_have_sent_is_a_part_of_a_rows_own_iterations():
    document = results()
    document["comparisons"][0]["cells"][2]["gates"] = gates(10)
    document["comparisons"][0]["cells"][3]["gates"] = gates(20, strict=5, forced=8)
    lines = report(document, pictures={}, command="").splitlines()
    at = lines.index("### What each gate would have sent")
    assert "open-loop" in lines[at + 2]
    assert "losses of training" in lines[at + 2]
    # 30 of 80, 8 of them forced; one of the two seeds did not record what strict decides by.
    assert lines[at + 4 : at + 7] == [
        "| strategy | iterations | pushed | paired | strict | none |",
        "|---|---:|---:|---:|---:|---:|",
        "| asp | 80 | 25.0 % | 37.5 % (10.0 forced) | not recorded | 100.0 % |",
    ]
    assert "each gate" not in report(results(), pictures={}, command="")
    document["comparisons"][0]["cells"][2]["gates"] = gates(10, loss="modelled")
    assert "losses of training" not in report(document, pictures={}, command="")


def test_a_failed_cell_stands_at_the_top_with_its_command():
    failed = {"label": "ssp", "seed": 4, "why": "it broke", "command": "hermes-iot bench --only"}
    text = report(results(failed=[failed]), pictures={}, command="")
    assert "**1 cell failed" in text
    assert "- ssp, seed 4: it broke - `hermes-iot bench --only`" in text


def test_sentences_say_what_the_table_says_and_no_more():
    found = findings({"target": 0.98, "rows": [BSP, LEAN, SINGLE, TUNED, LOST]})
    assert found == [
        (
            "`hermes-plus lean` reaches 98 % 12x sooner than BSP: 1m40s against 20m00s (median of 2 seeds), with 8.7 % of its"
            " model bytes."
        ),
        "`single`, one fast board alone with all the data it may have, takes 1m20s. No other row is sooner.",
        "`bsp-tuned`, BSP set with care for MNIST, takes 7m10s. Sooner than it: hermes-plus lean, single.",
        "`asp` reached 98 % with 0 of 2 seeds (its cells ended by: plateau).",
    ]


def test_an_ablation_holds_the_parts_against_the_whole():
    whole = row("hermes-plus", 100.0, ratio=12.0, share=0.1)
    parts = [row("hermes-plus - momentum", 140.0, ratio=8.0, model=3e7), row("hermes-plus + barrier", None, reached=0)]
    found = findings({"target": 0.98, "rows": [BSP, whole, *parts]})
    assert len(found) == 3
    assert found[1] == ("Time and model bytes against the whole `hermes-plus` (1m40s, 20 MB): `- momentum` 1.4x, 1.5x.")
    assert found[2].startswith("`hermes-plus + barrier` reached 98 % with 0 of 2 seeds")


def test_where_cells_were_not_run_on_for_the_papers_rule_it_says_so():
    document = results()
    assert "not run on" not in report(document, pictures={}, command="")
    document["comparisons"][0]["setup"] = {**SETUP, "await_patience": False}
    assert "Cells were not run on until it held" in report(document, pictures={}, command="")


def test_a_strategy_that_is_behind_is_said_to_be():
    (slow,) = findings({"target": 0.98, "rows": [BSP, row("hermes", 1300.0, ratio=0.92, share=0.5)]})
    assert slow.startswith("`hermes` reaches 98 % no sooner than BSP: 21m40s against 20m00s")


def test_without_bsp_at_the_target_nothing_is_said_to_be_so_many_times_sooner():
    absent = row("bsp", None, reached=0, ends=("cap",))
    first, _lost = findings({"target": 0.98, "rows": [absent, row("hermes", 300.0, ratio=9.0, bound=">")]})
    assert first == "`hermes` takes 5m00s to 98 % (median of 2 seeds); BSP did not come there with most of its seeds."


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (spread(87.0, 78.0, 95.0), "1m27s [1m18s - 1m35s]"),
        ({"median": 95.0, "least": 87.0, "most": None}, "1m35s [1m27s - not reached]"),
        (spread(87.0), "1m27s"),
        ({"median": None, "least": None, "most": None}, "not reached"),
    ],
)
def test_times_show_their_range(given, text):
    assert times(given) == text


def test_ratios_that_are_bounds_say_so():
    assert speedup({"value": 13.94, "bound": ""}) == "13.9x"
    assert speedup({"value": 4.2, "bound": ">"}) == ">4.2x"
    assert speedup(None) == "-"
    assert [megabytes(one) for one in (None, 0, 29_100_000, 1_008_400_000)] == ["-", "0", "29.1", "1008"]


def test_the_csv_has_a_line_for_each_cell_and_target():
    lines = list(csv.DictReader(io.StringIO(csv_of(results()))))
    assert [(one["strategy"], one["seed"], one["reached"], one["t_s"]) for one in lines] == [
        ("bsp", "0", "1", "9.0"),
        ("bsp", "1", "1", "9.0"),
        ("asp", "0", "0", ""),
        ("asp", "1", "0", ""),
    ]
    assert {one["end_t_s"] for one in lines} == {"10.0"}


# --- terminal ---------------------------------------------------------------------------------------------------------


def test_a_person_sees_tables_sentences_and_files(tmp_path):
    out = io.StringIO()
    failed = {"label": "ssp", "seed": 4, "why": "", "command": ""}
    console = Console(file=out, width=100)
    render(results(failed=[failed]), console, written=[tmp_path / "report.md"], notes=["no plots: [sorry]"])
    text = out.getvalue()
    assert "To 98 % test accuracy" in text
    assert re.search(r"hermes-plus lean +1m40s +2/2 +12x +20 +8.7 %", text)
    assert "failed: ssp, seed 4" in text
    assert "report.md" in text
    assert "no plots: [sorry]" in text


def test_variants_stand_under_their_strategy_and_fit_into_80_columns():
    out = io.StringIO()
    variants = [
        row(f"hermes-plus - {part}", 140.0, ratio=8.0, share=1.612) for part in ("momentum", "differences down")
    ]
    rows = (BSP, row("hermes-plus", 100.0, ratio=12.0), *variants, SINGLE)
    render(results(rows=rows), Console(file=out, width=80), written=[], notes=[])
    table = out.getvalue().split("accuracy")[2].splitlines()
    assert [line.split("  ")[1:3] for line in table[1:6]] == [
        ["bsp", ""],
        ["hermes-plus", ""],
        ["", "- momentum"],
        ["", "- differences down"],
        ["single", ""],
    ]


END = {"kind": "target", "reason": "got there", "t_s": 90.0}
CAP = {"kind": "cap", "reason": "3 virtual seconds", "t_s": 0.0}
LOST_IT = {"target": 0.95, "reached": None}
FINISHED = {"setting": "mnist", "label": "bsp [x]", "seed": 1, "end": END, "reached": LOST_IT, "real_s": 5.0}


def told(console):
    with Progress(console, plain=False) as progress:
        progress.on_event("spoilt", {"setting": "mnist", "label": "bsp", "seed": 1, "path": "cells/a.json"})
        progress.on_event("plan", {"cells": 4, "found": 1, "jobs": 2})
        progress.on_event("started", {"setting": "mnist", "label": "bsp", "seed": 1})
        progress.on_event(
            "finished", {**FINISHED, "left_s": 65.0, "reached": {"target": 0.95, "reached": effort(54.0)}}
        )
        progress.on_event("finished", {**FINISHED, "end": CAP, "left_s": None})
        progress.on_event("failed", {**FINISHED, "why": "broke", "command": "hermes-iot bench"})


def test_progress_is_lines_where_there_is_no_terminal():
    out = io.StringIO()
    told(Console(file=out, width=100))
    assert out.getvalue().splitlines() == [
        "mnist, bsp, seed 1 is run again: cells/a.json is not as it was written",
        "4 cells, 1 of them finished before, 2 at a time",
        "2/4 mnist, bsp [x], seed 1: 95 % after 54.0 s; got there, 1m30s virtual in 5.00 s, about 1m05s left",
        "3/4 mnist, bsp [x], seed 1: ended after 3 virtual seconds, in 5.00 s",
        "4/4 mnist, bsp [x], seed 1 failed: broke",
        "  to run it alone: hermes-iot bench",
    ]


def test_progress_is_a_bar_on_a_terminal():
    out = io.StringIO()
    told(Console(file=out, width=100, force_terminal=True))
    assert "4/4" in out.getvalue()
    assert "about 1m05s left" in out.getvalue()


def test_a_bar_shows_time_gone_by_and_what_runs_before_the_first_cell_is_done():
    out = io.StringIO()
    with Progress(Console(file=out, width=100, force_terminal=True), plain=False) as progress:
        progress.on_event("plan", {"cells": 18, "found": 0, "jobs": 2})
        progress.on_event("started", {"setting": "mnist", "label": "hermes[gate.alpha=-1]", "seed": 0})
        progress.on_event("started", {"setting": "mnist", "label": "bsp", "seed": 0})
    last = out.getvalue().split("0/18")[-1]
    assert "0:00:0" in last
    assert "running: hermes[gate.alpha=-1], seed 0; bsp, seed 0" in last
    assert (progress.kept, progress.cells) == (0, 18)


# --- pictures ---------------------------------------------------------------------------------------------------------


def curve(label, seed, accuracy, step=1.0):
    times_s = [step * number for number in range(len(accuracy))]
    return {
        "label": label,
        "seed": seed,
        "t_s": times_s,
        "bytes": [1000 * one for one in times_s],
        "accuracy": accuracy,
    }


PICTURES = {
    "name": "one",
    "labels": ["bsp", "hermes-plus $x_1$"],
    "targets": [0.9],
    "curves": [
        curve("bsp", 0, [0.1, 0.5, 0.8, 0.91, 0.92]),
        curve("bsp", 1, [0.1, 0.4, 0.9, 0.93]),
        curve("hermes-plus $x_1$", 0, [0.2, 0.9, None]),
    ],
    "gantt": {"bsp": {"a": [[0.0, 2.0, "train"], [2.0, 5.0, "wait"]], "b": [[0.0, 5.0, "off"]]}},
    "gantt_s": 5.0,
}


def test_a_line_is_the_median_over_seeds_while_all_of_them_run():
    (line,) = lines_of(["bsp"], PICTURES["curves"], across="time")
    assert (line.x[0], line.x[-1]) == (1.0, 3.0)  # the shorter of the two ends at 3 s
    assert (line.median[0], line.least[0], line.most[0]) == (0.45, 0.4, 0.5)
    assert (line.median[-1], line.least[-1], line.most[-1]) == (0.92, 0.91, 0.93)
    at_two = [value for x, value in zip(line.x, line.median, strict=True) if 2 <= x < 3]
    assert set(at_two) == {0.8500000000000001} or all(math.isclose(one, 0.85) for one in at_two)
    (wide,) = lines_of(["bsp"], PICTURES["curves"], across="bytes")
    assert wide.x[-1] == 3000.0


def test_a_row_without_an_accuracy_has_no_line():
    assert lines_of(["x"], [curve("x", 0, [None, None])], across="time") == []
    assert lines_of(["y"], [], across="time") == []


def test_ticks_are_round_numbers_of_one_unit_each():
    assert [*ticks_of(4.9, 200.0, across="time").values()] == ["5 s", "10 s", "20 s", "30 s", "1 min", "2 min"]
    assert [*ticks_of(1e5, 6e6, across="bytes").values()] == ["100 kB", "200 kB", "500 kB", "1 MB", "2 MB", "5 MB"]


def test_a_range_of_seeds_is_named_where_there_are_several():
    one = bench_figure.accuracy([shown("bsp", (0.5, 0.9))], targets=[0.9], across="time")["svg"]
    two = [replace(shown("bsp", (0.5, 0.9)), seeds=2)]
    assert b"range of seeds" not in one
    assert b"range of seeds" in bench_figure.accuracy(two, targets=[0.9], across="time")["svg"]
    assert [line.seeds for line in lines_of(["bsp"], PICTURES["curves"], across="time")] == [2]


def test_shares_of_time_are_of_all_boards_together():
    shares = time_shares(PICTURES["gantt"]["bsp"])
    assert shares == {"train": 0.2, "wait": 0.3, "off": 0.5}
    assert time_shares({}) == {"train": 0.0, "wait": 0.0, "off": 0.0}


def test_the_boards_of_every_row_are_shown_and_of_too_many_those_of_the_best_known():
    assert chosen(["bsp", "hermes-plus paired", "hermes-plus coin"]) == (
        ["bsp", "hermes-plus paired", "hermes-plus coin"],
        [],
    )
    many = [f"row {number}" for number in range(ROWS_MAX)]
    shown_rows, left_out = chosen(["bsp", *many, "hermes-plus"])
    assert shown_rows == ["bsp", *many[:-2], "hermes-plus"]
    assert left_out == many[-2:]


@pytest.mark.filterwarnings("error")
def test_the_axis_of_the_boards_ends_with_the_longest_row_and_the_missing_are_named():
    boards = {"bsp": {"a": [[0.0, 3.0, "train"]]}, "hermes-plus paired": {"a": [[0.0, 2.0, "wait"]]}}
    svg = bench_figure.gantt(boards, until_s=120.0, left_out=["some row"])["svg"].decode()
    assert "hermes-plus paired: boards train 0.0 % of the time, ended at 2.00 s" in svg
    assert ">3.0<" in svg
    assert ">120<" not in svg
    assert "not shown: some row" in svg
    full = bench_figure.gantt({"bsp": {"a": [[0.0, 120.0, "train"]]}}, until_s=120.0, left_out=[])["svg"].decode()
    assert "ended at" not in full
    assert "not shown" not in full


def test_of_many_boards_some_are_shown_the_first_and_last_among_them():
    boards = {f"b{number}": [] for number in range(100)}
    shown = list(lanes_of(boards))
    assert len(shown) == LANES_MAX
    assert (shown[0], shown[-1]) == ("b0", "b99")


def test_pictures_are_written_as_png_and_svg_and_the_same_each_time(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        files, note = write_pictures(PICTURES, folder)
        assert note == ""
        assert sorted(path.name for path in files) == [
            f"one-{kind}.{ending}" for kind in ("boards", "bytes", "time") for ending in ("png", "svg")
        ]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    assert (first / "one-time.png").read_bytes().startswith(b"\x89PNG")
    assert "hermes-plus" in (first / "one-time.svg").read_text()


def test_a_comparison_of_which_nothing_came_has_no_pictures(tmp_path):
    assert write_pictures({**PICTURES, "curves": [], "gantt": {}}, tmp_path) == ([], "")


def shown(label, accuracies):
    times_s = tuple(float(number + 1) for number in range(len(accuracies)))
    return Line(label=label, x=times_s, median=accuracies, least=accuracies, most=accuracies)


@pytest.mark.filterwarnings("error")
def test_a_comparison_far_below_its_targets_is_drawn_without_a_complaint():
    """One that stays below the lowest target's surroundings, one just within them, and one that got there."""
    for best in (0.73, 0.864, 0.981):
        lines = [shown("hermes-plus", (0.1, best)), shown("bsp", (0.1, 0.1))]
        images = bench_figure.accuracy(lines, targets=[0.97, 0.98], across="time")
        assert (b">97 %<" in images["svg"]) == (best > 0.97)


@pytest.mark.filterwarnings("error")
def test_cells_that_merged_nothing_leave_a_sentence_in_the_place_of_a_picture(tmp_path):
    files, note = write_pictures({**PICTURES, "curves": [curve("bsp", 0, [0.1])]}, tmp_path)
    assert [path.name for path in files] == ["one-boards.png", "one-boards.svg"]
    assert note == "no plots of accuracy for one: its cells ended before a model was merged"


def test_without_matplotlib_a_sentence_stands_for_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hermes_iot.reporting.bench_figure", None)
    monkeypatch.delattr("hermes_iot.reporting.bench_figure", raising=False)
    files, note = bench_plots.write_pictures(PICTURES, tmp_path)
    assert files == []
    assert note.startswith("no plots: matplotlib is not installed")
