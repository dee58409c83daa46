"""A room that is made up, the room that is real, and a whole fleet of threads over the in-memory broker."""

import os
from pathlib import Path

import numpy as np
import pytest

from hermes_iot.core.device import DeviceSettings
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
from hermes_iot.runtime.trainers import for_coordinator, for_device
from tests.support.fleet import in_memory, running

ROOT = Path(__file__).resolve().parents[2]
HEADER = '"date","Temperature","Humidity","Light","CO2","HumidityRatio","Occupancy"\n'


@pytest.fixture(autouse=True)
def _clean_surroundings(monkeypatch):
    monkeypatch.delenv("HERMES_DATA_DIR", raising=False)


@pytest.fixture
def real_data():
    """The published files: HERMES_TEST_DATA, or a folder beside the repository."""
    folder = Path(os.environ.get("HERMES_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "occupancy").is_dir():
        pytest.skip(f"NO REAL DATA: set HERMES_TEST_DATA to a folder with occupancy/ ({folder})")
    return folder


@pytest.fixture
def made_data(tmp_path):
    """Files in the set's format: three days that somebody slept through to train on, one day each to test on."""
    folder = tmp_path / "made"
    folder.mkdir()
    write_days(folder / "datatraining.txt", days=(3, 4, 5), seed=1)
    write_days(folder / "datatest.txt", days=(2,), seed=2)
    write_days(folder / "datatest2.txt", days=(11,), seed=3)
    return folder


def write_days(path, *, days, seed):
    """From 7 to 19 h, a row a minute; people come at 9 and leave at 17, with a break. Every day has its weather."""
    chance = np.random.default_rng(seed)
    lines, number = [HEADER], 0
    for day in days:
        temperature, humidity, co2 = 20 + 3 * chance.random(), 20 + 15 * chance.random(), 450.0
        for minute in range(7 * 60, 19 * 60):
            there = 9 * 60 <= minute < 12 * 60 or 13 * 60 <= minute < 17 * 60
            co2 += (4.0 if there else -3.0 if co2 > 450 else 0.0) + chance.normal(0, 2)
            light = max(0.0, (430 if there else 30) + chance.normal(0, 20))
            warm, moist = temperature + chance.normal(0, 0.02), humidity + chance.normal(0, 0.05)
            number += 1
            at = f"2015-02-{day:02} {minute // 60:02}:{minute % 60:02}:00"
            values = f"{warm:.3f},{moist:.3f},{light:.1f},{co2:.1f},{moist * 1.5e-4:.6f}"
            lines.append(f'"{number}","{at}",{values},{int(there)}\n')
    path.write_text("".join(lines))


@pytest.fixture
def train_fleet(tmp_path):
    """Runs a coordinator and one device per entry of `rows` to the end: the untrained model's score, the summary."""

    def train_fleet(config, *, data_dir=None, task=None, strategy=None, rows=(None, None, None)):
        connect = in_memory()
        bench = for_coordinator(config, data_dir=data_dir)
        untrained = bench.trainer.score(bench.trainer.initial(config.seed), "test")
        coordinator = CoordinatorRunner(config, fleet="lab", run_dir=tmp_path / "run", bench=bench, connect=connect)
        devices = [
            DeviceRunner(
                DeviceConfig(
                    fleet="lab",
                    device=f"board-{number}",
                    state_dir=tmp_path / f"board-{number}",
                    strategy=strategy,
                    settings=DeviceSettings(once=True),
                ),
                connect=connect,
                trainer_of=for_device(task=task, data_dir=data_dir, rows=part),
            )
            for number, part in enumerate(rows)
        ]
        with running(coordinator, *devices) as threads:
            summary, *reasons = [one.wait(60.0) for one in threads]
        assert all(reason.startswith("run ended") for reason in reasons), reasons
        return untrained, summary

    return train_fleet
