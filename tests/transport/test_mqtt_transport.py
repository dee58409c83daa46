"""What only the transport over paho has to do: errors of the first try, limits of the broker, its own thread."""

import contextlib
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from hermes_iot.errors import BrokerError, UsageError
from hermes_iot.runtime.broker import MosquittoBroker
from hermes_iot.transport.address import BrokerAddress, TlsOptions
from hermes_iot.transport.backoff import Backoff
from hermes_iot.transport.base import Connected, Delivery, Disconnected, Refused, Will
from hermes_iot.transport.mqtt import MqttTransport
from tests.support.proxy import Proxy
from tests.transport.inbox import PATIENCE_S, Inbox
from tests.transport.peer import (
    CONNECT,
    DISCONNECT,
    PUBACK,
    SUBACK,
    SUBSCRIBE,
    ScriptedBroker,
    connack,
    message,
    packet,
)
from tests.transport.rigs import QUICK


def local(port, **options):
    return BrokerAddress(host="127.0.0.1", port=port, **options)


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hermes-mqtt")]


@contextlib.contextmanager
def started(port, *topics, client_id="unit", **options):
    transport, inbox = MqttTransport(local(port), client_id=client_id, **{"backoff": QUICK, **options}), Inbox()
    try:
        transport.subscribe(topics)
        transport.start(inbox, timeout_s=PATIENCE_S)
        yield transport, inbox
    finally:
        transport.close()


def failure(address, *, timeout_s=PATIENCE_S, **options):
    transport = MqttTransport(address, client_id="unit", **options)
    with pytest.raises(BrokerError) as caught:
        transport.start(Inbox(), timeout_s=timeout_s)
    assert threads() == []
    line = str(caught.value)
    assert "\n" not in line
    return line


# The first connection


def test_a_port_nobody_listens_on_is_named():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert failure(local(port)) == (
        f"broker mqtt://127.0.0.1:{port} refused the connection: nothing listens on port {port}. "
        "Check that the broker runs there, and host and port"
    )


def test_an_unknown_host_is_named(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    line = failure(BrokerAddress(host="brokr.example", port=1883))
    assert "broker mqtt://brokr.example:1883 cannot be found: the host name brokr.example is unknown" in line


def test_a_port_that_says_nothing_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        line = failure(local(silent.getsockname()[1]), timeout_s=0.3)
        assert time.monotonic() - began < 3
    assert "did not answer within 0.3 s" in line


def test_a_silent_name_server_does_not_hold_up_start(monkeypatch):
    release = threading.Event()

    def slow(*_, **__):
        release.wait(PATIENCE_S)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    inbox = Inbox()
    transport = MqttTransport(BrokerAddress(host="slow.example", port=1883), client_id="unit")
    with pytest.raises(BrokerError, match=r"did not answer within 0\.2 s"):
        transport.start(inbox, timeout_s=0.2)
    thread = next(thread for thread in threading.enumerate() if thread.name == "hermes-mqtt-unit")
    release.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert inbox.waiting() == []


@pytest.mark.parametrize("reply", [connack(), b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_tls_towards_a_plain_port_says_so(reply):
    with ScriptedBroker(lambda line: line.send(reply)) as broker:
        line = failure(local(broker.port, tls=True))
    assert "failed the TLS handshake: the port does not speak TLS. Use mqtt://" in line


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (connack(0x86), "does not let unit in: Bad user name or password. Check the user name"),
        (
            connack(0x87),
            "does not let unit in: Not authorized. Check the user name, and the password in HERMES_PASSWORD",
        ),
        (connack(0x84), "does not speak MQTT 5: Unsupported protocol version"),
        (packet(2, b"\0\1"), "does not speak MQTT 5: Unsupported protocol version"),  # how MQTT 3.1.1 refuses
        (connack(0x85), "does not accept the client id unit"),
        (connack(0x88), "is overloaded or shutting down: Server unavailable. Try again later"),
        (connack(0x8A), "refused the connection: Banned. Ask the broker's administrator"),
        (b"", "closed the connection before answering"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "closed the connection before answering"),
    ],
)
def test_each_refusal_has_its_line(reply, expected):
    def refuse(line):
        line.expect(CONNECT)
        line.send(reply)

    with ScriptedBroker(refuse) as broker:
        assert expected in failure(local(broker.port))


def test_a_failed_start_leaves_a_transport_that_accepts_nothing():
    with ScriptedBroker(lambda _: None) as broker:
        transport = MqttTransport(local(broker.port), client_id="unit")
        with pytest.raises(BrokerError):
            transport.start(Inbox(), timeout_s=PATIENCE_S)
    assert not transport.publish("a", b"")
    transport.close()


def test_tls_files_need_a_tls_address():
    with pytest.raises(UsageError, match="Use mqtts://"):
        MqttTransport(local(1883), client_id="unit", tls=TlsOptions())


def test_a_tls_file_that_cannot_be_read_is_named(tmp_path):
    transport = MqttTransport(local(1, tls=True), client_id="unit", tls=TlsOptions(ca_file=tmp_path / "ca.pem"))
    with pytest.raises(UsageError, match=r"ca\.pem cannot be used: No such file"):
        transport.start(Inbox(), timeout_s=1.0)


def test_address_and_memory_transport_load_neither_paho_nor_ssl():
    code = (
        "import sys, hermes_iot.transport.address, hermes_iot.transport.memory;"
        "sys.exit(any(name.split('.')[0] in {'paho', 'ssl', 'numpy'} for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What CONNECT asks for


def connect_body(**options):
    seen = queue.SimpleQueue()

    def script(line):
        seen.put(line.accept())
        line.wait_for_end()

    with ScriptedBroker(script) as broker, started(broker.port, **options):
        return seen.get(timeout=PATIENCE_S)


def test_a_clean_session_is_asked_for_unless_it_shall_last():
    assert connect_body()[7] & 0b10
    resuming = connect_body(session_expiry_s=77)
    assert not resuming[7] & 0b10
    assert b"\x11" + (77).to_bytes(4, "big") in resuming


def test_a_delayed_will_gets_a_session_that_outlives_the_delay():
    body = connect_body(will=Will(topic="w", payload=b"gone", delay_s=15))
    assert not body[7] & 0b10
    assert b"\x11" + (15).to_bytes(4, "big") in body
    assert b"\x18" + (15).to_bytes(4, "big") in body


def test_user_and_password_are_sent_and_the_address_may_name_the_user():
    assert connect_body(username="amy", password="s3cret").endswith(b"\0\3amy\0\6s3cret")
    seen = queue.SimpleQueue()

    def script(line):
        seen.put(line.accept())
        line.wait_for_end()

    with ScriptedBroker(script) as broker:
        transport = MqttTransport(local(broker.port, username="amy"), client_id="unit", password="s3cret")
        transport.start(Inbox(), timeout_s=PATIENCE_S)
        transport.close()
    assert seen.get(timeout=PATIENCE_S).endswith(b"\0\3amy\0\6s3cret")


# The line to the broker


def test_a_taken_over_connection_is_told_and_rests_until_asked():
    def displaced(line):
        line.accept()
        line.send(packet(DISCONNECT, b"\x8e\0"))

    def again(line):
        line.accept()
        line.wait_for_end()

    with ScriptedBroker(displaced, again) as broker, started(broker.port) as (transport, inbox):
        inbox.connected()
        assert inbox.disconnected() == Disconnected(reason="Session taken over", taken_over=True)
        assert inbox.silent_for(0.3)  # many times the back-off
        transport.reconnect()
        assert inbox.next() == Connected()


def test_a_rest_after_a_take_over_ends_with_close():
    def displaced(line):
        line.accept()
        line.send(packet(DISCONNECT, b"\x8e\0"))

    with ScriptedBroker(displaced) as broker, started(broker.port) as (_, inbox):
        assert inbox.disconnected().taken_over
    assert threads() == []


class Counting:
    """A back-off that waits for nothing and remembers what it was asked."""

    def __init__(self, *, stable_s):
        self.stable_s = stable_s
        self.asked = queue.SimpleQueue()

    def wait_s(self, failures, chance):
        self.asked.put((failures, chance))
        return 0.0


def brief(line):
    line.accept()


def lasting(line):
    line.accept()
    line.wait_for_end()


def test_short_connections_do_not_reset_the_back_off_and_jitter_is_drawn_for_each_wait():
    draws = iter([0.1, 0.2, 0.3])
    backoff = Counting(stable_s=5.0)
    with (
        ScriptedBroker(brief, brief, brief, lasting) as broker,
        started(broker.port, backoff=backoff, chance=lambda: next(draws)) as (_, inbox),
    ):
        for _ in range(4):
            inbox.connected()
        assert [backoff.asked.get(timeout=PATIENCE_S) for _ in range(3)] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_stable_connection_resets_the_back_off():
    backoff = Counting(stable_s=0.0)
    with ScriptedBroker(brief, brief, lasting) as broker, started(broker.port, backoff=backoff) as (_, inbox):
        for _ in range(3):
            inbox.connected()
        assert [backoff.asked.get(timeout=PATIENCE_S)[0] for _ in range(2)] == [1, 1]


def test_close_does_not_wait_for_the_back_off():
    slow = Backoff(base_s=60.0, cap_s=60.0)
    with ScriptedBroker(brief) as broker, started(broker.port, backoff=slow) as (transport, inbox):
        inbox.disconnected()
        began = time.monotonic()
        transport.close()
        assert time.monotonic() - began < 1
    assert threads() == []


def test_reconnect_cuts_the_back_off_short():
    slow = Backoff(base_s=60.0, cap_s=60.0)
    with ScriptedBroker(brief, lasting) as broker, started(broker.port, backoff=slow) as (transport, inbox):
        inbox.disconnected()
        transport.reconnect()
        inbox.connected()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff\xff\xff",  # a length of five bytes
        b"\x30\x02\xff\xff",  # a topic longer than its packet
        b"\x00\x00",  # packet type 0
        packet(CONNECT, b"\0\4MQTT\5\2\0\0\0\0\0"),  # a server does not connect
        packet(SUBACK, b""),
        packet(PUBACK, b"\0\1\x77"),  # an unknown reason code
        packet(9, b"\0\1\0\x03"),  # an unknown granted QoS
    ],
)
def test_garbage_from_the_broker_costs_the_connection_not_the_thread(garbage, topic):
    def hostile(line):
        line.accept()
        line.send(garbage)
        line.wait_for_end()

    def honest(line):
        line.accept()
        line.send(message(topic.encode(), b"back"))
        line.wait_for_end()

    with ScriptedBroker(hostile, honest) as broker, started(broker.port) as (_, inbox):
        inbox.disconnected()
        inbox.connected()
        assert inbox.delivery() == Delivery(topic=topic, payload=b"back")


def test_a_topic_that_is_no_text_costs_one_message():
    def script(line):
        line.accept()
        line.send(message(b"\xff\xfe", b"lost") + message(b"good", b"kept"))
        line.wait_for_end()

    with ScriptedBroker(script) as broker, started(broker.port) as (_, inbox):
        assert inbox.delivery() == Delivery(topic="good", payload=b"kept")


def test_a_half_open_line_is_noticed_by_the_keep_alive():
    def frozen(line):
        line.accept()
        line.expect(12)  # PINGREQ, never answered
        line.wait_for_end()

    with (
        ScriptedBroker(frozen, lasting) as broker,
        started(broker.port, keepalive_s=1) as (_, inbox),
    ):
        assert inbox.disconnected().reason == "keep alive timeout"
        inbox.connected()


def test_close_is_quick_on_a_line_that_stalled_with_a_full_buffer():
    stalled = threading.Event()

    def deaf(line):
        line.accept()
        stalled.wait(PATIENCE_S)

    with ScriptedBroker(deaf) as broker, started(broker.port) as (transport, _):
        while transport.publish("a", bytes(1_000_000)):
            pass
        began = time.monotonic()
        transport.close()
        assert time.monotonic() - began < 3
        stalled.set()
    assert threads() == []


# Publishing within limits


def test_a_message_that_was_sent_but_not_acknowledged_is_sent_again_and_flush_waits_for_it():
    def forgetful(line):
        line.accept()
        line.publish()

    def honest(line):
        line.accept()
        packet_id, again, payload = line.publish()
        assert again
        assert payload == b"once at least"
        line.send(packet(PUBACK, packet_id))
        line.wait_for_end()

    with ScriptedBroker(forgetful, honest) as broker, started(broker.port) as (transport, _):
        assert transport.publish("a", b"once at least")
        assert transport.flush(timeout_s=PATIENCE_S)


def test_messages_not_sent_yet_are_dropped_with_the_connection_and_flush_says_so():
    def forgetful(line):
        line.accept(receive_max=1)
        line.publish()

    def honest(line):
        line.accept(receive_max=1)
        for expected in (b"first", b"fresh"):
            packet_id, _, payload = line.publish()
            assert payload == expected
            line.send(packet(PUBACK, packet_id))
        line.wait_for_end()

    with ScriptedBroker(forgetful, honest) as broker, started(broker.port) as (transport, inbox):
        assert transport.publish("a", b"first")
        if transport.publish("a", b"stale"):
            assert not transport.flush(timeout_s=PATIENCE_S)
        inbox.disconnected()
        inbox.connected()
        assert transport.publish("a", b"fresh")
        assert transport.flush(timeout_s=PATIENCE_S)


def test_no_more_messages_are_under_way_than_the_broker_takes():
    window = 3
    checked = threading.Event()

    def strict(line):
        line.accept(receive_max=window)
        under_way = [line.publish()[0] for _ in range(window)]
        line._sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            line.read()
        line._sock.settimeout(20)
        checked.set()
        for packet_id in under_way:
            line.send(packet(PUBACK, packet_id))
        for _ in range(10 - window):
            line.send(packet(PUBACK, line.publish()[0]))
        line.wait_for_end()

    with ScriptedBroker(strict) as broker, started(broker.port) as (transport, _):
        assert all(transport.publish("a", bytes([number])) for number in range(10))
        assert not transport.flush(timeout_s=0.05)
        assert transport.flush(timeout_s=PATIENCE_S)
        assert checked.is_set()


def heedless(count, payload=b"x"):
    """A broker that sends so many messages whatever the window."""

    def script(line):
        line.accept()
        for number in range(count):
            line.send(message(b"a", payload, packet_id=number + 1))
        line.wait_for_end()

    return script


def test_a_broker_that_does_not_keep_to_our_window_is_not_read_beyond_it():
    with (
        ScriptedBroker(heedless(300)) as broker,
        started(broker.port, manual_ack=True) as (transport, inbox),
    ):
        receipts = [inbox.delivery().receipt for _ in range(256)]
        assert inbox.silent_for(0.2)
        transport.acknowledge(receipts[:10])
        assert len([inbox.delivery() for _ in range(10)]) == 10
        assert inbox.silent_for(0.2)
        transport.acknowledge(receipts[10:])
        assert len([inbox.delivery() for _ in range(34)]) == 34


def test_large_messages_wait_at_the_broker_once_the_unacknowledged_ones_are_32_mib():
    with (
        ScriptedBroker(heedless(40, bytes(2**20))) as broker,
        started(broker.port, manual_ack=True) as (transport, inbox),
    ):
        receipts = [inbox.delivery().receipt for _ in range(32)]
        assert inbox.silent_for(0.2)
        transport.acknowledge(receipts)
        assert len([inbox.delivery() for _ in range(8)]) == 8


def test_the_answer_to_a_publish_is_read_past_messages_nobody_has_acknowledged():
    def script(line):
        line.accept()
        for number in range(300):
            line.send(message(b"a", b"x", packet_id=number + 1))
        line.send(packet(PUBACK, line.publish()[0]))
        for number in range(300, 350):
            line.send(message(b"a", b"x", packet_id=number + 1))
        line.wait_for_end()

    with ScriptedBroker(script) as broker, started(broker.port, manual_ack=True) as (transport, inbox):
        assert len([inbox.delivery() for _ in range(256)]) == 256
        assert inbox.silent_for(0.2)
        assert transport.publish("b", b"an owner waits for this before he acknowledges")
        assert inbox.silent_for(0.2), "nobody waits for the answer yet"
        assert transport.flush(timeout_s=5.0), "sooner than half a keep-alive"
        assert len([inbox.delivery() for _ in range(44)]) == 44


def test_whoever_acknowledges_nothing_is_read_to_again_before_the_keep_alive_would_fail():
    with (
        ScriptedBroker(heedless(300)) as broker,
        started(broker.port, manual_ack=True, keepalive_s=2) as (_, inbox),
    ):
        inbox.connected()
        assert len([inbox.delivery() for _ in range(256)]) == 256
        stopped = time.monotonic()
        assert len([inbox.delivery() for _ in range(44)]) == 44
        assert 0.5 < time.monotonic() - stopped < 2


@pytest.mark.mosquitto
def test_mosquitto_sends_a_window_more_for_each_message_acknowledged_and_is_not_read(topic):
    with (
        MosquittoBroker(settings=("max_queued_messages 0",)) as broker,
        started(broker.address.port, topic, client_id="reader", session_expiry_s=60, manual_ack=True) as (
            reader,
            inbox,
        ),
        started(broker.address.port, client_id="writer", max_queued_messages=1000) as (writer, _),
    ):
        for number in range(1000):
            assert writer.publish(topic, number.to_bytes(2, "big"))
        assert writer.flush(timeout_s=PATIENCE_S)
        first = inbox.first(Delivery)
        receipts = [first.receipt, *(inbox.delivery().receipt for _ in range(255))]
        reader.acknowledge(receipts[:1])
        assert inbox.delivery().payload == (256).to_bytes(2, "big")
        assert inbox.silent_for(0.2)


def test_a_full_queue_accepts_nothing_more_until_the_broker_answers():
    release = threading.Event()

    def slow(line):
        line.accept()
        ids = [line.publish()[0] for _ in range(4)]
        assert release.wait(PATIENCE_S)
        for packet_id in ids:
            line.send(packet(PUBACK, packet_id))
        line.wait_for_end()

    with ScriptedBroker(slow) as broker, started(broker.port, max_queued_messages=4) as (transport, _):
        assert [transport.publish("a", b"x") for _ in range(5)] == [True] * 4 + [False]
        release.set()
        assert transport.flush(timeout_s=PATIENCE_S)


def test_a_message_too_large_for_the_broker_is_never_sent_and_logged_once(caplog):
    def small(line):
        line.accept(packet_bytes_max=100)
        packet_id, _, payload = line.publish()
        assert payload == b"fits"
        line.send(packet(PUBACK, packet_id))
        line.wait_for_end()

    with ScriptedBroker(small) as broker, started(broker.port) as (transport, inbox):
        assert inbox.next() == Connected(packet_bytes_max=100)
        assert not transport.publish("a", bytes(100))
        assert not transport.publish("a", bytes(100))
        assert transport.publish("a", b"fits")
        assert transport.flush(timeout_s=PATIENCE_S)
    assert caplog.text.count("event=too_large") == 1


def test_a_broker_that_comes_back_with_a_smaller_limit_is_not_sent_the_old_message_again():
    def generous(line):
        line.accept()
        assert len(line.publish()[2]) == 500
        line.publish()

    def strict(line):
        line.accept(packet_bytes_max=100)
        packet_id, _, payload = line.publish()
        assert payload == b"small"
        line.send(packet(PUBACK, packet_id))
        line.wait_for_end()

    with ScriptedBroker(generous, strict) as broker, started(broker.port) as (transport, inbox):
        assert transport.publish("big", bytes(500))
        assert transport.publish("small", b"small")
        assert not transport.flush(timeout_s=PATIENCE_S)
        assert inbox.first(Refused).topic == "big"
        assert transport.flush(timeout_s=PATIENCE_S)


def test_a_refused_publish_names_its_topic_and_counts_as_answered():
    def strict(line):
        line.accept()
        line.send(packet(PUBACK, line.publish()[0] + b"\x87"))
        line.wait_for_end()

    with ScriptedBroker(strict) as broker, started(broker.port) as (transport, inbox):
        assert transport.publish("secret/topic", b"x")
        assert transport.flush(timeout_s=PATIENCE_S)
        assert inbox.first(Refused) == Refused(topic="secret/topic", reason="Not authorized")


def test_a_refused_subscription_names_its_topic():
    def strict(line):
        line.accept()
        _, body = line.expect(SUBSCRIBE)
        line.send(packet(SUBACK, body[:2] + b"\0" + b"\x01\x87"))
        line.wait_for_end()

    with ScriptedBroker(strict) as broker, started(broker.port, "mine", "secret/#") as (_, inbox):
        assert inbox.first(Refused) == Refused(topic="secret/#", reason="Not authorized")


# With a real broker


def certificate(directory, name, alternative):
    """A certificate that signed itself, made by the openssl of this machine, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"), "server", "IP:127.0.0.1")


def tls_broker(cert, key, *more, **files):
    contents = {"server.pem": cert.read_text(), "server.key": key.read_text(), **files}
    return MosquittoBroker(settings=("certfile server.pem", "keyfile server.key", *more), files=contents, tls=True)


@pytest.mark.mosquitto
def test_large_messages_cross_tls(server, topic):
    with tls_broker(*server) as broker:
        inbox = Inbox()
        transport = MqttTransport(broker.address, client_id="unit", tls=TlsOptions(ca_file=server[0]))
        transport.subscribe((topic,))
        try:
            transport.start(inbox, timeout_s=PATIENCE_S)
            sent = [bytes([number]) * 120_000 for number in range(30)]
            assert all(transport.publish(topic, payload) for payload in sent)
            assert transport.publish(topic, b"end")
            assert inbox.payloads_until(b"end") == sent
        finally:
            transport.close()


@pytest.mark.mosquitto
def test_a_certificate_nobody_vouches_for_is_refused(server):
    with tls_broker(*server) as broker:
        assert "Give the CA file that signed the broker's certificate" in failure(broker.address)


@pytest.mark.mosquitto
def test_a_certificate_of_another_host_is_refused(tmp_path):
    cert, key = certificate(tmp_path, "other", "DNS:other.example")
    with tls_broker(cert, key) as broker:
        line = failure(broker.address, tls=TlsOptions(ca_file=cert))
    assert "mismatch" in line
    assert "Use the host name the broker's certificate was made for" in line


@pytest.mark.mosquitto
def test_a_missing_client_certificate_is_named_and_a_good_one_lets_us_in(server, tmp_path):
    cert, key = certificate(tmp_path, "device", "DNS:device")
    more = ("cafile ca.pem", "require_certificate true")
    with tls_broker(*server, *more, **{"ca.pem": cert.read_text()}) as broker:
        assert "wants a client certificate" in failure(broker.address, tls=TlsOptions(ca_file=server[0]))
        options = TlsOptions(ca_file=server[0], cert_file=cert, key_file=key)
        transport, inbox = MqttTransport(broker.address, client_id="unit", tls=options), Inbox()
        try:
            transport.start(inbox, timeout_s=PATIENCE_S)
            assert inbox.next() == Connected()
        finally:
            transport.close()


@pytest.mark.mosquitto
def test_a_plain_connection_to_a_tls_port_is_told_to_use_mqtts(server):
    with tls_broker(*server) as broker:
        assert "whether it wants mqtts:// instead" in failure(local(broker.address.port))


@pytest.mark.mosquitto
def test_tls_to_a_real_broker_without_it_says_so():
    with MosquittoBroker() as broker:
        line = failure(local(broker.address.port, tls=True))
    assert "the port does not speak TLS" in line


@pytest.mark.mosquitto
def test_an_access_list_that_denies_a_publish_is_told(topic):
    with (
        MosquittoBroker(settings=("acl_file acl",), files={"acl": "topic readwrite open/#\n"}) as broker,
        started(broker.address.port) as (transport, inbox),
    ):
        assert transport.publish(topic, b"x")
        assert inbox.first(Refused) == Refused(topic=topic, reason="Not authorized")
        assert transport.publish("open/x", b"x")
        assert transport.flush(timeout_s=PATIENCE_S)
        assert inbox.waiting() == []


@pytest.mark.mosquitto
def test_a_broker_that_wants_a_password_refuses_a_client_without():
    with MosquittoBroker(settings=("allow_anonymous false",)) as broker:
        assert "does not let unit in: Not authorized" in failure(broker.address)


@pytest.mark.mosquitto
def test_a_broker_that_was_killed_and_restarted_is_found_again(topic):
    with MosquittoBroker() as broker, started(broker.address.port, topic) as (transport, inbox):
        inbox.connected()
        broker.kill()
        inbox.disconnected()
        assert not transport.publish(topic, b"x")
        broker.restart()
        inbox.connected()
        assert transport.publish(topic, b"again")
        assert inbox.delivery().payload == b"again"


@pytest.mark.mosquitto
def test_close_is_clean_when_the_broker_is_gone():
    with MosquittoBroker() as broker, started(broker.address.port) as (transport, inbox):
        inbox.connected()
        broker.kill()
        inbox.disconnected()
        transport.close()
    assert threads() == []


@pytest.mark.mosquitto
def test_two_thousand_messages_cross_a_line_that_breaks_and_every_acknowledged_one_arrives(mosquitto, topic):
    port = BrokerAddress.parse(mosquitto).port
    wire = Proxy(port)
    try:
        with (
            started(port, topic, client_id="reader", max_queued_messages=64) as (_, reader),
            started(wire.port, client_id="writer", max_queued_messages=64) as (writer, events),
        ):
            for number in range(2_000):
                while not writer.publish(topic, number.to_bytes(4, "big")) or (
                    number % 50 == 49 and not writer.flush(timeout_s=PATIENCE_S)
                ):
                    events.waiting()
                    writer.flush(timeout_s=0.05)
                if number in (500, 1_500):
                    wire.cut()
                    events.disconnected()
                    wire.mend()
                    events.connected()
            assert writer.flush(timeout_s=PATIENCE_S)
            assert writer.publish(topic, b"end")
            numbers = [int.from_bytes(payload, "big") for payload in reader.payloads_until(b"end")]
        settled = [number for number in range(2_000) if number % 50 == 49]
        assert set(settled) <= set(numbers)
        assert len(set(numbers)) >= 2_000 - 2 * 64  # at most a queue is lost with each connection
    finally:
        wire.close()
