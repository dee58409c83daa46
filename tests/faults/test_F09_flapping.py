"""F9: a link that comes and goes. Presence does not: the will is delayed for longer than the gaps."""

import pytest

from hermes_iot.protocol.messages import DeviceStatus
from hermes_iot.transport.address import BrokerAddress
from tests.faults.fleet import BACKOFF, board, check, led, more_merges
from tests.support.fleet import Watcher, over_mqtt, running
from tests.support.proxy import Proxy

pytestmark = pytest.mark.mosquitto

FLAPS = 4


def test_F09_presence_does_not_flap_with_the_link(mosquitto, tmp_path):
    connect = over_mqtt(mosquitto)
    coordinator, records = led(connect, tmp_path, fleet="flaps")
    with Proxy(BrokerAddress.parse(mosquitto).port) as proxy, Watcher(connect, fleet="flaps") as watcher:
        device = board(over_mqtt(proxy.url, backoff=BACKOFF), tmp_path, "pi-01", fleet="flaps")
        with running(coordinator, device) as threads:
            for _ in range(FLAPS):
                more_merges(records, "pi-01")
                proxy.cut()
                proxy.mend()
            more_merges(records, "pi-01")
            watcher.settled()
            said = watcher.said(watcher.topics.up("pi-01", "status"), DeviceStatus)
            assert [one.state for one in said] == ["online"] * len(said)
            assert len(said) > FLAPS
            assert proxy.connections > FLAPS
            assert records.of("left") == []
            assert len(records.of("joined")) == 1
            assert [thread.error for thread in threads] == [None, None]
    check(coordinator, records)
