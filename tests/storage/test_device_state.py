"""A board comes back as itself, or says that it could not."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import IdConflict, ProtocolError, StorageError, UsageError
from hermes_iot.storage import atomic
from hermes_iot.storage.device_state import (
    COUNTER_MAX,
    DeviceMemory,
    DeviceStateStore,
    ShardCache,
    state_directory,
)

COUNTERS = st.integers(0, COUNTER_MAX - 1)


def start(directory):
    store = DeviceStateStore(directory)
    return store, store.open()


def test_a_new_board_begins_with_session_one_and_a_name_of_its_own(tmp_path):
    stores = [start(tmp_path / name) for name in ("a", "b")]
    (_, one), (_, two) = stores
    assert (one.memory.session, one.memory.run, one.memory.seq, one.fresh, one.warning) == (1, "", 0, True, "")
    assert one.memory.instance != two.memory.instance
    for store, _ in stores:
        store.close()


def test_every_start_is_a_new_session_and_the_rest_is_remembered(tmp_path):
    store, opened = start(tmp_path)
    last = opened.memory
    store.close()
    for session in range(2, 6):
        store, opened = start(tmp_path)
        assert opened.memory == replace(last, session=session)
        assert not opened.fresh
        last = replace(opened.memory, run="r1", seq=session * 10, allocation_version=session)
        store.save(last)
        store.close()


def test_a_process_that_saves_nothing_uses_its_session_up_all_the_same(tmp_path):
    for session in (1, 2, 3):
        store, opened = start(tmp_path)
        assert opened.memory.session == session
        store.close()


@given(session=st.integers(1, COUNTER_MAX - 1), seq=COUNTERS, version=COUNTERS, run=st.text(max_size=64))
def test_any_memory_comes_back(tmp_path_factory, session, seq, version, run):
    directory = tmp_path_factory.mktemp("state")
    with DeviceStateStore(directory) as store:
        instance = store.open().memory.instance
        memory = DeviceMemory(session=session, run=run, seq=seq, allocation_version=version, instance=instance)
        store.save(memory)
    with DeviceStateStore(directory) as store:
        assert store.open().memory == replace(memory, session=session + 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"session": 0},
        {"session": True},
        {"session": 1.0},
        {"session": COUNTER_MAX + 1},
        {"seq": -1},
        {"allocation_version": "1"},
        {"run": None},
        {"instance": "abc"},
        {"instance": "g" * 32},
        {"instance": None},
    ],
)
def test_a_memory_is_checked_at_birth(wrong):
    right = {"session": 1, "run": "", "seq": 0, "allocation_version": 0, "instance": "0" * 32}
    assert DeviceMemory(**right)
    with pytest.raises(ValueError, match="must be"):
        DeviceMemory(**right | wrong)


def test_a_session_may_be_raised_but_not_taken_back(tmp_path):
    with DeviceStateStore(tmp_path) as store:
        memory = store.open().memory
        store.save(replace(memory, session=40))
        with pytest.raises(ValueError, match="session 39 is before 40"):
            store.save(replace(memory, session=39))
    with DeviceStateStore(tmp_path) as store:
        assert store.open().memory.session == 41


def test_the_newest_update_comes_back_with_its_number(tmp_path):
    store, opened = start(tmp_path)
    assert opened.update is None
    store.save_update(1, 3, b"three")
    store.save_update(1, 4, b"four")
    store.close()
    for session in (2, 3):  # as long as no newer one is written
        store, opened = start(tmp_path)
        store.close()
        assert (opened.update, opened.memory.session, opened.memory.seq) == (b"four", session, 4)


def test_a_push_needs_no_write_of_the_memory(tmp_path):
    store, opened = start(tmp_path)
    store.save(replace(opened.memory, run="r1", seq=7))
    before = (tmp_path / "device.json").read_bytes()
    store.save_update(1, 8, b"eight")
    store.close()
    assert (tmp_path / "device.json").read_bytes() == before
    store, opened = start(tmp_path)
    store.close()
    assert (opened.memory.run, opened.memory.seq) == ("r1", 8)


@pytest.mark.parametrize("left", ["nothing", "an older copy"])
def test_an_update_keeps_its_session_from_being_used_again(tmp_path, left):
    store, opened = start(tmp_path)
    store.save(replace(opened.memory, session=9))
    store.save_update(9, 2, b"two")
    store.close()
    if left == "nothing":
        for name in ("device.json", "device.json.bak"):
            (tmp_path / name).write_bytes(b"")
    else:
        memory = replace(opened.memory, session=4)
        payload = json.dumps(asdict(memory)).encode()
        atomic.write_checked(tmp_path / "device.json", payload, kind="device-state", version=1, document=True)
    store, opened = start(tmp_path)
    store.close()
    assert (opened.memory.session, opened.memory.seq, opened.update) == (10, 2, b"two")


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "short", "session"])
def test_a_damaged_update_is_put_aside_with_a_word_and_stops_nothing(tmp_path, harm):
    store, _ = start(tmp_path)
    store.save_update(1, 3, b"three" * 100)
    store.close()
    path = tmp_path / "update.bin"
    data = path.read_bytes()
    if harm in {"short", "session"}:
        payload = b"abc" if harm == "short" else bytes(16) + b"update"
        atomic.write_checked(path, payload, kind="device-update", version=1)
    else:
        path.write_bytes({"truncate": data[:-9], "flip": data[:-9] + b"?" + data[-8:], "empty": b""}[harm])
    store, opened = start(tmp_path)
    store.close()
    assert (opened.update, opened.memory.session, opened.fresh) == (None, 2, False)
    assert "update.bin is damaged" in opened.warning
    assert (tmp_path / "update.bin.damaged").exists()


def test_an_update_is_not_saved_without_opening(tmp_path):
    store, _ = start(tmp_path)
    store.close()
    with pytest.raises(StorageError, match="not open"):
        store.save_update(1, 1, b"one")


def test_saving_without_opening_is_refused(tmp_path):
    store, opened = start(tmp_path)
    store.close()
    with pytest.raises(StorageError, match="not open"):
        store.save(opened.memory)


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "remove"])
def test_the_backup_takes_over_and_no_session_is_used_twice(tmp_path, harm):
    used = []
    for _ in range(6):
        store, opened = start(tmp_path)
        assert not (used and opened.fresh)
        used.append(opened.memory.session)
        store.save(replace(opened.memory, seq=5))
        store.save(replace(opened.memory, seq=6))
        store.close()
        path = tmp_path / "device.json"
        data = path.read_bytes()
        if harm == "remove":
            path.unlink()
        else:
            changed = {"truncate": data[:-9], "flip": data[:-9] + b"?" + data[-8:], "empty": b""}
            path.write_bytes(changed[harm])
    assert used == [1, 2, 3, 4, 5, 6]
    assert "its previous version device.json.bak is used" in opened.warning
    assert opened.memory.seq == 5
    if harm != "remove":
        assert (tmp_path / "device.json.damaged").exists()


def test_right_after_opening_the_backup_knows_the_session_too(tmp_path):
    store, opened = start(tmp_path)
    store.close()
    (tmp_path / "device.json").write_bytes(b"")
    store, again = start(tmp_path)
    store.close()
    assert (again.memory.session, again.memory.instance) == (2, opened.memory.instance)


def test_with_both_copies_lost_the_board_starts_over_under_a_new_name_and_says_so(tmp_path):
    store, first = start(tmp_path)
    store.close()
    for name in ("device.json", "device.json.bak"):
        (tmp_path / name).write_bytes(b"\0" * 100)
    store, second = start(tmp_path)
    store.close()
    assert second.fresh
    assert second.memory.session == 1
    assert second.memory.instance != first.memory.instance
    assert "device.json is damaged" in second.warning
    assert "starts over" in second.warning
    store, third = start(tmp_path)
    store.close()
    assert (third.memory, third.warning) == (replace(second.memory, session=2), "")


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[1]",
        b"{}",
        b"[" * 50_000,
        b"9" * 5000,
        b'{"session": 1, "run": "", "seq": 0, "allocation_version": 0, "instance": "x"}',
        b'{"session": 1, "run": "", "seq": 0, "allocation_version": 0, "instance": "%s", "more": 1}' % (b"0" * 32),
        b'{"session": %d, "run": "", "seq": 0, "allocation_version": 0, "instance": "%s"}' % (COUNTER_MAX, b"0" * 32),
    ],
)
def test_a_body_that_makes_no_sense_does_not_stop_a_board(tmp_path, body):
    atomic.write_checked(tmp_path / "device.json", body, kind="device-state", version=1, document=True)
    with DeviceStateStore(tmp_path) as store:
        opened = store.open()
    assert opened.fresh
    assert "damaged" in opened.warning


def test_a_newer_versions_memory_is_left_alone(tmp_path):
    atomic.write_checked(tmp_path / "device.json", b"{}", kind="device-state", version=2, document=True)
    before = (tmp_path / "device.json").read_bytes()
    with pytest.raises(StorageError, match="newer hermes-iot"):
        DeviceStateStore(tmp_path).open()
    assert (tmp_path / "device.json").read_bytes() == before


HOLDER = """
import sys
from pathlib import Path
from hermes_iot.storage.device_state import DeviceStateStore
store = DeviceStateStore(Path(sys.argv[1]))
print(store.open().memory.session, flush=True)
sys.stdin.read()
"""


def test_the_same_device_twice_on_one_machine_is_an_id_conflict_with_a_pid(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(IdConflict, match=f"process {other.pid} on .*another device id") as caught:
            DeviceStateStore(tmp_path).open()
        assert caught.value.exit_code == 7
        other.send_signal(signal.SIGKILL)
        other.wait()
    with DeviceStateStore(tmp_path) as store:
        assert store.open().memory.session == 2


def test_a_failed_start_gives_the_directory_back_and_wastes_no_identity(tmp_path, monkeypatch):
    store, first = start(tmp_path)
    store.close()

    def full(*_):
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="the disk is full"):
            DeviceStateStore(tmp_path).open()
    with DeviceStateStore(tmp_path) as store:
        opened = store.open()
    assert (opened.memory.session, opened.memory.instance) == (2, first.memory.instance)


def test_a_save_that_fails_leaves_the_memory_before(tmp_path, monkeypatch):
    store, opened = start(tmp_path)
    store.save(replace(opened.memory, seq=1))

    def full(*_):
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            store.save(replace(opened.memory, seq=2))
    store.close()
    with DeviceStateStore(tmp_path) as again:
        assert again.open().memory.seq == 1


def test_the_file_can_be_read_by_a_person(tmp_path):
    with DeviceStateStore(tmp_path) as store:
        memory = store.open().memory
    body = json.loads((tmp_path / "device.json").read_bytes())["body"]
    assert body == {"session": 1, "run": "", "seq": 0, "allocation_version": 0, "instance": memory.instance}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def shard(number, size=10):
    data = bytes([number]) * size
    return digest(data), data


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "shards"


def test_shards_survive_restarts(directory):
    name, data = shard(1)
    assert ShardCache(directory, 100).get(name) is None
    ShardCache(directory, 100).put(name, data)
    cache = ShardCache(directory, 100)
    assert cache.get(name) == data
    assert cache.bytes_used == 10


def test_a_shard_under_a_wrong_name_is_the_peers_fault(directory):
    cache = ShardCache(directory, 100)
    for name in (digest(b"other"), "../../etc/passwd", ""):
        with pytest.raises(ProtocolError) as caught:
            cache.put(name, b"data")
        assert caught.value.reason == "shard_hash"
    assert cache.get("../device.json") is None
    assert not directory.exists()


def test_the_least_recently_used_goes_first_also_after_a_restart(directory):
    cache = ShardCache(directory, 30)
    names = [shard(number)[0] for number in range(5)]
    for number in (0, 1, 2):
        cache.put(*shard(number))
    assert cache.get(names[0])
    cache = ShardCache(directory, 30)
    cache.put(*shard(3))
    assert [cache.get(name) is not None for name in names] == [True, False, True, True, False]
    cache = ShardCache(directory, 30)
    cache.put(*shard(4, size=20))
    assert [cache.get(name) is not None for name in names[:4]] == [False, False, False, True]


def test_a_lowered_limit_holds_at_once(directory):
    cache = ShardCache(directory, 30)
    for number in (0, 1, 2):
        cache.put(*shard(number))
    cache = ShardCache(directory, 15)
    assert cache.bytes_used == 10
    assert len(list(directory.iterdir())) == 1
    assert cache.get(shard(2)[0])


def test_a_shard_larger_than_the_cache_is_refused_and_drops_nothing(directory):
    cache = ShardCache(directory, 15)
    cache.put(*shard(0))
    with pytest.raises(StorageError, match="a shard of 16 bytes cannot be kept: the shard cache may hold 15 bytes"):
        cache.put(*shard(1, size=16))
    assert cache.get(shard(0)[0])


@pytest.mark.parametrize("harm", [b"", b"x" * 10, b"x" * 1000, None])
def test_a_damaged_shard_is_dropped_and_can_be_fetched_again(directory, harm):
    name, data = shard(1)
    cache = ShardCache(directory, 100)
    cache.put(name, data)
    if harm is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(harm)
    assert cache.get(name) is None
    assert cache.bytes_used == 0
    assert not (directory / name).exists()
    cache.put(name, data)
    assert cache.get(name) == data


def test_a_shard_held_already_is_not_written_again_unless_damaged(directory, monkeypatch):
    cache = ShardCache(directory, 15)
    name, data = shard(1)
    cache.put(name, data)
    writes = []
    write = atomic.write_atomic
    monkeypatch.setattr(atomic, "write_atomic", lambda *args: (writes.append(args), write(*args)))
    cache.put(name, data)
    assert writes == []
    (directory / name).write_bytes(b"harm")
    cache.put(name, data)
    assert len(writes) == 1
    assert cache.get(name) == data


def test_foreign_and_half_written_files_do_not_count(directory):
    directory.mkdir()
    (directory / "README").write_bytes(b"x" * 1000)
    (directory / f".{'0' * 64}.0123456789ab.tmp").write_bytes(b"x" * 1000)
    (directory / ("1" * 64)).mkdir()
    cache = ShardCache(directory, 10)
    assert cache.bytes_used == 0
    assert sorted(entry.name for entry in directory.iterdir()) == ["1" * 64, "README"]


def test_a_card_that_turned_read_only_still_gives_its_shards(directory, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "read-only")

    name, data = shard(1)
    cache = ShardCache(directory, 100)
    cache.put(name, data)
    monkeypatch.setattr(os, "utime", read_only)
    assert cache.get(name) == data


@given(steps=st.lists(st.tuples(st.sampled_from(["put", "get", "restart"]), st.integers(0, 5)), max_size=30))
def test_the_cache_is_a_plain_lru_within_its_limit(tmp_path_factory, steps):
    directory = tmp_path_factory.mktemp("shards")
    cache, model = ShardCache(directory, 20), {}
    for step, number in steps:
        name, data = shard(number, size=number * 3 + 1)
        if step == "restart":
            cache = ShardCache(directory, 20)
            continue
        if step == "put":
            model[name] = model.pop(name, data)
            while sum(map(len, model.values())) > 20:
                model.pop(next(iter(model)))
            cache.put(name, data)
        else:
            if name in model:
                model[name] = model.pop(name)
            assert cache.get(name) == model.get(name)
        assert cache.bytes_used == sum(map(len, model.values()))
    assert {entry.name for entry in directory.iterdir()} == set(model)


def test_the_state_directory_follows_the_environment(tmp_path):
    home = {"HOME": str(tmp_path)}
    xdg = {"XDG_STATE_HOME": "/var/xdg"}
    assert state_directory("f", "d", home) == tmp_path / ".local/state/hermes-iot/f/d"
    assert str(state_directory("f", "d", home | xdg)) == "/var/xdg/hermes-iot/f/d"
    assert str(state_directory("f", "d", home | xdg | {"HERMES_STATE_DIR": "/data"})) == "/data/f/d"
    assert state_directory("f", "d", home | {"XDG_STATE_HOME": "relative"}) == state_directory("f", "d", home)
    with pytest.raises(StorageError, match="Set HERMES_STATE_DIR"):
        state_directory("f", "d", {})


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\n", "x" * 65])
def test_no_name_leads_out_of_the_state_directory(name):
    with pytest.raises(UsageError):
        state_directory("f", name, {"HOME": "/home/x"})
    with pytest.raises(UsageError):
        state_directory(name, "d", {"HOME": "/home/x"})
