"""F30: one board is thirty times slower. The others go on, and its work shrinks to what it can do, without swinging."""

import time
from dataclasses import replace

import pytest

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.training.toy import ToyTrainer
from tests.faults.fleet import ENDLESS, check, led
from tests.support.fleet import over_mqtt, running, toy_device

pytestmark = pytest.mark.mosquitto

#: Seconds per row and epoch, far above what the arithmetic takes.
FAST_S, SLOW_S = 0.0002, 0.006
FAST = ("pi-01", "pi-02", "pi-03", "pi-04", "pi-05")
SLOW = "pi-06"
CONFIG = replace(ENDLESS, samples=100, batch=10, epochs=1)


class Paced(ToyTrainer):
    """A toy whose iterations take time: so many seconds a row."""

    def __init__(self, *, row_s, **options):
        super().__init__(**options)
        self._row_s = row_s

    def train(self, job):
        result = super().train(job)
        time.sleep(self._row_s * result.samples * job.epochs)
        return result


def paced(row_s):
    return lambda manifest, shards: Paced(seed=manifest.seed, shards=shards, row_s=row_s)


def test_F30_a_straggler_is_given_less_and_holds_nobody_up(mosquitto, tmp_path):
    connect = over_mqtt(mosquitto)
    settings = CoordinatorSettings(linger_s=1.0, resize_interval_s=0.1)
    coordinator, records = led(connect, tmp_path, fleet="straggler", config=CONFIG, settings=settings)
    boards = [
        toy_device(connect, tmp_path, name, fleet="straggler", trainer_of=paced(SLOW_S if name == SLOW else FAST_S))
        for name in (*FAST, SLOW)
    ]
    with running(coordinator, *boards) as threads:
        for name in FAST:
            records.wait("state", 1, device=name)
        shrunk = records.until("allocation", lambda row: row["device"] == SLOW and row["samples"] < CONFIG.samples / 2)
        at = len(records.of("allocation"))
        before = {name: coordinator.machine.members[name].totals().iterations for name in FAST}
        # Fifty iterations of a fast board later nothing has been taken back.
        for name in FAST:
            records.until(
                "state", lambda row, name=name: row["device"] == name and row["iterations"] > before[name] + 50
            )
        assert [thread.error for thread in threads] == [None] * 7
        slow = [row["samples"] for row in records.of("allocation") if row["device"] == SLOW]
        assert slow[0] == CONFIG.samples
        assert all(size >= 1 for size in slow)
        later = [row for row in records.of("allocation")[at:] if row["device"] == SLOW]
        assert all(0.5 * shrunk["samples"] <= row["samples"] < CONFIG.samples / 2 for row in later)
        # Sized to about the others' time: 100 rows of theirs are 3.3 of its own, give or take what a push costs.
        assert slow[-1] * SLOW_S <= 10 * CONFIG.samples * FAST_S
        assert coordinator.machine.members[SLOW].totals().iterations > 0
    check(coordinator, records)
