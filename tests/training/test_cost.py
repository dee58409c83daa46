"""The trainer that costs nothing: deterministic, cheap, and with losses that behave."""

import time
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.domain import Probe, TrainJob
from hermes_iot.errors import Incompatible
from hermes_iot.training.cost import CostTrainer


def job(trainer, **changes):
    made = TrainJob(
        start=trainer.initial(0),
        samples=256,
        batch=16,
        epochs=5,
        learning_rate=0.1,
        sampling="fresh",
        gate_split="fresh",
        rows=(),
        shard="",
        key=(0, 1, 1, 0),
        slice_key=(0, 1),
    )
    return replace(made, **changes)


@pytest.fixture
def trainer():
    return CostTrainer(seed=7)


def test_the_same_job_gives_the_same_result_and_another_key_another(trainer):
    one, two, other = (CostTrainer(seed=7).train(job(trainer, key=key)) for key in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(one.params, two.params)
    assert one.loss == two.loss != other.loss
    assert not np.array_equal(one.params, other.params)


def test_the_start_is_left_as_it_was(trainer):
    start = trainer.initial(0)
    kept = start.copy()
    trainer.train(job(trainer, start=start))
    assert np.array_equal(start, kept)


def test_rows_and_mini_batches_are_counted_as_a_real_trainer_does(trainer):
    """256 rows, 38 for the gate: 218 in 16s are 14, five times."""
    done = trainer.train(job(trainer))
    assert (done.samples, done.mini_batches, done.evaluated) == (256, 5 * 14, 38)
    walked = trainer.train(job(trainer, sampling="walk", steps=9))
    assert (walked.samples, walked.mini_batches, walked.evaluated) == (9 * 16, 9, 0)


def test_work_lowers_the_loss_fast_then_slowly_and_never_below_the_floor(trainer):
    vector, losses = trainer.initial(0), [trainer.score(trainer.initial(0), "test").loss]
    for number in range(200):
        vector = trainer.train(job(trainer, start=vector, key=(number,))).params
        losses.append(trainer.score(vector, "test").loss)
    assert losses[0] == pytest.approx(np.log(10) + 0.05, rel=1e-5)
    assert losses[0] - losses[5] > 3 * (losses[5] - losses[10]) > 0
    assert 0.05 < min(losses) < 0.2
    accuracies = [trainer.score(one, "validation").accuracy for one in (trainer.initial(0), vector)]
    assert accuracies[0] == pytest.approx(0.099, abs=0.001)
    assert 0.9 < accuracies[1] < 0.99


def test_averaging_devices_takes_the_noise_out(trainer):
    settled = trainer.initial(0)
    for number in range(300):
        settled = trainer.train(job(trainer, start=settled, key=(number,))).params
    each = [trainer.train(job(trainer, start=settled, key=(9, number))).params for number in range(16)]
    mean = np.mean(each, axis=0, dtype=np.float32)
    alone = np.mean([trainer.score(one, "test").loss for one in each])
    assert trainer.score(mean, "test").loss < alone


def test_the_gates_loss_is_the_true_one_seen_through_noise(trainer):
    ratios = []
    for number in range(200):
        done = trainer.train(job(trainer, key=(number,)))
        ratios.append(done.loss / trainer.score(done.params, "test").loss)
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)
    assert 0.05 < np.std(ratios) < 0.5


def test_a_probe_sees_a_gain_early_and_none_at_the_optimum(trainer):
    def z(start, numbers):
        found = []
        for number in numbers:
            probe = Probe(base=start, origin=start, weight=0.2, rows=64)
            gain = trainer.train(job(trainer, start=start, sampling="walk", steps=50, key=(number,), probe=probe)).gain
            assert gain.rows == 64
            found.append(gain.mean / (gain.std / 8))
        return float(np.median(found))

    settled = trainer.initial(0)
    for number in range(300):
        settled = trainer.train(job(trainer, start=settled, key=(number,))).params
    assert z(trainer.initial(0), range(20)) > 2
    assert abs(z(settled, range(20))) < 2


def test_a_rate_that_is_too_high_shows_as_a_loss_that_is_not_finite(trainer):
    done = trainer.train(job(trainer, learning_rate=1e5, epochs=50))
    assert not np.isfinite(done.loss)


def test_a_vector_of_another_length_is_refused(trainer):
    with pytest.raises(Incompatible, match="256 values"):
        trainer.train(job(trainer, start=np.zeros(3, dtype=np.float32)))


def test_a_job_costs_next_to_nothing(trainer):
    """Tens of microseconds; the limit leaves room for a machine that does other things beside."""
    times = []
    for number in range(200):
        one = job(trainer, key=(number,))
        begun = time.perf_counter()
        trainer.train(one)
        times.append(time.perf_counter() - begun)
    assert min(times) < 100e-6
