"""What the fault tests share: a fleet whose run goes on until the test has seen enough, and what must hold after it."""

from __future__ import annotations

import numpy as np

from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.transport.backoff import Backoff
from tests.support.fleet import Records, toy_config, toy_coordinator, toy_device

ENDLESS = toy_config(rules=StopRules())
#: Small enough for a test, large enough to be told from no wait at all.
BACKOFF = Backoff(base_s=0.1, cap_s=0.5, stable_s=1.0)
#: A device that goes on by itself soon, and repeats what is not answered.
SOON = DeviceSettings(once=True, state_interval_s=0.05, retry_s=0.3, retry_max_s=1.0, alone_after_s=0.5)


def led(connect, tmp_path, *, fleet="lab", **options):
    """A coordinator of an endless run, and what it records."""
    records = Records()
    options.setdefault("config", ENDLESS)
    return toy_coordinator(connect, tmp_path / "run", fleet=fleet, on_record=records, **options), records


def board(connect, tmp_path, name, **options):
    options.setdefault("settings", SOON)
    return toy_device(connect, tmp_path, name, **options)


def check(coordinator, records):
    """The invariants of reliability.md that a live run shows: I1, I4, I6, I7."""
    tally, merges = coordinator.machine.tally, records.of("merge")
    applied = [(row["device"], row["session"], row["seq"]) for row in merges]
    assert len(applied) == len(set(applied)), "I1: an update was applied twice"
    given = {}
    for row in records.of("allocation"):
        assert row["version"] > given.get(row["device"], 0), "I4: an allocation's version went back"
        given[row["device"]] = row["version"]
    assert np.isfinite(coordinator.machine.model).all(), "I6: the model is not finite"
    versions = [row["version"] for row in merges]
    assert versions == list(range(1, len(versions) + 1)), "I6: a version was left out or used twice"
    assert tally.received == tally.applied + tally.duplicate + tally.stale + tally.rejected, "I7"
    assert tally.applied == len(merges), "I7: the books and the records differ"


def more_merges(records, name, count=2, **having):
    """Wait until a device has contributed so often again."""
    there = len([row for row in records.of("merge") if row["device"] == name])
    return records.wait("merge", there + count, device=name, **having)
