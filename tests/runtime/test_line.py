"""What waits for a slow broker is bounded in bytes, and whoever finds no room gets all the same, by asking again."""

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol.messages import Model, Shard
from hermes_iot.runtime.line import Line, Stream
from hermes_iot.training.data import lay_out
from hermes_iot.training.shards import encode_shard
from hermes_iot.transport.base import Room
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from tests.support.fleet import Clock, HeldWorker, toy_bench, toy_config, toy_coordinator, toy_device


def answer(size, version=1, body=None):
    body = random.Random(version).randbytes(size) if body is None else body
    return Model(run="r", version=version, model="0" * 64, codec="fp32", parameters=max(1, size // 4), body=body)


def shard(size, name="a"):
    return Shard(run="r", sha256=name * 64, body=random.Random(name).randbytes(size))


def stream(message, device="pi"):
    return Stream(message, device, iter(()))


def test_one_body_for_many_devices_costs_once_and_bodies_of_many_versions_cost_each():
    line, body = Line(bytes_max=10_000), bytes(6000)
    assert all(line.join(stream(answer(6000, n, body), f"pi-{n}")) for n in range(100))
    assert (len(line), line.bytes_held) == (100, 6000)
    assert line.join(stream(answer(4000), "other"))
    assert not line.join(stream(answer(1, 2), "late"))
    assert (len(line), line.bytes_held, line.refused) == (101, 10_000, 1)
    for _ in range(100):
        line.pop()
    assert line.bytes_held == 4000


def test_a_shard_in_line_is_not_put_in_line_again_and_another_is():
    line = Line()
    assert line.join(stream(shard(100, "a")))
    assert not line.join(stream(shard(100, "a")))
    assert line.join(stream(shard(100, "b")))
    assert line.join(stream(shard(100, "a"), "another"))
    assert (len(line), line.refused) == (3, 0)
    assert line.carries(shard(100, "a"), "pi")
    assert not line.carries(shard(100, "c"), "pi")


def test_an_answer_takes_the_room_of_the_one_before_it():
    line = Line(bytes_max=1000)
    line.join(stream(answer(400, 1), "a"))
    line.join(stream(answer(600, 2), "b"))
    assert line.join(stream(answer(400, 3), "a"))
    assert line.bytes_held == 1000
    assert [line.first.message.version, line.first.device] == [2, "b"]
    assert not line.carries(answer(400, 3), "a"), "another message of the same content may be cut otherwise"


def test_one_message_is_taken_however_large_it_is():
    line = Line(bytes_max=1000)
    assert line.join(stream(answer(5000)))
    assert not line.join(stream(answer(1), "another"))
    assert line.bytes_held == line.bytes_most == 5000
    line.pop()
    assert line.first is None
    assert line.join(stream(answer(1), "another"))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "pop", "clear"]), st.integers(0, 5), st.sampled_from("abc"), st.booleans()),
        max_size=50,
    )
)
def test_whatever_comes_and_goes_the_bytes_are_those_of_the_bodies_in_line(told):
    line, bodies = Line(bytes_max=2500), [bytes(300 + 400 * n) for n in range(6)]
    for what, n, device, of_shard in told:
        if what == "join":
            message = Shard(run="r", sha256=str(n) * 64, body=bodies[n]) if of_shard else answer(0, n, bodies[n])
            line.join(stream(message, device))
        elif what == "pop":
            line.pop()
        else:
            line.clear()
        waiting = {id(one.message.body): len(one.message.body) for one in line._streams.values()}
        assert line.bytes_held == sum(waiting.values()) <= line.bytes_most
        assert len(line) == len({one.place for one in line._streams.values()})


# --- a fleet that waits for it ----------------------------------------------------------------------------------------

DEVICES = 45
TOY = {"features": 120, "classes": 10, "rows": 400}
CHUNK_BYTES = 2048


class Throttled(MemoryTransport):
    """A broker's line with room for so many messages, then none until the test gives more."""

    left = 0

    def room(self, *, messages):  # noqa: ARG002 - Transport's signature
        return self.left > 0

    def publish(self, topic, payload, **options):
        self.left -= topic.endswith(("/data", "/model"))
        return super().publish(topic, payload, **options)


class Fleet:
    """A coordinator behind a slow line and its devices, all in the test's thread, in virtual time."""

    def __init__(self, directory, **changes):
        self.clock, self.workers = Clock(), {}
        broker = MemoryBroker(clock=self.clock)
        config = toy_config(rules=StopRules(), chunk_bytes=CHUNK_BYTES, **changes)
        bench = toy_bench(config, **TOY)
        laid = lay_out(bench.trainer.data, seed=config.seed, validation_fraction=config.validation_fraction)

        def shard_of(ranges):
            part = bench.trainer.data.train.take(laid.allotted(ranges))
            return encode_shard(part.x, part.y)

        self.coordinator = toy_coordinator(
            lambda client_id, will: Throttled(broker, client_id=client_id, will=will),
            directory / "run",
            config=config,
            bench=replace(bench, shard_of=shard_of if config.data_mode == "shipped" else None),
            clock=self.clock,
        )
        self.devices = {
            name: toy_device(
                lambda client_id, will: MemoryTransport(broker, client_id=client_id, will=will),
                directory,
                name,
                toy=TOY,
                settings=DeviceSettings(),
                clock=self.clock,
                worker_of=lambda inbox, name=name: self.workers.setdefault(name, HeldWorker(inbox)),
            )
            for name in (f"d{number:02}" for number in range(DEVICES))
        }

    def __enter__(self):
        for runner in self.runners:
            runner.start()
        self.coordinator.link._line = Line(bytes_max=60_000)
        return self

    def __exit__(self, *_):
        for runner in reversed(self.runners):
            runner.close()

    @property
    def runners(self):
        return [self.coordinator, *self.devices.values()]

    def settle(self):
        moved = True
        while moved:
            moved = False
            for runner in self.runners:
                while len(runner.inbox):
                    runner.handle(runner.inbox.take(timeout_s=0))
                    moved = True

    def second(self, messages):
        """One second, in which the broker takes so many messages of many parts."""
        self.clock.now += 1.0
        self.coordinator.link.transport.left = messages
        self.coordinator.inbox.post(Room())
        self.settle()
        for runner in self.runners:
            if (due := runner.next_deadline()) is not None and due <= self.clock.now:
                runner.expire()
        self.settle()
        held, most = self.coordinator.bounded["bytes in line"]
        assert held <= most == 60_000
        return self.clock.now

    def prepare(self):
        self.settle()
        for worker in self.workers.values():
            worker.run_one()
        self.settle()

    def iterate(self):
        """Every device ends one iteration."""
        for worker in self.workers.values():
            worker.run_one()
        self.settle()


def test_a_fleet_that_all_needs_shards_at_once_gets_every_one_of_them(tmp_path):
    with Fleet(tmp_path, data_mode="shipped") as fleet:
        fleet.prepare()
        line = fleet.coordinator.link._line
        assert 0 < len(line) < DEVICES, "the line must be too short for all"
        assert line.refused > 0
        while not all(one.machine.phase == "training" for one in fleet.devices.values()):
            assert fleet.second(messages=60) < 600, "some device never got its shard"
        assert all(one.machine.allocation.shard for one in fleet.devices.values())


def test_a_device_takes_no_longer_shard_than_it_was_allotted(tmp_path):
    with Fleet(tmp_path, data_mode="shipped") as fleet:
        fleet.prepare()
        device = fleet.devices["d00"]
        most, says = device.machine.shard_bytes_max, fleet.coordinator.link
        assert 10_000 < most < 100_000
        says._line.clear()
        says.transport.left = 1000
        for size in (most + 5000, 200_000):
            shard = Shard(run=fleet.coordinator.run_id, sha256="a" * 64, body=random.Random(1).randbytes(size))
            before, parts = device.machine._traffic.dropped, says.wire.cut(shard).parts
            says.send(shard, device="d00")
            fleet.settle()
            assert device.machine._traffic.dropped - before == parts > 1, "not one part of it is kept"


def test_a_fleet_that_all_waits_for_answers_of_its_own_gets_every_one_of_them(tmp_path):
    with Fleet(tmp_path, strategy="asp", codec="fp32") as fleet:
        fleet.prepare()
        assert all(one.machine.phase == "training" for one in fleet.devices.values())
        fleet.iterate()
        assert fleet.coordinator.machine.tally.applied == DEVICES
        line = fleet.coordinator.link._line
        assert 0 < len(line) < DEVICES, "the line must be too short for all"
        assert line.refused > 0
        parts = [one.machine.part for one in fleet.devices.values()]
        while any(part.outbox.awaiting is not None for part in parts):
            assert fleet.second(messages=60) < 600, "some device never got its answer"
        assert all(part.learner.base_version > 0 for part in parts)
