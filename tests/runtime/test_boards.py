"""The demo's boards: a device that ends too early is noticed at once, and nothing is left running."""

import os
import threading

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import BrokerError, HermesError, Incompatible, StorageError
from hermes_iot.runtime.boards import Board, Boards
from hermes_iot.transport.memory import MemoryBroker
from tests.support.fleet import PATIENCE_S, in_memory, running, toy_config, toy_coordinator, toy_device

ENDLESS = toy_config(rules=StopRules())


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_fails_ends_the_run_with_its_words_and_its_exit_code(tmp_path):
    boards = Boards(tmp_path / "out")
    with running(toy_coordinator(in_memory(), tmp_path / "run", config=ENDLESS)) as one:
        boards.belong_to(one.runner)
        boards.launch([Board(device="pi-01", slowdown=1.0)], ["--fleet", "lab", "--broker", "mqtt://127.0.0.1:1"])
        assert one.wait(3 * PATIENCE_S) is None
    boards.end()
    assert isinstance(boards.failure, BrokerError)
    assert "device pi-01 ended before the run did: hermes-iot: broker mqtt://127.0.0.1:1 refused" in str(boards.failure)
    log = tmp_path / "out" / "logs" / "pi-01.log"
    assert boards.failure.mend == f"See {log}"
    assert log.read_text().count("\n") == 1


def test_a_device_that_failed_before_there_was_a_coordinator_stops_it_too(tmp_path):
    boards = Boards(tmp_path / "out")
    boards.launch([Board(device="pi-01", slowdown=1.0)], ["--fleet", "lab", "--broker", "nonsense"])
    for thread in boards._threads:
        thread.join(3 * PATIENCE_S)
    assert boards.failure.exit_code == 2
    with running(toy_coordinator(in_memory(), tmp_path / "run", config=ENDLESS)) as one:
        boards.belong_to(one.runner)
        assert one.wait() is None
    boards.end()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(Incompatible("no"), Incompatible), (ValueError("a bug"), HermesError), (OSError(), HermesError)],
)
def test_a_thread_that_fails_ends_the_run_whatever_it_was(tmp_path, error, kind):
    def trainer_of(_manifest, _shards):
        raise error

    boards = Boards(tmp_path / "out")
    connect = in_memory()
    with running(toy_coordinator(connect, tmp_path / "run", config=ENDLESS)) as one:
        boards.belong_to(one.runner)
        boards.launch_threads([toy_device(connect, tmp_path, "pi-01", trainer_of=trainer_of)])
        assert one.wait() is None
    boards.end()
    assert isinstance(boards.failure, kind)


def test_threads_train_to_the_end_and_are_gone(tmp_path):
    before = set(threading.enumerate())
    boards, connect = Boards(tmp_path / "out"), in_memory(MemoryBroker())
    with running(toy_coordinator(connect, tmp_path / "run")) as one:
        boards.belong_to(one.runner)
        boards.launch_threads([toy_device(connect, tmp_path, name) for name in ("pi-01", "pi-02")])
        assert one.wait()["updates_applied"] == 12
    boards.end()
    assert boards.failure is None
    assert set(threading.enumerate()) <= before


@pytest.mark.mosquitto
def test_the_end_ends_every_process_and_removes_what_they_kept(tmp_path, mosquitto):
    boards = Boards(tmp_path / "out")
    emulated = [Board(device=name, slowdown=2.0) for name in ("pi-01", "pi-02")]
    boards.launch(emulated, ["--fleet", "ended", "--broker", mosquitto])
    pids = [process.pid for process in boards._processes.values()]
    kept = [boards.state_dir(board) for board in emulated]
    assert all(is_alive(pid) for pid in pids)
    boards.end()
    assert boards.failure is None, "it was us who ended them"
    assert not any(is_alive(pid) for pid in pids)
    assert not any(path.exists() for path in kept)
    boards.end()


def test_a_directory_that_cannot_be_made_is_said_in_one_line(tmp_path):
    (tmp_path / "out").write_text("a file")
    boards = Boards(tmp_path / "out")
    with pytest.raises(StorageError):
        boards.launch([Board(device="pi-01", slowdown=1.0)], [])
    boards.end()
