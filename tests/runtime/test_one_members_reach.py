"""What one member's packets can make a coordinator send, hold or do, through the shell that runs in the field."""

import hashlib
import random
from dataclasses import replace

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import UsageError
from hermes_iot.protocol import codec
from hermes_iot.protocol.messages import Chunk, DeviceStatus, TaskInfo, Update
from hermes_iot.protocol.wire import Wire
from hermes_iot.transport.base import Delivery
from hermes_iot.transport.memory import MemoryBroker
from tests.support.fleet import Clock, in_memory, toy_bench, toy_config, toy_coordinator

#: 20,010 parameters.
TOY = {"features": 2000, "classes": 10, "rows": 60}


class Member:
    """A coordinator in virtual time, and one member's word to it."""

    def __init__(self, directory, *, packet_bytes_max=None, toy=TOY, **changes):
        self.clock = Clock()
        broker = MemoryBroker(clock=self.clock, packet_bytes_max=packet_bytes_max)
        config = toy_config(rules=StopRules(), **changes)
        self.coordinator = toy_coordinator(
            in_memory(broker), directory / "run", config=config, toy=toy, clock=self.clock
        )
        self.wire = Wire(self.coordinator.topics)

    def __enter__(self):
        self.coordinator.start()
        self.settle()
        self.say(DeviceStatus(state="online", session=1, instance="0" * 32))
        return self

    def __exit__(self, *_):
        self.coordinator.close()

    def settle(self):
        while len(self.coordinator.inbox):
            self.coordinator.handle(self.coordinator.inbox.take(timeout_s=0))

    def say(self, message):
        for packet in self.wire.outgoing(message, device="pi-01"):
            self.coordinator.inbox.deliver(Delivery(topic=packet.topic, payload=packet.payload))
            self.settle()

    def wait(self, seconds):
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 0.25
            self.coordinator.expire()
            self.settle()

    def update(self, seq, **changes):
        manifest = self.coordinator.machine.manifest
        fields = {"run": manifest.run, "model": manifest.model.sha256, "codec": manifest.codec, "body": b"no such body"}
        numbers = {"loss": 0.5, "samples": 1, "batch": 1, "mini_batches": 1, "train_s": 0.1, "iterations": 1}
        given = {"session": 1, "base_version": 0, "parameters": manifest.model.parameters} | fields | numbers | changes
        return Update(seq=seq, **given)


@pytest.mark.parametrize("limit", [2048, 2500, 3000])
def test_a_claim_of_ever_so_many_parts_does_not_end_it_behind_a_narrow_broker(tmp_path, limit):
    with Member(tmp_path, packet_bytes_max=limit) as member:
        chunk = Chunk(id=hashlib.sha256(b"x").digest(), part=16_383, parts=16_384, total=16_384, body=b"x")
        topic = member.coordinator.topics.up("pi-01", "update")
        member.coordinator.inbox.deliver(Delivery(topic=topic, payload=codec.encode_chunk(chunk)))
        member.settle()
        assert member.coordinator.link.wire.half_received.open_transfers == 1
        member.wait(60.0)
        assert member.coordinator.running
        assert member.coordinator.link.wire.half_received.asked > 0, "it had something to ask for, and no packet for it"


def test_a_run_whose_manifest_fits_no_packet_is_refused_in_one_line_when_it_begins(tmp_path):
    config = toy_config(rules=StopRules())
    bench = replace(toy_bench(config), task=TaskInfo(name="\N{GRINNING FACE}" * 300, source_sha256="0" * 64))
    connect = in_memory(MemoryBroker(packet_bytes_max=2048))
    coordinator = toy_coordinator(connect, tmp_path / "run", config=config, bench=bench)
    with pytest.raises(
        UsageError, match=r"all/run is too large for the broker: \d+ bytes, it takes 2048\. Raise"
    ) as caught:
        coordinator.run()
    assert caught.value.exit_code == 2


def test_a_hundred_refused_updates_bring_few_bytes_down(tmp_path):
    with Member(tmp_path, codec="fp32") as member:
        down = member.coordinator.machine.tally.down
        for seq in range(1, 101):
            member.say(member.update(seq))
        assert member.coordinator.machine.tally.rejected == 100
        model_bytes = 4 * 20_010
        assert model_bytes < down["model"] < 7 * model_bytes
        assert down["ack"] < 100 * 200


def test_a_packet_that_unpacks_to_more_than_the_model_costs_it_nothing(tmp_path):
    with Member(tmp_path) as member:
        longest = 4 * 20_010
        noise = random.Random(1).randbytes(longest)
        member.say(member.update(1, body=noise))
        assert member.coordinator.machine.tally.reasons == {"size": 1}, (
            "as long as the model is in fp32, and in another codec"
        )
        member.say(member.update(2, body=bytes(longest + 1)))
        member.say(member.update(3, body=bytes(1 << 25)))
        assert member.coordinator.machine.tally.reasons == {"size": 1, "inflate": 2}
