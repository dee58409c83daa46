"""F25: a broker that takes 131,072 bytes at most. A 2.3 MB update arrives in chunks; nothing larger is ever sent."""

from dataclasses import replace

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.broker import MosquittoBroker
from tests.faults.fleet import ENDLESS, SOON, board, check, led
from tests.support.fleet import Watcher, over_mqtt, running

pytestmark = pytest.mark.mosquitto

PACKET_BYTES_MAX = 131_072
#: 640,100 parameters, 2.56 MB as fp32, of which zstd takes a twelfth away.
LARGE = {"features": 6400, "classes": 100, "rows": 240}
CONFIG = replace(ENDLESS, rules=StopRules(max_pushes=2), samples=40, codec="fp32", codec_down="fp32")
#: What a device waits for an answer of this size, before it asks again.
PATIENT = replace(SOON, retry_s=10.0, retry_max_s=20.0, alone_after_s=20.0)


def test_F25_an_update_of_two_megabytes_passes_a_narrow_door(tmp_path):
    with MosquittoBroker(packet_bytes_max=PACKET_BYTES_MAX) as broker:
        connect = over_mqtt(broker.url)
        coordinator, records = led(connect, tmp_path, config=CONFIG, toy=LARGE)
        device = board(connect, tmp_path, "pi-01", toy=LARGE, settings=PATIENT)
        with Watcher(connect, fleet="lab") as watcher, running(coordinator, device) as (one, other):
            summary = one.wait(60)
            other.wait(60)
            watcher.settled()
            assert "packet" not in broker.log.lower()
            topic = watcher.topics.up("pi-01", "update")
            sizes = [len(event.payload) for event in watcher.all if event.topic == topic]
        assert summary["updates_applied"] == 2
        assert (summary["updates_rejected"], summary["updates_duplicate"]) == (0, 0)
        assert sum(sizes) > 2 * 2_300_000
        assert 100_000 < max(sizes) < PACKET_BYTES_MAX
        assert max(len(event.payload) for event in watcher.all) < PACKET_BYTES_MAX
    check(coordinator, records)
