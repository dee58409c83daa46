"""F1: the broker is stopped and started in the middle of a run. Nothing lost; a gap of two back-off caps at most."""

import time

import pytest

from hermes_iot.runtime.broker import MosquittoBroker
from tests.faults.fleet import BACKOFF, board, check, led, more_merges
from tests.support.fleet import over_mqtt, running

pytestmark = pytest.mark.mosquitto

NAMES = ("pi-01", "pi-02")


def test_F01_after_a_restart_everybody_is_back_within_two_back_off_caps(store, tmp_path):
    with MosquittoBroker(persistence_dir=store) as broker:
        connect = over_mqtt(broker.url, backoff=BACKOFF)
        coordinator, records = led(connect, tmp_path)
        devices = [board(connect, tmp_path, name) for name in NAMES]
        gaps, seqs = [], {}
        with running(coordinator, *devices) as threads:
            for _ in range(3):
                for name in NAMES:
                    more_merges(records, name)
                broker.stop()
                seqs.update({one.config.device: one.machine.memory.seq for one in devices})
                broker.start()
                back = time.monotonic()
                for name in NAMES:
                    # What was under way when it stopped, or a newer one in its place.
                    records.until("merge", lambda row, name=name: row["device"] == name and row["seq"] >= seqs[name])
                gaps.append(time.monotonic() - back)
            assert [thread.error for thread in threads] == [None] * 3
        # Measured from the moment it listens; what is merged then was sent by then.
        assert max(gaps) <= 2 * BACKOFF.cap_s + 1.0, gaps
        check(coordinator, records)
