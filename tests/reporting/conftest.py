"""One real run of a toy fleet, recorded: when the coordinator's records or summary change, these tests hear of it."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
from hermes_iot.training.toy import ToyTrainer
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from tests.support.fleet import toy_config, toy_coordinator

SLOW = "d4"
PUSHES = 90
DEVICES = 5


@dataclass(frozen=True)
class Run:
    records: list[tuple[str, dict[str, Any]]]
    summary: dict[str, Any]
    run_dir: Path


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    """Five devices, the last one so much slower that it is re-sized.

    Times are real, so on a machine that is very busy it may not stand out; then the fleet runs once more.
    """
    for _attempt in range(5):
        seen = recorded(tmp_path_factory.mktemp("fleet"))
        sizes = [
            fields["version"] for event, fields in seen.records if event == "allocation" and fields["device"] == SLOW
        ]
        if max(sizes) > 1 and len(seen.summary["devices"]) == DEVICES:
            return seen
    pytest.fail(f"{SLOW} was never re-sized")


def recorded(base: Path) -> Run:
    broker = MemoryBroker(clock=time.monotonic)
    records: list[tuple[str, dict[str, Any]]] = []

    def connect(client_id, will):
        return MemoryTransport(broker, client_id=client_id, will=will)

    def device(name):
        settings = DeviceSettings(once=True, state_interval_s=0.02, retry_s=1.0)
        config = DeviceConfig(
            fleet="lab", device=name, state_dir=base / name, slowdown=24.0 if name == SLOW else 1.0, settings=settings
        )
        trainer_of = lambda manifest, shards: ToyTrainer(seed=manifest.seed, shards=shards)  # noqa: E731 - used once
        return DeviceRunner(config, connect=connect, trainer_of=trainer_of)

    coordinator = toy_coordinator(
        connect,
        base / "run",
        config=toy_config(rules=StopRules(max_pushes=PUSHES, max_wall_s=30.0)),
        settings=CoordinatorSettings(linger_s=2.0, resize_interval_s=0.05),
        on_record=lambda event, fields: records.append((event, dict(fields))),
    )
    devices = [device(f"d{number}") for number in range(DEVICES)]
    threads = [threading.Thread(target=one.run) for one in devices]
    try:
        for thread in threads:
            thread.start()
        summary = coordinator.run()
    finally:
        for one, thread in zip(devices, threads, strict=True):
            one.stop()
            thread.join(10)
    assert summary is not None
    return Run(records=records, summary={**summary, "broker": "in-memory"}, run_dir=base / "run")


@pytest.fixture
def crowd(run):
    """The run's records as fifty devices would give them: each device's, under ten names."""
    records = []
    for event, fields in run.records:
        if "device" in fields:
            records += [(event, {**fields, "device": f"{fields['device']}-{copy}"}) for copy in range(10)]
        else:
            records.append((event, fields))
    return records
