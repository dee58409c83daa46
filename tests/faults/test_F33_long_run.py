"""F33: a run that goes on for long. Memory, descriptors, threads and the directory stay as they were."""

import gc
import threading
import tracemalloc
from pathlib import Path

import pytest

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.reporting.metrics import OLDER_MAX, MetricsLog, read_metrics
from tests.faults.fleet import ENDLESS
from tests.support.fleet import over_mqtt, running, toy_coordinator, toy_device

pytestmark = pytest.mark.mosquitto

#: After so many merges everything that is filled once is full: held models, timings, the journal's segments.
WARM = 100
METRICS_BYTES_MAX = 10_000
NAMES = ("pi-01", "pi-02")


def disk_bytes(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("merges_in_all", "growth_bytes_max"),
    [(300, 128 * 1024), pytest.param(4000, 256 * 1024, marks=pytest.mark.slow)],
)
def test_F33_nothing_grows_with_the_length_of_a_run(merges_in_all, growth_bytes_max, mosquitto, tmp_path):
    connect = over_mqtt(mosquitto)
    settings = CoordinatorSettings(linger_s=1.0, checkpoint_interval_s=0.2)
    seen = threading.Condition()
    merges = [0]
    (tmp_path / "run").mkdir()
    metrics = MetricsLog(tmp_path / "run" / "metrics.jsonl", file_bytes_max=METRICS_BYTES_MAX)

    def on_record(event, fields):
        metrics.on_record(event, fields)
        if event == "merge":
            with seen:
                merges[0] += 1
                seen.notify_all()

    coordinator = toy_coordinator(
        connect,
        tmp_path / "run",
        fleet=f"long-{merges_in_all}",
        config=ENDLESS,
        settings=settings,
        on_record=on_record,
    )

    def reached(count):
        with seen:
            assert seen.wait_for(lambda: merges[0] >= count, 110), merges
        gc.collect()
        return tracemalloc.get_traced_memory()[0], descriptors(), threading.active_count(), disk_bytes(tmp_path / "run")

    boards = [toy_device(connect, tmp_path, name, fleet=f"long-{merges_in_all}") for name in NAMES]
    tracemalloc.start()
    try:
        with running(coordinator, *boards) as threads:
            memory, files, alive, disk = reached(WARM)
            later_memory, later_files, later_alive, later_disk = reached(merges_in_all)
            assert [thread.error for thread in threads] == [None] * 3
    finally:
        tracemalloc.stop()
        metrics.close()
    assert later_memory - memory < growth_bytes_max
    # A file may be open at that moment: a checkpoint, a registry, a segment.
    assert later_files <= files + 3
    assert later_alive <= alive
    # Two checkpoints and the journal since the older one; all that was ever journalled would be several times as much.
    journalled = coordinator.run_dir.journal.next_index
    assert journalled >= merges_in_all
    assert later_disk < 3 * disk + 200_000
    assert len(list((tmp_path / "run").glob("metrics.jsonl*"))) == 1 + OLDER_MAX
    told = [record["version"] for record in read_metrics(metrics.path) if record["event"] == "merge"]
    assert told == list(range(told[0], told[-1] + 1))
    assert told[-1] >= merges_in_all
