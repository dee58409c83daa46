"""F38: training takes the processor for itself. The connection is kept alive all the same."""

import threading
import time

import pytest

from hermes_iot.protocol.messages import DeviceStatus
from hermes_iot.training.toy import ToyTrainer
from tests.faults.fleet import check, led
from tests.support.fleet import Watcher, over_mqtt, running, toy_device

pytestmark = pytest.mark.mosquitto

#: The design speaks of 10 s; the broker lets a client go after one and a half times this.
KEEPALIVE_S = 1
#: Mosquitto looks at its clients every sixth second: it would see one of two such silences in any case.
ITERATION_S = 3.5
BUSY_THREADS = 2


class Greedy(ToyTrainer):
    """A toy that computes in Python, without ever letting go of the interpreter by itself."""

    def __init__(self, *, over, **options):
        super().__init__(**options)
        self._over = over

    def train(self, job):
        until = time.monotonic() + ITERATION_S
        while time.monotonic() < until and not self._over.is_set():
            sum(range(10_000))
        return super().train(job)


def test_F38_a_busy_board_is_never_taken_for_dead(mosquitto, tmp_path):
    over = threading.Event()

    def burn():
        while not over.is_set():
            sum(range(10_000))

    coordinator, records = led(over_mqtt(mosquitto), tmp_path, fleet="starved")
    device = toy_device(
        over_mqtt(mosquitto, keepalive_s=KEEPALIVE_S),
        tmp_path,
        "pi-01",
        fleet="starved",
        trainer_of=lambda manifest, shards: Greedy(over=over, seed=manifest.seed, shards=shards),
    )
    burning = [threading.Thread(target=burn, daemon=True) for _ in range(BUSY_THREADS)]
    with Watcher(over_mqtt(mosquitto), fleet="starved") as watcher, running(coordinator, device) as threads:
        for thread in burning:
            thread.start()
        try:
            # Two iterations, each longer than a silence the broker would bear.
            records.until("state", lambda row: row["iterations"] >= 2, timeout_s=40)
        finally:
            over.set()
            for thread in burning:
                thread.join(10)
        watcher.settled()
        births = watcher.said(watcher.topics.up("pi-01", "status"), DeviceStatus)
        assert [one.state for one in births] == ["online"], "each new connection says its birth again"
        assert records.of("left") == []
        assert [thread.error for thread in threads] == [None, None]
    check(coordinator, records)
