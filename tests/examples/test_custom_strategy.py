"""The example of a strategy of one's own: arithmetic that can be checked by hand, its constants, fleets with it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.algorithms.strategies.base import Contribution, StateDump
from hermes_iot.cli import files
from hermes_iot.cli.app import command
from hermes_iot.cli.run_options import chosen_constants
from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Trained
from hermes_iot.errors import UsageError
from hermes_iot.runtime import strategies
from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
from hermes_iot.training.sources import load_file
from hermes_iot.training.toy import ToyTrainer
from tests.examples.conftest import ROOT
from tests.support.fleet import Records, in_memory, running, toy_config, toy_coordinator

EXAMPLE = ROOT / "examples" / "custom_strategy.py"
example = load_file(EXAMPLE)

MODEL = np.array([0.0, 8.0], dtype=np.float32)
OTHER = np.array([8.0, 0.0], dtype=np.float32)


def strategy(k=3):
    return example.build_strategy(example.Config(k=k))


def trained(loss=0.5):
    return Trained(params=MODEL, loss=loss, samples=100, mini_batches=6)


def pushed(device, vector, rows, iterations=1):
    return Contribution(device=device, vector=vector, base=None, lag=0, samples=rows, iterations=iterations)


def merged(pushes, state=None, model=MODEL):
    """Merge pushes one after the other: the last answer, and the state after it."""
    one = strategy()
    state, answer = one.coordinator_start(model) if state is None else state, None
    for contribution in pushes:
        state, answer = one.merge(state, model, contribution, (), None)
        model = answer.model
    return state, answer


# --- the device's half ---


def test_every_third_iteration_is_pushed():
    one, said = strategy(k=3), []
    state = one.device_start(MODEL)
    for _ in range(7):
        state, decision = one.observe(state, trained(), MODEL)
        said.append(decision.push)
        if decision.push:
            state, vector = one.contribution(state, base=OTHER, params=MODEL)
            assert vector is MODEL
    assert said == [False, False, True, False, False, True, False]


def test_a_push_that_was_not_made_stays_due():
    one = strategy(k=2)
    state, _ = one.observe(one.device_start(MODEL), trained(), MODEL)
    state, at_divergence = one.observe(state, trained(loss=float("nan")), MODEL)
    _, after_it = one.observe(state, trained(), MODEL)
    assert at_divergence.push
    assert after_it.push


# --- the coordinator's half ---


def test_the_first_push_of_all_is_the_model():
    _, answer = merged([pushed("a", OTHER, 100)])
    assert answer.weight == 1.0
    assert answer.model.tolist() == [8.0, 0.0]
    assert answer.reply_to == ("a",)


def test_a_device_with_a_quarter_of_the_rows_moves_the_model_by_a_quarter():
    _, answer = merged([pushed("b", OTHER, 100)], state={"a": 300})
    assert answer.weight == 0.25
    assert answer.model.tolist() == [2.0, 6.0]


def test_rows_count_once_for_every_iteration_since_the_last_push():
    state, _ = merged([pushed("a", OTHER, 100, iterations=3)])
    assert state == {"a": 300}


@given(
    pushes=st.lists(st.tuples(st.integers(1, 10_000), st.floats(-100, 100, width=32)), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_once_all_have_pushed_the_model_is_the_mean_by_rows_whatever_the_order(pushes, order):
    rows, values = zip(*pushes, strict=True)
    contributions = [
        pushed(f"board-{number}", np.full(2, value, dtype=np.float32), count)
        for number, (count, value) in enumerate(pushes)
    ]
    order.shuffle(contributions)
    _, answer = merged(contributions)
    assert np.allclose(answer.model, np.average(values, weights=rows), atol=1e-3)


@given(rows=st.integers(0, 2**53 - 1), iterations=st.integers(0, 2**53 - 1), others=st.integers(0, 10**6))
def test_whatever_a_device_claims_the_weight_is_a_share(rows, iterations, others):
    _, answer = merged([pushed("liar", OTHER, rows, iterations)], state={"a": 1 + others})
    assert 0 < answer.weight <= 1
    assert np.isfinite(answer.model).all()


def test_nobody_is_resized():
    assert strategy().resize({"a": 1}, {}, ()) == ({"a": 1}, {})


def test_the_state_survives_a_checkpoint():
    one, state = strategy(), {"a": 300, "b": 7}
    dump = one.dump(state)
    assert one.load(StateDump(scalars=json.loads(json.dumps(dict(dump.scalars))), arrays=dump.arrays)) == state


@pytest.mark.parametrize("scalars", [{}, {"rows": [1]}, {"rows": {"a": "many"}}, {"rows": None}])
def test_a_damaged_checkpoint_is_told_by_an_error_the_interface_names(scalars):
    with pytest.raises((KeyError, TypeError, ValueError)):
        strategy().load(StateDump(scalars=scalars))


# --- its constants ---


def test_the_constant_travels_in_the_manifest_and_is_built_from_it_on_the_device():
    built, info = strategies.resolve(str(EXAMPLE)).build({"k": 5})
    assert (built.config.k, info.name, info.constants) == (5, "custom_strategy.py", {"k": 5})
    assert strategies.from_manifest(info, str(EXAMPLE)).config.k == 5


@pytest.mark.parametrize("constants", [{"k": 0}, {"k": "3"}, {"k": 2.5}, {"n": 3}])
def test_a_constant_that_cannot_be_used_is_a_usage_error(constants):
    with pytest.raises(UsageError):
        strategies.resolve(str(EXAMPLE)).build(constants)


def test_a_table_of_the_files_name_sets_it_and_the_command_line_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hermes.toml").write_text("[custom_strategy]\nk = 7\n")
    _, tables = files.read(["coordinator", "--strategy", str(EXAMPLE)], command())
    assert chosen_constants(str(EXAMPLE), [], tables) == {"k": 7}
    assert chosen_constants(str(EXAMPLE), ["k=2"], tables) == {"k": 2}


# --- whole fleets ---


def test_a_fleet_learns_digits_with_it_and_pushes_every_third_iteration(train_fleet):
    config = RunConfig(task="digits", strategy=str(EXAMPLE), constants={"k": 3}, rules=StopRules(max_pushes=30))
    untrained, summary = train_fleet(config, strategy=str(EXAMPLE))
    assert summary["updates_applied"] == 30
    assert summary["accuracy"] > 0.85
    assert summary["loss"] < 0.5 * untrained.loss
    for device in summary["devices"]:
        assert device["updates_published"] == device["iterations"] // 3


def test_a_stopped_coordinator_goes_on_with_the_rows_it_knew(tmp_path):
    connect = in_memory()
    config = toy_config(strategy=str(EXAMPLE), constants={"k": 1}, rules=StopRules())

    def weight_of_the_first_push(device):
        records = Records()
        coordinator = toy_coordinator(connect, tmp_path / "run", config=config, on_record=records)
        board = DeviceRunner(
            DeviceConfig(fleet="lab", device=device, state_dir=tmp_path / device, strategy=str(EXAMPLE)),
            connect=connect,
            trainer_of=lambda manifest, shards: ToyTrainer(seed=manifest.seed, shards=shards),
        )
        with running(coordinator, board):
            return records.wait("merge", device=device)["weight"]

    assert weight_of_the_first_push("a") == 1.0
    assert weight_of_the_first_push("b") == 0.5
