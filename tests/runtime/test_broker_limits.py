"""Models larger than a packet, and than the transport's whole queue, on a real broker."""

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.broker import MosquittoBroker
from hermes_iot.transport.base import Delivery
from tests.support.fleet import Watcher, over_mqtt, running, toy_config, toy_coordinator, toy_device

pytestmark = pytest.mark.mosquitto

#: 160,080 parameters, 320 kB as fp16.
LARGE = {"features": 2000, "classes": 80, "rows": 400}


def led(connect, tmp_path, **changes):
    config = toy_config(rules=StopRules(max_pushes=2), samples=40, **changes)
    with (
        Watcher(connect, fleet="lab") as watcher,
        running(
            toy_coordinator(connect, tmp_path / "run", config=config, toy=LARGE),
            toy_device(connect, tmp_path, "pi-01", toy=LARGE),
        ) as (one, device),
    ):
        summary = one.wait(60)
        device.wait(60)
    return summary, [event for event in watcher.all if isinstance(event, Delivery)]


def test_a_model_of_more_chunks_than_the_transport_queues_gets_through(tmp_path):
    with MosquittoBroker(settings=("max_queued_messages 10000",)) as broker:
        summary, heard = led(over_mqtt(broker.url), tmp_path, chunk_bytes=1024)
    assert summary["updates_applied"] == 2
    parts = {event.topic for event in heard if "/all/model/" in event.topic}
    assert len(parts) > 256


def test_no_packet_is_larger_than_the_broker_takes(tmp_path):
    with MosquittoBroker(packet_bytes_max=8192) as broker:
        summary, heard = led(over_mqtt(broker.url), tmp_path)
    assert summary["updates_applied"] == 2
    assert summary["updates_rejected"] == 0
    largest = max(len(event.payload) for event in heard)
    assert 4096 < largest <= 8192
