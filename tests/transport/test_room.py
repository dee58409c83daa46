"""Who has much to say hands it over in portions, and is told once when the next one has room."""

import threading

import pytest

from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.base import Connected, Room
from hermes_iot.transport.link_state import LinkState
from hermes_iot.transport.mqtt import MqttTransport
from hermes_iot.transport.outbox import Outgoing


def opened(accepted):
    state = LinkState(messages_max=100, window=10)
    state.opened(window=None, packet_bytes_max=None, session_present=False)
    for _ in range(accepted):
        assert state.accept(Outgoing(topic="a", payload=b"b", qos=1, retain=False, expiry_s=None))
    numbers = [entry[0] for _ in range(accepted) if (entry := state.next()) is not None]
    return state, numbers


def test_there_is_room_below_so_many_unanswered_messages():
    state, _ = opened(3)
    assert [state.room(messages) for messages in (1, 3, 4)] == [False, False, True]


def test_room_is_said_once_when_half_of_them_are_left():
    state, numbers = opened(5)
    assert not state.room(4)
    said = []
    for number in numbers:
        state.acknowledged(number)
        said.append(state.has_room())
    assert said == [False, False, True, False, False]


def test_nobody_is_told_who_did_not_ask_or_found_room():
    state, numbers = opened(2)
    assert state.room(3)
    for number in numbers:
        state.acknowledged(number)
        assert not state.has_room()


def test_with_the_connection_the_question_is_gone():
    state, _ = opened(3)
    assert not state.room(2)
    state.lost(taken_over=False)
    assert not state.has_room()
    assert state.room(1), "what is handed over now is refused, and whoever asked learns it"


@pytest.mark.mosquitto
def test_a_real_broker_makes_room(mosquitto, topic):
    told, events = threading.Event(), []

    def hear(event):
        events.append(event)
        if isinstance(event, Room):
            told.set()

    transport = MqttTransport(BrokerAddress.parse(mosquitto), client_id=topic.replace("/", "-"))
    transport.start(hear, timeout_s=10)
    try:
        rounds = 0
        while not told.is_set() and rounds < 200:
            rounds += 1
            transport.publish(topic, bytes(100_000))
            if not transport.room(messages=1):
                assert told.wait(10)
        assert told.is_set()
        assert isinstance(events[0], Connected)
    finally:
        transport.close()
