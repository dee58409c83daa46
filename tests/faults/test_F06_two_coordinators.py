"""F6: two coordinators, one fleet. The second is refused, or takes over; then the first is not obeyed any more."""

import queue
from dataclasses import replace

import pytest

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import IdConflict
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Allocation, CoordinatorStatus, DeviceState, RunManifest
from hermes_iot.protocol.topics import Topics
from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.base import Delivery
from hermes_iot.transport.mqtt import MqttTransport
from tests.support.fleet import (
    PATIENCE_S,
    Records,
    Running,
    over_mqtt,
    running,
    toy_config,
    toy_coordinator,
    toy_device,
)

pytestmark = pytest.mark.mosquitto

ENDLESS = StopRules()
QUICK = CoordinatorSettings(status_interval_s=0.1, linger_s=2.0)
#: An answer that was to be given while the two wrestled for the session is lost, and asked for again.
STAYS = DeviceSettings(once=False, state_interval_s=0.05, retry_s=0.3, retry_max_s=1.0)
KINDS = {"coordinator": CoordinatorStatus, "run": RunManifest, "alloc": Allocation, "state": DeviceState}


class Zombie:
    """Somebody with a coordinator's rights who remembers all it heard, and says it again with the epoch it had then."""

    def __init__(self, url, topics):
        self.heard = queue.SimpleQueue()
        self.transport = MqttTransport(BrokerAddress.parse(url), client_id=f"{topics.fleet}-zombie")
        self.topics = topics
        watched = (topics.all("coordinator"), topics.all("run"), topics.down("pi-01", "alloc"))
        self.transport.subscribe((*watched, topics.up("pi-01", "state")))
        self.transport.start(self.heard.put, timeout_s=PATIENCE_S)

    def until(self, channel, having):
        """The next message of a channel that is like this."""
        while True:
            event = self.heard.get(timeout=PATIENCE_S)
            if not isinstance(event, Delivery) or self.topics.parse(event.topic).channel != channel:
                continue
            message = codec.decode_json(event.payload, KINDS[channel], Limits())
            if having(message):
                return message

    def says(self, topic, message):
        assert self.transport.publish(topic, codec.encode_json(message), retain=True)
        assert self.transport.flush(timeout_s=PATIENCE_S)


def test_after_a_takeover_the_first_ones_words_are_refused_and_spoken_over(mosquitto, tmp_path):
    topics, connect = Topics("undead"), over_mqtt(mosquitto)
    records = Records()
    config = toy_config(rules=ENDLESS)
    options = {"fleet": "undead", "config": config, "settings": QUICK}
    zombie = Zombie(mosquitto, topics)
    first = toy_coordinator(connect, tmp_path / "one", **options)
    device = toy_device(over_mqtt(mosquitto), tmp_path, "pi-01", fleet="undead", settings=STAYS)
    try:
        with running(first, device) as (one, _):
            old = zombie.until("run", lambda manifest: manifest.run == first.run_id)
            share = zombie.until("alloc", lambda allocation: allocation.run == first.run_id)
            second = toy_coordinator(connect, tmp_path / "two", **options, takeover=True, on_record=records)
            with running(second):
                assert isinstance(one.ended(), IdConflict)
                records.wait("merge", 2)
                status = zombie.until("coordinator", lambda word: word.run == second.run_id and word.state == "online")
                assert status.epoch == old.epoch + 1
                zombie.says(topics.all("run"), replace(old, state="running"))
                zombie.says(topics.down("pi-01", "alloc"), replace(share, version=share.version + 1_000))
                told = zombie.until("state", lambda state: state.dropped >= 2)
                assert told.run == second.run_id
                zombie.says(topics.all("coordinator"), replace(status, session="undead", epoch=old.epoch))
                back = zombie.until("run", lambda manifest: manifest.epoch == status.epoch)
                assert back.run == second.run_id
                version = records.of("merge")[-1]["version"]
                records.wait("merge", version=version + 3)
    finally:
        zombie.transport.close()


def test_without_takeover_the_second_says_who_leads_and_the_first_goes_on(mosquitto, tmp_path):
    connect, records = over_mqtt(mosquitto), Records()
    options = {"fleet": "two-heads", "config": toy_config(rules=ENDLESS), "settings": QUICK}
    first = toy_coordinator(connect, tmp_path / "one", **options, on_record=records)
    with running(first, toy_device(over_mqtt(mosquitto), tmp_path, "pi-01", fleet="two-heads")):
        records.wait("merge", 1)
        error = Running(toy_coordinator(connect, tmp_path / "two", **options)).ended()
        assert isinstance(error, IdConflict)
        assert error.exit_code == 7
        assert "--takeover" in str(error)
        records.wait("merge", version=records.of("merge")[-1]["version"] + 3)
