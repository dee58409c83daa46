"""F13: somebody who listened publishes an update again. Its numbers are used up; nothing happens but a count.

What is said again under the sender's own name cannot be told from a delivery that the broker repeats, so it is a duplicate
like these, or stale where its device has been born again since. Under another name it is refused by the name it bears.
Whoever writes that, too, is stopped by the broker's access list, or by a signature; there is none.
"""

import pytest

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import Allocation, DeviceStatus
from tests.faults.stranger import Stranger, met
from tests.support.fleet import over_mqtt

pytestmark = pytest.mark.mosquitto


def test_F13_a_captured_update_is_counted_and_changes_nothing(mosquitto, tmp_path):
    with met(mosquitto, tmp_path, fleet="replay") as one:
        updates = [one.update(seq, value=0.01 * seq) for seq in (1, 2)]
        for update in updates:
            one.say(update)
            assert one.answered(update) == ("applied", "")
        one.watcher.settled()
        captured = [event.payload for event in one.watcher.all if event.topic == one.topics.up(one.name, "update")]
        before = one.model
        for payload in captured * 3:
            one.up("update", payload)
        one.records.wait("dropped", 3 * len(captured), device=one.name, outcome="duplicate")
        assert one.model == before
        # A device that was born again has nothing to do with what its earlier life said.
        one.say(DeviceStatus(state="online", session=2, instance="0" * 32, host="stranger"))
        one.records.wait("joined", 2, device=one.name)
        for payload in captured:
            one.up("update", payload)
        one.records.wait("dropped", 4 * len(captured), device=one.name)
        assert {row["outcome"] for row in one.records.of("dropped")} <= {"duplicate", "stale"}
        assert one.model == before


def test_F13_an_update_captured_from_one_device_is_refused_on_the_topic_of_another(mosquitto, tmp_path):
    with met(mosquitto, tmp_path, fleet="borrowed") as one:
        update = one.update(1, value=0.01, device=one.name)
        one.say(update)
        assert one.answered(update) == ("applied", "")
        other = Stranger(one.coordinator, one.records, one.watcher, over_mqtt(mosquitto), name="pi-08")
        try:
            before = one.model
            [packet] = one.wire.outgoing(update, device=one.name)
            other.up("update", packet.payload)
            one.records.wait("refused", device="pi-08", channel="update", reason="identity")
            assert one.model == before
            assert dict(one.coordinator.machine.tally.reasons) == {"identity": 1}
        finally:
            other.close()


def test_F13_an_allocation_for_another_device_is_refused_by_its_name(mosquitto, tmp_path):
    with met(mosquitto, tmp_path, fleet="names") as one:
        given = one.watcher.wait(one.topics.down(one.name, "alloc"), Allocation, lambda _: True)
        [packet] = one.wire.outgoing(given, device="pi-08")
        with pytest.raises(ProtocolError, match="allocation for pi-09 on the topic of pi-08") as caught:
            one.wire.incoming(packet.topic, packet.payload, now=0.0)
        assert caught.value.reason == "identity"
