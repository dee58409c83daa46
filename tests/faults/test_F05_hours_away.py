"""F5: hours without the coordinator, or of one device without the fleet, in virtual time.

Who is away holds one update, and trains on. What comes of it is merged, or stale by the strategy's bound; then what was
learnt beyond it is given up, too, or it would come in with the next update as if it were new.
"""

import pytest

from hermes_iot.algorithms.shares import SharesConfig
from hermes_iot.algorithms.strategies import hermes_plus
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.protocol.messages import Ack
from hermes_iot.protocol.wire import Wire
from tests.core.peers import TOPICS, Fleet, manifest

HOUR_S = 3600.0
#: So many seconds an iteration, so that hours of it can be computed.
PLUS = hermes_plus.build_strategy(
    hermes_plus.Config(shares=SharesConfig(target_s=30.0, first_s=None, passes_max=None), lag_per_device=10)
)
BOUND = 10 * 3


@pytest.fixture
def made():
    settings = CoordinatorSettings(checkpoint_interval_s=600.0, keyframe_interval_s=60.0)
    about = manifest(sampling="walk", codec="int8", codec_down="int8")
    made = Fleet(about, strategy=PLUS, settings=settings, device_settings=DeviceSettings(), latency_s=0.003)
    made.lead()
    for name, speed in (("d0", 2.0), ("d1", 3.0), ("d2", 5.0)):
        made.join(name, speed=speed)
    made.run_until(lambda: all(made.applied(name) >= 3 for name in made.devices), within=HOUR_S)
    return made


def fates(made, name):
    """What the coordinator said of each of a device's updates, from now on."""
    said, wire, fault = [], Wire(TOPICS), made.fault

    def listening(client, topic, payload):
        if client == name and topic == TOPICS.down(name, "ack"):
            ack = wire.incoming(topic, payload, now=made.now).message
            assert isinstance(ack, Ack)
            said.append((ack.seq, ack.outcome, ack.reason))
        return fault(client, topic, payload)

    made.fault = listening
    return said


def alone(made, name, *, hours):
    """A device is cut off while the others go on, for hours; how often it trained, and the update it comes back with."""
    node = made.devices[name]
    made.run_until(lambda: node.machine.phase == "training")
    node.disconnect()
    before, said = node.trained, made.broker.published[TOPICS.up(name, "update")]
    made.run(hours * HOUR_S)
    assert made.broker.published[TOPICS.up(name, "update")] == said
    return node.trained - before, node.machine.part.outbox.update


def test_F05_a_device_that_was_away_for_hours_brings_one_update_that_is_stale_and_nothing_of_the_time(made):
    node, version = made.devices["d0"], made.leader.machine.version
    trained, update = alone(made, "d0", hours=2)
    assert trained > 100, "it trained on"
    assert made.leader.machine.version > version + BOUND
    assert node.disk.update == update, "one update, also on disk"
    assert update.seq == node.machine.memory.seq
    said, stale, applied = fates(made, "d0"), made.leader.machine.tally.stale, made.applied("d0")
    node.reconnect()
    outbox = node.machine.part.outbox
    made.run_until(lambda: outbox.update is not None and outbox.update.seq > update.seq, within=HOUR_S)
    # Hours of training alone are in no later update: it stands for what was done since the fleet's model came.
    assert outbox.update.iterations <= PLUS.config.gate.max_age
    made.run_until(lambda: made.applied("d0") >= applied + 2, within=HOUR_S)
    since = [one for one in said if one[0] >= update.seq]
    assert since[0] == (update.seq, "stale", "lag")
    assert {fate for _, fate, _ in since[1:]} == {"applied"}
    assert made.leader.machine.tally.stale == stale + 1


@pytest.mark.parametrize("away", ["the coordinator", "its line"])
def test_F05_an_hour_without_a_coordinator_leaves_one_update_of_every_device_and_all_are_merged(made, away):
    applied = made.leader.machine.tally.applied
    made.leader.crash() if away == "the coordinator" else made.leader.disconnect()
    trained = {name: node.trained for name, node in made.devices.items()}
    made.run(HOUR_S)
    held = {}
    for name, node in made.devices.items():
        assert node.trained > trained[name] + 20, "it trained on"
        held[name] = node.machine.part.outbox.update
        assert node.disk.update == held[name]
        assert held[name].seq == node.machine.memory.seq
    said = {name: fates(made, name) for name in held}
    made.lead() if away == "the coordinator" else made.leader.reconnect()
    made.run_until(lambda: all(len(one) >= 2 for one in said.values()), within=HOUR_S)
    for name, update in held.items():
        assert [one for one in said[name] if one[0] == update.seq] == [(update.seq, "applied", "")]
    tally = made.leader.machine.tally
    assert (tally.stale, tally.rejected) == (0, 0)
    assert tally.applied > applied
