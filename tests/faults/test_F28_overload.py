"""F28: a coordinator that does not keep up, and a broker whose queue for it is full. Bounded, seen, and it mends."""

from dataclasses import replace

import pytest

from hermes_iot.runtime.broker import MosquittoBroker
from tests.faults.fleet import BACKOFF, SOON, board, check, led, more_merges
from tests.support.fleet import Records, Watcher, over_mqtt, running
from tests.support.proxy import Proxy

pytestmark = pytest.mark.mosquitto

NAMES = ("pi-01", "pi-02", "pi-03")
#: A device that goes on alone only after a while: what is measured is how much it says while nobody answers.
PATIENT = replace(SOON, retry_s=0.2, retry_max_s=1.0, alone_after_s=0.2)
UPDATES = 9


def test_F28_a_coordinator_that_hears_nothing_for_a_while_loses_no_more_than_it_must(tmp_path):
    own = {name: Records() for name in NAMES}
    # The broker keeps four messages for a client that does not take them, and drops the rest without a word.
    with MosquittoBroker(settings=("max_inflight_messages 2", "max_queued_messages 4")) as broker:
        with Proxy(broker.address.port) as proxy, Watcher(over_mqtt(broker.url), fleet="lab") as watcher:
            coordinator, records = led(over_mqtt(proxy.url, backoff=BACKOFF, keepalive_s=60), tmp_path)
            devices = [
                board(over_mqtt(broker.url), tmp_path, name, settings=PATIENT, on_record=own[name]) for name in NAMES
            ]
            with running(coordinator, *devices) as threads:
                for name in NAMES:
                    more_merges(records, name)
                proxy.change(bytes_per_s=64.0)  # as good as nothing, and nobody notices
                for name in NAMES:
                    own[name].wait("iteration", len(own[name].of("iteration")) + UPDATES)
                    # However long it lasts, a device holds one update and no more.
                    assert devices[NAMES.index(name)].machine.part.outbox.update is not None
                assert "Outgoing messages are being dropped" in broker.log
                proxy.heal()
                proxy.reset()
                for name in NAMES:
                    more_merges(records, name)
                assert [thread.error for thread in threads] == [None] * 4
                assert len(coordinator.inbox) < 1000
                watcher.settled()
            # They slowed down: not every iteration that was worth sending was sent while nobody answered.
            topics = {watcher.topics.up(name, "update") for name in NAMES}
            said = len([event for event in watcher.all if event.topic in topics])
            made = sum(device.machine.memory.seq for device in devices)
            assert said <= 2 * made
        check(coordinator, records)
