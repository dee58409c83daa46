"""The second owner is told who the first one is."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hermes_iot.errors import IdConflict, StorageError
from hermes_iot.storage.locks import hold

HOLDER = """
import sys
from pathlib import Path
from hermes_iot.storage.locks import hold
lock = hold(Path(sys.argv[1]), thing="it", mend="Wait")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "lock"


@pytest.fixture
def holder(path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(path, **options):
    return hold(path, thing="the thing", mend="Stop it", **options)


def test_another_process_is_named_with_pid_and_host(path, holder):
    with pytest.raises(StorageError) as caught:
        take(path)
    assert str(caught.value) == (
        f"the thing is in use: process {holder.pid} on {socket.gethostname()} has it (lock file {path}). Stop it"
    )


def test_the_caller_chooses_whose_fault_it_is(path, holder):
    assert holder.pid
    with pytest.raises(IdConflict):
        take(path, error=IdConflict)


def test_a_killed_holder_leaves_no_lock(path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    take(path).release()


def test_a_released_lock_can_be_taken_again_and_the_same_process_is_no_exception(path):
    first = take(path)
    with pytest.raises(StorageError, match=f"process {os.getpid()} on"):
        take(path)
    first.release()
    first.release()
    with take(path), pytest.raises(StorageError):
        take(path)
    take(path).release()


def test_refused_attempts_leak_no_descriptor(path):
    with take(path):
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            with pytest.raises(StorageError):
                take(path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_unsigned_lock_still_keeps_others_out(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with take(path), pytest.raises(StorageError, match="another process has it"):
        take(path)


def test_a_file_system_without_locks_is_said_so(path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(StorageError, match=r"cannot lock .*: No locks available"):
        take(path)
