"""F10: the broker took an update, its acknowledgement is lost, the client sends it again. It is applied once."""

import pytest

from hermes_iot.transport.address import BrokerAddress
from tests.faults.fleet import BACKOFF, SOON, board, check, led, more_merges
from tests.support.fleet import Watcher, over_mqtt, running
from tests.support.proxy import Proxy

pytestmark = pytest.mark.mosquitto

ROUNDS = 2


def test_F10_an_update_whose_acknowledgement_is_lost_arrives_twice_and_counts_once(mosquitto, tmp_path):
    connect = over_mqtt(mosquitto)
    coordinator, records = led(connect, tmp_path, fleet="twice")
    with Proxy(BrokerAddress.parse(mosquitto).port) as proxy, Watcher(connect, fleet="twice") as watcher:
        topic = watcher.topics.up("pi-01", "update")
        device = board(over_mqtt(proxy.url, backoff=BACKOFF), tmp_path, "pi-01", fleet="twice", settings=SOON)
        with running(coordinator, device) as threads:
            for round_ in range(ROUNDS):
                more_merges(records, "pi-01")
                proxy.silence("down")
                # Of one of these the device hears neither PUBACK nor ack nor answer: client and machine repeat it.
                more_merges(records, "pi-01", count=1)
                proxy.heal()
                records.wait("dropped", round_ + 1, device="pi-01", outcome="duplicate")
            watcher.settled()
            payloads = [one.payload for one in watcher.all if one.topic == topic]
            assert len(payloads) > len(set(payloads)), "nothing came twice"
            assert [thread.error for thread in threads] == [None, None]
    check(coordinator, records)
    assert coordinator.machine.tally.duplicate >= ROUNDS
