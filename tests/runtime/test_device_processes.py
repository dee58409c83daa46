"""Real device processes on a real broker: killed, late, rebooted without a coordinator, asked to leave.

One fleet for all of them, because a process pays seconds for torch. Each test starts what it needs itself.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol.messages import Allocation, CoordinatorStatus, DeviceState, DeviceStatus
from hermes_iot.runtime.broker import MosquittoBroker
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.trainers import for_coordinator
from tests.support.fleet import Records, Running, Watcher, over_mqtt

pytestmark = pytest.mark.mosquitto

FLEET = "processes"
#: Importing torch on two noisy cores.
PATIENCE_S = 60.0
#: A quarter of a second for an iteration instead of two.
QUICK = {"shares": {"target_s": 0.25}}
CONFIG = RunConfig(
    task="digits", strategy="hermes-plus", constants=QUICK, seed=1, samples=64, batch=16, epochs=1, rules=StopRules()
)


class Lab:
    """A broker, a coordinator in this process, and one process per device."""

    def __init__(self, directory):
        self.directory = directory
        self.broker = MosquittoBroker()
        self.broker.start()
        self.connect = over_mqtt(self.broker.url)
        self.watcher = Watcher(self.connect, fleet=FLEET)
        self.topics = self.watcher.topics
        self.processes = {}
        self.starts = Counter()
        self.bench = for_coordinator(CONFIG, data_dir=None)
        self.lead()

    def lead(self):
        self.records = Records()
        self.coordinator = CoordinatorRunner(
            CONFIG,
            fleet=FLEET,
            run_dir=self.directory / "run",
            bench=self.bench,
            connect=self.connect,
            on_record=self.records,
            settings=CoordinatorSettings(status_interval_s=0.2, checkpoint_interval_s=0.2, keyframe_interval_s=0.2),
        )
        self.leading = Running(self.coordinator)

    def start(self, name):
        words = [sys.executable, "-m", "hermes_iot", "device", "--broker", self.broker.url, "--fleet", FLEET]
        # Idle for most of the time: whoever is starting meanwhile needs the processor more.
        words += ["--id", name, "--state-dir", str(self.directory / name), "--slowdown", "8"]
        self.starts[name] += 1  # which is its session, too
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                words, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        return self.processes[name]

    def training(self, name):
        """A device's process, started unless it runs, once it has finished an iteration."""
        process = self.processes.get(name)
        if process is None or process.poll() is not None:
            process = self.start(name)
        self.status(name, lambda one: one.state == "online" and one.session == self.starts[name])
        self.state(name, lambda one: one.session == self.starts[name] and one.iterations > 0)
        return process

    def end(self, process, signal_number):
        """Its exit code, and how many seconds it took."""
        begun = time.monotonic()
        process.send_signal(signal_number)
        return process.wait(PATIENCE_S), time.monotonic() - begun

    def status(self, name, having):
        return self.watcher.wait(self.topics.up(name, "status"), DeviceStatus, having, PATIENCE_S)

    def state(self, name, having):
        return self.watcher.wait(self.topics.up(name, "state"), DeviceState, having, PATIENCE_S)

    def allocation(self, name):
        return self.watcher.wait(self.topics.down(name, "alloc"), Allocation, lambda _: True, PATIENCE_S)

    def said(self, name):
        return (self.directory / f"{name}.log").read_text()

    def close(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.leading.leave()
        self.watcher.__exit__()
        self.broker.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    one = Lab(tmp_path_factory.mktemp("lab"))
    yield one
    one.close()


def test_a_device_that_is_killed_goes_on_from_its_retained_allocation(lab):
    process = lab.training("pi-01")
    lab.records.wait("merge", 1, timeout_s=PATIENCE_S, device="pi-01")
    assert lab.end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    lab.watcher.settled()
    before = lab.watcher.newest(lab.topics.up("pi-01", "state"), DeviceState)
    given = lab.allocation("pi-01")
    iterations = max(row["iterations"] for row in lab.records.of("state") if row["device"] == "pi-01")
    lab.training("pi-01")
    first = next(
        state
        for state in lab.watcher.said(lab.topics.up("pi-01", "state"), DeviceState)
        if state.session == before.session + 1 and state.allocation_version >= given.version
    )
    assert first.iterations == 0, "what is retained is in force, at once"
    record = lab.records.wait("merge", 1, timeout_s=PATIENCE_S, device="pi-01", session=before.session + 1)
    assert record["seq"] > before.seq, "its numbers go on"
    lab.records.until("state", lambda one: one["device"] == "pi-01" and one["iterations"] > iterations)


def test_a_device_that_joins_late_gets_an_allocation_and_contributes(lab):
    lab.training("pi-01")
    lab.records.wait("merge", 1, timeout_s=PATIENCE_S, device="pi-01")
    lab.training("pi-02")
    assert lab.allocation("pi-02").run == lab.coordinator.run_id
    record = lab.records.wait("merge", 1, timeout_s=PATIENCE_S, device="pi-02")
    assert record["version"] > 1
    assert {fields["device"] for fields in lab.records.of("allocation")} >= {"pi-01", "pi-02"}


def test_a_device_reboots_while_the_coordinator_is_away_and_both_go_on_when_it_is_back(lab):
    process = lab.training("pi-01")
    lab.records.wait("merge", 1, timeout_s=PATIENCE_S, device="pi-01")
    lab.leading.leave()
    assert lab.leading.wait() is None
    lab.watcher.wait(lab.topics.all("coordinator"), CoordinatorStatus, lambda one: one.state == "offline")
    run, checkpointed = lab.coordinator.run_id, lab.coordinator.machine.version
    before, given = lab.state("pi-01", lambda _: True), lab.allocation("pi-01")

    code, took_s = lab.end(process, signal.SIGTERM)
    assert code == 0
    assert took_s < 10
    left = lab.status("pi-01", lambda one: one.state == "offline")
    assert left.session == before.session
    lab.start("pi-01")
    state = lab.state("pi-01", lambda one: one.session > before.session and one.iterations > 1)
    assert state.phase == "training", "it needs nobody to tell it so"
    assert state.allocation_version == given.version
    assert state.model_version > 0, "the keyframe was read"

    lab.lead()
    assert lab.coordinator.run_id == run
    assert lab.coordinator.resumed_version >= checkpointed
    record = lab.records.wait("merge", 1, timeout_s=PATIENCE_S, device="pi-01", session=state.session)
    assert record["version"] > checkpointed
    versions = [one.version for one in lab.watcher.said(lab.topics.down("pi-01", "alloc"), Allocation)]
    assert versions == sorted(versions), "an allocation's version never goes back"


def test_ctrl_c_leaves_in_good_order_with_its_own_code(lab):
    process = lab.training("pi-02")
    code, took_s = lab.end(process, signal.SIGINT)
    assert code == 130
    assert took_s < 10
    lab.status("pi-02", lambda one: one.state == "offline" and one.reason == "stopped")
    assert "Traceback" not in lab.said("pi-02")
