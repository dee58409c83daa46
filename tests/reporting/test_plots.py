import json
import math
import struct
import subprocess
import sys

import pytest

from hermes_iot.errors import StorageError
from hermes_iot.reporting.metrics import MetricsLog, read_metrics
from hermes_iot.reporting.plots import course_of, plot_run
from tests.reporting.conftest import PUSHES, SLOW


def written(path, records):
    with MetricsLog(path) as log:
        for event, fields in records:
            log.on_record(event, fields)
    return path


def as_records(pairs):
    return [{"event": event, **fields} for event, fields in pairs]


def size_of(png):
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


def test_a_run_becomes_a_picture(run, tmp_path):
    metrics, png = written(tmp_path / "metrics.jsonl", run.records), tmp_path / "progress.png"
    plotted = plot_run(metrics, png)
    assert (plotted.path, plotted.note) == (png, "")
    width, height = size_of(png)
    assert width == 1200
    assert 600 < height < 800


def test_more_devices_make_a_taller_picture_up_to_a_limit(crowd, tmp_path):
    def height_of(name, records):
        plot_run(written(tmp_path / f"{name}.jsonl", records), tmp_path / f"{name}.png")
        return size_of(tmp_path / f"{name}.png")[1]

    many = [
        (event, {**fields, "device": f"{fields['device']}-{copy}"})
        for copy in range(8)
        for event, fields in crowd
        if "device" in fields and event in {"joined", "left"}
    ]
    fifty = height_of("fifty", crowd)
    assert 1500 < fifty < height_of("many", many) < 2000


@pytest.mark.parametrize("keep", [(), ("joined",), ("joined", "state", "refused"), ("merge",), ("finished",)])
def test_a_run_in_which_little_or_nothing_happened_is_drawn(run, tmp_path, keep):
    records = [(event, fields) for event, fields in run.records if event in keep]
    plotted = plot_run(written(tmp_path / "metrics.jsonl", records), tmp_path / "progress.png")
    assert size_of(plotted.path)[0] == 1200


def test_one_device_and_one_update_are_drawn(run, tmp_path):
    merge = next(one for one in run.records if one[0] == "merge")
    plotted = plot_run(written(tmp_path / "metrics.jsonl", [merge]), tmp_path / "progress.png")
    assert size_of(plotted.path)[0] == 1200


def test_titles_are_not_read_as_mathematics(run, tmp_path):
    metrics = written(tmp_path / "metrics.jsonl", run.records[:5])
    assert plot_run(metrics, tmp_path / "progress.png", title=r"$\frac{ \x1b[31m").path


def test_the_course_of_a_run_is_what_its_records_say(run):
    course = course_of(as_records(run.records))
    merges = [fields for event, fields in run.records if event == "merge"]
    assert len(course.seconds) == len(merges) == PUSHES
    assert course.accuracy == [fields["accuracy"] for fields in merges]
    assert course.payload_bytes == sorted(course.payload_bytes)
    assert sum(len(lane.applied_s) for lane in course.lanes.values()) == PUSHES
    assert course.lanes[SLOW].resized_s
    assert course.reason == run.summary["reason"]
    assert len(course.lanes["d0"].presence) == 1


def test_what_a_crash_took_back_is_not_drawn(run):
    merges = [{"event": "merge", **fields} for event, fields in run.records if event == "merge"]
    crashed = merges[30]["elapsed_s"]
    resumed = [{"event": "joined", "elapsed_s": crashed, "device": "d0", "session": 2, "slowdown": 1.0}]
    again = [{**one, "accuracy": 0.5} for one in merges[31:]]
    noise = {"event": "refused", "elapsed_s": 0.0, "device": "d0", "channel": "state", "reason": "schema"}
    course = course_of([*merges, noise, *resumed, *again])
    assert course.seconds == [one["elapsed_s"] for one in merges]
    assert course.accuracy == [one["accuracy"] for one in merges[:31]] + [0.5] * len(again)


def test_a_device_that_left_and_came_back_has_two_spans():
    def event(name, at):
        return {"event": name, "elapsed_s": at, "device": "pi", "reason": "", "session": 1, "slowdown": 1.0}

    spans = course_of([event("joined", 1.0), event("left", 2.0), event("joined", 3.0)]).lanes["pi"].presence
    assert spans[0] == (1.0, 2.0)
    assert spans[1][0] == 3.0
    assert math.isnan(spans[1][1])


@pytest.mark.parametrize(
    "bad",
    [
        {"event": "merge", "elapsed_s": 1.0},
        {
            "event": "merge",
            "elapsed_s": 1.0,
            "device": "d0",
            "accuracy": "high",
            "loss": 1,
            "bytes_up": 1,
            "bytes_down": 1,
        },
        {
            "event": "merge",
            "elapsed_s": 1.0,
            "device": "d0",
            "accuracy": 1,
            "loss": 1,
            "bytes_up": 10**400,
            "bytes_down": 1,
        },
        {"event": "allocation", "elapsed_s": 1.0, "device": "d0", "version": None},
        {"event": "joined", "elapsed_s": 1.0},
        {"event": "finished", "elapsed_s": 1.0},
    ],
)
def test_records_that_are_not_ours_are_left_out(tmp_path, bad):
    course = course_of([bad])
    assert course.seconds == course.payload_bytes == []
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(bad) + "\n", encoding="utf-8")
    assert plot_run(path, tmp_path / "progress.png").path


def test_without_matplotlib_a_run_loses_its_picture_and_nothing_else(run, tmp_path, monkeypatch):
    metrics = written(tmp_path / "metrics.jsonl", run.records)
    monkeypatch.delitem(sys.modules, "hermes_iot.reporting.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plotted = plot_run(metrics, tmp_path / "progress.png")
    assert plotted.path is None
    assert plotted.note == "no plot: matplotlib is not installed; get it with pip install 'hermes-iot[demo]'"
    assert not (tmp_path / "progress.png").exists()


def test_files_that_cannot_be_read_or_written_are_storage_errors(run, tmp_path):
    with pytest.raises(StorageError):
        plot_run(tmp_path / "metrics.jsonl", tmp_path / "progress.png")
    metrics = written(tmp_path / "metrics.jsonl", run.records[:5])
    with pytest.raises(StorageError):
        plot_run(metrics, tmp_path / "nowhere" / "progress.png")
    assert list(read_metrics(metrics))


def test_nothing_heavy_is_loaded_before_it_is_needed_and_pyplot_never(run, tmp_path):
    metrics = written(tmp_path / "metrics.jsonl", run.records)
    script = (
        "import sys, pathlib\n"
        "from hermes_iot.reporting import live, metrics, plots, summary, units\n"
        "heavy = {'matplotlib', 'numpy', 'torch', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "plots.plot_run(*map(pathlib.Path, sys.argv[1:]))\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(metrics), str(tmp_path / "progress.png")]
    subprocess.run(command, check=True, timeout=60)
