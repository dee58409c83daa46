import io
import json
import math
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from hermes_iot.errors import StorageError
from hermes_iot.reporting.plots import Plotted
from hermes_iot.reporting.summary import envelope, render, write_summary
from hermes_iot.reporting.units import format_bytes, format_factor, format_seconds, format_share
from tests.reporting.conftest import SLOW

ASKED_FOR = {
    *("accuracy", "devices", "iterations", "wall_s", "broker", "run_dir", "bytes_up", "bytes_down", "bytes_bsp"),
    *("updates_published", "updates_received", "updates_applied", "updates_duplicate", "updates_stale"),
    "updates_rejected",
}


def printed(summary, width=80, **options):
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    render(summary, console, **options)
    return console.export_text()


def squeezed(text):
    return " ".join(text.split())


def with_device(summary, **changes):
    *others, last = summary["devices"]
    return {**summary, "devices": [*others, {**last, **changes}]}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(run, width):
    wide = with_device(run.summary, device="greenhouse-north-corner-pi-0042", samples_before=600_000, samples=1_400_000)
    for summary in (run.summary, wide):
        lines = printed(summary, width).splitlines()
        assert max(cell_len(line) for line in lines) <= min(width, 110)
        assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_everything_asked_for_is_there(run, width):
    summary = run.summary
    text = printed(summary, width)
    assert f"final accuracy       {format_share(summary['accuracy'])} on the test rows" in text
    assert f"validation accuracy  {format_share(summary['validation_accuracy'])}" in text
    assert f"wall time            {format_seconds(summary['wall_s'])}, ended by: 90 updates applied" in text
    for one in summary["devices"]:
        share = format_share(one["updates_published"] / one["iterations"])
        counts = rf"{one['iterations']} +{one['updates_published']} +{re.escape(share)} +{one['updates_applied']}$"
        assert re.search(rf"^  {one['device']} .* {counts}", text, re.MULTILINE)
    assert re.search(rf"^  total +{summary['iterations']} +{summary['updates_published']} ", text, re.MULTILINE)
    assert re.search(rf"^  {SLOW} +24x slower ", text, re.MULTILINE)
    for count in ("bytes_up", "bytes_down", "bytes_bsp"):
        assert format_bytes(summary[count]) in text
    ratio = format_factor(summary["bytes_bsp"] / (summary["bytes_up"] + summary["bytes_down"]))
    assert f"BSP would have sent {ratio} the bytes of this run." in text
    assert summary["run_dir"] in text.replace("\n  ", "")


def test_each_device_shows_its_size_and_time_before_and_after(run):
    *others, slow = run.summary["devices"]
    assert slow["allocations"] > 1
    resized = {"samples_before": 120, "samples": 32, "iteration_s_before": 0.4, "iteration_s": 0.1}
    kept = {"samples_before": 120, "samples": 120, "batch_before": 16, "batch": 16, "allocations": 1}
    times = {"iteration_s_before": 0.05, "iteration_s": 0.05}
    summary = {**run.summary, "devices": [{**one, **kept, **times} for one in others] + [{**slow, **resized}]}
    text = printed(summary)
    assert "120 → 32" in text
    assert "400 ms → 100 ms" in text
    assert text.count("50.0 ms, not re-sized") == len(others) == 4
    assert "slowest / fastest iteration: 8x at first, 2x at the end" in text


def test_a_device_re_sized_but_not_measured_again_is_not_said_to_have_improved(run):
    text = printed(with_device(run.summary, samples_before=120, samples=32, iteration_s_before=0.4, iteration_s=0.4))
    assert "400 ms → ?, not measured again" in text
    assert "slowest / fastest" not in text


def test_a_device_never_measured_and_one_back_at_its_first_size_say_so(run):
    never = {"samples_before": 0, "batch_before": 0, "iteration_s_before": None, "iteration_s": None}
    assert "never measured" in printed(with_device(run.summary, **never))
    back = {"samples_before": 120, "samples": 120, "batch_before": 16, "batch": 16, "allocations": 3}
    assert "ended at its first size" in printed(with_device(run.summary, **back))


def test_updates_received_add_up_with_their_reasons(run):
    summary = {
        **run.summary,
        "updates_received": 1065,
        "updates_applied": 1060,
        "updates_duplicate": 1,
        "updates_stale": 3,
        "updates_rejected": 1,
        "reasons": {"lag": 3, "loss": 1},
    }
    words = "updates received: 1,065 = 1,060 applied + 1 duplicate + 3 stale + 1 rejected (reasons: lag 3, loss 1)"
    assert words in squeezed(printed(summary))


def test_who_was_not_waited_for_at_the_end_is_named_with_the_reason(run):
    assert "waited for" not in printed(run.summary)
    excused = with_device(run.summary, excused="its iterations diverge")
    name = excused["devices"][-1]["device"]
    assert f"not waited for any more: {name} (its iterations diverge)" in squeezed(printed(excused))


def test_the_comparison_with_bsp_says_how_it_is_made(run):
    text = squeezed(printed(run.summary))
    for words in (
        f"the same {run.summary['iterations']:,} local iterations",
        "one whole model up and one down each",
        "half precision",
        "all payloads its devices report, control messages included",
        "conservative",
        "not for equal accuracy",
    ):
        assert words in text


def test_a_run_that_published_nothing_claims_nothing(run):
    nothing = {"iterations": 0, "updates_published": 0, "updates_applied": 0}
    summary = {
        **run.summary,
        **nothing,
        "updates_received": 0,
        "bytes_bsp": 0,
        "validation_accuracy": None,
        "reasons": {},
        "devices": [{**one, **nothing} for one in run.summary["devices"]],
    }
    text = printed(summary)
    assert "nothing to hold against BSP" in text
    assert "would have sent" not in text
    assert "final accuracy" in printed({**summary, "devices": []})


def test_a_task_without_accuracy_shows_its_loss(run):
    text = printed({**run.summary, "accuracy": None, "validation_accuracy": None, "loss": 0.25})
    assert "final loss     0.25 on the test rows" in text
    assert "accuracy  " not in text


def test_many_devices_are_left_to_the_file(run):
    one = run.summary["devices"][0]
    devices = [{**one, "device": f"pi-{number:04}"} for number in range(1000)]
    text = printed({**run.summary, "devices": devices})
    assert "pi-0063" in text
    assert "pi-0064" not in text
    assert "… and 936 more in summary.json" in text


def test_files_that_exist_and_the_plot_or_why_there_is_none_are_named(run, tmp_path):
    summary = {**run.summary, "run_dir": str(tmp_path)}
    write_summary(tmp_path / "summary.json", summary)
    text = printed(summary, plot=Plotted(path=tmp_path / "progress.png"))
    assert "  summary.json  progress.png\n" in text
    assert "metrics.jsonl" not in text
    note = "no plot: matplotlib is not installed; get it with pip install 'hermes-iot[demo]'"
    assert note in squeezed(printed(summary, plot=Plotted(note=note)))


def test_what_devices_and_users_say_is_neither_markup_nor_control(run):
    evil = "[red]x[/red]\x1b[2J"
    summary = with_device({**run.summary, "reason": evil, "reasons": {evil: 2}, "broker": evil}, device=evil, host=evil)
    text = printed(summary)
    assert text.count("[red]x[/red]") == 5  # how it ended, twice the device, the reason, the broker
    assert "\x1b" not in text


def test_a_terminal_without_utf8_gets_ascii(run):
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    render(run.summary, Console(file=file, width=80))
    file.flush()
    assert b"120 > " in file.buffer.getvalue()


def test_the_envelope_is_one_line_of_versioned_json_with_all_keys(run):
    text = envelope(run.summary, kind="run")
    assert "\n" not in text
    document = json.loads(text)
    assert list(document)[:2] == ["schema", "ok"]
    assert (document["schema"], document["ok"]) == ("hermes-iot/run/1", True)
    assert set(document) >= ASKED_FOR
    assert {key: value for key, value in document.items() if key not in {"schema", "ok"}} == run.summary
    fates = ("updates_applied", "updates_duplicate", "updates_stale", "updates_rejected")
    assert document["updates_received"] == sum(document[fate] for fate in fates)


def test_numbers_in_the_envelope_are_finite_or_null_and_its_head_is_ours(run):
    summary = with_device({**run.summary, "loss": math.inf, "ok": False, "schema": "mine"}, iteration_s=math.nan)
    document = json.loads(envelope(summary, kind="demo"), parse_constant=pytest.fail)
    assert document["loss"] is None
    assert document["devices"][-1]["iteration_s"] is None
    assert (document["schema"], document["ok"]) == ("hermes-iot/demo/1", True)


def test_the_file_holds_the_same_keys(run, tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, run.summary)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(envelope(run.summary, kind="run"))
    assert [one.name for one in tmp_path.iterdir()] == ["summary.json"]
    with pytest.raises(StorageError):
        write_summary(tmp_path / "nowhere" / "summary.json", run.summary)


def test_a_run_steered_by_its_test_rows_says_so(run):
    assert "not a clean result" not in printed(run.summary)
    assert "not a clean result" in squeezed(printed({**run.summary, "scored_on": "test"}))


def test_it_is_said_how_many_pushes_were_forced(run):
    words = {"gate_words": {"age": 3, "loss": 1}}
    assert "of 4 pushes whose reason the devices' reports told, 3 (75.0 %)" in squeezed(
        printed({**run.summary, **words})
    )
    assert "forced" not in squeezed(printed(run.summary))


def test_applied_updates_that_no_report_tells_of_are_explained(run):
    ahead = [{**one, "updates_applied": one["updates_published"] + 1} for one in run.summary["devices"]]
    assert "are the devices' last reports" in squeezed(printed({**run.summary, "devices": ahead}))
    even = [{**one, "updates_applied": one["updates_published"]} for one in run.summary["devices"]]
    assert "last reports" not in squeezed(printed({**run.summary, "devices": even}))
