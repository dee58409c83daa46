"""Which run the same command goes on with."""

from dataclasses import fields, replace

import numpy as np
import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.effects import Checkpoint, Remember
from hermes_iot.errors import StorageError, UsageError
from hermes_iot.protocol.messages import Allocation
from hermes_iot.runtime.run_dir import RunDir, unfinished


@pytest.fixture
def runs(tmp_path):
    def begin(name, *, task="room.py", created_at="2026-01-01T00:00:00+00:00"):
        run_dir = RunDir(tmp_path / name)
        run_dir.begin(f"run-{name}", fleet="lab", config=RunConfig(task=task, strategy="hermes"), created_at=created_at)
        run_dir.close()
        return tmp_path / name

    return begin


def test_a_task_file_is_the_same_from_wherever_it_is_named(runs, tmp_path):
    mine = runs("a", task="./tasks/room.py")
    assert unfinished(tmp_path, "lab", "room.py", "hermes") == mine
    assert unfinished(tmp_path, "lab", "hall.py", "hermes") is None
    assert unfinished(tmp_path, "attic", "room.py", "hermes") is None


def test_the_newest_of_several_goes_on(runs, tmp_path):
    runs("a", created_at="2026-01-01T00:00:00+00:00")
    newest = runs("b", created_at="2026-01-03T00:00:00+00:00")
    runs("c", created_at="2026-01-02T00:00:00+00:00")
    assert unfinished(tmp_path, "lab", "room.py", "hermes") == newest


def test_a_damaged_run_is_passed_over_with_a_word(runs, tmp_path, caplog):
    whole, broken = runs("a"), runs("b", created_at="2026-02-01T00:00:00+00:00")
    for path in broken.glob("registry.json*"):
        path.write_bytes(b"{")
    assert unfinished(tmp_path, "lab", "room.py", "hermes") == whole
    assert f"skipped {broken}" in caplog.text


def test_an_allocation_comes_back_as_it_was_told(tmp_path):
    told = Allocation(
        run="r",
        device="lte-1",
        version=3,
        samples=8,
        batch=4,
        rows=((0, 4), (6, 10)),
        shard="aa" * 32,
        shard_bytes=70,
        next_shard="bb" * 32,
        next_shard_bytes=71,
        reason="faster than before",
        steps=40,
        share=0.125,
        shards=("cc" * 32, "dd" * 32),
        codec="int4",
    )
    unsaid = {one.name for one in fields(Allocation) if getattr(told, one.name) == one.default}
    assert unsaid == {"epoch", "v"}, "the coordinator that says it puts its own epoch on it"
    run_dir = RunDir(tmp_path / "a")
    run_dir.begin("r", fleet="lab", config=RunConfig(task="room.py"), created_at="2026-01-01T00:00:00+00:00")
    run_dir.remember("r", [Remember(devices={}, allocations={"lte-1": told})])
    run_dir.close()
    again = RunDir(tmp_path / "a")
    again.save("r", Checkpoint(version=0, arrays={"model": np.zeros(4, np.float32)}, scalars={}))
    assert again.restored("r").allocations == {"lte-1": told}
    again.close()


def test_a_run_goes_on_with_the_codecs_it_was_begun_with_only(tmp_path):
    config = RunConfig(task="room.py", strategy="hermes", codec_for=(("lte-*", "int4"),))
    run_dir = RunDir(tmp_path / "a")
    run_dir.begin("r", fleet="lab", config=config, created_at="2026-01-01T00:00:00+00:00")
    assert run_dir.unfinished("lab", config) == "r"
    with pytest.raises(UsageError, match="was begun with codec for"):
        run_dir.unfinished("lab", replace(config, codec_for=()))
    run_dir.close()


@pytest.mark.parametrize("extra", [{"nonsense": 1}, {"shard_bytes": "many"}, {"reason": []}])
def test_an_allocation_that_another_version_recorded_is_told_and_not_guessed_at(runs, extra):
    path = runs("a")
    run_dir = RunDir(path)
    run_dir.save("run-a", Checkpoint(version=0, arrays={"model": np.zeros(4, np.float32)}, scalars={}))
    sizes = {"version": 1, "samples": 10, "batch": 5, "ranges": ((0, 10),), "shard": ""}
    with run_dir.registry.batch():
        run_dir.registry.remember_allocation("run-a", "pi-01", **sizes, extra=extra)
    if "nonsense" in extra:  # what a newer version adds is passed over, as on the wire
        assert run_dir.restored("run-a").allocations["pi-01"].samples == 10
    else:
        with pytest.raises(StorageError, match=r"what is recorded of run run-a .* cannot be read"):
            run_dir.restored("run-a")
    run_dir.close()
