"""F2: the broker is killed and its store deleted. The fleet mends itself; allocations are back in less than 5 s."""

import shutil
import time

import pytest

from hermes_iot.protocol.messages import Allocation
from hermes_iot.runtime.broker import MosquittoBroker
from tests.faults.fleet import BACKOFF, board, check, led, more_merges
from tests.support.fleet import Watcher, over_mqtt, running

pytestmark = pytest.mark.mosquitto

NAMES = ("pi-01", "pi-02")


def test_F02_a_killed_broker_without_its_store_is_given_everything_again(store, tmp_path):
    with MosquittoBroker(persistence_dir=store) as broker:
        connect = over_mqtt(broker.url, backoff=BACKOFF)
        coordinator, records = led(connect, tmp_path)
        devices = [board(connect, tmp_path, name) for name in NAMES]
        with running(coordinator, *devices) as threads:
            for name in NAMES:
                more_merges(records, name)
            broker.kill()
            seqs = {one.config.device: one.machine.memory.seq for one in devices}
            shutil.rmtree(store)
            broker.start()
            begun = time.monotonic()
            with Watcher(connect, fleet="lab") as watcher:
                for name in NAMES:
                    given = watcher.wait(watcher.topics.down(name, "alloc"), Allocation, lambda _: True)
                    assert given.run == coordinator.run_id
                assert time.monotonic() - begun < 5.0
            for name in NAMES:
                # What was under way when it died was sent again, or a newer one took its place.
                records.until("merge", lambda row, name=name: row["device"] == name and row["seq"] >= seqs[name])
                more_merges(records, name)
            assert [thread.error for thread in threads] == [None] * 3
        check(coordinator, records)
