"""A broker that forgets everything in the middle of a run."""

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol.messages import (
    Allocation,
    CoordinatorStatus,
    DeviceState,
    DeviceStatus,
    ModelHead,
    RunManifest,
)
from hermes_iot.runtime.broker import MosquittoBroker
from tests.support.fleet import Records, Watcher, over_mqtt, running, toy_config, toy_coordinator, toy_device

pytestmark = pytest.mark.mosquitto


def test_all_is_said_again_to_a_broker_that_forgot_it_and_the_run_finishes(tmp_path):
    records = Records()
    with MosquittoBroker() as broker:
        connect = over_mqtt(broker.url)
        coordinator = toy_coordinator(
            connect, tmp_path / "run", config=toy_config(rules=StopRules()), on_record=records
        )
        devices = [toy_device(connect, tmp_path, name) for name in ("pi-01", "pi-02")]
        with running(coordinator, *devices) as (one, *others):
            records.wait("merge", 2, device="pi-01")
            records.wait("merge", 2, device="pi-02")
            broker.restart()
            before = len(records.of("merge"))
            with Watcher(connect, fleet="lab") as watcher:
                topics = watcher.topics
                manifest = watcher.wait(topics.all("run"), RunManifest, lambda _: True)
                assert manifest.run == coordinator.run_id
                head = watcher.wait(topics.all("model"), ModelHead, lambda _: True)
                assert head.version >= 4
                leads = watcher.wait(topics.all("coordinator"), CoordinatorStatus, lambda one: one.state == "online")
                assert leads.run == coordinator.run_id
                for name in ("pi-01", "pi-02"):
                    given = watcher.wait(topics.down(name, "alloc"), Allocation, lambda _: True)
                    watcher.wait(topics.up(name, "status"), DeviceStatus, lambda one: one.state == "online")
                    watcher.wait(
                        topics.up(name, "state"), DeviceState, lambda one, v=given.version: one.allocation_version == v
                    )
            for name in ("pi-01", "pi-02"):
                records.wait(
                    "merge", len([row for row in records.of("merge") if row["device"] == name]) + 2, device=name
                )
            assert len(records.of("merge")) > before
            assert [other.error for other in others] == [None, None]
            one.leave()
            assert one.wait() is None
