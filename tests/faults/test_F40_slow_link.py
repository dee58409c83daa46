"""F40: a link of 64 kbit/s. An exchange completes, in parts, and nobody is disconnected by his own keep-alive."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import DeviceStatus
from hermes_iot.runtime.broker import MosquittoBroker
from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.base import Delivery
from hermes_iot.transport.mqtt import MqttTransport
from tests.support.fleet import Watcher, over_mqtt, running, toy_config, toy_coordinator, toy_device

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(240)]

BYTES_PER_S = 8_000
CHUNK_BYTES = 16_000
KEEPALIVE_S = 4
#: 32,032 parameters: 64 KB as fp16, 8 s on this link.
TOY = {"features": 1000, "classes": 32, "rows": 300}


class SlowLine:
    """Between one client and the broker: so many bytes a second each way, and next to no buffer of its own."""

    def __init__(self, address, bytes_per_s):
        self._address, self._bytes_per_s = address, bytes_per_s
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.port = self._server.getsockname()[1]
        self.connections, self._closed, self._threads = 0, threading.Event(), []
        self._run(self._accept)

    def _run(self, call, *args):
        thread = threading.Thread(target=call, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while not self._closed.is_set():
                client, _ = self._server.accept()
                self.connections += 1
                broker = socket.socket()
                broker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                broker.connect((self._address.host, self._address.port))
                self._run(self._pump, client, broker)
                self._run(self._pump, broker, client)

    def _pump(self, source, sink):
        with contextlib.suppress(OSError), source, sink:
            due = time.monotonic()
            while data := source.recv(512):
                due = max(due, time.monotonic()) + len(data) / self._bytes_per_s
                if self._closed.wait(max(0.0, due - time.monotonic())):
                    return
                sink.sendall(data)

    def close(self):
        self._closed.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(5)


def test_F40_an_exchange_over_64_kbit_completes_and_keeps_its_connection(tmp_path):
    config = toy_config(
        rules=StopRules(max_pushes=2), samples=40, strategy="bsp", codec="fp16", chunk_bytes=CHUNK_BYTES
    )
    with MosquittoBroker() as broker:
        line = SlowLine(broker.address, BYTES_PER_S)

        def slow(client_id, will):
            address = BrokerAddress(host="127.0.0.1", port=line.port)
            return MqttTransport(address, client_id=client_id, will=will, keepalive_s=KEEPALIVE_S, session_expiry_s=15)

        try:
            connect = over_mqtt(broker.url)
            with (
                Watcher(connect, fleet="lab") as watcher,
                running(
                    toy_coordinator(connect, tmp_path / "run", config=config, toy=TOY),
                    toy_device(slow, tmp_path, "pi-01", toy=TOY),
                ) as (one, device),
            ):
                summary = one.wait(150)
                device.wait(60)
                watcher.settled()
        finally:
            line.close()
    assert (summary["updates_applied"], summary["updates_rejected"], summary["updates_stale"]) == (2, 0, 0)
    assert line.connections == 1, "it never lost its connection"
    states = [one.state for one in watcher.said(watcher.topics.up("pi-01", "status"), DeviceStatus)]
    assert "offline" not in states[:-1]
    heard = [
        one for one in watcher.all if isinstance(one, Delivery) and one.topic == watcher.topics.up("pi-01", "update")
    ]
    chunks = [codec.decode_chunk(one.payload, Limits()) for one in heard]
    sent = Counter((chunk.id, chunk.part) for chunk in chunks)
    assert set(sent.values()) == {1}, "nothing is repeated while it is on its way"
    assert 2 <= len({chunk.id for chunk in chunks}) <= 3, "the answer to the last may come before the end is known"
