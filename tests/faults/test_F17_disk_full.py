"""F17: the disk is full. Nothing is corrupted, nothing is accepted, and all goes on when there is space."""

import errno
import math
import os
import time
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import StorageError
from hermes_iot.protocol.messages import Ack, CoordinatorStatus, DeviceStatus, Update
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime import space
from hermes_iot.storage.journal import Journal
from hermes_iot.storage.registry import Registry
from hermes_iot.transport.memory import MemoryBroker
from tests.core.hand import Board, Desk, birth, body, kinds, online, sent, update
from tests.support.disk import FailingDisk, fill, small_disk
from tests.support.fleet import (
    Records,
    Watcher,
    in_memory,
    over_mqtt,
    running,
    toy_config,
    toy_coordinator,
    toy_device,
)

FULL = "the disk is full"
FATES = ("applied", "duplicate", "stale", "rejected")
SETTINGS = CoordinatorSettings(linger_s=2.0, checkpoint_interval_s=0.1, status_interval_s=0.1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(space, "FIRST_S", 0.05)
    monkeypatch.setattr(space, "MOST_S", 0.2)


def coordinator_of(connect, run_dir, *, pushes=None, fleet="lab", **options):
    config = toy_config(rules=StopRules(max_pushes=pushes))
    options.setdefault("settings", SETTINGS)
    return toy_coordinator(connect, run_dir, fleet=fleet, config=config, **options)


def same_as_on_disk(connect, runner, **options):
    """Whether the next coordinator begins with this one's very model and books."""
    again = coordinator_of(connect, runner.run_dir.path, **options)
    again.close()
    assert np.array_equal(again.machine.model, runner.machine.model)
    assert again.machine.version == runner.machine.version
    assert (again.machine.tally.received, again.machine.tally.applied) == (
        runner.machine.tally.received,
        runner.machine.tally.applied,
    )
    return True


@pytest.mark.parametrize("file", ["journal-", "registry.json", "model-", "/run/"])
def test_F17_a_coordinator_waits_for_room_and_then_goes_on(file, tmp_path, monkeypatch, caplog):
    connect, records, trained = in_memory(), Records(), Records()
    topics = Topics("lab")
    status = topics.all("coordinator")
    disk = FailingDisk(monkeypatch, file)
    coordinator = coordinator_of(connect, tmp_path / "run", on_record=records)
    device = toy_device(connect, tmp_path, "pi-01", on_record=trained)
    late = toy_device(connect, tmp_path, "pi-02")
    with Watcher(connect, fleet="lab") as watch, running(coordinator, device) as (leading, training):
        records.wait("merge", 5)
        disk.number = errno.ENOSPC
        with running(late):  # a birth is written to the registry, and comes while nothing is taken in
            watch.wait(status, CoordinatorStatus, lambda one: one.reason == FULL)
            watch.settled()
            acks, merges = len(watch.said(topics.down("pi-01", "ack"), Ack)), len(records.of("merge"))
            updates = len([one for one in watch.all if one.topic == topics.up("pi-01", "update")])
            iterations = len(trained.of("iteration"))
            trained.wait("iteration", iterations + 20)  # trains on
            watch.settled()
            assert len(watch.said(topics.down("pi-01", "ack"), Ack)) == acks, "acknowledged without being on disk"
            assert len(records.of("merge")) == merges
            # Who is told that nothing is taken in sends nothing; what was on its way may still come.
            assert len([one for one in watch.all if one.topic == topics.up("pi-01", "update")]) <= updates + 1
            assert len(coordinator.inbox) < 10
            # A leader that falls silent is taken for dead.
            said = len(watch.said(status, CoordinatorStatus))
            watch.wait(status, CoordinatorStatus, lambda _one: len(watch.said(status, CoordinatorStatus)) > said + 2)
            assert leading.runner.running
            disk.number = 0
            watch.wait(status, CoordinatorStatus, lambda one: not one.reason)
            records.wait("joined", device="pi-02")
            records.wait("merge", device="pi-02")
            for _ in range(2):
                records.wait("merge", len([one for one in records.of("merge") if one["device"] == "pi-01"]) + 1)
        training.leave()
        leading.leave()
    assert disk.failed > 1, "it tried once and no more"
    assert caplog.text.count("updates are not taken in until there is room") == 1
    assert [len(records.of(event)) for event in ("suspended", "resumed")] == [1, 1]
    tally = coordinator.machine.tally
    assert tally.received == tally.applied + tally.duplicate + tally.stale + tally.rejected
    versions = [one["version"] for one in records.of("merge")]
    assert versions == list(range(1, len(versions) + 1))
    ids = [(one["device"], one["session"], one["seq"]) for one in records.of("merge")]
    assert len(ids) == len(set(ids))
    assert same_as_on_disk(connect, coordinator)


def test_F17_a_stop_does_not_wait_for_room(tmp_path, monkeypatch, caplog):
    connect, records = in_memory(), Records()
    disk = FailingDisk(monkeypatch, "/run/")
    coordinator = coordinator_of(connect, tmp_path / "run", on_record=records)
    with (
        Watcher(connect, fleet="lab") as watch,
        running(coordinator, toy_device(connect, tmp_path, "pi-01")) as (leading, _),
    ):
        records.wait("merge", 5)
        disk.number = errno.ENOSPC
        watch.wait(Topics("lab").all("coordinator"), CoordinatorStatus, lambda one: one.reason == FULL)
        acked = watch.newest(Topics("lab").down("pi-01", "ack"), Ack)
        began = time.monotonic()
        leading.leave()
        assert leading.wait() is None, "the run is not over"
        assert time.monotonic() - began < 5
        watch.wait(Topics("lab").all("coordinator"), CoordinatorStatus, lambda one: one.state == "offline")
    disk.number = 0
    assert "stopped on a full disk" in caplog.text
    again = coordinator_of(connect, tmp_path / "run")
    again.close()
    handled = again.machine.members["pi-01"].handled
    assert handled >= (acked.session, acked.seq), "acknowledged and forgotten"


def test_F17_a_stop_that_finds_the_disk_full_leaves_all_the_same(tmp_path, monkeypatch):
    connect, records = in_memory(), Records()
    disk = FailingDisk(monkeypatch, "/run/")
    # Nothing is saved before the stop finds that it cannot be: what was decided is in the journal alone.
    settings = replace(SETTINGS, checkpoint_interval_s=math.inf)
    coordinator = coordinator_of(connect, tmp_path / "run", on_record=records, settings=settings)
    with running(coordinator) as leading:
        with running(toy_device(connect, tmp_path, "pi-01")):
            records.wait("merge", 5)
        records.wait("left", device="pi-01")
        assert disk.failed == 0
        disk.number = errno.ENOSPC
        leading.leave()
        assert leading.wait() is None
    assert disk.failed > 0, "it did not try to save"
    assert records.of("suspended") == []
    disk.number = 0
    assert coordinator.machine.version >= 5
    assert same_as_on_disk(connect, coordinator)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_F17_another_failure_of_the_disk_ends_the_run(number, tmp_path, monkeypatch):
    connect, records = in_memory(), Records()
    disk = FailingDisk(monkeypatch, "/run/journal/")
    coordinator = coordinator_of(connect, tmp_path / "run", on_record=records)
    with running(coordinator, toy_device(connect, tmp_path, "pi-01")) as (leading, _):
        records.wait("merge", 3)
        disk.number = number
        error = leading.ended()
    assert isinstance(error, StorageError)
    assert error.exit_code == 8
    disk.number = 0
    coordinator_of(connect, tmp_path / "run").close()


def test_F17_a_run_that_ends_on_a_full_disk_ends_when_there_is_room(tmp_path, monkeypatch):
    connect = in_memory()
    disk = FailingDisk(monkeypatch, "model.safetensors")
    disk.number = errno.ENOSPC
    coordinator = coordinator_of(connect, tmp_path / "run", pushes=5)
    with running(coordinator, toy_device(connect, tmp_path, "pi-01")) as (leading, _):
        disk.wait(2)
        disk.number = 0
        assert leading.wait()["updates_applied"] >= 5
    with Registry(tmp_path / "run" / "registry.json", read_only=True) as registry:
        assert registry.runs()[-1]["state"] == "finished"


def test_F17_a_group_that_did_not_fit_comes_whole_or_not_at_all(tmp_path, monkeypatch):
    """Also where cutting it back fails at first."""
    journal = Journal(tmp_path)
    journal.append(b"one")
    journal.sync()
    real = {name: getattr(os, name) for name in ("writev", "ftruncate")}

    def half(descriptor, pieces):
        real["writev"](descriptor, [bytes(pieces[0])[:7]])
        raise OSError(errno.ENOSPC, "full")

    def refused(*_):
        raise OSError(errno.EIO, "not now")

    journal.append(b"two")
    monkeypatch.setattr(os, "writev", half)
    monkeypatch.setattr(os, "ftruncate", refused)
    with pytest.raises(StorageError, match=FULL):
        journal.sync()
    monkeypatch.setattr(os, "ftruncate", real["ftruncate"])
    with pytest.raises(StorageError, match=FULL):
        journal.sync()
    monkeypatch.setattr(os, "writev", real["writev"])
    journal.sync()
    journal.close()
    again = Journal(tmp_path)
    assert again.torn_bytes == 0
    assert [payload for _, payload in again.read()] == [b"one", b"two"]
    again.close()


@pytest.mark.mosquitto
def test_F17_a_really_full_disk_under_a_run_over_a_real_broker(mosquitto, tmp_path, caplog):
    connect, records, fleet = over_mqtt(mosquitto), Records(), "f17-real"
    status = Topics(fleet).all("coordinator")
    with small_disk(tmp_path / "disk", kib=640) as place:
        coordinator = coordinator_of(connect, place / "run", pushes=60, fleet=fleet, on_record=records)
        boards = [toy_device(connect, tmp_path, name, fleet=fleet) for name in ("pi-01", "pi-02")]
        with Watcher(connect, fleet=fleet) as watch, running(coordinator, boards[0]) as (leading, _):
            records.wait("merge", 5)
            filler = fill(place)
            watch.wait(status, CoordinatorStatus, lambda one: one.reason == FULL)
            with running(boards[1]):
                watch.wait(Topics(fleet).up("pi-02", "status"), DeviceStatus, lambda one: one.state == "online")
                filler.unlink()
                watch.wait(status, CoordinatorStatus, lambda one: not one.reason)
                records.wait("joined", device="pi-02")
                summary = leading.wait(40)
        assert summary["updates_received"] == sum(summary[f"updates_{fate}"] for fate in FATES)
        assert summary["updates_applied"] >= 60
        assert not list(place.rglob("*.tmp"))
        with Registry(place / "run" / "registry.json", read_only=True) as registry:
            assert registry.runs()[-1]["state"] == "finished"
    assert FULL in caplog.text


# --- devices ----------------------------------------------------------------------------------------------------------


def test_F17_a_device_trains_on_and_remembers_when_there_is_room(tmp_path, monkeypatch, caplog):
    connect, records, trained = in_memory(), Records(), Records()
    disk = FailingDisk(monkeypatch, "/pi-01/")
    coordinator = coordinator_of(connect, tmp_path / "run", on_record=records)
    device = toy_device(connect, tmp_path, "pi-01", on_record=trained)
    with running(coordinator, device) as (_, board):
        records.wait("merge", 3)
        disk.number = errno.ENOSPC
        seq = device.machine.memory.seq
        records.until("merge", lambda one: one["seq"] > seq + 3)
        disk.wait(3)
        assert device._space.wanted
        disk.number = 0
        records.wait("merge", len(records.of("merge")) + 3)
        board.leave()
    assert caplog.text.count("training goes on") == 1
    again = toy_device(connect, tmp_path, "pi-01")
    again.close()
    assert again.machine.memory.session == device.machine.memory.session + 1
    assert again.machine.memory.seq == device.machine.memory.seq


def test_F17_what_a_device_could_not_write_is_never_numbered_again(tmp_path, monkeypatch):
    """Full from its start to its death: the next life has a session of its own."""
    connect, records = in_memory(MemoryBroker(clock=time.monotonic)), Records()
    disk = FailingDisk(monkeypatch, "/pi-01/")
    coordinator = coordinator_of(connect, tmp_path / "run", on_record=records)
    first = toy_device(connect, tmp_path, "pi-01")
    with running(coordinator):
        disk.number = errno.ENOSPC
        with running(first):
            records.wait("merge", 4)
        disk.number = 0
        with running(toy_device(connect, tmp_path, "pi-01")):
            records.until("merge", lambda one: one["session"] == 2, count=3)
    ids = [(one["session"], one["seq"]) for one in records.of("merge")]
    assert len(ids) == len(set(ids))


def test_F17_a_device_without_room_for_its_session_does_not_start(tmp_path, monkeypatch):
    disk = FailingDisk(monkeypatch, "/pi-01/")
    disk.number = errno.ENOSPC
    with pytest.raises(StorageError, match=FULL):
        toy_device(in_memory(), tmp_path, "pi-01")


# --- the machines by hand ---------------------------------------------------------------------------------------------


def test_F17_to_a_device_a_leader_that_takes_nothing_in_is_not_there_and_its_word_is_its_return():
    board = Board().at_work()
    board.tell(replace(online(), reason=FULL))
    assert not sent(board.trained(), Update)
    assert board.machine.phase == "training", "it waits for nobody"
    assert not sent(board.trained(3.0), Update)
    assert not sent(board.wait(1000.0), Update)
    (newest,) = sent(board.tell(online()), Update)
    assert (newest.seq, newest.body) == (2, body(3.0)), "the newest only"


def test_F17_while_suspended_nothing_is_decided_and_afterwards_all_is_said_again():
    desk = Desk(status_interval_s=2.0).up()
    desk.hear(birth())
    effects = desk.machine.suspend(FULL, now=desk.now)
    assert [one.reason for one in sent(effects, CoordinatorStatus)] == [FULL]
    received = desk.machine.tally.received
    assert desk.hear(update()) == desk.hear(birth(), "d2") == []
    assert (desk.machine.tally.received, desk.machine.version) == (received, 0)
    said = desk.wait(10.0)
    assert [one.reason for one in sent(said, CoordinatorStatus)] == [FULL] * 5
    assert kinds(said) == ["CoordinatorStatus"] * 5
    assert kinds(desk.machine.connected(now=desk.now)) == ["CoordinatorStatus"]
    effects = desk.machine.resume(now=desk.now)
    assert kinds(effects) == ["RunManifest", "SendKeyframe", "Allocation", "CoordinatorStatus", "Record"]
    assert sent(effects, CoordinatorStatus)[0].reason == ""
    assert sent(desk.hear(update()), Ack)[0].outcome == "applied"
