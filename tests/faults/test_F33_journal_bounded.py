"""F33: days of running. The journal is cut by its size as well as by time, also where the model stands still."""

import itertools

import numpy as np
import pytest

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.effects import Checkpoint, Journal
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import DeviceId
from hermes_iot.errors import StorageError
from hermes_iot.protocol.wire import Received
from hermes_iot.runtime.run_dir import RunDir
from hermes_iot.storage import atomic, checkpoints
from hermes_iot.storage.checkpoints import CheckpointStore
from hermes_iot.storage.journal import Journal as Log
from tests.core.hand import Desk, birth, of, update
from tests.core.test_coordinator_machine import restored_from
from tests.support.fleet import in_memory, toy_config, toy_coordinator


def test_F33_repetitions_alone_bring_a_checkpoint_when_they_have_filled_the_log():
    """An entry without tensors weighs 512 bytes: twenty of them are 10 KiB."""
    desk = Desk(checkpoint_bytes=10 * 1024, checkpoint_interval_s=1e6).up()
    desk.hear(birth())
    desk.hear(update())
    saved = []
    for number in range(100):
        effects = desk.hear(update())
        saved += [number] * len(of(effects, Checkpoint))
        if of(effects, Checkpoint):
            # What it holds is in the log before it.
            assert [type(one) for one in effects if isinstance(one, Journal | Checkpoint)] == [Journal, Checkpoint]
    assert desk.machine.tally.duplicate == 100
    assert len(saved) == 5
    assert all(after - before == 20 for before, after in itertools.pairwise(saved))


def test_F33_what_was_replayed_counts():
    desk = Desk(checkpoint_bytes=10 * 1024, checkpoint_interval_s=1e6)
    effects = desk.machine.connected(now=desk.now)
    effects += desk.hear(birth())
    for _ in range(17):
        effects += desk.hear(update())
    entries = [entry for one in of(effects, Journal) for entry in one.entries]
    first = of(effects, Checkpoint)[:1]
    again = Desk(
        restored=restored_from(desk, first, entries=entries), checkpoint_bytes=10 * 1024, checkpoint_interval_s=1e6
    ).up()
    made = [bool(of(again.hear(update()), Checkpoint)) for _ in range(6)]
    assert made.count(True) == 1, "a run that is restarted again and again would never come to it"


def test_F33_where_nobody_wants_checkpoints_the_log_brings_none():
    desk = Desk(checkpoint_bytes=1, checkpoint_interval_s=float("inf")).up()
    desk.hear(birth())
    assert not of([one for _ in range(9) for one in desk.hear(update())], Checkpoint)


def checkpoint(version, value):
    return Checkpoint(version=version, arrays={"model": np.full(3, value, np.float32)}, scalars={"value": value})


def filled(run_dir, records=50):
    for _ in range(records):
        run_dir.journal.append(b"x" * 1000)
    run_dir.journal.sync()


def size(path):
    return sum(entry.stat().st_size for entry in (path / "journal").iterdir())


def test_F33_saving_one_version_again_cuts_the_log_and_keeps_two_copies(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.save("run-a", checkpoint(7, 0))
    for turn in range(1, 10):
        filled(run_dir)
        run_dir.save("run-a", checkpoint(7, turn))
        assert size(tmp_path) < 2 * 50 * 1100
    run_dir.close()
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.versions == (7,)
    assert store.latest().metadata["scalars"]["value"] == 9
    # The newest is damaged: the one before leads on, and the log begins no later than it wants it.
    path = store.path(7)
    path.write_bytes(path.read_bytes()[:-1])
    store = CheckpointStore(tmp_path / "checkpoints")
    found = store.latest()
    assert found.metadata["scalars"]["value"] == 8
    assert found.skipped
    log = Log(tmp_path / "journal")
    assert len(list(log.read(found.metadata["journal"]))) == 50
    log.close()
    # And its damaged successor does not become the backup of the next.
    store.save(7, {"model": np.zeros(3, np.float32)}, {"n": 1})
    path.write_bytes(b"")
    assert CheckpointStore(tmp_path / "checkpoints").latest().metadata["scalars"]["value"] == 8


def test_F33_a_new_version_takes_the_place_of_repeated_ones(tmp_path):
    store = CheckpointStore(tmp_path)
    for version in (3, 5, 5, 5, 6, 8):
        store.save(version, {"model": np.zeros(3, np.float32)}, {})
    assert store.versions == (6, 8)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [store.path(one).name for one in (6, 8)]


def test_F33_a_coordinator_flooded_with_repetitions_keeps_its_log_short(tmp_path):
    settings = CoordinatorSettings(checkpoint_bytes=64 * 1024, checkpoint_interval_s=1e6)
    coordinator = toy_coordinator(
        in_memory(), tmp_path / "run", config=toy_config(rules=StopRules()), settings=settings
    )
    coordinator.start()
    machine = coordinator.machine
    model = machine.manifest.model
    word = update(
        run=coordinator.run_id, model=model.sha256, codec=machine.manifest.codec, parameters=model.parameters, body=b""
    )
    largest = 0
    for _ in range(2000):
        coordinator._perform(machine.received(_from_device(word), now=coordinator._clock()))
        coordinator._settle_now()
        largest = max(largest, size(tmp_path / "run"))
    assert machine.tally.received == 2000
    assert largest < 6 * 64 * 1024, f"{largest} bytes"
    coordinator.close()
    again = toy_coordinator(in_memory(), tmp_path / "run", config=toy_config(rules=StopRules()))
    again.close()
    assert again.machine.tally.received == 2000


def _from_device(message):
    return Received(message=message, device=DeviceId("pi-01"), tensor=True)


# --- limits hold on both sides ----------------------------------------------------------------------------------------


def test_F33_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(1, {"model": np.zeros(10, np.float32)}, {})
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES_MAX", 4000)
    with pytest.raises(StorageError, match="at most 4000 can be read again"):
        store.save(2, {"model": np.zeros(2000, np.float32)}, {})
    assert store.latest().version == 1
    for entries in range(100, 800, 50):  # whatever is written is read
        try:
            store.save(entries, {"model": np.zeros(entries, np.float32)}, {"more": "x" * 300})
        except StorageError:
            break
        assert CheckpointStore(tmp_path).latest().version == entries
    else:
        pytest.fail("the limit was never reached")
    with pytest.raises(StorageError, match="can be read again"):
        atomic.write_checked(tmp_path / "file", bytes(100), kind="test", version=1, bytes_max=150)
