"""Links: how long a message takes, what waits for what, what a power cut loses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime.simulation.clock import VirtualClock
from hermes_iot.runtime.simulation.ledger import Ledger
from hermes_iot.runtime.simulation.network import SEGMENT_BYTES, Line, Network
from hermes_iot.runtime.simulation.profiles import LinkProfile
from hermes_iot.transport.base import Connected, Delivery, Will
from hermes_iot.transport.rules import publish_packet_bytes

TOPICS = Topics("lab")
#: 1 Mbit/s up, 2 down: 125 and 250 bytes a millisecond; 100 ms each way.
LINK = LinkProfile(up_mbit=1, down_mbit=2, latency_s=0.1, notice_s=5.0)
UPDATE, STATUS = TOPICS.up("pi", "update"), TOPICS.up("pi", "status")


class Place:
    """A broker, one board behind a link, and a listener beside the broker; everything that was heard, with its time."""

    def __init__(self, link=LINK):
        self.clock = VirtualClock()
        self.ledger = Ledger(TOPICS)
        self.network = Network(self.clock, self.ledger)
        self.there, self.here = [], []
        self.listener = self.network.beside("listener", Will(topic=TOPICS.up("listener", "status"), payload=b"gone"))
        self.listener.subscribe((TOPICS.up("+", "#"),))
        self.listener.start(lambda event: self._note(self.there, event), timeout_s=0)
        self.board = self.dial(link)

    def dial(self, link=LINK):
        board = self.network.over(link, "pi", Will(topic=STATUS, payload=b"dead", delay_s=15), None)
        board.subscribe((TOPICS.down("pi", "model"),))
        board.start(lambda event: self._note(self.here, event), timeout_s=0)
        return board

    def _note(self, heard, event):
        if isinstance(event, Delivery):
            heard.append((round(self.clock.now, 9), event.topic, event.payload))
        else:
            heard.append((round(self.clock.now, 9), type(event)))

    def run(self):
        while self.clock.step():
            pass
        return self


def size(topic, payload):
    return publish_packet_bytes(topic, payload, qos=1, expiry_s=None)


def test_a_connection_is_up_after_a_round_trip():
    assert Place().run().here == [(0.2, Connected)]


def test_an_upload_takes_its_bits_over_the_bandwidth_and_the_latency():
    place = Place().run()
    payload = bytes(12_500)
    begun = place.clock.now
    assert place.board.publish(UPDATE, payload)
    place.run()
    # 12,500 bytes are 100 ms; header 3, topic 2 + 26, packet id 2, no properties 1.
    bits = 8 * (12_500 + 34)
    assert place.there[-1] == (pytest.approx(begun + bits / 1e6 + 0.1), UPDATE, payload)


def test_two_messages_queue_behind_each_other_and_the_second_waits_for_the_firsts_bits_only():
    place = Place().run()
    payload = bytes(12_500)
    begun, bits = place.clock.now, 8 * size(UPDATE, payload)
    place.board.publish(UPDATE, payload)
    place.board.publish(UPDATE, payload)
    place.run()
    times = [event[0] for event in place.there if event[1] == UPDATE]
    assert times == [pytest.approx(begun + bits / 1e6 + 0.1), pytest.approx(begun + 2 * bits / 1e6 + 0.1)]


def test_up_and_down_do_not_wait_for_each_other():
    place = Place().run()
    down, payload = TOPICS.down("pi", "model"), bytes(25_000)
    begun = place.clock.now
    place.board.publish(UPDATE, bytes(1_000_000))
    place.listener.publish(down, payload)
    place.run()
    assert place.here[-1] == (pytest.approx(begun + 8 * size(down, payload) / 2e6 + 0.1), down, payload)


def test_what_is_published_before_the_connection_is_up_is_not_accepted():
    place = Place()
    assert not place.board.publish(UPDATE, b"early")
    place.run()
    assert place.there == [(0.0, Connected)]


def test_a_goodbye_waits_for_what_was_said_before_and_leaves_no_will():
    place = Place().run()
    place.board.publish(UPDATE, bytes(12_500))
    place.board.close()
    place.run()
    assert [event[1] for event in place.there[1:]] == [UPDATE]


def test_a_power_cut_loses_what_is_under_way_and_the_will_comes_when_the_broker_has_noticed():
    place = Place().run()
    begun = place.clock.now
    place.board.publish(UPDATE, bytes(12_500))
    place.board.cut()
    place.run()
    assert place.there[1:] == [(pytest.approx(begun + 5.0 + 15.0), STATUS, b"dead")]
    assert sum(place.ledger.total.up.values()) == 0


def test_a_board_that_is_back_before_the_broker_noticed_leaves_no_will():
    place = Place().run()
    place.board.cut()
    place.dial()
    place.run()
    assert place.there[1:] == []
    assert [event[1] for event in place.here] == [Connected, Connected]


def test_subscribing_keeps_its_place_among_what_is_published():
    place = Place().run()
    topic = TOPICS.down("pi", "alloc")
    place.listener.publish(topic, b"kept", retain=True)
    place.board.publish(UPDATE, bytes(12_500))
    place.board.subscribe((topic,))
    place.run()
    assert place.here[-1][1:] == (topic, b"kept")
    assert place.here[-1][0] > place.there[-1][0]


def test_payloads_are_counted_by_kind_where_they_arrive_and_framing_apart():
    place = Place().run()
    down = TOPICS.down("pi", "model")
    place.board.publish(UPDATE, bytes(1_000))
    place.board.publish(TOPICS.up("pi", "state"), bytes(200))
    place.listener.publish(down, bytes(3_000))
    place.run()
    link = place.ledger.link("pi")
    assert link.up == {"model": 1_000, "data": 0, "control": 200}
    assert link.down == {"model": 3_000, "data": 0, "control": 0}
    assert link.framing_down == size(down, bytes(3_000)) - 3_000
    assert place.ledger.total.document() == link.document()


def test_the_head_on_all_model_is_control_and_a_keyframes_chunk_is_model():
    ledger = Ledger(TOPICS)
    link = ledger.link("pi")
    ledger.came_down(link, TOPICS.all("model"), 10, 20)
    ledger.came_down(link, TOPICS.model_part(3), 1_000, 1_020)
    assert (link.down["control"], link.down["model"]) == (10, 1_000)


def test_a_lost_segment_costs_a_round_trip_and_its_time_on_the_wire_again():
    class Twice:
        def negative_binomial(self, segments, kept):
            assert (segments, kept) == (7, 0.75)  # 10,000 bytes are 7 segments
            return 2

    lossless = Line(8, latency_s=0.05, loss=0.0, chance=None)
    lossy = Line(8, latency_s=0.05, loss=0.25, chance=Twice())
    assert lossless.transfer(10_000, now=1.0) == pytest.approx(1.0 + 0.010 + 0.05)
    again = 2 * (2 * 0.05 + SEGMENT_BYTES / 1e6)
    assert lossy.transfer(10_000, now=1.0) == pytest.approx(1.0 + 0.010 + again + 0.05)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 100_000)), max_size=20), st.floats(0, 0.9))
def test_messages_arrive_in_the_order_they_were_sent(sends, loss):
    line, now, before = Line(1, latency_s=0.1, loss=loss, chance=np.random.default_rng(0)), 0.0, 0.0
    for pause, count in sends:
        now += pause
        arrived = line.transfer(count, now=now)
        assert arrived >= max(before, now + 8 * count / 1e6 + 0.1 - 1e-9)
        before = arrived
