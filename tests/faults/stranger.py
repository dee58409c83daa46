"""A client under a device's name that says what no device of ours would say, to a coordinator on a real broker."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager

import numpy as np

from hermes_iot.algorithms.compression import pack
from hermes_iot.protocol.messages import Ack, DeviceStatus, Update
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire
from tests.faults.fleet import board, check, led, more_merges
from tests.support.fleet import PATIENCE_S, Watcher, over_mqtt, running


class Stranger:
    """Connected as `name`; its birth is said, and the coordinator has let it in."""

    def __init__(self, coordinator, records, watcher, connect, name="pi-09"):
        self.name = name
        self.coordinator = coordinator
        self.records = records
        self.watcher = watcher
        self.topics: Topics = coordinator.topics
        self.wire = Wire(self.topics, chunk_bytes=coordinator.machine.manifest.chunk_bytes)
        self._transport = connect(name, None)
        self._transport.start(lambda _event: None, timeout_s=PATIENCE_S)
        self.say(DeviceStatus(state="online", session=1, instance="0" * 32, host="stranger"))
        records.wait("joined", device=name)

    def close(self):
        self._transport.close()

    @property
    def model(self):
        """What must not change: version and digest of the global model."""
        machine = self.coordinator.machine
        return machine.version, hashlib.sha256(machine.model.tobytes()).hexdigest()

    def update(self, seq, value=0.0, **changes):
        """A good update whose entries are about `value`, noisy so that nothing packs it smaller; `changes` bend it."""
        manifest = self.coordinator.machine.manifest
        fields = {
            "run": manifest.run,
            "session": 1,
            "seq": seq,
            "base_version": self.coordinator.machine.version,
            "model": manifest.model.sha256,
            "codec": manifest.codec,
            "parameters": manifest.model.parameters,
            "loss": 0.5,
            "samples": 16,
            "batch": 16,
            "mini_batches": 1,
            "train_s": 0.1,
            "iterations": 1,
        }
        if "body" not in changes:
            noise = np.random.default_rng(seq).normal(value, 1e-3, manifest.model.parameters)
            fields["body"] = pack(noise.astype(np.float32), manifest.codec)
        return Update(**(fields | changes))

    def say(self, message):
        for packet in self.wire.outgoing(message, device=self.name):
            self.publish(packet.topic, packet.payload)

    def publish(self, topic, payload, **options):
        while not self._transport.publish(topic, payload, **options):
            assert self._transport.flush(timeout_s=PATIENCE_S)

    def up(self, channel, payload):
        """Any bytes on a channel of its own."""
        self.publish(self.topics.up(self.name, channel), payload)

    def answered(self, update):
        """The coordinator's word on an update."""
        ack = self.watcher.wait(
            self.topics.down(self.name, "ack"), Ack, lambda one: (one.session, one.seq) == (update.session, update.seq)
        )
        return ack.outcome, ack.reason

    def settled(self):
        """Until everything said before now was handled: what is refused now was said behind it."""
        before = len([one for one in self.records.of("refused") if one["channel"] == "metrics"])
        self.publish(self.topics.up(self.name, "metrics"), b"no json")
        self.records.wait("refused", before + 1, device=self.name, channel="metrics")


@contextmanager
def met(mosquitto, tmp_path, *, fleet, **options):
    """A coordinator with a stranger in its fleet; an honest device still contributes when the stranger is done."""
    connect = over_mqtt(mosquitto)
    coordinator, records = led(connect, tmp_path, fleet=fleet, **options)
    with running(coordinator) as leading, Watcher(connect, fleet=fleet) as watcher:
        watcher.wait(watcher.topics.all("run"), type(coordinator.machine.manifest), lambda _: True)
        one = Stranger(coordinator, records, watcher, connect)
        try:
            yield one
            device = board(connect, tmp_path, "pi-01", fleet=fleet, toy=options.get("toy"))
            with running(device) as honest:
                more_merges(records, "pi-01")
                assert (leading.error, honest.error) == (None, None)
        finally:
            one.close()
    check(coordinator, records)
