"""F7: a device is killed in the middle of an upload. Nothing of half an update is applied; the next life contributes."""

import subprocess
import sys
from dataclasses import replace

import pytest

from hermes_iot.protocol.messages import DeviceState
from hermes_iot.transport.address import BrokerAddress
from tests.faults.fleet import ENDLESS, check, led
from tests.support.fleet import Watcher, over_mqtt, running
from tests.support.proxy import Proxy

pytestmark = pytest.mark.mosquitto

PATIENCE_S = 20.0
#: 20,020 parameters: 40 kB as fp16, in some twenty chunks.
LARGE = {"features": 2000, "classes": 10, "rows": 400}
CHUNK_BYTES = 2048
CONFIG = replace(ENDLESS, chunk_bytes=CHUNK_BYTES, samples=40)


def start(url, tmp_path):
    words = [url, str(tmp_path), "pi-01", "upload", str(LARGE["features"]), str(LARGE["classes"])]
    return subprocess.Popen([sys.executable, "-m", "tests.faults.board", *words])


def test_F07_half_an_update_is_never_applied_and_the_next_life_contributes(mosquitto, tmp_path):
    connect = over_mqtt(mosquitto)
    coordinator, records = led(connect, tmp_path, fleet="upload", config=CONFIG, toy=LARGE)
    with (
        Proxy(BrokerAddress.parse(mosquitto).port) as proxy,
        Watcher(connect, fleet="upload") as watcher,
        running(coordinator),
    ):
        process = start(proxy.url, tmp_path)
        try:
            records.wait("merge", 1, device="pi-01")
            state, topic = watcher.topics.up("pi-01", "state"), watcher.topics.up("pi-01", "update")
            proxy.change(bytes_per_s=80_000.0)
            # From here on an update takes half a second. What the kernel held of one when its sender died may be all the rest
            # of it: then it was killed between two updates, and is killed again a little sooner or later.
            for more_bytes in (60_000, 50_000, 70_000, 55_000, 65_000):
                there = len([one for one in watcher.all if one.topic == topic])
                proxy.wait("up", proxy.carried["up"] + more_bytes)
                process.kill()
                process.wait(PATIENCE_S)
                watcher.settled()
                if (len([one for one in watcher.all if one.topic == topic]) - there) % 20:
                    break
                process = start(proxy.url, tmp_path)
                records.wait("merge", len(records.of("merge")) + 1, device="pi-01", timeout_s=PATIENCE_S)
            else:
                pytest.fail("it was always killed between two updates")
            merges = len(records.of("merge"))
            session = watcher.newest(state, DeviceState).session
            proxy.heal()
            process = start(proxy.url, tmp_path)
            watcher.wait(state, DeviceState, lambda one: one.session > session, PATIENCE_S)
            row = records.wait("merge", merges + 3, device="pi-01", timeout_s=PATIENCE_S)
            assert row["session"] == session + 1
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
        assert coordinator.machine.tally.rejected == 0
    check(coordinator, records)
