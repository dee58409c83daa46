"""What a simulation is equipped with: one trainer for all, rows that are shipped, rows of one's own."""

import textwrap
from dataclasses import replace

import numpy as np
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


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "task.py"
    path.write_text(textwrap.dedent(TASK))
    return RunConfig(task=str(path), rules=StopRules())


@pytest.fixture(scope="module")
def shipped(config):
    """A run whose rows came with their allocations."""
    return run(replace(config, data_mode="shipped"))


def run(config):
    equipment = equipment_of(config, devices=4, data_dir=None)
    return toy_run(config=config, bench=equipment.bench, trainer_of=equipment.trainer_of, virtual_s=10)


@pytest.mark.parametrize("mode", ["indexed", "shipped", "local"])
def test_a_torch_task_learns_in_every_data_mode(config, shipped, mode):
    outcome = shipped if mode == "shipped" else run(replace(config, data_mode=mode))
    assert outcome.curve[-1].loss < 0.8 * outcome.curve[0].loss
    assert (outcome.summary["links"]["down"]["data"] > 0) == (mode == "shipped")


def test_runs_with_shipped_rows_repeat_bit_for_bit(config, shipped):
    assert run(replace(config, data_mode="shipped")).log_sha256 == shipped.log_sha256


@pytest.mark.parametrize(("boards", "parts"), [(4, [60] * 4), (7, [35, 35, 34, 34, 34, 34, 34])])
def test_in_local_mode_each_row_that_is_not_held_out_is_one_boards(config, boards, parts):
    """300 rows: 30 for validation, 30 for test, 240 left."""
    equipment = equipment_of(replace(config, data_mode="local"), devices=boards, data_dir=None)
    pools = [equipment.trainer_of(number)._layout.pool for number in range(boards)]
    assert [pool.size for pool in pools] == parts
    assert [equipment.trainer_of(number).train_rows for number in range(boards)] == parts
    rows = np.concatenate(pools)
    assert np.array_equal(np.sort(rows), np.sort(equipment.bench.trainer._layout.pool))
    assert equipment.trainer_of(1) is equipment.trainer_of(1) is not equipment.trainer_of(2)
    assert equipment.bench.rows == 0


def test_more_boards_than_rows_are_refused(config):
    with pytest.raises(UsageError, match="240 rows are not enough for 241 boards"):
        equipment_of(replace(config, data_mode="local"), devices=241, data_dir=None)


# --- rows of one's own mixture ----------------------------------------------------------------------------------------


def skewed(config, alpha, *, boards=4, **changes):
    """The bench's trainer, and for each board the positions of its rows in the training set."""
    equipment = equipment_of(
        replace(config, data_mode="local", **changes), devices=boards, data_dir=None, dirichlet=alpha
    )
    parts = [equipment.trainer_of(number)._layout.pool for number in range(boards)]
    return equipment, parts


def unevenness(equipment, parts):
    """Mean distance (0 to 1) of a board's mixture of classes from everybody's."""

    def mixture(trainer):
        return np.bincount(trainer.targets, minlength=3) / trainer.train_rows

    whole = mixture(equipment.bench.trainer)
    mixtures = [mixture(equipment.trainer_of(number)) for number in range(len(parts))]
    return float(np.mean([np.abs(one - whole).sum() / 2 for one in mixtures]))


def test_every_row_is_exactly_one_boards(config):
    equipment, parts = skewed(config, 0.3)
    rows = np.concatenate(parts)
    assert rows.size == np.unique(rows).size == equipment.bench.trainer.train_rows == 240
    assert [equipment.trainer_of(number).train_rows for number in range(4)] == [part.size for part in parts]


def test_the_smaller_alpha_the_more_the_boards_differ(config):
    means = [
        np.mean([unevenness(*skewed(config, alpha, seed=seed)) for seed in range(5)]) for alpha in (100.0, 1.0, 0.1)
    ]
    assert 2 * means[0] < means[1] < means[2]


def test_the_seed_makes_the_split(config):
    one, same, other = (skewed(config, 0.3, seed=seed)[1] for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("strategy", "sampling"), [("hermes", None), ("hermes", "fresh"), ("hermes-plus", None), ("bsp", "kept")]
)
def test_a_fleet_of_unlike_boards_learns_in_every_regime(config, strategy, sampling):
    equipment, parts = skewed(config, 0.3, strategy=strategy, sampling=sampling)
    chosen = replace(config, data_mode="local", strategy=strategy, sampling=sampling)
    outcome = toy_run(config=chosen, bench=equipment.bench, trainer_of=equipment.trainer_of, virtual_s=12)
    assert outcome.curve[-1].loss < 0.8 * outcome.curve[0].loss
    assert outcome.summary["links"]["down"]["data"] == 0
    used = {name: row["samples"] for name, row in devices(outcome).items()}
    owned = dict(zip(("fast-1", "fast-2", "slow-1", "slow-2"), (part.size for part in parts), strict=True))
    assert used.keys() == owned.keys()
    assert all(used[name] <= owned[name] for name in owned)


def test_rows_that_no_board_owns_are_not_skewed(config):
    with pytest.raises(UsageError, match="indexed cannot be skewed"):
        equipment_of(config, devices=4, data_dir=None, dirichlet=0.3)
    with pytest.raises(UsageError, match="cost"):
        equipment_of(RunConfig(task="cost", data_mode="local"), devices=4, data_dir=None, dirichlet=0.3)


def test_the_cost_model_has_no_rows_to_ship():
    with pytest.raises(UsageError, match="--data indexed"):
        equipment_of(RunConfig(task="cost", data_mode="shipped"), devices=4, data_dir=None)


def test_a_shard_nobody_encoded_is_not_found():
    with pytest.raises(ProtocolError, match="never shipped"):
        Shards(lambda _ranges: b"").arrays("0" * 64)


def test_every_iteration_brings_the_next_rows(shipped):
    assert {row["allocations"] > 1 for row in devices(shipped).values()} == {True}
