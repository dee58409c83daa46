"""What only the in-memory broker offers: faults on demand, a clock of the caller's, one order, no deadlock."""

import random
import threading

import pytest

from hermes_iot.errors import BrokerError
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Will
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from tests.transport.inbox import Inbox
from tests.transport.rigs import MemoryRig


def joined(broker, client_id, *topics, **options):
    transport, inbox = MemoryTransport(broker, client_id=client_id, **options), Inbox()
    transport.subscribe(topics)
    transport.start(inbox, timeout_s=1)
    inbox.connected()
    return transport, inbox


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def broker(clock):
    return MemoryBroker(clock=clock)


def test_a_message_is_delivered_before_publish_returns(broker):
    _, inbox = joined(broker, "reader", "t")
    writer, _ = joined(broker, "writer")
    writer.publish("t", b"now")
    assert inbox.waiting() == [Delivery(topic="t", payload=b"now")]


def test_a_client_with_overlapping_filters_gets_one_copy(broker):
    transport, inbox = joined(broker, "reader", "a/b", "a/+", "#")
    transport.publish("a/b", b"once")
    assert len(inbox.waiting()) == 1


def test_a_cut_line_keeps_start_from_connecting(broker):
    broker.drop("pi")
    transport, inbox = MemoryTransport(broker, client_id="pi"), Inbox()
    with pytest.raises(BrokerError, match="line of pi is cut"):
        transport.start(inbox, timeout_s=1)
    broker.restore("pi")
    transport.start(inbox, timeout_s=1)
    assert inbox.waiting() == [Connected()]


def test_dropping_twice_and_restoring_twice_says_it_once(broker):
    _, inbox = joined(broker, "pi", will=Will(topic="w", payload=b"gone"))
    _, watcher = joined(broker, "watcher", "w")
    broker.drop("pi")
    broker.drop("pi")
    broker.restore("pi")
    broker.restore("pi")
    assert [type(event) for event in inbox.waiting()] == [Disconnected, Connected]
    assert len(watcher.waiting()) == 1


def test_after_restore_come_connected_then_queued_then_retained_messages(broker):
    _, inbox = joined(broker, "pi", "t/#", session_expiry_s=60)
    writer, _ = joined(broker, "writer")
    broker.drop("pi")
    writer.publish("t/kept", b"kept", retain=True)
    writer.publish("t/live", b"live")
    broker.restore("pi")
    assert inbox.waiting()[1:] == [
        Connected(),
        Delivery(topic="t/kept", payload=b"kept"),
        Delivery(topic="t/live", payload=b"live"),
        Delivery(topic="t/kept", payload=b"kept", retain=True),
    ]


def test_a_closed_client_does_not_come_back_with_its_line(broker):
    transport, inbox = joined(broker, "pi")
    broker.drop("pi")
    transport.close()
    inbox.waiting()
    broker.restore("pi")
    assert inbox.waiting() == []


def test_a_client_taken_over_while_its_line_is_cut_waits_for_the_line(broker):
    first, first_inbox = joined(broker, "pi")
    joined(broker, "pi")
    broker.drop("pi")
    first.reconnect()
    assert not first.publish("t", b"")
    first_inbox.waiting()
    broker.restore("pi")
    assert first_inbox.waiting() == [Connected()]


def test_the_view_of_retained_messages_is_a_copy_without_what_expired(broker, clock):
    writer, _ = joined(broker, "writer")
    writer.publish("long", b"1", retain=True)
    writer.publish("short", b"2", retain=True, expiry_s=10)
    view = broker.retained
    assert view == {"long": b"1", "short": b"2"}
    clock.now = 10.0
    assert broker.retained == {"long": b"1"}
    assert view == {"long": b"1", "short": b"2"}
    _, inbox = joined(broker, "late", "+")
    assert [event.topic for event in inbox.waiting()] == ["long"]


def test_deadlines_are_told_and_kept_in_the_order_they_fall_due(broker, clock):
    _, watcher = joined(broker, "watcher", "w/#")
    for name, delay_s in (("late", 20), ("early", 10)):
        joined(broker, name, will=Will(topic=f"w/{name}", payload=b"gone", delay_s=delay_s))
        broker.drop(name)
    assert broker.next_deadline() == 10.0
    clock.now = 9.9
    broker.expire()
    assert watcher.waiting() == []
    clock.now = 25.0
    broker.expire()
    assert [event.topic for event in watcher.waiting()] == ["w/early", "w/late"]
    assert broker.next_deadline() is None


def test_a_session_ends_when_its_time_is_over(broker, clock):
    _, inbox = joined(broker, "pi", "t", session_expiry_s=30)
    writer, _ = joined(broker, "writer")
    broker.drop("pi")
    writer.publish("t", b"too late")
    clock.now = 30.0
    assert broker.next_deadline() == 30.0
    broker.restore("pi")
    assert inbox.waiting()[1:] == [Connected()]


def test_a_will_that_fell_due_is_published_even_when_nobody_asked_before_the_return(broker, clock):
    _, watcher = joined(broker, "watcher", "w")
    joined(broker, "pi", will=Will(topic="w", payload=b"gone", delay_s=5), session_expiry_s=60)
    broker.drop("pi")
    clock.now = 6.0
    broker.restore("pi")
    assert [event.payload for event in watcher.waiting()] == [b"gone"]


def test_without_a_clock_time_stands_still():
    broker = MemoryBroker()
    writer, _ = joined(broker, "writer")
    writer.publish("t", b"x", retain=True, expiry_s=1)
    broker.expire()
    assert broker.retained == {"t": b"x"}


def test_a_take_over_publishes_an_undelayed_will_and_cancels_a_delayed_one(broker):
    _, watcher = joined(broker, "watcher", "w/#")
    joined(broker, "now", will=Will(topic="w/now", payload=b"gone"))
    joined(broker, "later", will=Will(topic="w/later", payload=b"gone", delay_s=5))
    joined(broker, "now")
    joined(broker, "later", session_expiry_s=5)
    assert [event.topic for event in watcher.waiting()] == ["w/now"]
    assert broker.next_deadline() is None


def test_a_clean_start_ends_the_session_and_publishes_its_pending_will(broker):
    _, watcher = joined(broker, "watcher", "w")
    first, _ = joined(broker, "pi", will=Will(topic="w", payload=b"gone", delay_s=5))
    joined(broker, "pi")
    assert [event.payload for event in watcher.waiting()] == [b"gone"]
    first.close()
    assert watcher.waiting() == []


def test_a_full_queue_drops_the_newest_and_counts():
    broker = MemoryBroker(queued_messages_max=2)
    _, inbox = joined(broker, "pi", "t", session_expiry_s=60)
    writer, _ = joined(broker, "writer")
    broker.drop("pi")
    for payload in (b"1", b"2", b"3"):
        assert writer.publish("t", payload)
    writer.publish("t", b"light", qos=0)
    assert broker.dropped == 1
    broker.restore("pi")
    assert [event.payload for event in inbox.waiting()[2:]] == [b"1", b"2"]


def test_a_message_too_large_is_logged_once(caplog):
    broker = MemoryBroker(packet_bytes_max=50)
    writer, _ = joined(broker, "writer")
    assert not writer.publish("t", bytes(50))
    assert not writer.publish("t", bytes(50))
    assert caplog.text.count("event=too_large") == 1


def test_a_callback_that_publishes_is_served_after_the_message_it_answers(broker):
    order = []
    echo, _ = joined(broker, "unused")
    echo.close()
    echo = MemoryTransport(broker, client_id="echo")

    def answer(event):
        if isinstance(event, Delivery):
            echo.publish("pong", event.payload)

    echo.subscribe(("ping",))
    echo.start(answer, timeout_s=1)
    both = MemoryTransport(broker, client_id="both")
    both.subscribe(("ping", "pong"))
    both.start(lambda event: order.append(getattr(event, "topic", None)), timeout_s=1)
    both.publish("ping", b"x")
    assert order == [None, "ping", "pong"]


def test_a_client_may_close_itself_in_its_callback(broker):
    transport, heard = MemoryTransport(broker, client_id="pi"), []

    def leave(event):
        heard.append(event)
        if isinstance(event, Delivery):
            transport.close()

    transport.subscribe(("t",))
    transport.start(leave, timeout_s=1)
    transport.publish("t", b"1")
    joined(broker, "writer")[0].publish("t", b"2")
    assert [type(event) for event in heard] == [Connected, Delivery]


def test_callbacks_that_take_a_lock_held_by_publishers_do_not_deadlock(broker):
    lock = threading.Lock()
    count = 0

    def locking(_):
        nonlocal count
        with lock:
            count += 1

    clients = []
    for number in range(4):
        client = MemoryTransport(broker, client_id=f"client-{number}")
        client.subscribe(("t",))
        client.start(locking, timeout_s=1)
        clients.append(client)

    def publish(client):
        for _ in range(200):
            client.publish("t", b"x")

    threads = [threading.Thread(target=publish, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert count == 4 + 4 * 4 * 200


def test_close_waits_for_a_delivery_that_another_thread_is_making(broker):
    entered, leave, closed = threading.Event(), threading.Event(), threading.Event()
    reader = MemoryTransport(broker, client_id="reader")

    def slow(event):
        if isinstance(event, Delivery):
            entered.set()
            assert leave.wait(10)
            assert not closed.is_set()

    def close():
        reader.close()
        closed.set()

    reader.subscribe(("t",))
    reader.start(slow, timeout_s=1)
    writer, _ = joined(broker, "writer")
    publishing = threading.Thread(target=writer.publish, args=("t", b"x"))
    closing = threading.Thread(target=close)
    publishing.start()
    assert entered.wait(10)
    closing.start()
    assert not closed.wait(0.1)
    leave.set()
    assert closed.wait(10)
    publishing.join(10)
    closing.join(10)


def test_the_same_calls_give_the_same_events():
    def run(seed):
        rng, log = random.Random(seed), []
        rig = MemoryRig()
        names = [f"device-{number}" for number in range(5)]
        for name in names:
            transport = rig.transport(
                client_id=name,
                session_expiry_s=rng.choice([0, 20]),
                will=Will(topic=f"w/{name}", payload=b"gone", delay_s=rng.choice([0, 3])),
            )
            transport.subscribe(tuple(rng.sample(["w/#", "t/+", "t/1", "t/2", "#"], 2)))
            transport.start(lambda event, name=name: log.append((name, event)), timeout_s=1)
        for _ in range(300):
            rig.now += rng.random()
            rig.broker.expire()
            name = rng.choice(names)
            match rng.choice(["drop", "restore", "publish", "publish", "retain"]):
                case "drop":
                    rig.cut(name)
                case "restore":
                    rig.mend(name)
                case action:
                    topic = f"t/{rng.randint(1, 3)}"
                    rng.choice(rig._transports).publish(topic, rng.randbytes(3), retain=action == "retain")
        rig.close()
        return log

    first = run(11)
    assert len(first) > 300
    assert first == run(11)


def test_a_client_that_vanishes_leaves_its_will_after_the_delay_and_hears_nothing_more(broker, clock):
    _, listener = joined(broker, "listener", "life")
    one, mine = joined(broker, "one", "news", will=Will(topic="life", payload=b"dead", delay_s=15))
    other, _ = joined(broker, "other")
    one.vanish()
    other.publish("news", b"today")
    assert mine.waiting() == []
    assert broker.next_deadline() == 15.0
    clock.now = 15.0
    broker.expire()
    assert listener.delivery().payload == b"dead"
    assert broker.next_deadline() is None


def test_a_client_that_vanished_may_come_back_under_its_name_and_takes_the_will_with_it(broker, clock):
    will = Will(topic="life", payload=b"dead", delay_s=15)
    first, _ = joined(broker, "one", will=will)
    first.vanish()
    clock.now = 10.0
    second, _ = joined(broker, "one", will=will)
    first.vanish()  # a second time, which harms nobody
    clock.now = 60.0
    broker.expire()
    assert broker.retained == {}
    assert second.publish("news", b"here")


def test_a_broker_that_crashes_knows_only_what_it_had_saved(broker):
    transport, inbox = joined(broker, "board", "kept", session_expiry_s=100, will=Will(topic="w", payload=b"gone"))
    transport.publish("kept", b"new", retain=True)
    inbox.waiting()
    broker.crash({"kept": b"old"})
    assert [type(event) for event in inbox.waiting()] == [Disconnected]
    assert not transport.publish("kept", b"nobody is there")
    assert broker.retained == {"kept": b"old"}, "and no will among it"
    broker.restore("board")
    assert inbox.waiting() == [Connected(), Delivery(topic="kept", payload=b"old", retain=True)]
