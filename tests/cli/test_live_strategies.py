"""Strategies by the commands a person gives: a coordinator and devices, each a process, on a real broker."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from hermes_iot.cli import main

pytestmark = pytest.mark.mosquitto

PUSHES = 12
#: Three processes that load torch on whatever is left of two processors.
PATIENCE_S = 90.0
WORDS = {"hermes-plus": ("--set", "shares.target_s=0.2"), "bsp": ()}
NAMES = ("pi-01", "pi-02")


@pytest.fixture(params=["hermes-plus", pytest.param("bsp", marks=pytest.mark.slow)])
def run(request, mosquitto, tmp_path, monkeypatch):
    """A finished run: strategy, directory, the coordinator's document, and each device's exit code."""
    for name in list(os.environ):
        if name.startswith("HERMES_"):
            monkeypatch.delenv(name)
    common = ["--broker", mosquitto, "--fleet", f"cli-{request.param}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    directory = tmp_path / "run"

    def start(*words):
        return subprocess.Popen(
            [sys.executable, "-m", "hermes_iot", *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    rules = ["--strategy", request.param, *WORDS[request.param], "--max-pushes", str(PUSHES)]
    leading = start(
        "coordinator", *common, "--task", "digits", "--run-dir", str(directory), *rules, "--json", "--plain"
    )
    devices = [
        start("device", *common, "--id", name, "--state-dir", name, "--slowdown", slowdown, "--once")
        for name, slowdown in zip(NAMES, ("2", "6"), strict=True)
    ]
    try:
        out, _ = leading.communicate(timeout=PATIENCE_S)
        codes = [device.wait(PATIENCE_S) for device in devices]
    finally:
        for process in (leading, *devices):
            process.kill()
            process.communicate()
    assert (leading.returncode, codes) == (0, [0, 0])
    return request.param, directory, json.loads(out)


def test_a_run_by_command_counts_every_update_and_can_be_simulated_again(run, capsys):
    strategy, directory, document = run
    assert document["strategy"] == strategy
    assert document["reason"] == f"{PUSHES} updates applied"
    fates = sum(document[f"updates_{fate}"] for fate in ("applied", "duplicate", "stale", "rejected"))
    assert document["updates_received"] == fates >= document["updates_applied"] == PUSHES
    assert document["model_version"] > 0
    assert {row["device"] for row in document["devices"]} == set(NAMES)
    assert all(np.isfinite(tensor).all() for tensor in load_file(directory / "model.safetensors").values())

    assert main(["simulate", "--from", str(directory), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["recorded"]["run"], again["left_out"]) == (document["run"], [])
    assert (again["reason"], again["strategy"]) == (document["reason"], strategy)
    assert {row["device"] for row in again["devices"]} == set(NAMES)
    assert again["bytes_by_kind"]["up"]["model"] == pytest.approx(document["bytes_by_kind"]["up"]["model"], rel=0.1)
