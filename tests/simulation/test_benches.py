"""What a simulation is equipped with: one trainer for all, rows that are shipped, rows of one's own."""

import textwrap
from dataclasses import replace

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.runtime.simulation.benches import equipment_of
from hermes_iot.runtime.simulation.shelf import Shards
from tests.simulation.fleets import devices, toy_run

TASK = """
    import numpy as np
    from torch import nn

    DEFAULTS = {"samples": 40, "batch": 8, "epochs": 1, "learning_rate": 0.1}

    def build_model():
        return nn.Linear(4, 3)

    def load_data():
        x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
        return x, x[:, :3].argmax(axis=1).astype(np.int64)
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(textwrap.dedent(TASK))
    return RunConfig(task=str(path), rules=StopRules())


def run(config):
    equipment = equipment_of(config, devices=4, data_dir=None)
    return toy_run(config=config, bench=equipment.bench, trainer_of=equipment.trainer_of, virtual_s=10)


@pytest.mark.parametrize("mode", ["indexed", "shipped", "local"])
def test_a_torch_task_learns_in_every_data_mode(config, mode):
    outcome = run(replace(config, data_mode=mode))
    assert outcome.curve[-1].loss < 0.8 * outcome.curve[0].loss
    assert (outcome.summary["links"]["down"]["data"] > 0) == (mode == "shipped")


def test_runs_with_shipped_rows_repeat_bit_for_bit(config):
    one, two = run(replace(config, data_mode="shipped")), run(replace(config, data_mode="shipped"))
    assert one.log_sha256 == two.log_sha256


def test_in_local_mode_each_board_has_an_equal_part(config):
    """300 rows: 30 for validation, 30 for test, 240 left; the held-out ones lie anywhere, so parts differ a little."""
    equipment = equipment_of(replace(config, data_mode="local"), devices=4, data_dir=None)
    rows = [equipment.trainer_of(number).train_rows for number in range(4)]
    assert sum(rows) <= 240
    assert all(30 < count <= 60 for count in rows)
    assert equipment.trainer_of(1) is equipment.trainer_of(1) is not equipment.trainer_of(2)
    assert equipment.bench.rows == 0


def test_more_boards_than_rows_are_refused(config):
    with pytest.raises(UsageError, match="240 rows are not enough for 241 boards"):
        equipment_of(replace(config, data_mode="local"), devices=241, data_dir=None)


def test_the_cost_model_has_no_rows_to_ship():
    with pytest.raises(UsageError, match="--data indexed"):
        equipment_of(RunConfig(task="cost", data_mode="shipped"), devices=4, data_dir=None)


def test_a_shard_nobody_encoded_is_not_found():
    with pytest.raises(ProtocolError, match="never shipped"):
        Shards(lambda _ranges: b"").arrays("0" * 64)


def test_every_iteration_brings_the_next_rows(config):
    outcome = run(replace(config, data_mode="shipped"))
    assert {row["allocations"] > 1 for row in devices(outcome).values()} == {True}
