import errno
import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest

from hermes_iot.errors import StorageError
from hermes_iot.reporting.metrics import LINE_BYTES_MAX, OLDER_MAX, MetricsLog, read_metrics


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_every_record_of_a_run_is_read_back_as_it_was(run, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for event, fields in run.records:
            log.on_record(event, fields)
    assert list(read_metrics(path)) == [{"event": event, **fields} for event, fields in run.records]
    assert {"joined", "left", "allocation", "merge", "state", "finished"} <= {event for event, _fields in run.records}
    assert all(isinstance(record["elapsed_s"], float) for record in read_metrics(path))


def test_numbers_json_does_not_know_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.on_record(
            "merge",
            {"elapsed_s": np.float32(0.5), "loss": math.nan, "z": -math.inf, "deep": [{"n": np.int64(3)}, (math.inf,)]},
        )
    assert lines_of(path) == ['{"event":"merge","elapsed_s":0.5,"loss":null,"z":null,"deep":[{"n":3},[null]]}']


def test_lines_are_written_at_most_once_a_second_and_at_the_end(tmp_path):
    path, clock = tmp_path / "metrics.jsonl", Clock()
    with MetricsLog(path, clock=clock) as log:
        for step in range(5):
            clock.now = 100.0 + 0.3 * step
            log.on_record("state", {"elapsed_s": 0.3 * step})
            assert len(lines_of(path)) == (5 if step == 4 else 0)
        log.on_record("finished", {"elapsed_s": 1.3})
        assert len(lines_of(path)) == 6
        log.on_record("left", {"elapsed_s": 1.4})
        assert len(lines_of(path)) == 6
    assert len(lines_of(path)) == 7


def test_a_resumed_run_appends_and_a_torn_line_costs_only_itself(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event":"state","elapsed_s":1.0}\n{"event":"sta', encoding="utf-8")
    assert [record["elapsed_s"] for record in read_metrics(path)] == [1.0]
    assert not caplog.records  # what is still being written is nothing to report
    with MetricsLog(path) as log:
        log.on_record("state", {"elapsed_s": 2.0})
    with caplog.at_level(logging.WARNING):
        assert [record["elapsed_s"] for record in read_metrics(path)] == [1.0, 2.0]
    assert "lines_skipped=1" in caplog.text


def test_a_long_run_keeps_what_happened_last_in_a_bounded_number_of_files(tmp_path):
    path, clock = tmp_path / "metrics.jsonl", Clock()
    for _process in range(2):  # another one goes on where the first left it
        with MetricsLog(path, clock=clock, file_bytes_max=10_000) as log:
            for _step in range(5000):
                clock.now += 0.1
                log.on_record("state", {"elapsed_s": clock.now})
    names = ["metrics.jsonl", *(f"metrics.jsonl.{number}" for number in range(1, OLDER_MAX + 1))]
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    # A file is closed with the flush that makes it large enough.
    assert all(10_000 <= (tmp_path / name).stat().st_size < 11_000 for name in names[1:])
    times = [record["elapsed_s"] for record in read_metrics(path)]
    assert len(times) > 30_000 / 50
    assert times == pytest.approx([clock.now - 0.1 * back for back in reversed(range(len(times)))])


def test_a_line_is_in_one_file_whatever_the_disk_had_room_for(tmp_path, monkeypatch):
    path, write, full = tmp_path / "metrics.jsonl", os.write, [True]

    def nearly_full(descriptor, data):
        if full[0]:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", nearly_full)
    with MetricsLog(path, file_bytes_max=30) as log:
        for step in range(4):
            full[0] = step == 1
            log.on_record("finished", {"elapsed_s": float(step)})
    assert [record["elapsed_s"] for record in read_metrics(path)] == [0.0, 2.0, 3.0]
    assert log.lost == 1


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x00" * 4096,
        b"[1, 2]",
        b"null",
        b'{"event": "state"}',
        b'{"event": 3, "elapsed_s": 1}',
        b'{"event": "state", "elapsed_s": NaN}',
        b'{"event": "state", "elapsed_s": true}',
        b'{"event": "state", "elapsed_s": 1' + b"0" * 400 + b"}",
        b'{"event": "merge", "elapsed_s": 1, "seconds": 1' + b"0" * 400 + b"}",
        b'{"event": "iteration", "elapsed_s": 1, "deep": [{"z": -1' + b"0" * 400 + b"}]}",
        b"[" * 50_000,
        b"\xff\xfe",
        b"x" * (3 * LINE_BYTES_MAX),
    ],
    ids=lambda rubbish: repr(rubbish[:24]),
)
def test_rubbish_between_records_is_skipped(tmp_path, rubbish):
    path = tmp_path / "metrics.jsonl"
    good = b'{"event":"state","elapsed_s":1.0}\n'
    path.write_bytes(good + rubbish + b"\n" + good)
    assert len(list(read_metrics(path))) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_full_disk_is_said_once_and_what_it_has_no_room_for_is_counted(caplog):
    clock = Clock()
    log = MetricsLog(Path("/dev/full"), clock=clock)
    for step in range(4):
        log.on_record("state", {"elapsed_s": float(step)})
        clock.now += 2
    log.close()
    assert log.lost == 4
    assert caplog.text.count("the disk is full") == 1


def test_another_failure_of_the_disk_is_raised_once_and_then_only_counted(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "worn out")

    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_record("state", {"elapsed_s": 0.0})
    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(StorageError, match="input/output error"):
        log.on_record("finished", {"elapsed_s": 2.0})
    log.on_record("state", {"elapsed_s": 3.0})
    log.close()
    assert log.lost == 3


@pytest.mark.parametrize("room", [0, 5, 35, 36, 40])
def test_lines_go_on_when_there_is_room_again(tmp_path, monkeypatch, room):
    """The disk takes so many bytes of two lines of 35, and then again all."""
    path, left, write = tmp_path / "metrics.jsonl", [room], os.write

    def nearly_full(descriptor, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "full")
        taken = write(descriptor, data[: left[0]])
        left[0] -= taken
        return taken

    with MetricsLog(path) as log:
        log.on_record("state", {"elapsed_s": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", nearly_full)
            log.on_record("finished", {"elapsed_s": 2.0})
        log.on_record("finished", {"elapsed_s": 3.0})
    found = [record["elapsed_s"] for record in read_metrics(path)]
    assert found == [*[1.0, 2.0][: 2 - log.lost], 3.0]
    assert log.lost == (1 if room >= len(lines_of(path)[0]) + 1 else 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_what_ended_the_run_is_not_hidden_by_a_full_disk():
    def a_run():
        with MetricsLog(Path("/dev/full")) as log:
            log.on_record("state", {"elapsed_s": 0.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        a_run()


def test_a_directory_that_is_not_there_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        MetricsLog(tmp_path / "nowhere" / "metrics.jsonl")
    with pytest.raises(StorageError, match="does not exist"):
        list(read_metrics(tmp_path / "nowhere" / "metrics.jsonl"))


def test_no_descriptor_is_left_open(tmp_path):
    before = descriptors()
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.close()
    log.close()
    log.on_record("state", {"elapsed_s": 1.0})
    assert log.lost == 1
    assert descriptors() == before


def test_each_line_is_whole_json(run, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for event, fields in run.records:
            log.on_record(event, fields)
    assert all(list(json.loads(line))[:2] == ["event", "elapsed_s"] for line in lines_of(path))
