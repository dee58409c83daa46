"""Bulk-synchronous training with real processes on a real broker: one is killed, the others' round goes on."""

import os
import signal
import subprocess
import sys

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.trainers import for_coordinator
from tests.support.fleet import Records, over_mqtt, running

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

FLEET = "barrier"
PATIENCE_S = 60.0
CONFIG = RunConfig(task="digits", strategy="bsp", seed=1, samples=64, batch=16, epochs=1, rules=StopRules())


@pytest.fixture
def devices(mosquitto, tmp_path):
    """Three device processes, idle for most of the time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = {}
    for name in ("pi-01", "pi-02", "pi-03"):
        words = ["--broker", mosquitto, "--fleet", FLEET, "--id", name, "--state-dir", str(tmp_path / name)]
        with (tmp_path / f"{name}.log").open("wb") as log:
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "hermes_iot", "device", *words, "--slowdown", "8"],
                stdout=log,
                stderr=log,
                env=environment,
            )
    yield processes
    for process in processes.values():
        process.kill()
        process.wait()


def test_a_round_does_not_wait_for_a_process_that_was_killed(devices, mosquitto, tmp_path):
    records = Records()
    coordinator = CoordinatorRunner(
        CONFIG,
        fleet=FLEET,
        run_dir=tmp_path / "run",
        bench=for_coordinator(CONFIG, data_dir=None),
        connect=over_mqtt(mosquitto),
        on_record=records,
        settings=CoordinatorSettings(linger_s=1.0),
    )
    with running(coordinator):
        for name in devices:
            records.wait("merge", 2, timeout_s=PATIENCE_S, device=name)
        devices["pi-03"].send_signal(signal.SIGKILL)
        # The will is delayed by 15 s, so that a reboot is no departure.
        records.wait("left", timeout_s=PATIENCE_S, device="pi-03", reason="connection lost")
        version = coordinator.machine.version
        for name in ("pi-01", "pi-02"):
            records.until(
                "merge",
                lambda one, name=name: one["device"] == name and one["version"] > version + 1,
                timeout_s=PATIENCE_S,
            )
        assert all(devices[name].poll() is None for name in ("pi-01", "pi-02"))
    fates = coordinator.machine.tally
    assert fates.received == fates.applied + fates.duplicate + fates.stale + fates.rejected > 6
