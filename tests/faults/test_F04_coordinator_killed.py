"""F4: the coordinator is killed at any point. Exactly-once effect; the model is that of an uninterrupted replay."""

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file

from hermes_iot.core.coordinator import Coordinator, CoordinatorSettings, Restored
from hermes_iot.core.redo import UpdateTaken
from hermes_iot.protocol.messages import CoordinatorStatus
from hermes_iot.runtime import redo_log, strategies
from hermes_iot.storage.checkpoints import load
from hermes_iot.storage.journal import Journal
from hermes_iot.storage.registry import Registry
from tests.faults.leading import config_of, kept
from tests.support.fleet import in_memory, over_mqtt, running, toy_coordinator, toy_device

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(180)]

FATES = ("applied", "duplicate", "stale", "rejected")
DEVICES = ("pi-01", "pi-02", "pi-03")
#: Updates for each kill: a life ends after up to so many merges of its own.
PUSHES_PER_KILL = 20
#: A line that does not come in so many seconds never will.
LINE_S = 30.0


def killed_and_started_again(url, run_dir, strategy, kills_max, chance):
    """Lead the run to its end through `kills_max` deaths, each after some merges of its own; how many there were."""
    pushes = PUSHES_PER_KILL * kills_max
    command = [sys.executable, "-m", "tests.faults.leading", url, str(run_dir), strategy, str(pushes)]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            merges = chance.randrange(1, 1 + PUSHES_PER_KILL // 2) if kills < kills_max else None
            while process.stdout.readline() and merges != 0:
                merges = None if merges is None else merges - 1
        finally:
            ended = process.poll() is not None or merges is None
            if not ended:
                process.kill()
            code = process.wait(LINE_S)
            process.stdout.close()
        if ended:
            assert code == 0
            return kills
        kills += 1


def replayed(run_dir, directory, strategy, pushes):
    """All that was ever decided, and a machine that did it in one go from the first checkpoint."""
    all_of_it = kept(run_dir)
    assert len(list((run_dir / "journal").iterdir())) < len(list((all_of_it / "journal").iterdir())), "nothing was cut"
    arrays, envelope = load(all_of_it / "checkpoints" / "model-000000000000.safetensors")
    saved = envelope["metadata"]
    entries = list(redo_log.read(Journal(all_of_it / "journal"), saved["journal"]))
    fresh = toy_coordinator(in_memory(), directory, config=config_of(strategy, pushes))
    fresh.close()
    config, bench = fresh.config, fresh.bench
    machine = Coordinator(
        manifest=fresh.machine.manifest,
        status=CoordinatorStatus(state="online", session="replay"),
        strategy=strategies.resolve(strategy).build(config.constants)[0],
        initial=bench.trainer.initial(config.seed),
        score=lambda params: bench.trainer.score(params, "validation"),
        settings=CoordinatorSettings(),
        restored=Restored(version=0, arrays=arrays, scalars=saved["scalars"], allocations={}, entries=entries),
        now=0.0,
    )
    return entries, machine


@pytest.mark.parametrize(
    ("strategy", "kills_max"),
    [
        ("hermes-plus", 6),
        *(pytest.param(name, 20, marks=pytest.mark.slow) for name in ("hermes-plus", "hermes", "bsp")),
    ],
)
def test_F04_kills_change_nothing(strategy, kills_max, mosquitto, tmp_path):
    run_dir, chance, pushes = tmp_path / "run", random.Random(4), PUSHES_PER_KILL * kills_max
    fleet = f"kills-{strategy}-{pushes}"
    boards = [toy_device(over_mqtt(mosquitto), tmp_path, name, fleet=fleet) for name in DEVICES]
    with running(*boards):
        kills = killed_and_started_again(mosquitto, run_dir, strategy, kills_max, chance)
    assert kills == kills_max, "the run was over before it was killed often enough"
    with Registry(run_dir / "registry.json", read_only=True) as registry:
        summary = registry.runs()[-1]["summary"]
    assert summary["updates_applied"] >= pushes
    entries, machine = replayed(run_dir, tmp_path / "again", strategy, pushes)
    # The books are those of the journal: whatever was received met one end, and no two times.
    taken = Counter(entry.outcome for entry in entries if isinstance(entry, UpdateTaken))
    assert {fate: summary[f"updates_{fate}"] for fate in FATES} == {fate: taken[fate] for fate in FATES}
    assert summary["updates_received"] == taken.total()
    assert (machine.version, machine.tally.applied) == (summary["model_version"], summary["updates_applied"])
    tensors = load_file(run_dir / "model.safetensors")
    final = np.concatenate([tensors[name].ravel() for name, _ in machine.manifest.model.tensors])
    assert machine.model.tobytes() == final.tobytes()
    applied = [
        (entry.device, entry.update.session, entry.update.seq)
        for entry in entries
        if isinstance(entry, UpdateTaken) and entry.outcome == "applied"
    ]
    assert len(applied) == len(set(applied)) == summary["updates_applied"]
