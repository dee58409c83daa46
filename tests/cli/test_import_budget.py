"""What a command pays for: looking loads no torch and no scipy, a device never loads scipy or matplotlib."""

import os
import subprocess
import sys
import textwrap

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.trainers import for_coordinator
from tests.support.fleet import over_mqtt, running, toy_coordinator, toy_device

HEAVY = {"torch", "scipy", "sklearn", "matplotlib"}

#: Writes at exit which modules were loaded.
WITNESS = """
import atexit, os, sys

def tell():
    with open(os.environ["WITNESS"], "w") as file:
        file.write("\\n".join(sys.modules))

atexit.register(tell)
"""

TASK = """
    import numpy as np
    from torch import nn

    DEFAULTS = {"samples": 40, "batch": 8, "epochs": 1, "learning_rate": 0.1}

    def build_model():
        return nn.Linear(4, 3)

    def load_data():
        x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
        return x, x[:, :3].argmax(axis=1).astype(np.int64)
"""


@pytest.fixture
def hermes(tmp_path):
    """Run a command in a process of its own: its exit code, what it said, and the modules it loaded."""
    (tmp_path / "sitecustomize.py").write_text(WITNESS)

    def run(*words):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HERMES_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
            "WITNESS": str(tmp_path / "loaded"),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "hermes_iot", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        loaded = set((tmp_path / "loaded").read_text().split("\n"))
        return done.returncode, done.stdout, done.stderr, loaded

    return run


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["coordinator", "--help"], ["demo", "--help"], ["simulate", "--help"], []]
)
def test_help_loads_nothing_heavy_and_no_network(hermes, words):
    code, out, err, loaded = hermes(*words)
    assert (code, err) == (0, "")
    assert "hermes-iot" in out
    assert not loaded & (HEAVY | {"paho", "tinydb", "safetensors", "zstandard"})


@pytest.mark.mosquitto
def test_a_look_at_a_fleet_loads_nothing_heavy(hermes, mosquitto, tmp_path):
    connect = over_mqtt(mosquitto)
    with running(
        toy_coordinator(connect, tmp_path / "run", fleet="budget"),
        toy_device(connect, tmp_path, "pi-01", fleet="budget"),
    ) as (one, device):
        one.wait()
        device.wait()
    code, out, err, loaded = hermes("status", "--broker", mosquitto, "--fleet", "budget")
    assert (code, err) == (0, "")
    assert "pi-01" in out
    assert not loaded & (HEAVY | {"tinydb", "safetensors"})


@pytest.mark.mosquitto
def test_a_device_loads_torch_and_no_more_than_its_task_needs(hermes, mosquitto, tmp_path):
    (tmp_path / "task.py").write_text(textwrap.dedent(TASK))
    config = RunConfig(task=str(tmp_path / "task.py"), rules=StopRules(max_pushes=3))
    coordinator = CoordinatorRunner(
        config,
        fleet="slim",
        run_dir=tmp_path / "run",
        bench=for_coordinator(config, data_dir=None),
        connect=over_mqtt(mosquitto),
    )
    with running(coordinator) as one:
        words = ["--broker", mosquitto, "--fleet", "slim", "--id", "pi-01", "--once"]
        code, _, err, loaded = hermes("device", *words, "--task", "task.py", "--state-dir", str(tmp_path / "state"))
        assert one.wait()["updates_applied"] == 3
    assert code == 0, err
    assert loaded & HEAVY == {"torch"}
    assert "torch._dynamo" not in loaded, "plain SGD needs no compiler"
    assert not loaded & {"tinydb", "safetensors"}, "these belong to the coordinator"
