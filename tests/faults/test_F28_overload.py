"""F28: a coordinator that does not keep up, and a broker whose queue for it is full. Bounded, seen, and it mends."""

import time
from collections import Counter
from dataclasses import replace

import pytest

from hermes_iot.core.redo import UpdateTaken
from hermes_iot.protocol.messages import Ack
from hermes_iot.runtime import redo_log
from hermes_iot.runtime.broker import MosquittoBroker
from hermes_iot.storage.journal import Journal
from hermes_iot.transport import mqtt
from tests.faults.fleet import BACKOFF, SOON, board, check, led, more_merges
from tests.support.fleet import PATIENCE_S, Records, Watcher, over_mqtt, running
from tests.support.proxy import Proxy

pytestmark = pytest.mark.mosquitto

NAMES = ("pi-01", "pi-02", "pi-03")
#: A device that goes on alone only after a while: what is measured is how much it says while nobody answers.
PATIENT = replace(SOON, retry_s=0.2, retry_max_s=1.0, alone_after_s=0.2)
QUEUED_MAX = 4
UPDATES = 15


def flood(connect, topic):
    """Fill everything the broker keeps for a coordinator that takes nothing: its window, and the queue behind it."""
    transport = connect("flood", None)
    transport.start(lambda _event: None, timeout_s=PATIENCE_S)
    for _ in range(mqtt._UNACKNOWLEDGED_MAX + QUEUED_MAX):
        while not transport.publish(topic, b"no json"):
            assert transport.flush(timeout_s=PATIENCE_S)
    assert transport.flush(timeout_s=PATIENCE_S)
    transport.close()


def said(watcher):
    """How many packets of updates each device has published."""
    topics = Counter(event.topic for event in watcher.all)
    return {name: topics[watcher.topics.up(name, "update")] for name in NAMES}


def test_F28_a_coordinator_that_hears_nothing_for_a_while_loses_nothing_that_it_acked(tmp_path):
    own = {name: Records() for name in NAMES}
    # Beyond the window of a client that does not take them the broker keeps four messages, and drops the rest silently.
    with MosquittoBroker(settings=(f"max_queued_messages {QUEUED_MAX}",)) as broker:
        connect = over_mqtt(broker.url)
        with Proxy(broker.address.port) as proxy, Watcher(connect, fleet="lab") as watcher:
            coordinator, records = led(over_mqtt(proxy.url, backoff=BACKOFF, keepalive_s=60), tmp_path)
            devices = [board(connect, tmp_path, name, settings=PATIENT, on_record=own[name]) for name in NAMES]
            with running(coordinator, *devices) as threads:
                for name in NAMES:
                    more_merges(records, name)
                proxy.change(bytes_per_s=64.0)  # as good as nothing, and nobody notices
                flood(connect, watcher.topics.up("flood", "status"))
                waiting, since, before = {}, time.monotonic(), said(watcher)
                for device, name in zip(devices, NAMES, strict=True):
                    own[name].wait("iteration", len(own[name].of("iteration")) + UPDATES)
                    # However long it lasts, a device holds one update and no more.
                    waiting[name] = device.machine.part.outbox.update.seq
                assert "Outgoing messages are being dropped" in broker.log
                watcher.settled()
                # Nobody answers, so they slow down: whatever it is, an update is said twice in a patience and no more.
                times = (time.monotonic() - since) / PATIENT.alone_after_s
                for name in NAMES:
                    assert said(watcher)[name] - before[name] <= 2 * times + 2
                merged = len(records.of("merge"))
                assert merged < sum(waiting.values()), "nothing was held up"
                proxy.heal()
                proxy.reset()
                for name in NAMES:  # what the broker has dropped, or what came to stand in its place
                    records.until("merge", lambda row, name=name: row["device"] == name and row["seq"] >= waiting[name])
                assert [thread.error for thread in threads] == [None] * 4
                assert len(coordinator.inbox) < 1000
                watcher.settled()
            acked = {
                (name, ack.session, ack.seq)
                for name in NAMES
                for ack in watcher.said(watcher.topics.down(name, "ack"), Ack)
                if ack.outcome == "applied"
            }
        check(coordinator, records)
    applied = {
        (entry.device, entry.update.session, entry.update.seq)
        for entry in redo_log.read(Journal(tmp_path / "run" / "journal"), 0)
        if isinstance(entry, UpdateTaken) and entry.outcome == "applied"
    }
    assert acked
    assert acked <= applied, "an update that was acked is in no journal"
