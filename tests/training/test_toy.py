import math
import time

import numpy as np
import pytest

from hermes_iot.errors import Incompatible
from hermes_iot.training.base import Trainer
from hermes_iot.training.toy import ToyTrainer


@pytest.fixture(scope="module")
def toy():
    return ToyTrainer(seed=4)


def test_it_is_a_trainer(toy):
    trainer: Trainer = toy
    assert trainer.initial(0).shape == (trainer.signature.parameters,)
    assert trainer.train_rows == 800


def test_the_same_job_gives_the_same_bits_from_another_instance_too(toy, make_job):
    job = make_job(toy.initial(1), epochs=3)
    one, two, other = toy.train(job), toy.train(job), ToyTrainer(seed=4).train(job)
    assert one.params.tobytes() == two.params.tobytes() == other.params.tobytes()
    assert one.loss == two.loss == other.loss


def test_training_does_not_touch_the_start(toy, make_job):
    start = toy.initial(1)
    before = start.copy()
    toy.train(make_job(start))
    assert np.array_equal(start, before)


def test_it_learns_the_blobs(toy, make_job):
    params = toy.initial(0)
    before = toy.score(params, "test")
    for step in range(30):
        params = toy.train(make_job(params, key=(step,))).params
    after = toy.score(params, "test")
    assert after.loss < before.loss / 2
    assert after.accuracy is not None
    assert after.accuracy > 0.8


def test_samples_epochs_and_batch_set_the_work(toy, make_job):
    trained = toy.train(make_job(toy.initial(0), samples=100, batch=10, epochs=2))
    assert (trained.samples, trained.mini_batches) == (100, 2 * 9)


def test_it_trains_on_its_rows_only(make_job):
    toy = ToyTrainer(seed=4)
    job = make_job(toy.initial(0), rows=((0, 50),), samples=50)
    expected = toy.train(job).params
    pool = toy._layout.pool
    toy.data.train.x[pool[50:]] = 1e6
    assert np.array_equal(toy.train(job).params, expected)
    toy.data.train.x[pool[:50]] *= 2
    assert not np.array_equal(toy.train(job).params, expected)


def test_it_takes_shipped_rows(make_job):
    origin = ToyTrainer(seed=4)
    rows = origin.data.train.take(np.arange(40))
    toy = ToyTrainer(seed=5, shards={"d1": (rows.x, rows.y)}.__getitem__)
    assert toy.train(make_job(toy.initial(0), shard="d1")).samples == 40


def test_divergence_is_a_loss_of_nan(toy, make_job):
    trained = toy.train(make_job(toy.initial(0), learning_rate=1e38, epochs=5))
    assert math.isnan(trained.loss)


def test_a_vector_of_another_model_is_refused(toy, make_job):
    with pytest.raises(Incompatible, match="36"):
        toy.train(make_job(np.zeros(7, np.float32)))


def test_a_small_job_takes_less_than_a_millisecond(toy, make_job):
    job = make_job(toy.initial(0), samples=64)
    times_s = []
    for _ in range(20):
        start = time.perf_counter()
        toy.train(job)
        times_s.append(time.perf_counter() - start)
    assert min(times_s) < 1e-3
