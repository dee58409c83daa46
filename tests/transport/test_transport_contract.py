"""Every promise of transport/base.py, held by both transports: in memory, and paho against a real Mosquitto."""

import pytest

from hermes_iot.transport import rules
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Will
from tests.transport.inbox import PATIENCE_S, Inbox
from tests.transport.rigs import MemoryRig, MosquittoRig

LIMIT = 4_096


@pytest.fixture(params=[MemoryRig, pytest.param(MosquittoRig, marks=pytest.mark.mosquitto)])
def world(request):
    return request.param


@pytest.fixture
def rig(world):
    rig = world()
    yield rig
    rig.close()


@pytest.fixture
def limited(world):
    rig = world(packet_bytes_max=LIMIT)
    yield rig
    rig.close()


def test_connected_is_delivered_before_start_returns(rig):
    inbox = Inbox()
    rig.transport().start(inbox, timeout_s=PATIENCE_S)
    assert inbox.waiting() == [Connected(packet_bytes_max=None)]


def test_messages_of_one_publisher_arrive_in_order_and_complete(rig, topic):
    _, inbox = rig.joined(topic)
    publisher, _ = rig.joined()
    sent = [f"{number}".encode() for number in range(200)]
    assert all(publisher.publish(topic, payload) for payload in sent)
    assert publisher.publish(topic, b"last")
    assert inbox.payloads_until(b"last") == sent


def test_any_bytes_arrive_unchanged(rig, topic):
    _, inbox = rig.joined(topic)
    publisher, _ = rig.joined()
    for payload in (b"", b"\x00\xff" * 60_000, bytes(range(256))):
        assert publisher.publish(topic, payload)
        assert inbox.delivery() == Delivery(topic=topic, payload=payload)


def test_qos_0_arrives(rig, topic):
    _, inbox = rig.joined(topic)
    publisher, _ = rig.joined()
    assert publisher.publish(topic, b"light", qos=0)
    assert inbox.delivery().payload == b"light"


def test_a_publisher_that_subscribed_hears_itself(rig, topic):
    transport, inbox = rig.joined(topic)
    transport.publish(topic, b"me")
    assert inbox.delivery().payload == b"me"


def test_flush_says_that_all_was_acknowledged(rig, topic):
    publisher, _ = rig.joined()
    for number in range(50):
        assert publisher.publish(topic, bytes([number]), retain=True)
    assert publisher.flush(timeout_s=PATIENCE_S)
    reader, inbox = rig.joined()
    reader.subscribe((topic,))
    assert inbox.delivery().payload == bytes([49])


def test_retained_messages_come_after_each_subscribe_and_live_ones_are_not_retained(rig, topic):
    publisher, _ = rig.joined()
    publisher.publish(topic, b"kept", retain=True)
    publisher.flush(timeout_s=PATIENCE_S)
    reader, inbox = rig.joined()
    for _ in range(2):
        assert rig.subscribe(reader, inbox, topic) == [Delivery(topic=topic, payload=b"kept", retain=True)]
    publisher.publish(topic, b"new", retain=True)
    assert inbox.delivery() == Delivery(topic=topic, payload=b"new", retain=False)


def test_a_retained_message_is_replaced_and_cleared_by_an_empty_one(rig, topic):
    publisher, heard = rig.joined(topic)
    for payload in (b"old", b"new", b""):
        publisher.publish(topic, payload, retain=True)
    assert [heard.delivery().payload for _ in range(3)] == [b"old", b"new", b""]
    reader, inbox = rig.joined()
    assert rig.subscribe(reader, inbox, topic) == []


def test_a_message_that_is_not_retained_is_gone(rig, topic):
    publisher, heard = rig.joined(topic)
    publisher.publish(topic, b"passing")
    heard.delivery()
    reader, inbox = rig.joined()
    assert rig.subscribe(reader, inbox, topic) == []


def test_wildcards_match_levels_and_subtrees(rig, topic):
    _, one = rig.joined(f"{topic}/+/end")
    _, many = rig.joined(f"{topic}/#")
    publisher, _ = rig.joined()
    for tail in ("/a/end", "/a/b/end", "", "x/a/end", "/last/end"):
        publisher.publish(topic + tail, tail.encode() or b"parent")
    assert one.payloads_until(b"/last/end") == [b"/a/end"]
    assert many.payloads_until(b"/last/end") == [b"/a/end", b"/a/b/end", b"parent"]


def test_a_wildcard_does_not_reach_the_brokers_own_topics(rig, topic):
    transport, inbox = rig.joined("#", "+/broker/version")
    transport.publish("$SYS/broker/version", b"forged", retain=True)
    transport.publish(topic, b"end")
    assert b"forged" not in inbox.payloads_until(b"end")


def test_a_wildcard_subscription_gets_all_retained_messages(rig, topic):
    publisher, _ = rig.joined()
    for name in "abc":
        publisher.publish(f"{topic}/{name}", name.encode(), retain=True)
    publisher.flush(timeout_s=PATIENCE_S)
    reader, inbox = rig.joined()
    seen = rig.subscribe(reader, inbox, f"{topic}/+")
    assert sorted((event.topic, event.payload, event.retain) for event in seen) == [
        (f"{topic}/{name}", name.encode(), True) for name in "abc"
    ]


def test_unsubscribed_topics_are_silent(rig, topic):
    transport, inbox = rig.joined(topic, f"{topic}/end")
    transport.unsubscribe((topic, "never/subscribed"))
    transport.publish(topic, b"unwanted")
    transport.publish(f"{topic}/end", b"end")
    assert inbox.payloads_until(b"end") == []


def test_a_subscription_made_before_start_holds(rig, topic):
    transport, inbox = rig.transport(), Inbox()
    transport.subscribe((topic, f"{topic}/not"))
    transport.unsubscribe((f"{topic}/not",))
    transport.start(inbox, timeout_s=PATIENCE_S)
    transport.publish(f"{topic}/not", b"unwanted")
    transport.publish(topic, b"hello")
    assert inbox.delivery().payload == b"hello"


def test_the_will_is_published_and_retained_when_the_line_breaks(rig, topic):
    _, watcher = rig.joined(topic)
    client_id = rig.client_id()
    _, inbox = rig.joined(client_id=client_id, will=Will(topic=topic, payload=b"gone"))
    rig.cut(client_id)
    assert watcher.delivery() == Delivery(topic=topic, payload=b"gone")
    assert not inbox.disconnected().taken_over
    late, late_inbox = rig.joined()
    assert rig.subscribe(late, late_inbox, topic) == [Delivery(topic=topic, payload=b"gone", retain=True)]


def test_the_will_is_not_published_after_close(rig, topic):
    watcher, heard = rig.joined(topic)
    leaver, _ = rig.joined(will=Will(topic=topic, payload=b"gone"))
    leaver.close()
    watcher.publish(topic, b"end")
    assert heard.payloads_until(b"end") == []


def test_a_delayed_will_is_not_published_when_the_client_is_back_in_time(rig, topic):
    _, watcher = rig.joined(topic)
    client_id = rig.client_id()
    _, inbox = rig.joined(client_id=client_id, will=Will(topic=topic, payload=b"gone", delay_s=1))
    rig.cut(client_id)
    inbox.disconnected()
    rig.mend(client_id)
    inbox.connected()
    assert rig.silent_for(watcher, 2.5)  # Mosquitto looks at its delayed wills once a second


def test_a_delayed_will_is_published_when_the_client_stays_away(rig, topic):
    _, watcher = rig.joined(topic)
    client_id = rig.client_id()
    rig.joined(client_id=client_id, will=Will(topic=topic, payload=b"gone", delay_s=1))
    rig.cut(client_id)
    assert rig.silent_for(watcher, 0.5)
    if isinstance(rig, MemoryRig):
        rig.now += 0.5
        rig.broker.expire()
    assert watcher.delivery().payload == b"gone"


def test_subscriptions_are_renewed_before_connected_is_said_again(rig, topic):
    client_id = rig.client_id()
    transport, inbox = rig.joined(topic, client_id=client_id)
    publisher, _ = rig.joined()
    publisher.publish(topic, b"kept", retain=True)
    inbox.delivery()
    rig.cut(client_id)
    inbox.disconnected()
    rig.mend(client_id)
    inbox.connected()
    assert transport.publish(topic, b"mine")
    assert [(event.payload, event.retain) for event in (inbox.delivery(), inbox.delivery())] == [
        (b"kept", True),
        (b"mine", False),
    ]


def test_nothing_is_queued_while_disconnected(rig, topic):
    _, watcher = rig.joined(topic)
    client_id = rig.client_id()
    transport, inbox = rig.joined(client_id=client_id)
    rig.cut(client_id)
    inbox.disconnected()
    assert not transport.publish(topic, b"stale")
    assert not transport.publish(topic, b"stale", qos=0)
    rig.mend(client_id)
    inbox.connected()
    assert transport.publish(topic, b"end")
    assert watcher.payloads_until(b"end") == []


def test_disconnected_is_said_once_however_many_tries_fail(rig):
    client_id = rig.client_id()
    _, inbox = rig.joined(client_id=client_id)
    rig.cut(client_id)
    inbox.disconnected()
    assert rig.silent_for(inbox, 0.3)
    rig.mend(client_id)
    assert isinstance(inbox.next(), Connected)


def test_a_persistent_session_delivers_what_came_meanwhile(rig, topic):
    client_id = rig.client_id()
    _, inbox = rig.joined(topic, client_id=client_id, session_expiry_s=60)
    publisher, _ = rig.joined()
    rig.cut(client_id)
    inbox.disconnected()
    for payload in (b"1", b"2"):
        publisher.publish(topic, payload)
    publisher.flush(timeout_s=PATIENCE_S)
    rig.mend(client_id)
    inbox.connected()
    publisher.publish(topic, b"end")
    assert inbox.payloads_until(b"end") == [b"1", b"2"]


def test_a_persistent_session_outlives_close_and_is_resumed_by_the_next_transport(rig, topic):
    client_id = rig.client_id()
    transport, _ = rig.joined(topic, client_id=client_id, session_expiry_s=60)
    transport.close()
    publisher, _ = rig.joined()
    publisher.publish(topic, b"meanwhile")
    publisher.flush(timeout_s=PATIENCE_S)
    successor, inbox = rig.transport(client_id=client_id, session_expiry_s=60), Inbox()
    successor.start(inbox, timeout_s=PATIENCE_S)
    inbox.connected()
    assert inbox.delivery() == Delivery(topic=topic, payload=b"meanwhile")


def test_what_was_not_acknowledged_is_delivered_again(rig, topic):
    client_id = rig.client_id()
    transport, inbox = rig.joined(topic, client_id=client_id, session_expiry_s=60, manual_ack=True)
    publisher, _ = rig.joined()
    for payload in (b"1", b"2", b"3"):
        publisher.publish(topic, payload)
    first, second, third = (inbox.delivery() for _ in range(3))
    assert len({0, first.receipt, second.receipt, third.receipt}) == 4
    transport.acknowledge([first.receipt, third.receipt])
    publisher.publish(topic, b"4")
    assert inbox.delivery().payload == b"4"
    transport.publish(f"{topic}/behind", b"")  # the broker has heard of the receipts when it has answered this
    assert transport.flush(timeout_s=PATIENCE_S)
    rig.cut(client_id)
    inbox.disconnected()
    rig.mend(client_id)
    inbox.connected()
    transport.acknowledge([second.receipt])  # of the connection before
    transport.publish(topic, b"end")
    again = iter(inbox.delivery, Delivery(topic=topic, payload=b"end"))
    assert [one.payload for one in again if one.topic == topic] == [b"2", b"4"]


def test_what_the_owner_of_a_session_left_unacknowledged_is_the_next_ones(rig, topic):
    client_id = rig.client_id()
    options = {"client_id": client_id, "session_expiry_s": 60, "manual_ack": True}
    transport, inbox = rig.joined(topic, **options)
    publisher, _ = rig.joined()
    publisher.publish(topic, b"1")
    inbox.delivery()
    transport.close()
    successor, inbox = rig.transport(**options), Inbox()
    successor.start(inbox, timeout_s=PATIENCE_S)
    inbox.connected()
    while (delivery := inbox.delivery()).topic != topic:
        pass
    assert delivery.payload == b"1"


def test_a_hundred_may_wait_for_their_acknowledgement(rig, topic):
    _, inbox = rig.joined(topic, session_expiry_s=60, manual_ack=True)
    publisher, _ = rig.joined()
    for number in range(100):
        publisher.publish(topic, bytes([number]))
    assert [inbox.delivery().payload[0] for _ in range(100)] == list(range(100))


def test_without_manual_ack_there_is_nothing_to_acknowledge(rig, topic):
    transport, inbox = rig.joined(topic, session_expiry_s=60)
    transport.publish(topic, b"1")
    assert inbox.delivery().receipt == 0
    transport.acknowledge([0, 1, 7])


def test_a_clean_session_starts_with_nothing(rig, topic):
    client_id = rig.client_id()
    transport, inbox = rig.joined(topic, client_id=client_id)
    publisher, _ = rig.joined()
    rig.cut(client_id)
    inbox.disconnected()
    publisher.publish(topic, b"missed")
    publisher.flush(timeout_s=PATIENCE_S)
    rig.mend(client_id)
    inbox.connected()
    transport.publish(topic, b"end")
    assert inbox.payloads_until(b"end") == []


def test_unsubscribing_while_away_reaches_a_resumed_session(rig, topic):
    client_id = rig.client_id()
    transport, inbox = rig.joined(topic, f"{topic}/end", client_id=client_id, session_expiry_s=60)
    publisher, _ = rig.joined()
    rig.cut(client_id)
    inbox.disconnected()
    transport.unsubscribe((topic,))
    rig.mend(client_id)
    inbox.connected()
    transport.publish(f"{topic}/ready", b"")
    transport.flush(timeout_s=PATIENCE_S)
    publisher.publish(topic, b"unwanted")
    publisher.publish(f"{topic}/end", b"end")
    assert inbox.payloads_until(b"end") == []


def test_an_expired_message_is_not_delivered(rig, topic):
    client_id = rig.client_id()
    _, inbox = rig.joined(topic, client_id=client_id, session_expiry_s=60)
    publisher, watcher = rig.joined()
    rig.cut(client_id)
    inbox.disconnected()
    publisher.publish(topic, b"short", expiry_s=1)
    publisher.publish(topic, b"long", expiry_s=600)
    publisher.flush(timeout_s=PATIENCE_S)
    assert rig.silent_for(watcher, 2.1)
    rig.mend(client_id)
    assert inbox.delivery().payload == b"long"


@pytest.fixture
def telling(rig):
    if not rig.says_who_took_over():
        pytest.skip("this Mosquitto is older than 2.0.15: take-over is held by the scripted broker only")
    return rig


def test_a_second_client_with_the_same_id_cuts_the_first_off(rig):
    client_id = rig.client_id()
    _, first_inbox = rig.joined(client_id=client_id)
    rig.joined(client_id=client_id)
    first_inbox.disconnected()


def test_a_second_client_with_the_same_id_takes_over_and_is_not_fought(telling):
    rig = telling
    client_id = rig.client_id()
    first, first_inbox = rig.joined(client_id=client_id)
    second, second_inbox = rig.joined(client_id=client_id)
    event = first_inbox.next()
    assert isinstance(event, Disconnected)
    assert event.taken_over
    assert not first.publish("a/b", b"")
    assert rig.silent_for(first_inbox, 0.3)
    assert second.publish("a/b", b"")
    assert second_inbox.waiting() == []


def test_a_client_that_was_taken_over_comes_back_when_asked(telling, topic):
    rig = telling
    client_id = rig.client_id()
    first, first_inbox = rig.joined(topic, client_id=client_id)
    _, second_inbox = rig.joined(client_id=client_id)
    assert first_inbox.disconnected().taken_over
    first.reconnect()
    first_inbox.connected()
    assert second_inbox.disconnected().taken_over
    first.publish(topic, b"mine again")
    assert first_inbox.delivery().payload == b"mine again"


def test_reconnect_does_nothing_while_connected(rig, topic):
    transport, inbox = rig.joined(topic)
    transport.reconnect()
    transport.publish(topic, b"still here")
    assert inbox.next() == Delivery(topic=topic, payload=b"still here")


def test_the_packet_limit_is_reported_and_exact(limited, topic):
    transport, inbox = limited.transport(), Inbox()
    transport.subscribe((topic,))
    transport.start(inbox, timeout_s=PATIENCE_S)
    assert inbox.next() == Connected(packet_bytes_max=LIMIT)
    empty = rules.publish_packet_bytes(topic, b"\0" * 1_000, qos=1, expiry_s=5) - 1_000
    fits = b"x" * (LIMIT - empty)
    assert not transport.publish(topic, fits + b"x", expiry_s=5)
    assert transport.publish(topic, fits, expiry_s=5)
    assert transport.publish(topic, b"end")
    assert inbox.payloads_until(b"end") == [fits]


def test_close_silences(rig, topic):
    reader, inbox = rig.joined(topic)
    publisher, _ = rig.joined()
    for _ in range(100):
        publisher.publish(topic, b"flood")
    reader.close()
    inbox.waiting()
    publisher.publish(topic, b"after")
    publisher.flush(timeout_s=PATIENCE_S)
    assert inbox.silent_for(0.1)


def test_a_closed_transport_accepts_nothing_and_closes_again(rig):
    transport, _ = rig.joined()
    transport.close()
    transport.close()
    assert not transport.publish("a/b", b"")
    transport.reconnect()
    with pytest.raises(RuntimeError, match="started once"):
        transport.start(Inbox(), timeout_s=1.0)


def test_a_transport_that_never_started_closes(rig):
    transport = rig.transport()
    assert not transport.publish("a/b", b"")
    assert transport.flush(timeout_s=0.0)
    transport.close()


def test_a_raising_callback_is_contained(rig, topic, caplog):
    heard = Inbox()

    def fragile(event):
        heard(event)
        if isinstance(event, Delivery) and event.payload == b"bad":
            raise RuntimeError("a fault of the subscriber")

    transport = rig.transport()
    transport.subscribe((topic,))
    transport.start(fragile, timeout_s=PATIENCE_S)
    for payload in (b"bad", b"good"):
        assert transport.publish(topic, payload)
    assert heard.payloads_until(b"good") == [b"bad"]
    assert "callback_failed" in caplog.text


def test_a_transport_starts_once(rig):
    transport, _ = rig.joined()
    with pytest.raises(RuntimeError, match="started once"):
        transport.start(Inbox(), timeout_s=1.0)


@pytest.mark.parametrize("bad", ["", "a/#", "a/+/b", "a\0b", "x" * 65_536])
def test_a_bad_topic_is_refused_at_once(rig, bad):
    transport, _ = rig.joined()
    with pytest.raises(ValueError, match="topic"):
        transport.publish(bad, b"")


@pytest.mark.parametrize("bad", ["", "a/#/b", "a#", "a+/b", "a\0b"])
def test_a_bad_filter_is_refused_at_once(rig, bad):
    transport, _ = rig.joined()
    with pytest.raises(ValueError, match=r"topic|filter"):
        transport.subscribe((bad,))


def test_qos_2_and_impossible_expiries_are_refused(rig):
    transport, _ = rig.joined()
    with pytest.raises(ValueError, match="qos"):
        transport.publish("a", b"", qos=2)
    with pytest.raises(ValueError, match="expiry"):
        transport.publish("a", b"", expiry_s=-1)
