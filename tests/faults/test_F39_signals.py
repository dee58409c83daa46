"""F39: a coordinator is asked to leave. It does so in order, in less than ten seconds, and says that it is gone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hermes_iot.protocol.messages import CoordinatorStatus
from tests.support.fleet import Watcher, over_mqtt

pytestmark = pytest.mark.mosquitto

DRAIN_S_MAX = 10.0
#: Importing torch on two noisy cores.
PATIENCE_S = 60.0


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 0), pytest.param("SIGINT", 130, marks=pytest.mark.slow)], ids=str
)
def test_F39_a_coordinator_leaves_in_good_order(name, code, mosquitto, tmp_path):
    fleet = f"leaves-{name}"
    words = [
        "coordinator",
        "--broker",
        mosquitto,
        "--fleet",
        fleet,
        "--task",
        "digits",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with Watcher(over_mqtt(mosquitto), fleet=fleet) as watcher:
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hermes_iot", *words], stdout=log, stderr=log, env=environment
            )
        try:
            topic = watcher.topics.all("coordinator")
            there = watcher.wait(topic, CoordinatorStatus, lambda one: one.state == "online", PATIENCE_S)
            begun = time.monotonic()
            process.send_signal(getattr(signal, name))
            assert process.wait(PATIENCE_S) == code
            assert time.monotonic() - begun < DRAIN_S_MAX
            left = watcher.wait(topic, CoordinatorStatus, lambda one: one.state == "offline")
            assert left.session == there.session
            assert "Traceback" not in (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
