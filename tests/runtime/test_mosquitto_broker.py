"""The Mosquitto we start ourselves: ready when start returns, gone when we say so, honest when it cannot start."""

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from hermes_iot.errors import BrokerError, UsageError
from hermes_iot.runtime import broker as module
from hermes_iot.runtime.broker import MosquittoBroker, find_mosquitto
from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.mqtt import MqttTransport
from tests.transport.inbox import PATIENCE_S, Inbox

mosquitto_only = pytest.mark.mosquitto


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def client(broker, *topics, client_id="unit", **options):
    transport, inbox = MqttTransport(broker.address, client_id=client_id, **options), Inbox()
    try:
        transport.subscribe(topics)
        transport.start(inbox, timeout_s=PATIENCE_S)
        yield transport, inbox
    finally:
        transport.close()


@pytest.fixture
def reachable_dir():
    """A directory that also mosquitto's user can enter; pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="hermes-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@mosquitto_only
def test_it_accepts_connections_when_start_returns_and_leaves_nothing():
    with MosquittoBroker() as broker:
        pid, directory = broker.pid, broker._directory
        assert broker.url == f"mqtt://127.0.0.1:{broker.address.port}"
        socket.create_connection(("127.0.0.1", broker.address.port), timeout=1).close()
        assert alive(pid)
    assert broker.pid is None
    assert not alive(pid)  # a zombie would still answer
    assert not directory.exists()
    broker.close()


@mosquitto_only
def test_it_listens_on_loopback_only():
    with MosquittoBroker() as broker:
        tables = [Path(f"/proc/net/{table}") for table in ("tcp", "tcp6")]
        if not tables[0].exists():
            pytest.skip("needs /proc/net")
        lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
        port = f"{broker.address.port:04X}"
        listening = {fields[1] for fields in lines if fields[3] == "0A" and fields[1].endswith(f":{port}")}
    assert listening == {f"0100007F:{port}"}


@mosquitto_only
def test_kill_and_restart_keep_the_port():
    with MosquittoBroker() as broker:
        before, pid = broker.url, broker.pid
        broker.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", broker.address.port), timeout=1)
        broker.restart()
        assert broker.url == before
        assert broker.pid != pid
        broker.restart()
        with client(broker) as (_, inbox):
            inbox.connected()


@mosquitto_only
def test_without_persistence_a_restart_forgets(topic):
    with MosquittoBroker() as broker:
        with client(broker) as (transport, _):
            transport.publish(topic, b"kept", retain=True)
            assert transport.flush(timeout_s=PATIENCE_S)
        broker.restart()
        with client(broker, topic) as (transport, inbox):
            transport.publish(topic, b"end")
            assert inbox.payloads_until(b"end") == []


@mosquitto_only
def test_with_persistence_a_restart_remembers_and_close_keeps_the_directory(reachable_dir, topic):
    store = reachable_dir / "store"
    with MosquittoBroker(persistence_dir=store) as broker:
        with client(broker) as (transport, _):
            transport.publish(topic, b"kept", retain=True)
            assert transport.flush(timeout_s=PATIENCE_S)
        broker.restart()
        with client(broker, topic) as (_, inbox):
            assert inbox.delivery().payload == b"kept"
    assert (store / "mosquitto.db").exists()


@mosquitto_only
def test_root_is_told_when_mosquittos_user_cannot_reach_the_persistence_directory(reachable_dir):
    if os.geteuid() != 0:
        pytest.skip("only root changes its user")
    closed = reachable_dir / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UsageError, match=rf"may not enter {closed}\. Choose another directory"):
        MosquittoBroker(persistence_dir=closed / "store").start()


@mosquitto_only
def test_files_beside_the_configuration_are_found_by_name():
    files = {"acl": "topic read all/#\n"}
    with MosquittoBroker(settings=("acl_file acl",), files=files) as broker, client(broker) as (_, inbox):
        inbox.connected()


@mosquitto_only
def test_a_packet_limit_reaches_clients():
    with MosquittoBroker(packet_bytes_max=20_000) as broker, client(broker) as (_, inbox):
        assert inbox.connected().packet_bytes_max == 20_000


@mosquitto_only
def test_a_bad_setting_gives_its_own_words_and_leaves_no_directory():
    broker = MosquittoBroker(settings=("no_such_setting yes",))
    with pytest.raises(BrokerError, match=r"mosquitto did not start: .*no_such_setting"):
        broker.start()
    assert broker.pid is None
    assert broker._directory is None


@mosquitto_only
def test_a_port_that_is_taken_is_named_and_not_mistaken_for_ours():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} cannot be used: Address already in use"):
            MosquittoBroker(port=port).start()


@mosquitto_only
def test_a_free_port_that_was_snatched_is_replaced(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as probe:
        ports = iter([other.getsockname()[1], probe.getsockname()[1]])
        free = probe.getsockname()[1]
        probe.close()
        monkeypatch.setattr(MosquittoBroker, "_free_port", staticmethod(lambda: next(ports)))
        with MosquittoBroker() as broker:
            assert broker.address == BrokerAddress(host="127.0.0.1", port=free)


@mosquitto_only
def test_a_second_start_changes_nothing():
    with MosquittoBroker() as broker:
        pid = broker.pid
        broker.start()
        assert broker.pid == pid


@mosquitto_only
def test_one_that_died_by_itself_is_started_again():
    with MosquittoBroker() as broker:
        pid = broker.pid
        broker._process.kill()
        broker._process.wait()
        broker.start()
        assert broker.pid != pid
        with client(broker) as (_, inbox):
            inbox.connected()


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_an_impossible_port_is_refused(port):
    with pytest.raises(UsageError, match="from 1 to 65535"):
        MosquittoBroker(port=port)


@mosquitto_only
def test_two_brokers_live_side_by_side():
    with MosquittoBroker() as one, MosquittoBroker() as other:
        assert one.url != other.url
        one.stop()
        with client(other) as (_, inbox):
            inbox.connected()


def test_before_start_there_is_no_address():
    with pytest.raises(RuntimeError, match="no port"):
        _ = MosquittoBroker().address
    assert MosquittoBroker().log == ""


@mosquitto_only
def test_the_binary_is_found():
    assert find_mosquitto().is_file()


def test_a_missing_binary_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(module, "_DIRECTORIES", ("/nonexistent/sbin",))
    with pytest.raises(UsageError, match=r"apt-get install mosquitto.*brew install mosquitto"):
        find_mosquitto()
    with pytest.raises(UsageError, match="mosquitto is not installed"):
        MosquittoBroker().start()
