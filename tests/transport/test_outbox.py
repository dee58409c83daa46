"""The queue in front of paho."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.transport.outbox import Outbox, Outgoing, SubscriptionChange


def out(payload=b"", qos=1):
    return Outgoing(topic="t", payload=payload, qos=qos, retain=False, expiry_s=None)


CHANGE = SubscriptionChange(topics=("a",), wanted=True)


def drained(box):
    items = []
    while (entry := box.next()) is not None:
        items.append(entry)
    return items


def test_items_leave_in_order_and_numbered():
    box = Outbox(messages_max=10, window=10)
    items = [out(b"1"), CHANGE, out(b"2", qos=0), out(b"3")]
    assert all(box.accept(item) for item in items)
    assert drained(box) == list(enumerate(items, start=1))


def test_the_window_holds_qos_1_back_until_the_broker_answers():
    box = Outbox(messages_max=10, window=2)
    for number in range(4):
        box.accept(out(bytes([number])))
    assert [number for number, _ in drained(box)] == [1, 2]
    assert box.acknowledged(1) == out(b"\0")
    assert [number for number, _ in drained(box)] == [3]


def test_an_answer_to_something_unknown_is_nothing():
    box = Outbox(messages_max=1, window=1)
    assert box.acknowledged(99) is None


def test_a_full_box_refuses_messages_but_never_subscriptions():
    box = Outbox(messages_max=2, window=1)
    assert [box.accept(out()) for _ in range(3)] == [True, True, False]
    assert box.accept(CHANGE)
    box.next()
    assert not box.accept(out())  # under way still counts
    box.acknowledged(1)
    assert not box.accept(out())  # and so does the subscription in line
    drained(box)
    assert box.accept(out())


def test_settled_means_sent_and_answered_up_to_a_number():
    box = Outbox(messages_max=10, window=10)
    assert box.settled(0)
    box.accept(out())
    box.accept(out(qos=0))
    box.accept(out())
    assert not box.settled(1)
    drained(box)
    box.acknowledged(3)
    assert not box.settled(1)
    box.acknowledged(1)
    assert box.settled(3)


def test_a_lost_connection_drops_what_waits_and_keeps_what_was_sent():
    box = Outbox(messages_max=10, window=1)
    for payload in (b"sent", b"waits"):
        box.accept(out(payload))
    box.accept(CHANGE)
    box.next()
    assert box.connection_lost() == 1
    assert box.lost == 1
    assert drained(box) == []
    assert box.acknowledged(1) == out(b"sent")


def test_a_connection_with_the_same_limits_sends_again_as_it_was():
    box = Outbox(messages_max=10, window=2)
    box.accept(out(b"x"))
    box.next()
    assert box.refit(window=2, packet_bytes_max=100) is None
    assert drained(box) == []


def test_a_smaller_window_puts_the_sent_ones_in_line_again_in_order():
    box = Outbox(messages_max=10, window=3)
    for payload in (b"1", b"2", b"3"):
        box.accept(out(payload))
    drained(box)
    box.connection_lost()
    assert box.refit(window=1, packet_bytes_max=None) == ()
    box.accept(out(b"4"))
    order = []
    while (entry := box.next()) is not None:
        order.append(entry[1].payload)
        box.acknowledged(entry[0])
    assert order == [b"1", b"2", b"3", b"4"]


def test_a_smaller_packet_limit_gives_up_what_does_not_fit():
    box = Outbox(messages_max=10, window=3)
    for payload in (b"small", bytes(100), b"tiny"):
        box.accept(out(payload))
    drained(box)
    assert box.refit(window=3, packet_bytes_max=50) == (out(bytes(100)),)
    assert box.lost == 1
    assert [item.payload for _, item in drained(box)] == [b"small", b"tiny"]


@pytest.mark.parametrize(("messages_max", "window"), [(0, 1), (1, 0)])
def test_a_box_without_room_is_refused(messages_max, window):
    with pytest.raises(ValueError, match="room"):
        Outbox(messages_max=messages_max, window=window)


@given(st.lists(st.sampled_from(["accept", "light", "subscribe", "next", "ack", "lose", "refit"]), max_size=60))
def test_bounds_and_order_hold_whatever_happens(actions):
    box = Outbox(messages_max=5, window=2)
    under_way, last_sent = [], 0
    for action in actions:
        match action:
            case "accept" | "light":
                box.accept(out(qos=int(action == "accept")))
            case "subscribe":
                box.accept(CHANGE)
            case "next":
                entry = box.next()
                if entry is not None:
                    number, item = entry
                    if isinstance(item, Outgoing) and item.qos:
                        under_way.append(number)
                    assert number > last_sent
                    last_sent = number
            case "ack" if under_way:
                assert box.acknowledged(under_way.pop(0)) is not None
            case "lose":
                box.connection_lost()
            case "refit" if box.refit(window=1, packet_bytes_max=None) is not None:
                under_way, last_sent = [], 0
        assert len(under_way) <= 2
        if not under_way and box.settled(box.last):
            assert box.next() is None
