"""Not a test: a process that saves everything over and over until it is killed.

For each line ``<directory> <first number>`` on stdin it forks (so that imports are paid for once); the child says its
pid and session, then saves the numbers one after the other, each to all stores, and says so after each. When the
child is gone the parent says ``ended``.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from hermes_iot.storage.atomic import write_atomic
from hermes_iot.storage.checkpoints import CheckpointStore
from hermes_iot.storage.device_state import DeviceStateStore
from hermes_iot.storage.registry import Registry

DEVICES = 40


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def save_for_ever(directory, number):
    state = DeviceStateStore(directory / "state")
    memory = state.open().memory
    registry = Registry(directory / "registry.json")
    store = CheckpointStore(directory / "checkpoints")
    say(os.getpid(), memory.session)
    while True:
        write_atomic(directory / "plain", b"%09d\n" % number * 20_000, backup=True)
        with registry.batch():
            for name in map(str, range(DEVICES)):
                registry.remember_device("r1", name, session=1, seq=number, counters={}, status="online")
                registry.remember_allocation("r1", name, version=number, samples=1, batch=1, ranges=(), shard="")
        store.save(number, {"model": np.full(20_000, number, np.float32)}, {"number": number})
        state.save_update(memory.session, number, b"%09d\n" % number * 20_000)
        state.save(replace(memory, seq=number, allocation_version=number))
        say("saved", number)
        number += 1


if __name__ == "__main__":
    for line in sys.stdin:
        directory, number = line.split()
        child = os.fork()
        if child == 0:
            save_for_ever(Path(directory), int(number))
        os.waitpid(child, 0)
        say("ended")
