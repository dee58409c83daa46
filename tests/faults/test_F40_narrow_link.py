"""F40: a link of 64 kbit/s. Models go both ways, and nobody takes the other for dead."""

from dataclasses import replace

import pytest

from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol.messages import DeviceStatus
from hermes_iot.transport.address import BrokerAddress
from tests.faults.fleet import ENDLESS, board, check, led
from tests.support.fleet import Watcher, over_mqtt, running
from tests.support.proxy import Line, Proxy

pytestmark = pytest.mark.mosquitto

BYTES_PER_S = 8000.0
#: Parameters of 2 bytes as fp16, and a keep-alive that is shorter than one model is on its way; how many updates, and how
#: often they may be said twice.
CASES = {
    "8 kB": ({"features": 400, "classes": 10, "rows": 300}, 1, 1, 0),
    "222 kB": ({"features": 1110, "classes": 100, "rows": 300}, 10, 2, 2),
}


@pytest.mark.parametrize("size", ["8 kB", pytest.param("222 kB", marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_F40_a_run_over_a_narrow_link_completes_and_keeps_its_connection(size, mosquitto, tmp_path):
    toy, keepalive_s, pushes, repeated_max = CASES[size]
    fleet = f"narrow-{size.replace(' ', '-')}"
    config = replace(ENDLESS, rules=StopRules(max_pushes=pushes), samples=40)
    coordinator, records = led(over_mqtt(mosquitto), tmp_path, fleet=fleet, config=config, toy=toy)
    with (
        Proxy(BrokerAddress.parse(mosquitto).port, line=Line(bytes_per_s=BYTES_PER_S)) as proxy,
        Watcher(over_mqtt(mosquitto), fleet=fleet) as watcher,
    ):
        connect = over_mqtt(proxy.url, keepalive_s=keepalive_s)
        device = board(connect, tmp_path, "pi-01", fleet=fleet, toy=toy, settings=DeviceSettings(once=True))
        with running(coordinator, device) as (one, other):
            summary = one.wait(280)
            other.wait(280)
            watcher.settled()
        assert proxy.connections == 1
        births = watcher.said(watcher.topics.up("pi-01", "status"), DeviceStatus)
        assert [birth.state for birth in births].count("online") == 1
        assert summary["updates_applied"] == pushes
        assert summary["updates_rejected"] == 0
        # One that is longer on its way than the machine waits is said again, at most once each: pauses grow.
        assert summary["updates_received"] <= pushes + repeated_max
    check(coordinator, records)
