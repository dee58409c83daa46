"""The example of a task of one's own: what its functions promise, and that it trains, alone and in a fleet."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import TrainJob
from hermes_iot.errors import UsageError
from hermes_iot.training import tasks
from hermes_iot.training.sources import load_file
from hermes_iot.training.torch_trainer import TorchTrainer
from tests.examples.conftest import HEADER, ROOT

EXAMPLE = ROOT / "examples" / "occupancy_series.py"
example = load_file(EXAMPLE)


def readings(minutes):
    """Times, sensors and presence of readings at these minutes; every sensor says which minute it is."""
    at = np.datetime64("2015-02-04T17:51:00") + np.array(minutes, dtype="timedelta64[m]")
    sensors = np.repeat(np.array(minutes, dtype=np.float32)[:, None], 5, axis=1)
    return at, sensors, np.array(minutes) % 2


@given(stretches=st.lists(st.integers(1, 40), min_size=1, max_size=5), pause=st.integers(2, 600))
def test_no_window_reaches_across_a_missing_minute(stretches, pause):
    starts = np.cumsum([0, *(length + pause for length in stretches[:-1])])
    minutes = [start + step for start, length in zip(starts, stretches, strict=True) for step in range(length)]
    if max(stretches) < example.MINUTES:
        with pytest.raises(ValueError, match="at least one"):
            example.windows(*readings(minutes))
        return
    x, y = example.windows(*readings(minutes))
    assert len(x) == len(y) == sum(max(0, length - example.MINUTES + 1) for length in stretches)
    assert x.shape[1:] == (5, example.MINUTES)
    assert (np.diff(x, axis=2) == 1).all()
    assert (y == x[:, 0, -1] % 2).all()


def test_clocks_that_jitter_by_a_second_break_nothing():
    at, sensors, present = readings(range(30))
    at = at.astype("datetime64[s]")
    at[1::3] -= np.timedelta64(1, "s")
    x, _ = example.windows(at, sensors, present)
    assert len(x) == 30 - example.MINUTES + 1


def test_no_reading_is_in_two_of_training_validation_and_test(tmp_path):
    for name, first in (("datatraining.txt", 0), ("datatest.txt", 2000), ("datatest2.txt", 4000)):
        minutes = range(first, first + 500)
        at, _, _ = readings(minutes)
        rows = [f'"{n}",{when},{n},{n},{n},{n},{n},{n % 2}\n' for n, when in zip(minutes, at, strict=True)]
        (tmp_path / name).write_text(HEADER + "".join(rows))
    held = {name: set(np.unique(x[:, 0]).astype(int)) for name, (x, _) in example.load_data(tmp_path).items()}
    assert held == {
        "train": set(range(400)),
        "validation": set(range(400, 500)),
        "test": {*range(2000, 2500), *range(4000, 4500)},
    }


def test_the_files_may_lie_in_a_folder_called_occupancy(made_data):
    direct = example.load_data(made_data)
    made_data.rename(made_data.parent / "occupancy")
    assert (example.load_data(made_data.parent)["train"][0] == direct["train"][0]).all()


def test_without_a_data_directory_one_line_says_which_option_is_missing():
    with pytest.raises(UsageError, match=r"occupancy_series\.py: load_data\(\) failed: .* say with --data-dir where"):
        tasks.resolve(str(EXAMPLE)).load_data()


def test_other_weather_changes_nothing_but_other_light_does():
    model = example.build_model()
    x = torch.from_numpy(np.random.default_rng(5).normal(100, 1, (4, 5, example.MINUTES)).astype(np.float32))
    warmer = x.clone()
    warmer[:, 0] += 3
    warmer[:, 3] += 200
    brighter = x.clone()
    brighter[:, example.LIGHT] += 300
    assert torch.allclose(model(x), model(warmer), atol=1e-2)
    assert not torch.allclose(model(x), model(brighter), atol=1e-2)


def test_the_constants_of_the_model_never_travel(made_data):
    task = tasks.resolve(str(EXAMPLE), data_dir=made_data)
    signature = TorchTrainer(task, task.load_data(), seed=0).signature
    assert [spec.name for spec in signature.tensors] == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.3.weight",
        "layers.3.bias",
    ]
    assert signature.parameters == 297


def test_alone_on_the_real_week_it_knows_the_other_weeks(real_data):
    task = tasks.resolve(str(EXAMPLE), data_dir=real_data)
    data = task.load_data()
    trainer = TorchTrainer(task, data, seed=0)
    params = trainer.initial(0)
    for iteration in range(20):
        params = trainer.train(job(params, iteration)).params
    always_absent = 1 - data.test.y.mean()
    assert always_absent < 0.77
    assert trainer.score(params, "test").accuracy > 0.96
    assert trainer.score(params, "validation").accuracy > 0.96


def job(params, iteration):
    return TrainJob(
        start=params,
        samples=example.DEFAULTS["samples"],
        batch=example.DEFAULTS["batch"],
        epochs=example.DEFAULTS["epochs"],
        learning_rate=example.DEFAULTS["learning_rate"],
        sampling="fresh",
        gate_split="fresh",
        rows=(),
        shard="",
        key=(0, iteration),
        slice_key=(0,),
    )


def test_a_fleet_learns_the_real_week(real_data, train_fleet):
    config = RunConfig(task=str(EXAMPLE), rules=StopRules(max_pushes=15))
    untrained, summary = train_fleet(config, data_dir=real_data, task=str(EXAMPLE))
    assert summary["updates_applied"] == 15
    assert summary["loss"] < 0.6 * untrained.loss
    assert summary["accuracy"] > 0.9


def test_a_fleet_learns_a_made_up_room(made_data, train_fleet):
    config = RunConfig(task=str(EXAMPLE), samples=480, rules=StopRules(max_pushes=15))
    untrained, summary = train_fleet(config, data_dir=made_data, task=str(EXAMPLE))
    assert summary["updates_applied"] == 15
    assert summary["loss"] < 0.6 * untrained.loss
    assert summary["accuracy"] > 0.9


def test_days_that_never_leave_their_board_train_one_model(made_data, train_fleet):
    config = RunConfig(task=str(EXAMPLE), data_mode="local", samples=480, rules=StopRules(max_pushes=15))
    days = (slice(0, 700), slice(700, 1400))
    untrained, summary = train_fleet(config, data_dir=made_data, task=str(EXAMPLE), rows=days)
    assert summary["updates_applied"] == 15
    assert summary["loss"] < 0.6 * untrained.loss
    assert summary["accuracy"] > 0.9
