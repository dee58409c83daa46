"""What the allocator is told, and that nothing happens where there is no such allocator."""

import ctypes
import platform
import subprocess
import sys

import pytest

from hermes_iot.runtime import malloc
from tests.support.fleet import in_memory, running, toy_coordinator, toy_device

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

#: Page faults of so many megabytes taken, written and given back, one after the other.
FAULTS = """
import resource, sys
from hermes_iot.runtime import malloc
if sys.argv[1] == "told":
    assert malloc.keep_freed_memory()
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        bytes(bytearray(b"x") * (1 << 20))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(10)
print(faults(200))
"""


def faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc
def test_memory_that_was_freed_is_used_again_without_the_kernel():
    assert faults("told") < faults("untold") / 10


@glibc
def test_it_may_be_said_twice():
    code = "from hermes_iot.runtime import malloc; print(malloc.keep_freed_memory(), malloc.keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: pytest.fail("it was touched"))
    assert not malloc.keep_freed_memory()


@glibc
def test_a_python_without_a_shared_c_library_does_without(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not malloc.keep_freed_memory()


def test_a_coordinator_asks_for_it_and_a_device_does_not(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(malloc, "keep_freed_memory", lambda: asked.append(True))
    connect = in_memory()
    with running(toy_device(connect, tmp_path, "pi-01")):
        assert not asked
        with running(toy_coordinator(connect, tmp_path / "run")) as one:
            one.wait()
    assert asked == [True]
