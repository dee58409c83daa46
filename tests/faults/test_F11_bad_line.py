"""F11 and F10 on a line of bad quality: bits that flip, packets that come twice, slices of seven bytes that come late.

The proxy changes what passes between a device and a real broker. TCP's own checksum is 16 bits and hardware lies, so what
arrives is believed by its hash alone; and a packet that a broker took twice is one update.
"""

import threading

import pytest

from hermes_iot.transport.address import BrokerAddress
from tests.faults.fleet import BACKOFF, SOON, board, check, led, more_merges
from tests.support.fleet import PATIENCE_S, Records, over_mqtt, running
from tests.support.proxy import Line, Proxy, twice

pytestmark = pytest.mark.mosquitto

_PUBLISH = 3
#: More pieces than pass in a test.
PIECES = 100_000


def is_update(data):
    """Whether these bytes are one whole PUBLISH of an update, and nothing else."""
    length, shift, at = 0, 0, 1
    while at < len(data) and (at == 1 or data[at - 1] & 0x80):
        length |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return data[0] >> 4 == _PUBLISH and b"/update" in data[at : at + 64] and len(data) == at + length


def altering(proxy, change):
    """Have an update altered that passes by itself: the next one whenever the event is cleared; it is set when one was."""
    done = threading.Event()
    done.set()

    def alteration(data):
        if done.is_set() or not is_update(data):
            return data
        done.set()
        return change(data)

    proxy.alter("up", alteration, pieces=PIECES)
    return done


def spoilt(data):
    """A bit in the middle, and so of the body, is another; length and topic are as they were."""
    altered = bytearray(data)
    altered[len(data) // 2] ^= 0x10
    return bytes(altered)


@pytest.fixture
def fleet(mosquitto, tmp_path, request):
    """Coordinator, its records, device and its records; the device's line is a proxy."""
    name = f"line-{abs(hash(request.node.name))}"
    line = getattr(request, "param", Line())
    with Proxy(BrokerAddress.parse(mosquitto).port, line=line) as proxy:
        coordinator, records = led(over_mqtt(mosquitto), tmp_path, fleet=name)
        own = Records()
        connect = over_mqtt(proxy.url, backoff=BACKOFF)
        device = board(connect, tmp_path, "pi-01", fleet=name, settings=SOON, on_record=own)
        with running(coordinator, device) as threads:
            yield coordinator, records, proxy
            assert [thread.error for thread in threads] == [None, None]
    check(coordinator, records)


def test_F11_an_update_with_a_flipped_bit_is_found_by_its_hash_counted_and_sent_again(fleet):
    coordinator, records, proxy = fleet
    more_merges(records, "pi-01")
    done = altering(proxy, spoilt)
    for number in range(1, 4):
        done.clear()
        assert done.wait(PATIENCE_S)
        refused = records.wait("refused", number, device="pi-01", channel="update")
        assert refused["reason"] == "checksum"
        more_merges(records, "pi-01")
    tally = coordinator.machine.tally
    assert (tally.rejected, dict(tally.reasons)) == (3, {"checksum": 3})


def test_F10_an_update_that_the_line_doubles_is_applied_once_and_counted_as_a_duplicate(fleet):
    coordinator, records, proxy = fleet
    more_merges(records, "pi-01")
    done = altering(proxy, twice)
    for number in range(1, 4):
        done.clear()
        assert done.wait(PATIENCE_S)
        records.wait("dropped", number, device="pi-01", outcome="duplicate")
    assert coordinator.machine.tally.duplicate >= 3
    assert coordinator.machine.tally.rejected == 0


@pytest.mark.parametrize("fleet", [Line(delay_s=0.05, slice_bytes=7)], indirect=True, ids=["late slices"])
def test_F11_slices_of_seven_bytes_that_come_late_cost_time_and_nothing_else(fleet):
    coordinator, records, proxy = fleet
    more_merges(records, "pi-01", count=5)
    tally = coordinator.machine.tally
    assert (tally.rejected, tally.stale, records.of("refused")) == (0, 0, [])
    assert records.of("left") == []
    assert proxy.connections == 1
