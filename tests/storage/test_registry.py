"""What the coordinator finds again, and what an accident does to it."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hermes_iot.errors import StorageError
from hermes_iot.storage import atomic, registry
from hermes_iot.storage.registry import Registry


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry.json"


@pytest.fixture
def store(path):
    with Registry(path) as opened:
        yield opened


def start(store, run="r1", fleet="home", **config):
    store.run_started(
        run, fleet=fleet, task="digits-mlp", strategy="hermes-plus", config=config, created_at="2024-01-01T00:00:00Z"
    )


def device(store, name, *, run="r1", session=1, seq=0, status="online", **counters):
    store.remember_device(run, name, session=session, seq=seq, counters=counters, status=status)


def allocation(store, name, *, run="r1", version=1, ranges=((0, 10),)):
    store.remember_allocation(run, name, version=version, samples=10, batch=4, ranges=ranges, shard="")


def full(*_):
    raise OSError(errno.ENOSPC, "full")


def count_writes(monkeypatch):
    writes = []
    write = atomic.write_checked

    def counted(*args, **options):
        writes.append(args)
        write(*args, **options)

    monkeypatch.setattr(atomic, "write_checked", counted)
    return writes


def test_everything_is_found_again_after_a_restart(path):
    with Registry(path) as store:
        start(store, gate={"tau": 4}, lr=0.1)
        device(store, "pi-1", session=3, seq=7, applied=5)
        device(store, "pi-1", session=4, seq=1, applied=6, status="offline")
        store.remember_allocation(
            "r1", "pi-1", version=2, samples=30, batch=8, ranges=((0, 10), (20, 40)), shard="ab", extra={"reason": "K"}
        )
        store.run_finished("r1", state="finished", reason="no better loss", summary={"accuracy": 0.98})
    with Registry(path) as store:
        assert store.warning == ""
        assert store.run("r1") == {
            "run": "r1",
            "fleet": "home",
            "task": "digits-mlp",
            "strategy": "hermes-plus",
            "config": {"gate": {"tau": 4}, "lr": 0.1},
            "created_at": "2024-01-01T00:00:00Z",
            "state": "finished",
            "reason": "no better loss",
            "summary": {"accuracy": 0.98},
        }
        assert store.devices_of("r1") == {
            "pi-1": {
                "run": "r1",
                "device": "pi-1",
                "first_session": 3,
                "session": 4,
                "seq": 1,
                "counters": {"applied": 6},
                "status": "offline",
                "extra": {},
            }
        }
        assert store.allocations_of("r1") == {
            "pi-1": {
                "run": "r1",
                "device": "pi-1",
                "version": 2,
                "samples": 30,
                "batch": 8,
                "ranges": ((0, 10), (20, 40)),
                "shard": "ab",
                "extra": {"reason": "K"},
            }
        }


def test_what_is_not_given_for_a_device_stays_as_it_was(store):
    device(store, "pi-1", session=2, seq=9, applied=3)
    store.remember_device("r1", "pi-1", session=2, status="offline", extra={"index": 0})
    store.remember_device("r1", "pi-2", session=1, status="online")
    known = store.devices_of("r1")
    assert (known["pi-1"]["seq"], known["pi-1"]["counters"], known["pi-1"]["extra"]) == (
        9,
        {"applied": 3},
        {"index": 0},
    )
    assert (known["pi-2"]["seq"], known["pi-2"]["counters"], known["pi-2"]["extra"]) == (0, {}, {})


def test_the_first_session_stays_also_within_one_batch(store):
    with store.batch():
        device(store, "pi-1", session=5)
        device(store, "pi-1", session=6)
        assert store.devices_of("r1")["pi-1"]["first_session"] == 5
        device(store, "pi-1", session=7)
    assert (store.devices_of("r1")["pi-1"]["first_session"], store.devices_of("r1")["pi-1"]["session"]) == (5, 7)


def test_unfinished_runs_are_those_of_the_fleet_that_did_not_end(store):
    for run, fleet in (("r1", "home"), ("r2", "lab"), ("r3", "home"), ("r4", "home")):
        start(store, run, fleet)
    store.run_finished("r3", state="stopped", reason="SIGTERM", summary={})
    assert [row["run"] for row in store.unfinished("home")] == ["r1", "r4"]
    assert [row["run"] for row in store.runs("lab")] == ["r2"]
    assert [row["run"] for row in store.runs()] == ["r1", "r2", "r3", "r4"]


def test_a_stopped_run_goes_on_with_its_first_facts(store):
    start(store, lr=0.1)
    store.run_finished("r1", state="stopped", reason="SIGTERM", summary={"best": 1})
    start(store, fleet="other", lr=0.5)
    row = store.run("r1")
    assert (row["state"], row["reason"], row["summary"], row["config"], row["fleet"]) == (
        "running",
        "",
        {},
        {"lr": 0.1},
        "home",
    )


def test_the_end_of_an_unknown_run_is_a_bug(store):
    with pytest.raises(ValueError, match="never started"):
        store.run_finished("r9", state="finished", reason="", summary={})
    assert store.runs() == []


def test_numbers_that_json_does_not_know_become_null_and_numpy_scalars_plain(store, path):
    start(store)
    summary = {"loss": float("nan"), "best": np.float32(0.5), "n": np.int64(3), "sizes": (1, 2), "inf": [float("inf")]}
    store.run_finished("r1", state="stopped", reason="diverged", summary=summary)
    assert store.run("r1")["summary"] == {"loss": None, "best": 0.5, "n": 3, "sizes": [1, 2], "inf": [None]}
    assert "NaN" not in path.read_text()


def test_what_cannot_be_recorded_changes_nothing(store, path):
    start(store)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="object cannot be recorded"):
        store.run_finished("r1", state="stopped", reason="", summary={"x": object()})
    assert path.read_bytes() == before
    assert store.run("r1")["state"] == "running"


def test_what_is_handed_out_and_in_is_not_shared(store):
    counters = {"applied": 1}
    store.remember_device("r1", "pi-1", session=1, seq=1, counters=counters, status="online")
    counters["applied"] = 99
    store.devices_of("r1")["pi-1"]["counters"]["applied"] = 77
    assert store.devices_of("r1")["pi-1"]["counters"] == {"applied": 1}


def test_a_batch_is_one_write_and_nothing_new_is_none(store, monkeypatch):
    start(store)
    writes = count_writes(monkeypatch)
    with store.batch():
        for number in range(50):
            device(store, f"pi-{number}")
            allocation(store, f"pi-{number}")
    assert len(writes) == 1
    device(store, "pi-7")
    assert len(writes) == 1
    device(store, "pi-7", seq=1)
    assert len(writes) == 2
    assert len(store.devices_of("r1")) == len(store.allocations_of("r1")) == 50


def test_a_failed_batch_is_taken_back_whole(store, path):
    start(store)
    device(store, "pi-1", seq=1)
    before = path.read_bytes()

    def half():
        with store.batch():
            device(store, "pi-1", seq=2)
            assert store.devices_of("r1")["pi-1"]["seq"] == 2
            device(store, "pi-2")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        half()
    assert path.read_bytes() == before
    assert {name: row["seq"] for name, row in store.devices_of("r1").items()} == {"pi-1": 1}
    device(store, "pi-3")
    assert set(store.devices_of("r1")) == {"pi-1", "pi-3"}


def test_a_write_that_fails_is_taken_back_and_the_next_one_works(store, path, monkeypatch):
    start(store)
    device(store, "pi-1", seq=1)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="the disk is full"):
            device(store, "pi-1", seq=2)
    assert store.devices_of("r1")["pi-1"]["seq"] == 1
    device(store, "pi-1", seq=3)
    with Registry(path, read_only=True) as seen:
        assert seen.devices_of("r1")["pi-1"]["seq"] == 3


def test_a_reader_looks_on_beside_the_owner_and_writes_nothing(store, path):
    start(store)
    with Registry(path, read_only=True) as seen:
        assert [row["run"] for row in seen.runs()] == ["r1"]
        with pytest.raises(StorageError, match="not open for writing"):
            device(seen, "pi-1")
    assert store.devices_of("r1") == {}


def test_reading_where_there_is_nothing_makes_nothing(tmp_path):
    with Registry(tmp_path / "none" / "registry.json", read_only=True) as seen:
        assert seen.runs() == []
        with pytest.raises(StorageError), seen.batch():
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_closed_registry_does_not_write(path):
    with Registry(path) as store:
        start(store)
    with pytest.raises(StorageError):
        device(store, "pi-1")


def test_a_second_owner_is_refused_by_pid(path, store):
    start(store)
    code = "import sys; from pathlib import Path; from hermes_iot.storage.registry import Registry as R; R(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert f"the registry {path} is in use: process {os.getpid()} on" in done.stderr
    assert "StorageError" in done.stderr


def test_a_damaged_file_gives_way_to_its_backup_and_is_put_aside(path):
    with Registry(path) as store:
        start(store)
        device(store, "pi-1", seq=1)
        device(store, "pi-1", seq=2)
    path.write_bytes(path.read_bytes()[:-20])
    with Registry(path, read_only=True) as seen:
        assert "registry.json.bak is used" in seen.warning
        assert path.exists()
    with Registry(path) as store:
        assert "its previous version registry.json.bak is used" in store.warning
        assert store.devices_of("r1")["pi-1"]["seq"] == 1
        assert path.with_name("registry.json.damaged").exists()
        # The backup stays good until a new version stands beside it.
        assert atomic.backup_of(path).exists()
        device(store, "pi-1", seq=5)
    with Registry(path) as store:
        assert store.warning == ""
        assert store.devices_of("r1")["pi-1"]["seq"] == 5


def test_when_both_copies_are_damaged_the_error_names_file_and_remedy_and_frees_the_lock(path):
    for name in (path, atomic.backup_of(path)):
        name.write_bytes(b'{"hermes-iot": "registry"')
    for _ in range(2):
        with pytest.raises(StorageError, match=f"{path} is damaged.*hermes-iot repair"):
            Registry(path)
    assert path.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"{",
        b"[]",
        b'{"runs": []}',
        b'{"runs": {"x": {"run": "r"}}}',
        b'{"runs": {"1": []}}',
        b'{"runs": {"1": {}}}',
        b'{"runs": {"1": {"run": "r"}}}',
        b'{"devices": {"1": {"run": "r", "device": "d", "first_session": 1, "session": -1, "status": "online"}}}',
        b'{"devices": {"1": {"run": "r", "device": ["d"], "first_session": 1, "session": 1, "status": "online"}}}',
        b'{"devices": {"1": {"run": "r", "device": "\\ud800", "first_session": 1, "session": 1, "status": ""}}}',
        b'{"allocations": {"1": {"run": "r", "device": "d", "version": 1, "samples": 1, "batch": 1, "ranges": [[1]]}}}',
    ],
)
def test_a_body_that_is_not_ours_is_damage(path, body):
    atomic.write_checked(path, body, kind="registry", version=1, document=True)
    with pytest.raises(atomic.Damaged):
        Registry(path)


def test_a_newer_schema_is_refused(path):
    atomic.write_checked(path, b"{}", kind="registry", version=registry.SCHEMA_VERSION + 1, document=True)
    with pytest.raises(StorageError, match="newer hermes-iot"):
        Registry(path)


def test_old_runs_are_forgotten_but_for_those_that_could_go_on(store, monkeypatch):
    monkeypatch.setattr(registry, "RUNS_DETAILED_MAX", 2)
    monkeypatch.setattr(registry, "RUNS_MAX", 5)
    for number in range(8):
        run = f"r{number}"
        start(store, run)
        device(store, "pi-1", run=run)
        allocation(store, "pi-1", run=run)
        if number != 3:
            store.run_finished(run, state="finished", reason="", summary={})
    assert [row["run"] for row in store.runs()] == ["r3", "r4", "r5", "r6", "r7"]
    assert [row["run"] for row in store.runs() if store.devices_of(row["run"])] == ["r3", "r5", "r6", "r7"]
    assert [row["run"] for row in store.runs() if store.allocations_of(row["run"])] == ["r3", "r5", "r6", "r7"]


def test_the_file_is_one_json_document_with_one_line_per_record(store, path):
    start(store)
    device(store, "pi-1", seq=4)
    device(store, "pi-2")
    lines = [line for line in path.read_text().splitlines() if '"device":"pi-1"' in line]
    assert len(lines) == 1
    assert json.loads(path.read_bytes())["body"]["devices"]["1"]["seq"] == 4


def test_a_thousand_devices_cost_little(store):
    # Generous bounds on a shared machine: quadratic work would miss them by far.
    began = time.perf_counter()
    with store.batch():
        for number in range(1000):
            device(store, f"pi-{number}", seq=number, applied=number)
            allocation(store, f"pi-{number}")
    batch_s = time.perf_counter() - began
    began = time.perf_counter()
    device(store, "pi-500", seq=0)
    write_s = time.perf_counter() - began
    assert batch_s < 1.0
    assert write_s < 0.5


def test_neither_numpy_nor_tensors_are_loaded_by_registry_and_device_state():
    code = (
        "import sys, hermes_iot.storage.registry, hermes_iot.storage.device_state;"
        "print(*sorted({'numpy', 'safetensors', 'torch', 'logging'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


class AgainstPlainDictionaries(RuleBasedStateMachine):
    """Any order of operations, restarts and failing writes: what was acknowledged is there, the rest is not."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "registry.json"
        self.store = Registry(self.path)
        self.runs, self.devices = {}, {}

    @rule(run=st.sampled_from("ab"), fleet=st.sampled_from("xy"))
    def started(self, run, fleet):
        start(self.store, run, fleet)
        self.runs[run] = (self.runs.get(run, (fleet,))[0], "running")

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def ended(self, data):
        run = data.draw(st.sampled_from(sorted(self.runs)))
        self.store.run_finished(run, state="finished", reason="", summary={})
        self.runs[run] = (self.runs[run][0], "finished")

    @rule(rows=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pqr"), st.integers(1, 9)), max_size=4))
    def remembered(self, rows):
        with self.store.batch():
            for run, name, session in rows:
                device(self.store, name, run=run, session=session)
        for run, name, session in rows:
            first = self.devices.get((run, name), (session,))[0]
            self.devices[run, name] = (first, session)

    @rule(name=st.sampled_from("pqr"))
    def failed(self, name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StorageError):
                device(self.store, name, run="a", session=1000 + len(self.devices))

    @rule()
    def restarted(self):
        self.store.close()
        self.store = Registry(self.path)
        assert self.store.warning == ""

    @invariant()
    def same(self):
        assert {row["run"]: (row["fleet"], row["state"]) for row in self.store.runs()} == self.runs
        found = {
            (run, name): (row["first_session"], row["session"])
            for run in "ab"
            for name, row in self.store.devices_of(run).items()
        }
        assert found == self.devices

    def teardown(self):
        self.store.close()
        self.directory.cleanup()


TestAgainstPlainDictionaries = AgainstPlainDictionaries.TestCase
TestAgainstPlainDictionaries.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
