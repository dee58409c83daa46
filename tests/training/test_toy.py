import math
import time
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.domain import Probe
from hermes_iot.errors import Incompatible, UsageError
from hermes_iot.training.base import Trainer
from hermes_iot.training.data import shuffled
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


class TestWalk:
    @pytest.fixture
    def job(self, toy, make_job):
        start = toy.initial(1)
        probe = Probe(base=toy.initial(2), origin=start, weight=0.3, rows=40)
        return make_job(start, sampling="walk", steps=10, batch=8, walked=790, probe=probe)

    def test_ten_steps_are_the_textbooks(self, toy, job):
        """Softmax regression again, in double precision, over rows the test finds by itself."""
        pool, params = toy._layout.pool, job.start.astype(np.float64)
        orders = [pool[shuffled((9, number), "walk", 800)] for number in (0, 1)]
        rows = np.concatenate([orders[0][790:], orders[1][:70]])
        losses = []
        for step in range(10):
            x, y = (part[rows[8 * step : 8 * step + 8]] for part in (toy.data.train.x, toy.data.train.y))
            losses.append(row_losses(params, x, y).mean())
            slope = (chances(params, x) - np.eye(4)[y]) / 8
            params = params - 0.1 * np.concatenate([(x.T @ slope).ravel(), slope.sum(axis=0)])
        trained = toy.train(job)
        assert trained.params == pytest.approx(params, abs=1e-6)
        assert trained.loss == pytest.approx(np.mean(losses), rel=1e-6)
        assert trained.began == pytest.approx(losses[0], rel=1e-6)
        assert (trained.samples, trained.mini_batches, trained.evaluated) == (80, 10, 80)

        next_rows = orders[1][70:110]
        x, y = toy.data.train.x[next_rows], toy.data.train.y[next_rows]
        base = job.probe.base.astype(np.float64)
        differences = row_losses(base, x, y) - row_losses(base + 0.3 * (params - job.start), x, y)
        assert trained.gain is not None
        assert trained.gain.mean == pytest.approx(differences.mean(), abs=1e-6)
        assert trained.gain.std == pytest.approx(differences.std(), rel=1e-4)
        assert trained.gain.rows == 40

    def test_the_same_job_gives_the_same_bits_after_others_too(self, toy, job):
        one = toy.train(job)
        toy.train(replace(job, walked=0, rows=((3, 90),)))
        for two in (toy.train(job), ToyTrainer(seed=4).train(job)):
            assert one.params.tobytes() == two.params.tobytes()
            assert (one.loss, one.gain) == (two.loss, two.gain)

    def test_an_iteration_goes_on_where_the_last_one_ended(self, toy, job):
        whole = toy.train(replace(job, probe=None))
        half = toy.train(replace(job, probe=None, steps=5))
        rest = toy.train(replace(job, probe=None, steps=5, start=half.params, walked=790 + half.samples))
        assert rest.params.tobytes() == whole.params.tobytes()
        assert (whole.gain, whole.evaluated) == (None, 0)

    def test_divergence_has_no_gain(self, toy, job):
        trained = toy.train(replace(job, learning_rate=1e38))
        assert math.isnan(trained.loss)
        assert (trained.gain, trained.evaluated) == (None, 0)

    def test_a_probe_that_is_not_finite_has_no_gain(self, toy, job):
        trained = toy.train(replace(job, probe=replace(job.probe, base=np.full(36, np.nan, np.float32))))
        assert math.isfinite(trained.loss)
        assert (trained.gain, trained.evaluated) == (None, 80)

    def test_no_row_left_is_no_gain(self, toy, job):
        trained = toy.train(replace(job, rows=((0, 8),)))
        assert (trained.gain, trained.evaluated) == (None, 0)

    def test_it_learns_the_blobs(self, toy, job):
        params, start = toy.initial(0), toy.score(toy.initial(0), "test")
        for iteration in range(20):
            params = toy.train(replace(job, probe=None, start=params, walked=80 * iteration)).params
        assert toy.score(params, "test").loss < start.loss / 2


def chances(params, x):
    logits = x.astype(np.float64) @ params[:32].reshape(8, 4) + params[32:]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def row_losses(params, x, y):
    return -np.log(chances(params, x)[np.arange(len(y)), y])


class TestSiblings:
    def test_a_sibling_trains_on_its_own_rows_as_a_job_that_names_them(self, toy, make_job):
        job = make_job(toy.initial(0), sampling="walk", steps=12, batch=8)
        sibling = toy.sharing(pool=np.arange(100, 150))
        assert sibling.train_rows == 50
        assert toy.train_rows == 800
        expected = toy.train(replace(job, rows=((100, 150),)))
        assert sibling.train(job).params.tobytes() == expected.params.tobytes()

    def test_data_and_held_out_rows_are_shared(self, toy):
        sibling = toy.sharing(pool=np.arange(5))
        assert sibling.data is toy.data
        assert sibling.score(toy.initial(0), "test") == toy.score(toy.initial(0), "test")

    def test_targets_are_those_of_the_pool_in_order(self, toy):
        assert toy.sharing(pool=np.array([7, 2])).targets.tolist() == [toy.targets[7], toy.targets[2]]

    def test_a_lookup_of_its_own(self, toy, make_job):
        rows = toy.data.train.take(np.arange(40))
        sibling = toy.sharing(shards={"d1": (rows.x, rows.y)}.__getitem__)
        assert sibling.train(make_job(toy.initial(0), shard="d1")).samples == 40

    @pytest.mark.parametrize("pool", [[], [1, 1], [-1], [800]])
    def test_rows_that_are_not_there_are_refused(self, toy, pool):
        with pytest.raises(UsageError):
            toy.sharing(pool=np.array(pool, dtype=np.intp))
