"""Runs with torch and a person's own task and strategy: who holds the rows, and what is refused and why."""

import textwrap
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import Incompatible, UsageError
from hermes_iot.protocol.messages import TaskInfo
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.trainers import for_coordinator, for_device
from hermes_iot.transport.memory import MemoryBroker
from tests.support.fleet import PATIENCE_S, Records, in_memory, running, toy_device

TASK = """
    import numpy as np
    from torch import nn

    DEFAULTS = {"samples": 40, "batch": 8, "epochs": 1, "learning_rate": 0.1}

    def build_model():
        return nn.Linear(4, 3)

    def load_data(data_dir):
        rows = np.load(data_dir / "rows.npz")
        return rows["x"], rows["y"]
"""

STRATEGY = """
    from dataclasses import dataclass, replace
    from hermes_iot.algorithms.strategies import hermes

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        word: str = "always"

    class Always(hermes.Hermes):
        def observe(self, state, trained, origin):
            state, decision = super().observe(state, trained, origin)
            return state, replace(decision, push=True, why="always")

    def build_strategy(config):
        return Always(hermes.HermesConfig())
"""


@pytest.fixture
def workshop(tmp_path):
    """A task's file and its data."""
    write_task(tmp_path / "task.py", TASK)
    write_data(tmp_path / "data", seed=0)
    (tmp_path / "nothing").mkdir()
    return tmp_path


def write_task(path, text):
    path.write_text(textwrap.dedent(text))


def write_data(directory, *, seed, rows=300):
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 4)).astype(np.float32)
    y = x[:, :3].argmax(axis=1).astype(np.int64)
    np.savez(directory / "rows.npz", x=x, y=y)


class Lab:
    """A coordinator with the task, and devices with what a test gives them."""

    def __init__(self, workshop, **changes):
        self.workshop = workshop
        self.connect = in_memory(MemoryBroker())
        self.records = Records()
        options = {"task": str(workshop / "task.py"), "strategy": "hermes", "rules": StopRules(max_pushes=4), **changes}
        self.config = RunConfig(**options)
        self.bench = for_coordinator(self.config, data_dir=workshop / "data")
        self.coordinator = CoordinatorRunner(
            self.config,
            fleet="lab",
            run_dir=workshop / "run",
            bench=self.bench,
            connect=self.connect,
            on_record=self.records,
        )

    def device(self, name="pi-01", *, task="task.py", data="data", rows=None, strategy=None):
        trainer_of = for_device(
            task=str(self.workshop / task) if task is not None else None, data_dir=self.workshop / data, rows=rows
        )
        given = str(self.workshop / strategy) if strategy is not None else None
        return toy_device(self.connect, self.workshop, name, trainer_of=trainer_of, strategy=given)

    def train(self, *devices):
        with running(self.coordinator, *devices) as (one, *others):
            summary = one.wait(6 * PATIENCE_S)
            for other in others:
                other.wait()
            return summary

    def refused(self, device):
        with running(self.coordinator, device) as (one, other):
            error = other.ended()
            assert one.error is None, "one device's trouble is not the fleet's"
            return error


# --- a task of one's own --------------------------------------------------------------------------------------------


def test_a_person_trains_a_task_of_their_own(workshop):
    lab = Lab(workshop)
    summary = lab.train(lab.device("pi-01"), lab.device("pi-02"))
    assert summary["task"] == "task.py"
    assert summary["updates_applied"] == 4
    assert summary["accuracy"] is not None


def test_a_device_that_was_not_given_the_file_says_which_option_to_give(workshop):
    lab = Lab(workshop)
    error = lab.refused(lab.device(task=None))
    assert isinstance(error, Incompatible)
    assert error.exit_code == 6
    assert "task 'task.py' is not installed here" in str(error)
    assert "--task" in error.mend


def test_a_device_with_another_version_of_the_file_is_refused(workshop):
    write_task(workshop / "changed.py", TASK.replace("nn.Linear(4, 3)", "nn.Linear(4, 3, bias=False)"))
    lab = Lab(workshop)
    error = lab.refused(lab.device(task="changed.py"))
    assert isinstance(error, Incompatible)
    assert "task 'changed.py' here is not the coordinator's: its source hashes to another value" in str(error)


def test_a_task_that_fails_on_the_device_is_the_persons_to_mend(workshop):
    lab = Lab(workshop)
    error = lab.refused(lab.device(data="nothing"))
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert "load_data() failed: FileNotFoundError" in str(error)


def test_a_model_of_another_layout_is_refused(workshop, monkeypatch):
    lab = Lab(workshop)
    real = lab.bench.task
    write_task(
        workshop / "other.py", TASK.replace("nn.Linear(4, 3)", "nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))")
    )
    monkeypatch.setattr("hermes_iot.training.tasks.source_sha256", lambda _module, _origin: real.source_sha256)
    error = lab.refused(lab.device(task="other.py"))
    assert isinstance(error, Incompatible)
    assert "model of task" in str(error)


# --- a strategy of one's own ----------------------------------------------------------------------------------------


def test_a_person_trains_with_a_strategy_of_their_own(workshop):
    write_task(workshop / "always.py", STRATEGY)
    lab = Lab(workshop, strategy=str(workshop / "always.py"))
    summary = lab.train(lab.device(strategy="always.py"))
    assert summary["strategy"] == "always.py"
    assert summary["iterations"] == summary["updates_published"], "it pushes always"


def test_a_device_without_the_strategy_says_which_option_to_give(workshop):
    write_task(workshop / "always.py", STRATEGY)
    lab = Lab(workshop, strategy=str(workshop / "always.py"))
    error = lab.refused(lab.device())
    assert isinstance(error, Incompatible)
    assert "strategy 'always.py' is not installed here" in str(error)
    assert "--strategy" in error.mend


def test_a_device_with_another_version_of_the_strategy_is_refused(workshop):
    write_task(workshop / "always.py", STRATEGY)
    write_task(workshop / "mine.py", STRATEGY + "\n    # changed\n")
    lab = Lab(workshop, strategy=str(workshop / "always.py"))
    assert "strategy 'always.py' here is not the coordinator's" in str(lab.refused(lab.device(strategy="mine.py")))


def test_a_built_in_strategy_is_not_replaced_by_a_file(workshop):
    write_task(workshop / "always.py", STRATEGY)
    lab = Lab(workshop)
    assert "is not the coordinator's" in str(lab.refused(lab.device(strategy="always.py")))


# --- whose rows -----------------------------------------------------------------------------------------------------


def test_indexed_a_device_with_another_data_set_is_refused(workshop):
    write_data(workshop / "elsewhere", seed=1)
    lab = Lab(workshop)
    error = lab.refused(lab.device(data="elsewhere"))
    assert isinstance(error, Incompatible)
    assert "the data of task 'task.py' here is not the coordinator's" in str(error)
    assert "--data-dir" in error.mend


def test_indexed_a_device_with_fewer_rows_is_told_how_many(workshop):
    write_data(workshop / "elsewhere", seed=0, rows=200)
    lab = Lab(workshop)
    error = lab.refused(lab.device(data="elsewhere"))
    assert "160 rows here, 240 there" in str(error)


def test_shipped_devices_need_no_data(workshop):
    lab = Lab(workshop, data_mode="shipped")
    summary = lab.train(lab.device("pi-01", data="nothing"), lab.device("pi-02", data="nothing"))
    assert summary["updates_applied"] == 4
    assert summary["bytes_by_kind"]["down"]["data"] > 0
    shards = list((workshop / "pi-01" / "shards").iterdir())
    assert shards, "what was shipped is kept"


def test_local_every_device_keeps_its_own_rows(workshop):
    lab = Lab(workshop, data_mode="local")
    summary = lab.train(lab.device("pi-01", rows=slice(0, 100)), lab.device("pi-02", rows=slice(100, 200)))
    assert summary["updates_applied"] == 4
    assert summary["bytes_by_kind"]["down"].get("data", 0) == 0
    manifest = lab.coordinator.machine.manifest
    assert (manifest.data.rows, manifest.data.sha256, manifest.data.sampling) == (0, "", "kept")


def test_local_a_device_may_have_files_of_its_own(workshop):
    write_data(workshop / "elsewhere", seed=1, rows=90)
    lab = Lab(workshop, data_mode="local")
    assert lab.train(lab.device(data="elsewhere"))["updates_applied"] == 4


def test_local_rows_that_are_not_there_end_the_device_with_the_reason(workshop):
    lab = Lab(workshop, data_mode="local")
    error = lab.refused(lab.device(rows=slice(5000, 6000)))
    assert isinstance(error, UsageError)
    assert "5000" in str(error)


def test_a_manifest_cannot_make_a_device_load_a_file(workshop):
    lab = Lab(workshop)
    named = TaskInfo(name=str(workshop / "task.py"), source_sha256=lab.bench.task.source_sha256)
    lab.coordinator.machine.manifest = replace(lab.coordinator.machine.manifest, task=named)
    error = lab.refused(lab.device(task=None))
    assert isinstance(error, Incompatible)
    assert "a name from the network never loads a file or module" in str(error)
