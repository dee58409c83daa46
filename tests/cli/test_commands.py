"""The commands themselves, with real runs behind them: what they print, how they end, how they are ended."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from hermes_iot.cli import main, signals
from hermes_iot.cli.connect import BrokerOptions
from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import HermesError, UsageError
from hermes_iot.protocol.messages import CoordinatorStatus, RunManifest
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.trainers import for_coordinator, for_device
from hermes_iot.transport.base import Will
from tests.support.fleet import PATIENCE_S, Watcher, over_mqtt, running, toy_device

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


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch):
    """A folder with a task of one's own, and no configuration."""
    for name in list(os.environ):
        if name.startswith("HERMES_"):
            monkeypatch.delenv(name)
    (tmp_path / "task.py").write_text(textwrap.dedent(TASK))
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path
    root.handlers[:] = handlers  # those of a command write to a stderr that this test has captured
    root.setLevel(level)


@pytest.fixture
def fleet(request):
    return "cmd-" + "".join(one if one.isalnum() else "-" for one in request.node.name)[-40:]


@pytest.fixture
def lead(mosquitto, fleet, room):
    """A coordinator beside the test."""

    def lead(**options):
        config = RunConfig(task=str(room / "task.py"), **{"rules": StopRules(max_pushes=3), **options})
        return CoordinatorRunner(
            config,
            fleet=fleet,
            run_dir=room / "run",
            bench=for_coordinator(config, data_dir=None),
            connect=over_mqtt(mosquitto),
            settings=CoordinatorSettings(status_interval_s=0.2),
        )

    return lead


@pytest.fixture
def device(mosquitto, fleet, capsys):
    """The device command, here; its exit code and what it said."""

    def device(*words, name="pi-01"):
        words = ("--broker", mosquitto, "--fleet", fleet, "--id", name, "--once", "--state-dir", name, *words)
        code = main(["device", *words])
        return code, *capsys.readouterr()

    return device


# --- device ---------------------------------------------------------------------------------------------------------


@pytest.mark.mosquitto
def test_a_device_takes_part_and_leaves_with_the_run(lead, device):
    with running(lead()) as one:
        code, out, err = device("--task", "task.py")
        assert one.wait()["updates_applied"] == 3
    assert (code, out) == (0, "")
    assert "left reason=run ended: 3 updates applied" in err


@pytest.mark.mosquitto
def test_a_devices_events_are_lines_of_json(lead, device):
    with running(lead()):
        code, out, _ = device("--task", "task.py", "--jsonl")
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    iterations = [event for event in events if event["event"] == "iteration"]
    assert len(iterations) >= 3
    assert [event["iteration"] for event in iterations] == list(range(1, len(iterations) + 1))
    assert sum(event["published"] for event in iterations) >= 3


@pytest.mark.mosquitto
@pytest.mark.parametrize("words", [(), ("--task", "other.py")])
def test_a_device_without_the_runs_task_is_told_what_to_do(lead, device, room, words):
    (room / "other.py").write_text(textwrap.dedent(TASK) + "# changed\n")
    with running(lead()) as one:
        code, out, err = device(*words)
        assert one.error is None
    assert code == 6
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("hermes-iot: ")
    assert " task 't" in last or " task 'o" in last
    assert ("--task" in last) == (words == ())
    assert "Traceback" not in err


@pytest.mark.mosquitto
def test_a_device_whose_data_is_missing_is_told_so(lead, device, room):
    text = textwrap.dedent(TASK).replace("def load_data():", "def load_data():\n    open('rows.csv').close()")
    (room / "task.py").write_text(text)
    (room / "rows.csv").touch()
    coordinator = lead()
    (room / "rows.csv").unlink()
    with running(coordinator) as one:
        code, _, err = device("--task", "task.py")
        assert one.error is None
    assert code == 2
    assert "load_data() failed: FileNotFoundError" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.mosquitto
def test_a_bug_is_a_line_and_exit_code_1_after_its_traceback(lead, device, monkeypatch):
    def trained(*_args, **_options):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("hermes_iot.core.device.Device.trained", trained)
    with running(lead()):
        code, out, err = device("--task", "task.py")
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert err.splitlines()[-1] == (
        "hermes-iot: this is a bug in hermes-iot: ZeroDivisionError: ours. Please report it with the lines above"
    )


@pytest.mark.mosquitto
def test_the_second_signal_does_not_wait(mosquitto, fleet, monkeypatch):
    """Ctrl-C twice: whatever hangs is interrupted."""
    pushed = threading.Event()

    def run(self):
        os.kill(os.getpid(), signal.SIGINT)
        self.stop = lambda: None
        pushed.set()
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")

    monkeypatch.setattr("hermes_iot.runtime.device.DeviceRunner.run", run)
    assert main(["device", "--broker", mosquitto, "--fleet", fleet, "--id", "pi-01", "--state-dir", "s"]) == 130
    assert pushed.is_set()


# --- coordinator ----------------------------------------------------------------------------------------------------


@pytest.fixture
def coordinator(mosquitto, fleet, capsys):
    def coordinator(*words):
        code = main(["coordinator", "--broker", mosquitto, "--fleet", fleet, "--task", "task.py", *words])
        return code, *capsys.readouterr()

    return coordinator


@pytest.fixture
def boards(mosquitto, fleet, room):
    """A device with the task, in a thread, for as long as the block lasts."""

    def boards(name="pi-01", *, once=True):
        trainer_of = for_device(task=str(room / "task.py"), data_dir=None, rows=None)
        return running(toy_device(over_mqtt(mosquitto), room, name, fleet=fleet, trainer_of=trainer_of, once=once))

    return boards


@pytest.mark.mosquitto
def test_a_coordinator_leads_a_run_to_its_end_and_prints_one_envelope(coordinator, boards, room):
    with boards():
        code, out, _ = coordinator("--max-pushes", "3", "--json", "--run-dir", "out")
    assert code == 0
    document = json.loads(out)
    assert document["ok"] is True
    assert document["updates_applied"] == 3
    assert document["updates_received"] == sum(
        document[f"updates_{outcome}"] for outcome in ("applied", "duplicate", "stale", "rejected")
    )
    summary = json.loads((room / "out" / "summary.json").read_text())
    assert summary["updates_applied"] == 3
    assert {path.name for path in (room / "out").iterdir()} >= {"metrics.jsonl", "model.safetensors", "registry.json"}


@pytest.mark.mosquitto
@pytest.mark.parametrize("words", [[], ["--resume"]])
def test_a_run_that_was_interrupted_goes_on_with_the_same_command_without_being_told_where(
    coordinator, boards, room, mosquitto, fleet, *, words
):
    def interrupt(watcher):
        topic = watcher.topics.all("coordinator")
        watcher.wait(topic, CoordinatorStatus, lambda status: status.updates_applied >= 3, 3 * PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)

    with boards(), Watcher(over_mqtt(mosquitto), fleet=fleet) as watcher:
        thread = threading.Thread(target=interrupt, args=[watcher])
        thread.start()
        code, out, _ = coordinator("--max-pushes", "100000", "--plain")
        thread.join()
        assert code == 130
        assert "Run the same command again to go on with it" in " ".join(out.split())
        (directory,) = (room / "runs").iterdir()
        code, out, _ = coordinator("--max-wall", "1s", "--json", *words)
    assert code == 0
    document = json.loads(out)
    assert document["run"] in watcher.newest(watcher.topics.all("run"), RunManifest).run
    assert list((room / "runs").iterdir()) == [directory]
    assert document["updates_applied"] >= 3


@pytest.mark.mosquitto
def test_new_leaves_an_unfinished_run_as_it_is_and_begins_another(lead, coordinator, room):
    with running(lead(rules=StopRules())) as one:
        one.leave()
    left = room / "runs" / "left"
    left.parent.mkdir()
    (room / "run").rename(left)
    before = (left / "registry.json").read_bytes()
    code, out, _ = coordinator("--new", "--max-wall", "0.2s", "--json")
    assert code == 0
    assert Path(json.loads(out)["run_dir"]).resolve() != left
    assert (left / "registry.json").read_bytes() == before


@pytest.mark.mosquitto
def test_other_settings_than_those_of_the_unfinished_run_are_an_error(lead, coordinator, room):
    with running(lead(rules=StopRules())) as one:
        one.leave()
    (room / "runs").mkdir()
    (room / "run").rename(room / "runs" / "left")
    registry = room / "runs" / "left" / "registry.json"
    assert str(room / "task.py") in registry.read_text()
    code = main(["coordinator", "--broker", "mqtt://127.0.0.1:1", "--fleet", "x", "--task", "task.py", "--new"])
    assert code == 3
    code, out, err = coordinator("--task", str(room / "task.py"), "--seed", "5")
    assert (code, out) == (2, "")
    assert "was begun with seed 0, not 5" in err
    assert "--new" in err


@pytest.mark.mosquitto
def test_a_second_coordinator_is_one_line_and_exit_code_7(lead, coordinator, mosquitto, fleet):
    with running(lead(rules=StopRules())) as one, Watcher(over_mqtt(mosquitto), fleet=fleet) as watcher:
        watcher.wait(watcher.topics.all("coordinator"), CoordinatorStatus, lambda status: status.state == "online")
        code, out, err = coordinator("--run-dir", "second", "--json")
        assert one.error is None
    assert code == 7
    assert json.loads(out)["exit_code"] == 7
    assert err.count("\n") == 1
    assert "is already led from host" in err


@pytest.mark.mosquitto
def test_data_that_is_not_to_be_had_is_one_line_and_exit_code_2(mosquitto, capsys, monkeypatch, room):
    monkeypatch.setenv("XDG_CACHE_HOME", str(room))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    code = main(["coordinator", "--broker", mosquitto, "--fleet", "nodata", "--task", "mnist"])
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert "--data-dir" in err


BLOCKS = """
import os, threading
def build_model():
    pass
def load_data():
    os.write(1, b"loading\\n")
    threading.Event().wait()
"""


@pytest.mark.mosquitto
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_data_is_loaded_ends_the_command_without_a_word(mosquitto, fleet, room, number, code):
    (room / "blocks.py").write_text(BLOCKS)
    words = ["coordinator", "--broker", mosquitto, "--fleet", fleet, "--task", "blocks.py"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hermes_iot", *words],
        cwd=room,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=3 * PATIENCE_S)
    assert process.returncode == code
    assert "Traceback" not in err


LONG = """
import os, time
import numpy as np
import torch
from torch import nn

DEFAULTS = {"samples": 40, "batch": 8, "epochs": 1}

def build_model():
    return nn.Linear(4, 3)

def load_data():
    x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    return x, x[:, :3].argmax(axis=1).astype(np.int64)

def loss(outputs, targets):
    if torch.is_grad_enabled() and os.environ.get("LONG") and os.path.exists("long"):
        os.write(1, b"long\\n")
        wheel = torch.randn(200, 200, requires_grad=True)
        while True:
            (wheel @ wheel).sum().backward()
    return nn.functional.cross_entropy(outputs, targets)
"""


#: The command, which waits for the worker of a device that leaves for less long than three seconds.
HASTY = """
import runpy
from hermes_iot.runtime import worker

worker.LEAVE_S = 0.3
runpy.run_module("hermes_iot", run_name="__main__", alter_sys=True)
"""


@pytest.mark.mosquitto
def test_an_iteration_in_torch_that_would_take_minutes_does_not_spoil_the_exit_code(lead, mosquitto, fleet, room):
    (room / "task.py").write_text(LONG)
    coordinator = lead(rules=StopRules())
    (room / "long").touch()
    words = ["--broker", mosquitto, "--fleet", fleet, "--id", "pi-01", "--task", "task.py", "--state-dir", "state"]
    with running(coordinator):
        process = subprocess.Popen(
            [sys.executable, "-c", HASTY, "device", *words],
            cwd=room,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "LONG": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "long\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert "terminate called" not in err
    assert "left reason=stopped" in err


# --- demo -----------------------------------------------------------------------------------------------------------


def children_of(process):
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines()]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.mosquitto
def test_a_demo_that_is_terminated_while_it_loads_leaves_no_process_behind(room):
    (room / "blocks.py").write_text(BLOCKS)
    process = subprocess.Popen(
        [sys.executable, "-m", "hermes_iot", "demo", "--task", "blocks.py", "--devices", "1", "--run-dir", "out"],
        cwd=room,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.stdout.readline() != "loading\n":
        pass
    children = children_of(process)
    assert len(children) == 2, "a broker and a device"
    process.terminate()
    out, _ = process.communicate(timeout=3 * PATIENCE_S)
    assert process.returncode == 0, out
    assert "Traceback" not in out
    assert not any(is_alive(child) for child in children)


# --- signals --------------------------------------------------------------------------------------------------------


def test_handlers_are_put_back():
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    assert main(["--version"]) == 0
    with signals.leaving(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_first_signal_asks_and_the_exit_code_tells_which_it_was():
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        asked = []
        with signals.leaving(lambda asked=asked: asked.append(1)) as caught:
            assert caught.exit_code == 0
            os.kill(os.getpid(), number)
        assert asked == [1]
        assert caught.exit_code == code


def test_a_command_may_be_called_from_a_thread_that_cannot_set_handlers():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join(PATIENCE_S)
    assert codes == [0]


@pytest.mark.parametrize("text", ["a" * 5000, "two\nlines", "\ttab"])
def test_an_error_is_one_line_whatever_it_quotes(capsys, monkeypatch, text):
    def files(*_args):
        raise UsageError(text, why=text)

    monkeypatch.setattr("hermes_iot.cli.files.read", files)
    assert main(["status"]) == HermesError.exit_code + 1
    assert capsys.readouterr().err.count("\n") == 1


def test_who_only_takes_a_look_leaves_no_session_on_the_broker():
    connect = BrokerOptions.of("mqtt://h").connector(session_expiry_s=3600)
    assert connect("look-1", None)._session_expiry_s == 0
    assert connect("lab-coordinator", Will(topic="t", payload=b"gone"))._session_expiry_s == 3600
