"""F3: the broker is away for long. Devices train on, hold one update, grow no memory, and send only the newest."""

import tracemalloc

import pytest

from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Update
from hermes_iot.protocol.wire import Wire
from hermes_iot.runtime.broker import MosquittoBroker
from tests.faults.fleet import BACKOFF, SOON, board, check, led, more_merges
from tests.support.fleet import Records, Watcher, over_mqtt, running

pytestmark = pytest.mark.mosquitto

#: Pushes that nobody could hear; a board that trains seconds long takes minutes for them.
ALONE = 60
GROWTH_BYTES_MAX = 256 * 1024


def test_F03_a_device_alone_holds_one_update_and_sends_only_the_newest(tmp_path):
    own = Records()
    with MosquittoBroker() as broker:
        connect = over_mqtt(broker.url, backoff=BACKOFF)
        coordinator, records = led(connect, tmp_path)
        device = board(connect, tmp_path, "pi-01", settings=SOON, on_record=own)
        with running(coordinator, device) as threads:
            more_merges(records, "pi-01")
            broker.kill()
            before = device.machine.memory.seq

            def pushed(count):
                """Wait until so many updates were made since the broker died: the gate lets one of several through."""
                while device.machine.memory.seq < before + count:
                    own.wait("iteration", len(own.of("iteration")) + 1)

            pushed(ALONE // 3)
            own.all.clear()
            tracemalloc.start()
            try:
                pushed(ALONE)
                own.all.clear()
                grown = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            assert grown < GROWTH_BYTES_MAX
            newest = device.machine.memory.seq
            broker.start()
            with Watcher(connect, fleet="lab") as watcher:
                more_merges(records, "pi-01", count=1)
                watcher.settled()
                wire, heard = Wire(watcher.topics, limits=Limits()), []
                for event in watcher.all:
                    if event.topic == watcher.topics.up("pi-01", "update"):
                        received = wire.incoming(event.topic, event.payload, now=0.0)
                        heard += [received.message.seq] if received and isinstance(received.message, Update) else []
            assert heard
            assert min(heard) >= newest
            handled = [row["seq"] for row in records.of("merge")]
            assert not [seq for seq in handled if before + 1 < seq < newest]
            assert [thread.error for thread in threads] == [None, None]
        check(coordinator, records)
