"""F8: the line dies without a word. The death is seen in time, the device trains on and is back when the line is."""

import socket
import subprocess
import sys
import time

import pytest

from hermes_iot.runtime import device as device_runtime
from hermes_iot.runtime.broker import MosquittoBroker
from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.backoff import Backoff
from tests.faults import namespace
from tests.faults.board import ROWS
from tests.faults.fleet import board, check, led, more_merges
from tests.support.fleet import Records, over_mqtt, running
from tests.support.proxy import Proxy

pytestmark = pytest.mark.mosquitto

KEEPALIVE_S = 1
WILL_DELAY_S = 1
BACKOFF = Backoff(base_s=0.2, cap_s=1.0)
#: Mosquitto 2.0 looks at the keep-alives of its clients every sixth second, and at wills every second.
GRAIN_S = 7.5


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_F08_a_board_on_a_half_open_line_trains_on_and_is_back_when_the_line_is(mosquitto, tmp_path):
    own = Records()
    coordinator, records = led(over_mqtt(mosquitto), tmp_path, fleet="dead-line")
    with Proxy(BrokerAddress.parse(mosquitto).port) as proxy:
        connect = over_mqtt(proxy.url, keepalive_s=KEEPALIVE_S, backoff=BACKOFF, connect_timeout_s=1.0)
        device = board(connect, tmp_path, "pi-01", fleet="dead-line", on_record=own)
        with running(coordinator, device) as threads:
            more_merges(records, "pi-01")
            proxy.silence()
            iterations = len(own.of("iteration"))
            proxy.wait_for_connections(2, 2 * KEEPALIVE_S + BACKOFF.cap_s + 1.0)  # it noticed, and tries again
            own.wait("iteration", iterations + 20)  # it went on training
            proxy.heal()
            more_merges(records, "pi-01")
            assert [thread.error for thread in threads] == [None, None]
    check(coordinator, records)


@pytest.mark.slow
def test_F08_a_half_open_line_is_noticed_on_both_sides_and_mends_itself(mosquitto, tmp_path, monkeypatch):
    monkeypatch.setattr(device_runtime, "WILL_DELAY_S", WILL_DELAY_S)
    own = Records()
    coordinator, records = led(over_mqtt(mosquitto), tmp_path, fleet="half-open")
    with Proxy(BrokerAddress.parse(mosquitto).port) as proxy:
        connect = over_mqtt(proxy.url, keepalive_s=KEEPALIVE_S, backoff=BACKOFF, connect_timeout_s=1.0)
        device = board(connect, tmp_path, "pi-01", fleet="half-open", on_record=own)
        with running(coordinator, device) as threads:
            more_merges(records, "pi-01")
            proxy.silence()
            dead = time.monotonic()
            iterations = len(own.of("iteration"))
            records.wait("left", device="pi-01", reason="connection lost")
            seen_s = time.monotonic() - dead
            assert seen_s <= 1.5 * KEEPALIVE_S + WILL_DELAY_S + GRAIN_S
            own.wait("iteration", iterations + 20)  # it went on training
            joins = len(records.of("joined"))
            proxy.heal()
            healed = time.monotonic()
            records.wait("joined", joins + 1, device="pi-01")
            assert time.monotonic() - healed <= BACKOFF.cap_s + 1.0
            more_merges(records, "pi-01")
            assert [thread.error for thread in threads] == [None, None]
    check(coordinator, records)


@pytest.mark.slow
def test_F08_packets_that_vanish_between_two_networks_are_noticed_and_mended(tmp_path):
    """The same with two kernels' worth of TCP between the two, and the will's delay as it is in the field."""
    if reason := namespace.unavailable():
        pytest.skip(reason)
    keepalive_s = 4
    with namespace.Namespace() as net:
        port = free_port()
        with MosquittoBroker(settings=(f"listener {port} {net.ours}",)) as broker:
            coordinator, records = led(over_mqtt(broker.url), tmp_path, toy={"rows": ROWS})
            words = [f"mqtt://{net.ours}:{port}", str(tmp_path), "pi-01", "lab", "8", "4", str(keepalive_s)]
            with running(coordinator) as leading:
                process = subprocess.Popen(net.command([sys.executable, "-m", "tests.faults.board", *words]))
                try:
                    more_merges(records, "pi-01")
                    net.cut()
                    dead = time.monotonic()
                    records.wait("left", device="pi-01", reason="connection lost", timeout_s=60)
                    assert time.monotonic() - dead <= 1.5 * keepalive_s + device_runtime.WILL_DELAY_S + GRAIN_S
                    assert process.poll() is None
                    net.heal()
                    healed = time.monotonic()
                    records.wait("joined", 2, device="pi-01")
                    # At worst a try to connect had just begun; then one more pause.
                    assert time.monotonic() - healed <= 2.0 + 1.0 + 1.0
                    row = more_merges(records, "pi-01")
                    assert row["session"] == 1, "it is the same life"
                    assert leading.error is None
                finally:
                    process.terminate()
                    process.wait(20)
            check(coordinator, records)
