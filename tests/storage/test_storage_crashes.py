"""A crash at any instant of any save leaves old or new; a full disk leaves old (reliability F17, F19)."""

import contextlib
import errno
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hermes_iot.errors import StorageError
from hermes_iot.storage import atomic
from hermes_iot.storage.atomic import backup_of, read_checked, read_newest, write_atomic, write_checked
from hermes_iot.storage.checkpoints import CheckpointStore
from hermes_iot.storage.device_state import DeviceStateStore
from hermes_iot.storage.registry import Registry
from tests.support.disk import small_disk

CALLS = ("open", "write", "fsync", "close", "link", "replace", "unlink")
OLDER, OLD, NEW = (word * 100 for word in (b"older", b"old", b"new"))


class Died(BaseException):
    """The process was killed: from here on nothing it calls has any effect."""


class Machine:
    """The operating system up to its `last` call; that one happens in part, wholly, or not at all, later ones never."""

    def __init__(self, patch, last, how):
        self.count, self.last, self.how = 0, last, how
        self.open_descriptors = set()
        for name in CALLS:
            patch.setattr(os, name, self.call(name, getattr(os, name)))

    def call(self, name, real):
        def called(*args, **options):
            self.count += 1
            if self.count < self.last:
                return self.tracked(name, real, args, options)
            if self.count == self.last:
                if self.how == "whole":
                    self.tracked(name, real, args, options)
                elif self.how == "part" and name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
            raise Died

        return called

    def tracked(self, name, real, args, options):
        answer = real(*args, **options)
        if name == "open":
            self.open_descriptors.add(answer)
        elif name == "close":
            self.open_descriptors.discard(args[0])
        return answer


def run_until(last, how, action):
    """Perform `action` on a machine that dies at its call number `last`; whether it died."""
    died = False
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, last, how)
        try:
            action()
        except Died:
            died = True
    for descriptor in machine.open_descriptors:
        os.close(descriptor)
    return died


def crashes(prepare, action, verify):
    """Let `action` die at each of its calls, in each way; `verify` after each. The number of crashes tried."""
    tried = 0
    for how in ("nothing", "part", "whole"):
        last = 1
        while True:
            prepare()
            if not run_until(last, how, action):
                break
            verify()
            tried += 1
            last += 1
    return tried


def empty(directory):
    for entry in directory.iterdir():
        entry.unlink()


def test_death_at_any_call_leaves_old_or_new_and_a_backup(tmp_path):
    path = tmp_path / "file"
    seen = set()

    def prepare():
        empty(tmp_path)
        write_atomic(path, OLDER, backup=True)
        write_atomic(path, OLD, backup=True)

    def verify():
        seen.add((path.read_bytes(), backup_of(path).read_bytes()))
        atomic.sweep(tmp_path)
        assert {entry.name for entry in tmp_path.iterdir()} == {"file", "file.bak"}
        write_atomic(path, NEW, backup=True)
        assert path.read_bytes() == NEW

    tried = crashes(prepare, lambda: write_atomic(path, NEW, backup=True), verify)
    assert tried >= 30
    assert seen == {(OLD, OLDER), (OLD, OLD), (NEW, OLD)}


def test_death_while_repairing_a_damaged_file_never_costs_the_good_copy(tmp_path):
    path = tmp_path / "file"

    def read(which):
        return read_checked(which, kind="test", version=1)

    def prepare():
        empty(tmp_path)
        write_checked(path, OLD, kind="test", version=1, backup=True)
        write_checked(path, OLDER, kind="test", version=1, backup=True)
        path.write_bytes(b"rubbish")

    def repair():
        value, warning = read_newest(path, read)
        assert value == OLD
        assert warning
        atomic.set_aside(path)
        write_checked(path, NEW, kind="test", version=1, backup=True)

    def verify():
        assert read_newest(path, read)[0] in (OLD, NEW)

    assert crashes(prepare, repair, verify) >= 20


def test_death_at_any_call_of_a_devices_start_never_uses_a_session_twice(tmp_path):
    shown = []

    def begin():
        with DeviceStateStore(tmp_path) as store:
            shown.append(store.open().memory.session)

    def verify():
        begin()
        assert shown == sorted(set(shown))

    # No preparation: one long history of crashes.
    assert crashes(lambda: None, begin, verify) >= 40


def test_death_at_any_call_of_a_push_leaves_the_update_before_or_the_new_one(tmp_path):
    """And its number is never below what the file says."""
    seen = set()

    def prepare():
        shutil.rmtree(tmp_path)
        with DeviceStateStore(tmp_path) as store:
            store.open()
            store.save_update(1, 1, OLD)

    def push():
        store = DeviceStateStore(tmp_path)
        try:
            session = store.open().memory.session
            store.save_update(session, 2, NEW)
        finally:
            store._lock.release() if store._lock else None

    def verify():
        with DeviceStateStore(tmp_path) as store:
            opened = store.open()
        assert opened.warning == ""
        seen.add((opened.update, opened.memory.seq))

    assert crashes(prepare, push, verify) >= 40
    assert seen == {(OLD, 1), (NEW, 2)}


@pytest.mark.parametrize("call", ["open", "write", "fsync", "link", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_an_error_from_any_call_leaves_old_or_new_and_no_temporary_file(tmp_path, call, number):
    path = tmp_path / "file"
    real = getattr(os, call)
    reached = 0
    for turn in range(1, 10):
        empty(tmp_path)
        write_atomic(path, OLDER, backup=True)
        write_atomic(path, OLD, backup=True)
        count = 0

        def failing(*args, turn=turn, **options):
            nonlocal count
            count += 1
            if count == turn:
                raise OSError(number, os.strerror(number))
            return real(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, failing)
            failure = None
            try:
                write_atomic(path, NEW, backup=True)
            except StorageError as error:
                failure = error
        if count < turn:
            assert path.read_bytes() == NEW
            break
        reached += 1
        assert failure is not None
        assert path.read_bytes() in (OLD, NEW)
        assert backup_of(path).read_bytes() in (OLDER, OLD)
        assert {entry.name for entry in tmp_path.iterdir()} == {"file", "file.bak"}
    assert reached >= 1


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    write_atomic(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_an_interrupt_leaves_old_and_no_temporary_file(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_atomic(path, OLD)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, NEW, backup=True)
    assert path.read_bytes() == OLD
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def disk(tmp_path):
    """A real file system of 512 KiB."""
    with small_disk(tmp_path / "disk", kib=512) as place:
        yield place


def remember_many(registry, devices):
    with registry.batch():
        for number in range(devices):
            registry.remember_device("r1", f"pi-{number}", session=1, seq=2, status="online")


def test_a_really_full_disk_corrupts_nothing_and_all_goes_on_when_there_is_space(disk):
    path = disk / "registry.json"
    store = CheckpointStore(disk / "checkpoints")
    model = {"model": np.zeros(15_000, np.float32)}
    with Registry(path) as registry, DeviceStateStore(disk / "state") as state:
        memory = state.open().memory
        registry.remember_device("r1", "pi-1", session=1, seq=1, status="online")
        store.save(1, model, {})
        write_atomic(disk / "filler", b"x" * 410_000)
        for _ in range(2):
            with pytest.raises(StorageError, match=r"the disk is full\. Free space in"):
                store.save(2, model, {})
        with pytest.raises(StorageError, match="the disk is full"):
            remember_many(registry, 2000)
        (disk / "last").write_bytes(b"")
        with contextlib.suppress(OSError), (disk / "last").open("wb", buffering=0) as rest:
            while rest.write(b"x" * 4096):
                pass
        with pytest.raises(StorageError, match="the disk is full"):
            state.save(memory)
        assert {name: row["seq"] for name, row in registry.devices_of("r1").items()} == {"pi-1": 1}
        assert not list(disk.rglob("*.tmp"))
        with Registry(path, read_only=True) as seen:
            assert (seen.warning, len(seen.devices_of("r1"))) == ("", 1)
        assert store.latest().version == 1
        (disk / "filler").unlink()
        (disk / "last").unlink()
        registry.remember_device("r1", "pi-2", session=1, seq=3, status="online")
        store.save(2, model, {})
        state.save(memory)
    with Registry(path, read_only=True) as seen:
        assert set(seen.devices_of("r1")) == {"pi-1", "pi-2"}


class Victim:
    """The writer of killed_writer.py, killed again and again at random instants."""

    def __init__(self, directory, seed):
        self.directory = directory
        self.chance = random.Random(seed)
        script = Path(__file__).with_name("killed_writer.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def kill_once(self, number):
        """Let it save from `number` on and kill it. Its session, and the last number it said was saved."""
        print(self.directory, number, file=self.process.stdin, flush=True)
        pid, session = map(int, self.process.stdout.readline().split())
        saved = number - 1
        for _ in range(self.chance.randrange(3)):
            saved = int(self.process.stdout.readline().split()[1])
        # Not waiting for anything: a random instant within the next save.
        select.select([], [], [], self.chance.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        while (line := self.process.stdout.readline()) != "ended\n":
            saved = int(line.split()[1])
        return session, saved

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()


def found_after(directory):
    """The number each store holds; fails where a store holds a mixture or a warning."""
    plain = set((directory / "plain").read_bytes().split())
    with Registry(directory / "registry.json", read_only=True) as registry:
        assert registry.warning == ""
        seqs = {row["seq"] for row in registry.devices_of("r1").values()}
        versions = {row["version"] for row in registry.allocations_of("r1").values()}
    checkpoint = CheckpointStore(directory / "checkpoints").latest()
    assert checkpoint.skipped == ()
    values = set(checkpoint.arrays["model"].tolist())
    for found in (plain, seqs, versions, values):
        assert len(found) == 1
    assert values == {checkpoint.version} == {checkpoint.metadata["number"]}
    assert seqs == versions
    return int(plain.pop()), seqs.pop(), checkpoint.version


def kill_many(directory, times, seed):
    victim = Victim(directory, seed)
    last_session, number = 0, 1
    try:
        for _ in range(times):
            session, saved = victim.kill_once(number)
            assert session > last_session
            last_session = session
            if saved == 0:
                continue
            for found in found_after(directory):
                assert found in (saved, saved + 1)
            with DeviceStateStore(directory / "state") as state:
                opened = state.open()
                assert opened.warning == ""
                assert opened.memory.session == session + 1
                assert opened.memory.allocation_version in (saved, saved + 1)
                # The update goes before, and says its number itself.
                (update,) = set(opened.update.split())
                assert opened.memory.seq == int(update) in (saved, saved + 1)
                assert opened.memory.seq >= opened.memory.allocation_version
                last_session = opened.memory.session
            number = saved + 1
    finally:
        victim.close()
    assert number > times // 3
    leftovers = [entry for entry in directory.rglob("*.tmp") if entry.parent != directory]
    assert len(leftovers) <= 1


def test_thirty_kills_during_saves_leave_old_or_new(tmp_path):
    kill_many(tmp_path, 30, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_two_hundred_kills_during_saves_leave_old_or_new(tmp_path, seed):
    kill_many(tmp_path, 200, seed)
