"""Connections that break: what is lost, what comes twice, and who finds out when."""

from __future__ import annotations

import pytest

from hermes_iot.errors import BrokerError
from hermes_iot.runtime.simulation.clock import VirtualClock
from hermes_iot.runtime.simulation.faulty_link import FaultyNetwork, FaultyTransport
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Will

LATENCY_S = 0.1


class Calm:
    """A weather in which only what a test asks for happens."""

    def __init__(self):
        self.up = self.down = 1

    def latency_s(self, _client):
        return LATENCY_S

    def copies_up(self, _client, _topic):
        return self.up

    def copies_down(self, _client, _topic, _payload):
        return self.down


class World:
    def __init__(self):
        self.clock, self.weather = VirtualClock(), Calm()
        self.network = FaultyNetwork(self.clock, self.weather, queued_messages_max=2)
        self.heard = {}

    def client(self, name, *topics, session_expiry_s=0, will="gone"):
        events = self.heard[name] = []
        transport = FaultyTransport(
            self.network,
            client_id=name,
            will=Will(topic=f"will/{name}", payload=will.encode(), delay_s=0),
            session_expiry_s=session_expiry_s,
        )
        transport.subscribe(topics)
        transport.start(lambda event: events.append((round(self.clock.now, 3), event)), timeout_s=0)
        return transport

    def until(self, time_s):
        done = []
        self.clock.at(time_s, lambda: done.append(True))
        while not done:
            self.clock.step()

    def payloads(self, name):
        return [event.payload for _, event in self.heard[name] if isinstance(event, Delivery)]


@pytest.fixture
def world():
    return World()


def test_a_message_takes_its_way_up_and_its_way_down_in_order(world):
    world.client("reader", "t")
    writer = world.client("writer")
    world.until(1.0)
    assert writer.publish("t", b"1")
    assert writer.publish("t", b"2")
    world.until(2.0)
    assert world.payloads("reader") == [b"1", b"2"]
    assert [at for at, event in world.heard["reader"] if isinstance(event, Delivery)] == [1.2, 1.2]


def test_what_is_on_its_way_when_a_connection_breaks_is_sent_again_with_the_next(world):
    world.client("reader", "t")
    writer = world.client("writer")
    world.until(1.0)
    writer.publish("t", b"on its way")
    world.network.break_line("writer", for_s=0.5, noticed_s=0.2, missed_s=0.3)
    world.until(1.3)
    assert [type(event) for _, event in world.heard["writer"]] == [Connected, Disconnected]
    assert not writer.publish("t", b"no connection")
    world.until(4.0)
    assert world.payloads("reader") == [b"on its way"]
    assert isinstance(world.heard["writer"][-1][1], Connected)


def test_what_arrived_without_its_confirmation_arrives_twice(world):
    world.client("reader", "t")
    writer = world.client("writer")
    world.until(1.0)
    writer.publish("t", b"twice")
    world.until(1.15)  # it is at the broker, the confirmation is not back
    world.network.break_line("writer", for_s=0.0, noticed_s=0.0, missed_s=0.0)
    world.until(4.0)
    assert world.payloads("reader") == [b"twice", b"twice"]


def test_a_dead_line_is_known_to_neither_end_until_each_has_missed_the_other(world):
    world.client("reader", "will/board")
    board = world.client("board")
    world.until(1.0)
    world.network.break_line("board", for_s=30.0, noticed_s=5.0, missed_s=3.0)
    world.until(3.9)
    assert board.publish("t", b"into the void"), "it does not know yet"
    assert world.payloads("reader") == []
    world.until(4.2)
    assert world.payloads("reader") == [b"gone"], "the broker has given it up"
    world.until(6.1)
    assert [(at, type(event)) for at, event in world.heard["board"]][-1] == (6.0, Disconnected)
    with pytest.raises(BrokerError):
        world.network.check("board")


def test_a_session_keeps_what_comes_meanwhile_up_to_its_bound(world):
    world.client("reader", "t", session_expiry_s=100)
    writer = world.client("writer")
    world.until(1.0)
    world.network.break_line("reader", for_s=1.0, noticed_s=0.0, missed_s=0.0)
    world.until(1.1)
    for number in range(4):
        writer.publish("t", b"%d" % number)
    world.until(4.0)
    assert world.payloads("reader") == [b"0", b"1"]
    assert world.network.broker.dropped == 2


def test_a_broker_that_crashes_forgets_sessions_and_comes_back_with_what_it_had_saved(world):
    world.client("reader", "kept", session_expiry_s=100)
    world.until(1.0)
    world.network.crash_broker({"kept": b"old"}, for_s=2.0)
    with pytest.raises(BrokerError):
        world.network.look("somebody")
    world.until(2.9)
    assert world.payloads("reader") == []
    world.until(5.0)
    assert world.payloads("reader") == [b"old"]
    assert world.network.broker.retained == {"kept": b"old"}, "and no will has gone out"


def test_a_new_process_of_the_same_name_takes_its_predecessors_place(world):
    world.client("reader", "t", "will/board")
    first = world.client("board")
    world.until(1.0)
    first.killed(missed_s=9.0)
    second = world.client("board", will="gone again")
    world.until(2.0)
    assert world.payloads("reader") == [b"gone"], "its connection has ended, and is not waited for"
    second.publish("t", b"here")
    world.until(20.0)
    assert world.payloads("reader") == [b"gone", b"here"]


def test_what_is_old_comes_again_and_what_is_doubled_comes_twice(world):
    world.client("reader", "t")
    writer = world.client("writer")
    world.until(1.0)
    world.weather.up, world.weather.down = 2, 2
    writer.publish("t", b"x")
    world.until(2.0)
    assert world.payloads("reader") == [b"x"] * 4
    world.network.again("reader", "t", b"old")
    world.until(3.0)
    assert world.payloads("reader")[-1] == b"old"
