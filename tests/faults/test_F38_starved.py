"""F38: training takes the processor for itself. The connection is kept alive all the same."""

import threading
import time
from contextlib import contextmanager

import pytest

from hermes_iot.protocol.messages import DeviceStatus
from hermes_iot.training.toy import ToyTrainer
from hermes_iot.transport.address import BrokerAddress
from tests.faults.fleet import check, led
from tests.support.fleet import Watcher, over_mqtt, running, toy_device
from tests.support.proxy import Proxy

pytestmark = pytest.mark.mosquitto

#: The design speaks of 10 s; the broker lets a client go after one and a half times this.
KEEPALIVE_S = 1
#: Mosquitto looks at its clients every sixth second: of two such silences it would most likely see one.
ITERATION_S = 3.5
#: Longer than a silence the broker would bear, where the line itself is looked at.
WATCHED_ITERATION_S = 2.0
BUSY_THREADS = 2


class Greedy(ToyTrainer):
    """A toy that computes in Python, without ever letting go of the interpreter by itself."""

    def __init__(self, *, over, seconds, **options):
        super().__init__(**options)
        self._over, self._seconds = over, seconds

    def train(self, job):
        until = time.monotonic() + self._seconds
        while time.monotonic() < until and not self._over.is_set():
            sum(range(10_000))
        return super().train(job)


@contextmanager
def starved(fleet, broker_url, connect, tmp_path, *, seconds):
    """A fleet of one board that computes for so many seconds an iteration, among others that want the processor too."""
    over = threading.Event()

    def burn():
        while not over.is_set():
            sum(range(10_000))

    coordinator, records = led(over_mqtt(broker_url), tmp_path, fleet=fleet)
    device = toy_device(
        connect,
        tmp_path,
        "pi-01",
        fleet=fleet,
        trainer_of=lambda manifest, shards: Greedy(over=over, seconds=seconds, seed=manifest.seed, shards=shards),
    )
    burning = [threading.Thread(target=burn, daemon=True) for _ in range(BUSY_THREADS)]
    with Watcher(over_mqtt(broker_url), fleet=fleet) as watcher, running(coordinator, device) as threads:
        for thread in burning:
            thread.start()
        try:
            yield records
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


def test_F38_a_busy_board_is_never_silent_for_as_long_as_a_broker_bears(mosquitto, tmp_path):
    with Proxy(BrokerAddress.parse(mosquitto).port) as proxy:
        connect = over_mqtt(proxy.url, keepalive_s=KEEPALIVE_S)
        with starved("watched", mosquitto, connect, tmp_path, seconds=WATCHED_ITERATION_S) as records:
            records.until("state", lambda row: row["iterations"] >= 1, timeout_s=40)
            assert 0.5 * KEEPALIVE_S < proxy.silent_s_max["up"] < 1.5 * KEEPALIVE_S
        assert proxy.connections == 1


@pytest.mark.slow
def test_F38_a_busy_board_is_never_taken_for_dead(mosquitto, tmp_path):
    connect = over_mqtt(mosquitto, keepalive_s=KEEPALIVE_S)
    with starved("starved", mosquitto, connect, tmp_path, seconds=ITERATION_S) as records:
        # Two iterations, each longer than a silence the broker would bear.
        records.until("state", lambda row: row["iterations"] >= 2, timeout_s=40)
