"""What the coordinator decided is on disk before anybody hears of it, and done again it leads to the same model."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies import STRATEGIES
from hermes_iot.cli import main
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.redo import FleetChanged, Found, Resized, UpdateTaken
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Score
from hermes_iot.errors import StorageError
from hermes_iot.protocol.messages import Ack, Model, Update
from hermes_iot.runtime import redo_log
from hermes_iot.storage.journal import Journal
from tests.support.eventlog import model_of
from tests.support.fleet import Records, in_memory, running, toy_config, toy_coordinator, toy_device

DEVICES = ("pi-01", "pi-02", "pi-03")
SETTINGS = CoordinatorSettings(linger_s=2.0, resize_interval_s=0.02, checkpoint_interval_s=0.2)
CONSTANTS = {"hermes-plus": {"shares": {"target_s": 0.02}}, "hermes": {"pushed": "delta"}}

anything = st.floats(width=64)
scores = st.builds(Score, loss=anything, accuracy=st.none() | anything)
counts = st.integers(0, 2**53 - 1)
founds = st.builds(
    Found,
    scores=st.lists(scores, max_size=3).map(tuple),
    measured=st.none() | scores,
    version=counts,
    elapsed_s=st.floats(0, 1e9),
    up=st.dictionaries(st.sampled_from(["model", "control"]), counts),
    down=st.dictionaries(st.sampled_from(["model", "data"]), counts),
)
updates = st.builds(
    Update,
    run=st.just("run-a"),
    session=counts,
    seq=st.integers(1, 100),
    base_version=counts,
    model=st.just("a" * 64),
    codec=st.sampled_from(["fp32", "int8"]),
    parameters=st.just(4),
    loss=anything,
    samples=counts,
    batch=counts,
    mini_batches=counts,
    train_s=st.floats(0, 1e6),
    iterations=counts,
    body=st.binary(max_size=40),
)
entries = st.one_of(
    st.builds(
        UpdateTaken,
        device=st.just("d1"),
        update=updates,
        outcome=st.sampled_from(["applied", "duplicate", "stale", "rejected"]),
        reason=st.sampled_from(["", "lag"]),
        lag=counts,
        planned=counts,
        base=st.none() | st.lists(st.floats(width=32), min_size=4, max_size=4).map(lambda v: np.array(v, np.float32)),
        found=founds,
    ),
    st.builds(FleetChanged, device=st.just("d1"), works=st.booleans(), found=founds),
    st.builds(
        Resized,
        reports=st.dictionaries(
            st.sampled_from(["d1", "d2"]),
            st.builds(Report, seconds=st.floats(1e-3, 1e3), samples=st.just(9), batch=st.just(3), epochs=st.just(1)),
        ),
        found=founds,
    ),
)


@given(st.lists(entries, max_size=5))
def test_entries_come_back_as_they_were(tmp_path_factory, given_entries):
    journal = Journal(tmp_path_factory.mktemp("journal"))
    redo_log.append(journal, given_entries)
    journal.sync()
    # By their text, in which one NaN is like another; floats in it are exact.
    assert [repr(entry) for entry in redo_log.read(journal, 0)] == [repr(entry) for entry in given_entries]


def test_a_record_of_something_else_names_its_place_and_the_remedy(tmp_path):
    journal = Journal(tmp_path)
    journal.append(b'{"kind": "dance"}\n')
    journal.sync()
    with pytest.raises(StorageError, match="record 0 of the run's journal cannot be read") as refused:
        list(redo_log.read(journal, 0))
    assert "version" in refused.value.mend


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_coordinator_that_dies_at_any_instant_comes_back_with_the_model_it_had(strategy, tmp_path):
    """The run's directory as it is at this or that moment is what a SIGKILL then would leave."""
    connect, records, models, copies = in_memory(), Records(), {}, []
    config = toy_config(strategy=strategy, constants=CONSTANTS.get(strategy, {}), rules=StopRules(max_pushes=45))

    def observe(event, fields):
        records(event, fields)
        if event == "merge":
            models[coordinator.machine.version] = model_of(coordinator.machine)
            if len(records.of("merge")) % 7 == 0:
                copy = tmp_path / f"copy-{len(copies)}"
                shutil.copytree(coordinator.run_dir.path, copy)
                copies.append((copy, told["version"]))

    told = {"version": 0}
    coordinator = toy_coordinator(connect, tmp_path / "run", config=config, settings=SETTINGS, on_record=observe)
    models[0] = model_of(coordinator.machine)
    tell = coordinator._tell

    def telling(effect):
        assert not coordinator.run_dir.unsynced, "something is told before it is safe"
        if isinstance(getattr(effect, "message", None), Ack | Model):
            told["version"] = coordinator.machine.version
        tell(effect)

    coordinator._tell = telling
    with running(coordinator) as leading, running(*(toy_device(connect, tmp_path, name) for name in DEVICES)):
        leading.wait()
    assert len(copies) > 5
    replayed = 0
    for copy, version in copies:
        again = toy_coordinator(connect, copy, config=config, settings=SETTINGS)
        try:
            assert again.machine.version >= version
            assert model_of(again.machine) == models[again.machine.version]
            replayed += again.machine.version > again.run_dir.checkpoints.versions[-1]
        finally:
            again.close()
    assert replayed, "all of it came from checkpoints"


def test_a_journal_that_is_gone_is_refused_and_begun_anew_behind_the_checkpoint_by_repair(tmp_path, capsys):
    """Lost, or moved away by a person: what was acknowledged may have been in it."""
    connect, config = in_memory(), toy_config(rules=StopRules())
    records = Records()
    with running(
        toy_coordinator(connect, tmp_path / "run", config=config, settings=SETTINGS, on_record=records),
        toy_device(connect, tmp_path, "pi-01"),
    ) as (leading, _):
        records.wait("merge", 5)
        leading.leave()
        shutil.move(tmp_path / "run" / "journal", tmp_path / "away")
        for _ in range(2):
            with pytest.raises(StorageError, match=r"the journal in .* is missing.*--forget-journal --yes") as refused:
                toy_coordinator(connect, tmp_path / "run", config=config, settings=SETTINGS)
            assert refused.value.exit_code == 8
        assert not (tmp_path / "run" / "journal").exists(), "nothing was made up for it"
        command = refused.value.mend.rpartition("hermes-iot ")[2].split()
        assert main(command[:-1]) == 8, "without --yes nothing is changed"
        assert "journal" in capsys.readouterr().out
        assert main(command) == 0
        for _ in range(2):  # what the first of them does is there for the second
            again = toy_coordinator(connect, tmp_path / "run", config=config, settings=SETTINGS, on_record=records)
            version = again.resumed_version
            assert version >= 5
            with running(again) as leading_again:
                records.until("merge", lambda one, version=version: one["version"] > version + 2)
                shutil.copytree(tmp_path / "run", tmp_path / f"killed-{version}")
                leading_again.leave()
            killed = toy_coordinator(connect, tmp_path / f"killed-{version}", config=config, settings=SETTINGS)
            killed.close()
            assert killed.machine.version > version
