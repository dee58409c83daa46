"""F18: a registry, checkpoint or journal is truncated or changed. It is found, said and mended: `hermes-iot repair`."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.cli import main
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.effects import Checkpoint
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import StorageError
from hermes_iot.runtime.repair import examine, mend
from hermes_iot.runtime.run_dir import RunDir
from hermes_iot.storage import journal
from hermes_iot.storage.checkpoints import CheckpointStore
from tests.storage.test_storage_crashes import crashes
from tests.support.eventlog import model_of
from tests.support.fleet import Records, in_memory, running, toy_config, toy_coordinator, toy_device

SETTINGS = CoordinatorSettings(linger_s=2.0, resize_interval_s=0.05, checkpoint_interval_s=0.15)
#: For a run that goes on without the boards it had: their last counters never come, so nobody waits for them.
ALONE = replace(SETTINGS, linger_s=0.1)
#: Records between the two checkpoints, and behind the newest, of the run that is harmed; at least.
BEHIND = 6


def config_of(pushes=None):
    return toy_config(strategy="asp", rules=StopRules(max_pushes=pushes))


def resumed(directory, **options):
    return toy_coordinator(in_memory(), directory, config=config_of(), settings=SETTINGS, **options)


def whole(directory):
    """Every file by its digest, but for the lock."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


class Left:
    """A run as a SIGKILL left it.

    Attributes:
        models: the digest of the model at each version it had.
        version: of the last one.
        saved: versions of its two checkpoints.
    """

    def __init__(self, directory, models, version):
        self.directory, self.models, self.version = directory, models, version
        store = CheckpointStore(directory / "checkpoints")
        self.saved = store.versions
        self.first = {version: store.read(version)[1]["journal"] for version in self.saved}

    def segment(self, index):
        """The segment that holds a record."""
        starts = journal.segments(self.directory / "journal")
        return journal.path_of(self.directory / "journal", max(one for one in starts if one <= index))


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    tmp, connect, models, copies = tmp_path_factory.mktemp("left"), in_memory(), {}, []
    records, done = Records(), threading.Event()

    def observe(event, fields):
        records(event, fields)
        if event == "merge":
            version = coordinator.machine.version
            models[version] = model_of(coordinator.machine)
            saved = coordinator.run_dir.checkpoints.versions
            written, newest = coordinator.run_dir.journal.synced_index, coordinator.run_dir._newest
            if not copies and len(saved) == 2 and saved[0] > 0 and written >= newest[1] + BEHIND:
                if newest[1] < coordinator.run_dir.checkpoints.read(saved[0])[1]["journal"] + BEHIND:
                    return
                copies.append(version)
                shutil.copytree(coordinator.run_dir.path, tmp / "run")
                # What is appended and not synced yet is not in the copy.
                copies.append(None)
                done.set()

    coordinator = toy_coordinator(connect, tmp / "own", config=config_of(), settings=SETTINGS, on_record=observe)
    models[0] = model_of(coordinator.machine)
    with running(coordinator), running(*(toy_device(connect, tmp, name) for name in ("pi-01", "pi-02"))):
        assert done.wait(60)
    again = resumed(_copied(tmp / "run", tmp / "probe"))
    again.close()
    return Left(tmp / "run", models, again.machine.version)


def _copied(source, target):
    shutil.copytree(source, target)
    return target


def flip(path, part=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 0x10
    path.write_bytes(data)


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def spoil_record(left, directory, index):
    """One bit of one record."""
    source = left.segment(index)
    found = journal.scan(source.parent, int(source.stem.removeprefix("journal-")))
    content = journal.excerpt(source.parent, found, found.first, index)
    path = directory / "journal" / source.name
    data = bytearray(path.read_bytes())
    data[len(content) + 40] ^= 1
    path.write_bytes(data)


def checkpoint(left, directory, which):
    return CheckpointStore(directory / "checkpoints").path(left.saved[which])


def spoil(*actions):
    def harm(left, directory):
        for action in actions:
            action(left, directory)

    return harm


def registry(action, name="registry.json"):
    return lambda _left, directory: action(directory / name)


#: Name: what is done to the run, and the version that it must come back with after mending; None = the last one.
HARMS = {
    "registry changed": (registry(flip), None),
    "registry truncated": (registry(truncate), None),
    "registry empty": (registry(lambda path: path.write_bytes(b"")), None),
    "registry gone": (registry(lambda path: path.unlink()), None),
    "registry's backup changed": (registry(flip, "registry.json.bak"), None),
    "both copies of the registry changed": (spoil(registry(flip), registry(flip, "registry.json.bak")), None),
    "newest checkpoint changed": (lambda left, at: flip(checkpoint(left, at, 1)), None),
    "newest checkpoint truncated": (lambda left, at: truncate(checkpoint(left, at, 1)), None),
    "older checkpoint changed": (lambda left, at: flip(checkpoint(left, at, 0)), None),
    "both checkpoints changed": (
        spoil(lambda left, at: flip(checkpoint(left, at, 0)), lambda left, at: flip(checkpoint(left, at, 1))),
        lambda _left: 0,
    ),
    "a record behind the newest checkpoint changed": (
        lambda left, at: spoil_record(left, at, left.first[left.saved[1]] + 2),
        "cut",
    ),
    "the first record behind the newest checkpoint changed": (
        lambda left, at: spoil_record(left, at, left.first[left.saved[1]]),
        "cut",
    ),
    "a record before the newest checkpoint changed": (
        lambda left, at: spoil_record(left, at, left.first[left.saved[0]] + 1),
        None,
    ),
    "two records changed": (
        spoil(
            lambda left, at: spoil_record(left, at, left.first[left.saved[0]] + 1),
            lambda left, at: spoil_record(left, at, left.first[left.saved[1]] + 3),
        ),
        "cut",
    ),
    "the newest segment's beginning changed": (
        lambda left, at: flip(at / "journal" / left.segment(left.first[left.saved[1]]).name, 0.0),
        None,
    ),
    "the newest segment gone": (
        lambda left, at: (at / "journal" / left.segment(left.first[left.saved[1]]).name).unlink(),
        "unharmed",
    ),
    "an older segment gone": (
        lambda left, at: (at / "journal" / left.segment(left.first[left.saved[0]]).name).unlink(),
        "unharmed",
    ),
    "newest checkpoint and the records behind it changed": (
        spoil(
            lambda left, at: flip(checkpoint(left, at, 1)),
            lambda left, at: spoil_record(left, at, left.first[left.saved[1]] + 2),
        ),
        "cut",
    ),
}


def run_repair(capsys, directory, *flags):
    code = main(["repair", str(directory), "--json", *flags])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.mark.parametrize("name", HARMS)
def test_F18_whatever_is_damaged_is_found_explained_and_mended(name, left, tmp_path, capsys):
    harm, expected = HARMS[name]
    run = _copied(left.directory, tmp_path / "run")
    harm(left, run)
    harmed = whole(run)
    code, told, _ = run_repair(capsys, run)
    assert whole(run) == harmed, "without --yes nothing is changed"
    if expected == "unharmed":
        assert (code, told["healthy"]) == (0, True)
    else:
        assert (code, told["healthy"], told["mended"]) == (8, False, False)
        assert [one for one in told["files"] if one["state"] in {"damaged", "missing"}]
        code, told, _ = run_repair(capsys, run, "--yes")
        assert (code, told["mended"]) == (0, True)
        # What was damaged is there for whoever knows more.
        changed = {digest for file, digest in harmed.items() if whole(left.directory).get(file) != digest}
        assert changed <= set(whole(run).values())
        code, again, _ = run_repair(capsys, run)
        assert (code, again["healthy"]) == (0, True)
    after = resumed(run)
    after.close()
    version = after.machine.version
    assert model_of(after.machine) == left.models[version], "a model that there never was"
    if callable(expected):
        assert version == expected(left)
        assert told["lost"]["updates"] > 0
    elif expected is None:
        assert version == left.version
        assert told["lost"]["updates"] == told["lost"]["records_unread"] == 0
    elif expected == "cut":
        assert left.saved[0] <= version < left.version
        lost = told["lost"]
        assert left.version - version <= lost["updates"] + lost["records_unread"]
        assert lost["updates"] <= left.version - version
        assert lost["records_unread"] == 1
    # And it goes on, to its end.
    connect = in_memory()
    coordinator = toy_coordinator(connect, run, config=config_of(version + 20), settings=ALONE)
    with running(coordinator, toy_device(connect, tmp_path, "pi-03")) as (leading, _):
        summary = leading.wait()
    assert summary["model_version"] > version
    assert main(["repair", str(run)]) == 0
    capsys.readouterr()


def test_F18_a_healthy_run_is_left_as_it_is(left, tmp_path, capsys):
    run = _copied(left.directory, tmp_path / "run")
    before = whole(run)
    for flags in ((), ("--yes",)):
        assert main(["repair", str(run), *flags]) == 0
        out = capsys.readouterr().out
        assert "Nothing is to be mended." in out
        assert "Lost" not in out
        assert whole(run) == before


def test_F18_a_torn_tail_is_no_damage(left, tmp_path, capsys):
    run = _copied(left.directory, tmp_path / "run")
    path = run / "journal" / left.segment(left.first[left.saved[1]]).name
    path.write_bytes(path.read_bytes()[:-7])
    code, told, _ = run_repair(capsys, run)
    assert (code, told["healthy"]) == (0, True)
    assert [one["state"] for one in told["files"] if one["file"] == f"journal/{path.name}"] == ["torn"]


@pytest.mark.parametrize("forget", [False, True])
def test_F18_a_last_record_that_was_safe_is_no_torn_tail(left, tmp_path, capsys, forget):
    run = _copied(left.directory, tmp_path / "run")
    path = run / "journal" / left.segment(left.first[left.saved[1]]).name
    data = bytearray(path.read_bytes())
    data[-25] ^= 1  # a mark of 20 bytes is behind it
    path.write_bytes(data)
    with pytest.raises(StorageError, match="was safe once"):
        resumed(run)
    flags = ["--forget-journal"] * forget
    code, told, _ = run_repair(capsys, run, *flags)
    assert (code, told["healthy"]) == (8, False)
    assert [one["state"] for one in told["files"] if one["file"] == f"journal/{path.name}"] == ["damaged"]
    assert told["lost"]["records_unread"] == 1
    assert run_repair(capsys, run, "--yes", *flags)[0] == 0
    assert run_repair(capsys, run)[:1] == (0,)
    after = resumed(run)
    after.close()
    assert after.machine.version == left.saved[1] if forget else after.machine.version >= left.version - 1
    assert model_of(after.machine) == left.models[after.machine.version]


def test_F18_a_journal_that_is_gone_is_missed_and_begun_anew(left, tmp_path, capsys):
    run = _copied(left.directory, tmp_path / "run")
    shutil.rmtree(run / "journal")
    with pytest.raises(StorageError, match=r"the journal in .* is missing"):
        resumed(run)
    code, told, _ = run_repair(capsys, run)
    assert (code, told["healthy"]) == (8, False)
    assert [one["file"] for one in told["files"] if one["state"] == "missing"] == ["journal"]
    assert "the journal: what was decided after the checkpoint is not known" in told["lost"]["besides"]
    assert run_repair(capsys, run, "--yes")[0] == 0
    assert run_repair(capsys, run, "--forget-journal")[:1] == (0,), "it is empty already"
    after = resumed(run)
    after.close()
    assert after.machine.version == left.saved[1]
    assert after.run_dir.journal.next_index == left.first[left.saved[1]]


def test_F18_the_words_for_a_person_name_files_costs_and_the_way_on(left, tmp_path, capsys):
    run = _copied(left.directory, tmp_path / "run")
    spoil_record(left, run, left.first[left.saved[1]] + 2)
    with pytest.raises(StorageError) as refused:
        resumed(run)
    assert "hermes-iot repair" in refused.value.mend
    named = refused.value.mend.split("hermes-iot repair ")[1].split()[0]
    assert main(["repair", named]) == 8
    out = capsys.readouterr().out
    assert f"record {left.first[left.saved[1]] + 2} is not what was written" in out
    assert "updates that were applied and acknowledged, and 1 records of which nothing is known" in out
    assert "The same command with --yes mends it." in out
    assert main(["repair", named, "--yes"]) == 0
    out = capsys.readouterr().out
    assert f"--run-dir {run}" in out
    assert "2 records of the journal" in out


def test_F18_the_journal_can_be_forgotten(left, tmp_path, capsys):
    run = _copied(left.directory, tmp_path / "run")
    assert main(["repair", str(run), "--forget-journal", "--yes"]) == 0
    capsys.readouterr()
    after = resumed(run)
    after.close()
    assert after.machine.version == left.saved[1]
    assert model_of(after.machine) == left.models[left.saved[1]]


def test_F18_a_finished_runs_summary_is_written_anew_and_its_model_put_aside(tmp_path, capsys):
    connect = in_memory()
    coordinator = toy_coordinator(connect, tmp_path / "run", config=config_of(5), settings=SETTINGS)
    with running(coordinator, toy_device(connect, tmp_path, "pi-01")) as (leading, _):
        summary = leading.wait()
    (tmp_path / "run" / "summary.json").write_text('{"run": "x', encoding="utf-8")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"event": "merge", "elapsed_s": 1}\n{"ev', encoding="utf-8")
    flip(tmp_path / "run" / "model.safetensors", 0.9)
    code, told, _ = run_repair(capsys, tmp_path / "run", "--yes")
    assert code == 0
    states = {one["file"]: one["state"] for one in told["files"]}
    assert [states[name] for name in ("summary.json", "metrics.jsonl", "model.safetensors")] == [
        "damaged",
        "torn",
        "damaged",
    ]
    anew = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert anew["updates_applied"] == summary["updates_applied"]
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_F18_a_run_in_use_is_not_touched(tmp_path, capsys):
    with running(toy_coordinator(in_memory(), tmp_path / "run", config=config_of(), settings=SETTINGS)):
        for flags in ((), ("--yes",)):
            assert main(["repair", str(tmp_path / "run"), *flags]) == 8
            err = capsys.readouterr().err
            assert "is in use: process " in err
            assert "Stop that process first" in err


def test_F18_what_is_no_run_is_a_mistake(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert main(["repair", str(path)]) == 2
        assert "holds neither a run nor a device's state" in capsys.readouterr().err


def test_F18_repair_needs_no_torch(left, tmp_path):
    run = _copied(left.directory, tmp_path / "run")
    flip(run / "registry.json")
    script = "import sys; from hermes_iot.cli import main; code = main(['repair', sys.argv[1], '--yes']); "
    script += "sys.exit(code or 10 * ('torch' in sys.modules or 'scipy' in sys.modules))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_F18_a_version_saved_again_is_mended_from_the_copy_before(tmp_path, capsys):
    run_dir = RunDir(tmp_path)
    run_dir.begin("run-a", fleet="lab", config=config_of(), created_at="2026-01-01T00:00:00+00:00")
    for turn in range(3):
        run_dir.save("run-a", Checkpoint(version=7, arrays={"model": np.zeros(3, np.float32)}, scalars={"turn": turn}))
    run_dir.close()
    flip(run_dir.checkpoints.path(7))
    assert run_repair(capsys, tmp_path)[0] == 8
    assert run_repair(capsys, tmp_path, "--yes")[0] == 0
    assert run_repair(capsys, tmp_path)[0] == 0
    found = CheckpointStore(tmp_path / "checkpoints").latest()
    assert (found.metadata["scalars"], found.skipped) == ({"turn": 1}, ())


# --- killed while it mends --------------------------------------------------------------------------------------------

DEADLY = (
    "both copies of the registry changed",
    "registry truncated",
    "newest checkpoint and the records behind it changed",
    "the newest segment's beginning changed",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("two records changed", "both checkpoints changed")),
)


@pytest.mark.parametrize("name", DEADLY)
def test_F18_killed_at_any_call_of_its_mending_it_can_be_mended_all_the_same(name, left, tmp_path):
    harm, _ = HARMS[name]
    run, ends = tmp_path / "run", set()

    def prepare():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(left.directory, run)
        harm(left, run)

    def repair():
        mend(examine(run, "run"))

    def verify():
        repair()
        assert examine(run, "run").healthy
        after = resumed(run)
        after.close()
        ends.add(after.machine.version)
        assert model_of(after.machine) == left.models[after.machine.version]

    assert crashes(prepare, repair, verify) >= 9
    assert len(ends) == 1, "how it ended depends on when it was killed"


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("device.json",), ("device.json.bak",), ("update.bin",), ("device.json", "device.json.bak")]
)
def test_F18_a_devices_state_is_mended_and_its_sessions_go_on(names, tmp_path, capsys):
    connect, records = in_memory(), Records()
    with running(toy_coordinator(connect, tmp_path / "run", config=config_of(), settings=SETTINGS, on_record=records)):
        for _ in range(2):
            with running(toy_device(connect, tmp_path, "pi-01")):
                records.wait("merge", len(records.of("merge")) + 3)
        state = tmp_path / "pi-01"
        for name in names:
            flip(state / name)
        code, told, _ = run_repair(capsys, state)
        assert (code, told["kind"], told["healthy"]) == (8, "device", False)
        assert {one["file"] for one in told["files"] if one["state"] == "damaged"} == set(names)
        assert run_repair(capsys, state, "--yes")[0] == 0
        assert run_repair(capsys, state)[:1] == (0,)
        assert all((state / f"{name}.damaged-1").exists() for name in names)
        with running(toy_device(connect, tmp_path, "pi-01")):
            records.until("merge", lambda one: one["session"] == 3)
    ids = [(one["session"], one["seq"]) for one in records.of("merge")]
    assert len(ids) == len(set(ids))


def test_F18_a_devices_damaged_shard_is_put_aside_and_asked_for_again(tmp_path, capsys):
    state = tmp_path / "pi-01"
    toy_device(in_memory(), tmp_path, "pi-01").close()
    good, bad = (hashlib.sha256(data).hexdigest() for data in (b"good", b"bad"))
    (state / "shards").mkdir(exist_ok=True)
    (state / "shards" / good).write_bytes(b"good")
    (state / "shards" / bad).write_bytes(b"worse")
    assert run_repair(capsys, state)[0] == 8
    assert run_repair(capsys, state, "--yes")[0] == 0
    assert sorted(entry.name for entry in (state / "shards").iterdir()) == sorted([good, f"{bad}.damaged-1"])


def test_F18_a_device_in_use_is_not_touched(tmp_path, capsys):
    device = toy_device(in_memory(), tmp_path, "pi-01")
    assert main(["repair", str(tmp_path / "pi-01")]) == 8
    assert "is in use: process " in capsys.readouterr().err
    device.close()
