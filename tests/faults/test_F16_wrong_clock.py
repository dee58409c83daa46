"""F16: clocks that are wrong, jump, or stand in 1970. Counters decide, never clocks: training does not notice."""

import itertools
import ssl
import time

import pytest

from hermes_iot.transport import refusals
from hermes_iot.transport.address import BrokerAddress
from tests.faults.fleet import board, check, led, more_merges
from tests.support.fleet import over_mqtt, running

pytestmark = pytest.mark.mosquitto

#: 1970, after it, a day back and forth at each look.
CLOCKS = {
    "1970": lambda: itertools.repeat(0.0),
    "2106": lambda: itertools.repeat(2.0**32 + 1),
    "jumping": lambda: itertools.cycle((1.7e9, 1.7e9 - 86_400, 1.7e9 + 86_400)),
    "running backwards": lambda: itertools.count(1.7e9, -1.0),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_F16_the_wall_clock_changes_nothing_about_a_run(clock, mosquitto, tmp_path, monkeypatch):
    ticks, fleet = CLOCKS[clock](), f"clock-{clock.replace(' ', '-')}"
    # The standard library and paho ask it too: whoever trusted it would stop, or never end.
    monkeypatch.setattr(time, "time", lambda: next(ticks))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(ticks) * 1e9))
    connect = over_mqtt(mosquitto)
    coordinator, records = led(connect, tmp_path, fleet=fleet)
    with running(coordinator, board(connect, tmp_path, "pi-01", fleet=fleet)) as threads:
        more_merges(records, "pi-01", count=5)
        assert [thread.error for thread in threads] == [None, None]
    check(coordinator, records)


def test_F16_a_clock_before_the_certificate_is_named_as_what_it_is():
    error = ssl.SSLCertVerificationError(1, "certificate verify failed: certificate is not yet valid")
    error.verify_message = "certificate is not yet valid"
    said = refusals.unreachable(BrokerAddress(host="broker", port=8883, tls=True), error, timeout_s=1.0)
    assert "certificate is not yet valid" in str(said)
    assert "Set this machine's clock: boards without one start in 1970" in str(said)
