"""The two worlds the contract suite runs in: everything in this process, and paho against a real Mosquitto."""

import itertools
import re

from hermes_iot.runtime.broker import MosquittoBroker
from hermes_iot.transport.address import BrokerAddress
from hermes_iot.transport.backoff import Backoff
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from hermes_iot.transport.mqtt import MqttTransport
from tests.support.proxy import Proxy
from tests.transport.inbox import PATIENCE_S, Inbox

QUICK = Backoff(base_s=0.02, cap_s=0.1)

_numbers = itertools.count(1)


class Rig:
    """Makes transports, and breaks their lines."""

    def __init__(self):
        self._transports = []

    def client_id(self):
        return f"client-{next(_numbers)}"

    def transport(self, *, client_id=None, **options):
        transport = self._make(client_id or self.client_id(), options)
        self._transports.append(transport)
        return transport

    def joined(self, *topics, **options):
        """A started transport with subscriptions that have settled, and what it hears from now on."""
        transport, inbox = self.transport(**options), Inbox()
        transport.start(inbox, timeout_s=PATIENCE_S)
        inbox.connected()
        self.subscribe(transport, inbox, *topics)
        return transport, inbox

    def subscribe(self, transport, inbox, *topics):
        """Subscribe, and prove that the broker has done it: a message to ourselves comes behind it."""
        echo = f"echo/{next(_numbers)}"
        transport.subscribe((*topics, echo))
        assert transport.publish(echo, b"")
        seen = []
        while (event := inbox.delivery()).topic != echo:
            seen.append(event)
        return seen

    def close(self):
        for transport in self._transports:
            transport.close()


class MemoryRig(Rig):
    """The in-memory broker under a clock that the test moves."""

    def __init__(self, **options):
        super().__init__()
        self.now = 0.0
        self.broker = MemoryBroker(clock=lambda: self.now, **options)

    def _make(self, client_id, options):
        return MemoryTransport(self.broker, client_id=client_id, **options)

    def cut(self, client_id):
        self.broker.drop(client_id)

    def mend(self, client_id):
        self.broker.restore(client_id)

    def says_who_took_over(self):
        return True

    def silent_for(self, inbox, seconds):
        self.now += seconds
        self.broker.expire()
        return inbox.silent_for(0)


class MosquittoRig(Rig):
    """paho over a relay per client, to one Mosquitto."""

    def __init__(self, **options):
        super().__init__()
        self.broker = MosquittoBroker(**options)
        self.broker.start()
        self._wires = {}

    def _make(self, client_id, options):
        wire = self._wires.get(client_id)
        if wire is None:
            wire = self._wires[client_id] = Proxy(self.broker.address.port)
        address = BrokerAddress(host="127.0.0.1", port=wire.port)
        return MqttTransport(address, client_id=client_id, backoff=QUICK, **options)

    def cut(self, client_id):
        self._wires[client_id].cut()

    def mend(self, client_id):
        self._wires[client_id].mend()

    def says_who_took_over(self):
        """Mosquitto before 2.0.15 closes without a word (its issue 2607)."""
        version = re.search(r"mosquitto version (\d+)\.(\d+)\.(\d+)", self.broker.log)
        return tuple(map(int, version.groups())) >= (2, 0, 15)

    def silent_for(self, inbox, seconds):
        return inbox.silent_for(seconds)

    def close(self):
        super().close()
        for wire in self._wires.values():
            wire.close()
        self.broker.kill()  # it has nothing to save, and a kind word takes it a tenth of a second
        self.broker.close()
