import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hermes_iot.domain import Probe
from hermes_iot.errors import Incompatible, ProtocolError, UsageError
from hermes_iot.training.base import Trainer
from hermes_iot.training.data import Dataset, TaskData, shuffled
from hermes_iot.training.flat_model import FlatModel
from hermes_iot.training.losses import default_accuracy, default_loss, default_row_losses
from hermes_iot.training.tasks import Task, TaskDefaults, resolve
from hermes_iot.training.torch_trainer import TorchTrainer

RNG = np.random.default_rng(0)
CENTRES = 2 * RNG.standard_normal((3, 4))


def blobs(rows=240):
    y = RNG.integers(3, size=rows)
    x = (CENTRES[y] + RNG.standard_normal((rows, 4))).astype(np.float32)
    return TaskData(train=Dataset(x=x, y=y))


BLOBS = blobs()


def linear():
    return nn.Linear(4, 3)


def a_task(build_model=linear, **changes):
    task = Task(
        name="test",
        source_sha256="0" * 64,
        build_model=build_model,
        load_data=lambda: BLOBS,
        loss=None,
        build_optimizer=None,
        accuracy=None,
        defaults=TaskDefaults(),
    )
    return replace(task, **changes)


def a_trainer(build_model=linear, data=BLOBS, **changes) -> TorchTrainer:
    return TorchTrainer(a_task(build_model, **changes), data, seed=1)


class TestVector:
    def test_it_is_parameters_in_order_then_statistics(self):
        model = FlatModel(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "t")
        assert [(spec.name, spec.shape) for spec in model.signature.tensors] == [
            ("0.weight", (3, 2)),
            ("0.bias", (3,)),
            ("1.weight", (3,)),
            ("1.bias", (3,)),
            ("1.running_mean", (3,)),
            ("1.running_var", (3,)),
        ]
        assert model.vector()[9:].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1]

    def test_loading_is_a_copy_into_the_same_memory(self):
        model = FlatModel(linear(), "t")
        places = [p.data_ptr() for p in model.module.parameters()]
        vector = np.arange(15, dtype=np.float32)
        vector.flags.writeable = False  # as it is when decoded from a message
        model.load(vector)
        assert [p.data_ptr() for p in model.module.parameters()] == places
        assert model.module.weight.detach().numpy().ravel().tolist() == list(range(12))
        assert model.vector().tolist() == list(range(15))

    def test_a_tied_weight_travels_once_and_stays_tied(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(4, 4, bias=False)
                self.second = nn.Linear(4, 4, bias=False)
                self.second.weight = self.first.weight

            def forward(self, x):
                return self.second(self.first(x))

        model = FlatModel(Tied(), "t")
        assert model.signature.parameters == 16
        model.load(np.ones(16, np.float32))
        assert model.module.second.weight.tolist() == [[1] * 4] * 4

    def test_double_precision_becomes_float32(self):
        model = FlatModel(linear().double(), "t")
        assert model.vector().dtype == np.float32
        assert model.module(torch.zeros(1, 4)).dtype == torch.float32

    def test_constants_and_counters_do_not_travel_and_are_put_back(self):
        class Counting(nn.Linear):
            def __init__(self):
                super().__init__(1, 1)
                self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
                self.register_buffer("scale", torch.tensor(2.0), persistent=False)

        model = FlatModel(Counting(), "t")
        assert model.signature.parameters == 2
        model.module.seen += 5
        model.module.scale = torch.tensor(7.0)
        model.load(model.vector())
        assert (int(model.module.seen), float(model.module.scale)) == (0, 2.0)

    def test_a_statistic_that_forward_assigns_anew_still_travels(self):
        class Averaging(nn.Linear):
            def __init__(self):
                super().__init__(1, 1)
                self.register_buffer("mean", torch.zeros(1))

        model = FlatModel(Averaging(), "t")
        model.module.mean = torch.tensor([3.0])
        assert model.vector()[-1] == 3
        model.load(np.array([0, 0, 4], np.float32))
        assert float(model.module.mean) == 4

    @pytest.mark.parametrize(
        ("module", "complaint"),
        [
            (nn.LazyLinear(3), "lazy"),
            (nn.Linear(2, 2, dtype=torch.complex64), "not a real number"),
            (nn.ReLU(), "no parameter"),
            (nn.Linear(2, 2).requires_grad_(requires_grad=False), "no parameter"),
        ],
    )
    def test_a_model_that_cannot_be_trained_is_refused(self, module, complaint):
        with pytest.raises(UsageError, match=complaint):
            FlatModel(module, "task t")

    def test_a_vector_of_another_length_is_refused(self):
        with pytest.raises(Incompatible, match="15 values"):
            FlatModel(linear(), "t").load(np.zeros(14, np.float32))


class TestTraining:
    def test_it_is_a_trainer(self):
        trainer: Trainer = a_trainer()
        assert trainer.train_rows == 240 - 48
        assert trainer.signature.parameters == 15

    def test_one_step_is_the_textbooks(self, make_job):
        data = TaskData(train=Dataset(x=np.array([[2.0], [2.0]], np.float32), y=np.array([3.0, 3.0], np.float32)))
        trainer = TorchTrainer(a_task(lambda: nn.Linear(1, 1)), data, seed=0, validation_fraction=0)
        trained = trainer.train(make_job(np.array([1, 0], np.float32), samples=2, learning_rate=0.25))
        # One row trains, one tests. error = 2*1+0-3 = -1; gradient of error^2: 2*error*(x, 1) = (-4, -2).
        assert trained.params.tolist() == [2.0, 0.5]
        assert trained.loss == pytest.approx((2 * 2 + 0.5 - 3) ** 2)
        assert (trained.samples, trained.mini_batches) == (2, 1)

    @pytest.mark.parametrize("sampling", ["fresh", "kept"])
    @pytest.mark.parametrize("gate_split", ["fresh", "fixed"])
    def test_the_same_job_gives_the_same_bits_dropout_and_statistics_included(self, make_job, sampling, gate_split):
        def build():
            cumulative = nn.BatchNorm1d(8, momentum=None)  # its counter is an integer buffer that matters
            return nn.Sequential(nn.Linear(4, 8), cumulative, nn.Dropout(0.5), nn.Linear(8, 3))

        trainer, other = a_trainer(build), a_trainer(build)
        job = make_job(trainer.initial(5), sampling=sampling, gate_split=gate_split, epochs=2)
        first = trainer.train(job)
        trainer.train(replace(job, key=(4,)))
        trainer.score(first.params, "test")
        torch.rand(7)  # the process's own generator does not matter
        for again in (trainer.train(job), other.train(job)):
            assert again.params.tobytes() == first.params.tobytes()
            assert again.loss == first.loss

    def test_another_key_gives_another_result(self, make_job):
        trainer = a_trainer()
        start = trainer.initial(0)
        one, two = (trainer.train(make_job(start, key=(key,))).params for key in (1, 2))
        assert one.tobytes() != two.tobytes()

    def test_the_processes_generator_is_left_alone(self, make_job):
        trainer = a_trainer(lambda: nn.Sequential(nn.Dropout(0.5), linear()))
        before = torch.get_rng_state()
        trainer.train(make_job(trainer.initial(3)))
        assert torch.equal(torch.get_rng_state(), before)

    def test_initial_depends_on_the_seed_alone(self):
        trainer = a_trainer()
        first = trainer.initial(3)
        assert first.tobytes() == a_trainer().initial(3).tobytes()
        assert first.tobytes() != trainer.initial(4).tobytes()

    def test_the_start_is_not_written_to(self, make_job):
        trainer = a_trainer()
        start = trainer.initial(0)
        before = start.copy()
        trained = trainer.train(make_job(start))
        assert np.array_equal(start, before)
        trainer.score(start, "test")
        assert trained.params.tobytes() != start.tobytes()

    def test_divergence_is_a_loss_of_nan_and_stops_early(self, make_job):
        trainer = a_trainer(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        trained = trainer.train(make_job(trainer.initial(0), learning_rate=1e30, epochs=50))
        assert math.isnan(trained.loss)
        assert trained.mini_batches < 20

    def test_a_start_that_is_not_finite_is_a_loss_of_nan(self, make_job):
        trainer = a_trainer()
        trained = trainer.train(make_job(np.full(15, np.inf, np.float32)))
        assert math.isnan(trained.loss)
        assert trained.mini_batches == 0

    def test_parameters_that_overflow_in_the_last_step_are_a_loss_of_nan(self, make_job):
        trainer = a_trainer(loss=lambda outputs, _: outputs.sum())
        trained = trainer.train(make_job(trainer.initial(0), samples=10, learning_rate=1e38))
        assert trained.mini_batches == 1
        assert math.isnan(trained.loss)

    def test_a_loss_that_raises_on_nan_still_shows_as_divergence(self, make_job):
        def binary(outputs, targets):
            return nn.functional.binary_cross_entropy(outputs[:, 0], (targets > 0).float())  # raises outside [0, 1]

        trainer = a_trainer(lambda: nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), loss=binary)
        start = np.full(5, 3e38, np.float32)
        assert math.isnan(trainer.train(make_job(start)).loss)
        assert math.isnan(trainer.score(start, "test").loss)

    def test_an_optimizer_that_is_none_is_the_tasks_fault(self, make_job):
        trainer = a_trainer(build_optimizer=lambda *_: None)
        with pytest.raises(UsageError, match="returned a NoneType"):
            trainer.train(make_job(trainer.initial(0)))

    def test_one_thread_is_used(self):
        torch.set_num_threads(2)
        a_trainer()
        assert torch.get_num_threads() == 1

    def test_recurrent_and_attention_models_train(self, make_job):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = nn.LSTM(2, 6, batch_first=True)
                self.attention = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
                self.head = nn.Linear(6, 3)

            def forward(self, x):
                return self.head(self.attention(self.lstm(x.reshape(-1, 2, 2))[0])[:, -1])

        trainer = a_trainer(Recurrent)
        params = trainer.initial(0)
        before = trainer.score(params, "validation")
        for step in range(25):
            params = trainer.train(make_job(params, samples=190, learning_rate=0.3, key=(step,))).params
        assert trainer.score(params, "validation").loss < before.loss / 2

    def test_a_batch_of_one_row_trains_a_model_that_normalises_batches(self, make_job):
        trainer = a_trainer(lambda: nn.Sequential(nn.BatchNorm1d(4), linear()))
        start = trainer.initial(0)
        for job in (
            make_job(start, samples=20, batch=16),  # 17 rows: the single last one is left out
            make_job(start, batch=1, samples=10),
            make_job(start, rows=((0, 1),)),
        ):
            trained = trainer.train(job)
            assert math.isfinite(trained.loss)
            assert trained.mini_batches >= 1
        assert trainer.train(make_job(start, samples=20, batch=16)).mini_batches == 1

    def test_a_plain_model_keeps_the_last_single_row(self, make_job):
        trainer = a_trainer()
        assert trainer.train(make_job(trainer.initial(0), samples=20, batch=16)).mini_batches == 2

    def test_statistics_of_batches_are_part_of_the_result(self, make_job):
        trainer = a_trainer(lambda: nn.Sequential(nn.BatchNorm1d(4), linear()))
        start = trainer.initial(0)
        names = [spec.name for spec in trainer.signature.tensors]
        assert names[-2:] == ["0.running_mean", "0.running_var"]
        assert not np.array_equal(trainer.train(make_job(start)).params[-8:], start[-8:])

    def test_gate_rows_are_measured_without_dropout(self, make_job):
        trainer = a_trainer(lambda: nn.Sequential(linear(), nn.Dropout(0.9)))
        job = make_job(trainer.initial(0), learning_rate=1e-30, gate_split="fixed")
        assert trainer.train(job).loss == trainer.train(replace(job, key=(77,))).loss

    def test_frozen_parameters_stay(self, make_job):
        def build():
            model = nn.Sequential(nn.Linear(4, 4), linear())
            model[0].requires_grad_(requires_grad=False)
            return model

        trainer = a_trainer(build)
        start = trainer.initial(0)
        trained = trainer.train(make_job(start))
        assert np.array_equal(trained.params[:20], start[:20])
        assert not np.array_equal(trained.params[20:], start[20:])

    def test_a_tasks_own_loss_optimizer_and_accuracy_are_used(self, make_job):
        trainer = a_trainer(
            loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets) + 100,
            build_optimizer=lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
            accuracy=lambda outputs, _: torch.tensor(0.25) if len(outputs) else 0,
        )
        trained = trainer.train(make_job(trainer.initial(0)))
        assert trained.loss > 100
        assert np.abs(trained.params - trainer.initial(0)).max() < 1.0
        assert trainer.score(trained.params, "test").accuracy == pytest.approx(0.25)


def surprise(params, x, y):
    """Cross-entropy of `linear()` row by row, in double precision."""
    logits = x.astype(np.float64) @ params[:12].reshape(3, 4).T.astype(np.float64) + params[12:]
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]


class TestWalk:
    @pytest.fixture
    def job(self, make_job):
        vectors = np.random.default_rng(3).standard_normal((2, 15)).astype(np.float32)
        probe = Probe(base=vectors[0], origin=vectors[1], weight=0.3, rows=25)
        return make_job(vectors[0], sampling="walk", steps=12, batch=8, walked=150, probe=probe)

    @staticmethod
    def walked(trainer, start, stop):
        rows = trainer.train_rows
        orders = [shuffled((9, number), "walk", rows) for number in range(-(-stop // rows))]
        return BLOBS.train.take(trainer._layout.pool[np.concatenate(orders)[start:stop]])

    def test_steps_go_over_the_next_rows_across_a_passs_end(self, job):
        trainer, params, losses = a_trainer(), job.start.astype(np.float64), []
        for step in range(12):
            batch = self.walked(trainer, 150 + 8 * step, 158 + 8 * step)
            losses.append(surprise(params, batch.x, batch.y).mean())
            logits = batch.x @ params[:12].reshape(3, 4).T + params[12:]
            chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            slope = (chances - np.eye(3)[batch.y]) / 8
            params = params - 0.1 * np.concatenate([(slope.T @ batch.x).ravel(), slope.sum(axis=0)])
        trained = trainer.train(job)
        assert trained.params == pytest.approx(params, abs=1e-5)
        assert trained.loss == pytest.approx(np.mean(losses), rel=1e-5)
        assert trained.began == pytest.approx(losses[0], rel=1e-5)
        assert (trained.samples, trained.mini_batches) == (96, 12)

    def test_the_gain_is_the_paired_difference_on_the_rows_that_come_next(self, job):
        trainer = a_trainer()
        trained = trainer.train(replace(job, walked=40))
        tested = self.walked(trainer, 136, 161)
        merged = job.probe.base + 0.3 * (trained.params - job.probe.origin)
        differences = surprise(job.probe.base, tested.x, tested.y) - surprise(merged, tested.x, tested.y)
        assert trained.gain is not None
        assert trained.gain.mean == pytest.approx(differences.mean(), abs=1e-6)
        assert trained.gain.std == pytest.approx(differences.std(), rel=1e-4)
        assert (trained.gain.rows, trained.evaluated) == (25, 50)

    def test_the_same_job_gives_the_same_bits_dropout_and_statistics_included(self, make_job):
        def build():
            return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

        trainer, other = a_trainer(build), a_trainer(build)
        start, base = trainer.initial(1), trainer.initial(2)
        probe = Probe(base=base, origin=start, weight=0.5, rows=30, since=10)
        job = make_job(start, sampling="walk", steps=7, walked=40, probe=probe)
        first = trainer.train(job)
        assert first.gain is not None
        trainer.train(replace(job, walked=0, rows=((5, 60),), key=(4,)))
        for again in (trainer.train(job), other.train(job), trainer.sharing().train(job)):
            assert again.params.tobytes() == first.params.tobytes()
            assert (again.loss, again.gain) == (first.loss, first.gain)

    def test_a_probe_changes_nothing_else(self, job):
        trainer = a_trainer(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
        one, two = trainer.train(job), trainer.train(replace(job, probe=None))
        assert one.params.tobytes() == two.params.tobytes()
        assert one.loss == two.loss
        assert (two.gain, two.evaluated) == (None, 0)

    def test_grown_rows_are_walked_on(self, job):
        trainer = a_trainer()
        small, grown = (trainer.train(replace(job, rows=((0, stop),), walked=stop)) for stop in (64, 96))
        assert (small.samples, grown.samples) == (96, 96)
        assert small.params.tobytes() != grown.params.tobytes()

    def test_fewer_rows_than_a_mini_batch_are_all_of_them(self, job):
        trained = a_trainer().train(replace(job, rows=((0, 5),)))
        assert (trained.samples, trained.mini_batches, trained.gain) == (60, 12, None)

    def test_divergence_stops_early_without_a_gain(self, job):
        trainer = a_trainer(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        start = trainer.initial(0)
        probe = Probe(base=start, origin=start, weight=0.1, rows=9)
        trained = trainer.train(replace(job, start=start, probe=probe, learning_rate=1e30, steps=500))
        assert math.isnan(trained.loss)
        assert trained.mini_batches < 20
        assert (trained.gain, trained.evaluated) == (None, 0)

    def test_a_probe_that_is_not_finite_has_no_gain(self, job):
        broken = replace(job, probe=replace(job.probe, base=np.full(15, np.inf, np.float32)))
        trained = a_trainer().train(broken)
        assert math.isfinite(trained.loss)
        assert (trained.gain, trained.evaluated) == (None, 50)

    @pytest.mark.parametrize("wrap", [lambda outputs: outputs, lambda outputs: {"logits": outputs}])
    def test_a_tasks_own_loss_is_asked_row_by_row(self, job, wrap):
        """As the default's, whether the outputs can be sliced or every row needs a forward pass of its own."""

        class Wrapped(nn.Linear):
            def forward(self, x):
                return wrap(super().forward(x))

        def loss(outputs, targets):
            return nn.functional.cross_entropy(outputs["logits"] if isinstance(outputs, dict) else outputs, targets)

        own = a_trainer(lambda: Wrapped(4, 3), loss=loss, accuracy=lambda *_: 0.0).train(job)
        plain = a_trainer().train(job)
        assert own.params.tobytes() == plain.params.tobytes()
        assert own.gain is not None
        assert plain.gain is not None
        assert own.gain.mean == pytest.approx(plain.gain.mean, abs=1e-6)
        assert own.gain.std == pytest.approx(plain.gain.std, rel=1e-4)

    def test_pieces_in_order_train_as_the_rows_they_were_cut_from(self, job):
        here = a_trainer()
        rows = BLOBS.train.take(here._layout.pool[:100])
        cuts = {"a": slice(0, 30), "b": slice(30, 31), "c": slice(31, 100)}
        away = TorchTrainer(a_task(), None, seed=1, shards=lambda digest: (rows.x[cuts[digest]], rows.y[cuts[digest]]))
        sent = away.train(replace(job, shards=("a", "b", "c"), rows=((500, 600),)))
        kept = here.train(replace(job, rows=((0, 100),)))
        assert sent.params.tobytes() == kept.params.tobytes()
        assert (sent.loss, sent.gain) == (kept.loss, kept.gain)

    @pytest.mark.parametrize("batch", [1, 5, 60])
    def test_gathering_several_mini_batches_at_once_changes_nothing(self, job, batch, monkeypatch):
        bytes_in = TaskData(train=Dataset(x=RNG.integers(256, size=(240, 4), dtype=np.uint8), y=BLOBS.train.y))
        at_once = replace(job, batch=batch)
        together = a_trainer(data=bytes_in).train(at_once)
        monkeypatch.setattr("hermes_iot.training.torch_trainer._BLOCK_BYTES", 1)
        alone = a_trainer(data=bytes_in).train(at_once)
        assert together.loss == pytest.approx(alone.loss, rel=1e-6)
        assert together.params == pytest.approx(alone.params, rel=1e-5)


class TestSiblings:
    def test_a_sibling_trains_on_its_own_rows_as_a_job_that_names_them(self, make_job):
        trainer = a_trainer()
        job = make_job(trainer.initial(0), sampling="walk", steps=9)
        sibling = trainer.sharing(pool=np.arange(40, 90))
        assert (sibling.train_rows, trainer.train_rows) == (50, 192)
        expected = trainer.train(replace(job, rows=((40, 90),)))
        assert sibling.train(job).params.tobytes() == expected.params.tobytes()

    def test_module_and_held_out_rows_are_shared(self):
        trainer = a_trainer()
        sibling = trainer.sharing(pool=np.arange(5))
        assert sibling._model is trainer._model
        assert sibling.score(trainer.initial(0), "test") == trainer.score(trainer.initial(0), "test")

    def test_targets_are_those_of_the_pool_in_order(self):
        trainer = a_trainer()
        assert trainer.sharing(pool=np.array([7, 2])).targets.tolist() == trainer.targets[[7, 2]].tolist()

    def test_shipped_rows_come_by_each_ones_own_lookup(self, make_job):
        origin = TorchTrainer(a_task(), None, seed=1)
        parts = [BLOBS.train.take(np.arange(start, start + 20)) for start in (0, 50)]
        siblings = [origin.sharing(shards=lambda _, part=part: (part.x, part.y)) for part in parts]
        job = make_job(origin.initial(0), sampling="walk", steps=3, shards=("same",))
        one, two = (sibling.train(job).params.tobytes() for sibling in siblings)
        assert one != two
        with pytest.raises(UsageError, match="no data"):
            _ = origin.targets

    @pytest.mark.parametrize("pool", [[], [1, 1], [-1], [192]])
    def test_rows_that_are_not_there_are_refused(self, pool):
        with pytest.raises(UsageError):
            a_trainer().sharing(pool=np.array(pool, dtype=np.intp))


class TestScore:
    @pytest.mark.parametrize(
        ("build", "rows"),
        [
            (linear, 1024),  # narrow: the most there is
            (lambda: nn.Sequential(nn.Linear(4, 4096), nn.ReLU(), nn.Linear(4096, 3)), 256),  # 4 MiB of 4 * 4096 bytes
        ],
    )
    def test_the_widest_layer_bounds_the_rows_of_a_chunk(self, build, rows):
        assert a_trainer(build)._chunk_rows == rows

    def test_chunks_give_the_mean_over_all_rows(self):
        data = blobs(1000)
        trainer = TorchTrainer(a_task(), replace(data, validation=data.train), seed=1)
        vector = trainer.initial(0)
        model = linear()
        torch.nn.utils.vector_to_parameters(torch.from_numpy(vector), model.parameters())
        with torch.no_grad():
            outputs = model(torch.from_numpy(data.train.x))
            targets = torch.from_numpy(data.train.y)
            score = trainer.score(vector, "validation")
            assert score.loss == pytest.approx(float(default_loss(outputs, targets)), rel=1e-5)
            assert score.accuracy == pytest.approx(default_accuracy(outputs, targets))

    def test_bytes_are_scaled_to_one(self):
        data = TaskData(train=Dataset(x=np.full((20, 1), 255, np.uint8), y=np.full(20, 4.0, np.float32)))
        trainer = a_trainer(lambda: nn.Linear(1, 1), data)
        assert trainer.score(np.array([3.0, 0.5], np.float32), "test").loss == pytest.approx(0.25)

    def test_regression_has_no_accuracy(self):
        data = TaskData(train=Dataset(x=BLOBS.train.x, y=BLOBS.train.x[:, :1].copy()))
        trainer = a_trainer(lambda: nn.Linear(4, 1), data)
        assert trainer.score(trainer.initial(0), "validation").accuracy is None

    def test_integer_inputs_reach_an_embedding_as_integers(self, make_job):
        data = TaskData(train=Dataset(x=RNG.integers(9, size=(50, 5)), y=RNG.integers(3, size=50)))
        trainer = a_trainer(lambda: nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(10, 3)), data)
        assert math.isfinite(trainer.train(make_job(trainer.initial(0))).loss)

    def test_a_split_that_was_not_held_out_cannot_be_scored(self):
        trainer = TorchTrainer(a_task(), BLOBS, seed=1, validation_fraction=0)
        with pytest.raises(UsageError, match="no validation rows"):
            trainer.score(trainer.initial(0), "validation")


class TestDefaults:
    def test_a_single_logit_is_a_binary_decision(self):
        outputs, targets = torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([1, 0, 0])
        assert float(default_loss(outputs, targets)) == pytest.approx(
            (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 3
        )
        assert default_accuracy(outputs, targets) == pytest.approx(2 / 3)
        assert default_accuracy(outputs[:, 0], targets) == pytest.approx(2 / 3)

    def test_classes_are_told_by_the_largest_output(self):
        outputs = torch.tensor([[0.0, 5.0, 1.0], [9.0, 0.0, 0.0]])
        assert default_accuracy(outputs, torch.tensor([1, 2])) == 0.5

    def test_a_column_of_outputs_is_compared_row_by_row(self):
        outputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
        assert float(default_loss(outputs, targets)) == 2

    def test_pixels_of_classes_are_counted_one_by_one(self):
        outputs = torch.zeros(1, 3, 2, 2)
        outputs[:, 1] = 1
        assert default_accuracy(outputs, torch.tensor([[[1, 1], [1, 0]]])) == 0.75

    @pytest.mark.parametrize(
        ("outputs", "targets"),
        [
            (torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])),
            (torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])),
            (torch.randn(6, 2), torch.randn(6, 2)),
            (torch.randn(6, 1), torch.randn(6)),
            (torch.randn(6, 3, 2, 2), torch.randint(3, (6, 2, 2))),
        ],
    )
    def test_row_by_row_it_is_the_default_of_each_row_alone(self, outputs, targets):
        alone = [float(default_loss(outputs[row : row + 1], targets[row : row + 1])) for row in range(6)]
        assert default_row_losses(outputs, targets).tolist() == pytest.approx(alone, rel=1e-5)
        assert np.mean(alone) == pytest.approx(float(default_loss(outputs, targets)), rel=1e-5)


class TestMisfits:
    def test_a_model_that_cannot_take_the_data_is_named_with_shapes(self):
        with pytest.raises(UsageError, match=r"x float32 \(240, 4\), y int64 \(240,\) do not fit the model"):
            a_trainer(lambda: nn.Linear(5, 3))

    def test_labels_beyond_the_models_classes_are_refused(self):
        with pytest.raises(UsageError, match=r"targets run from 0 to 2: the model tells 2 classes apart"):
            a_trainer(lambda: nn.Linear(4, 2))

    def test_regression_outputs_of_another_shape_are_refused(self):
        data = TaskData(train=Dataset(x=BLOBS.train.x, y=BLOBS.train.x[:, 0].copy()))
        with pytest.raises(UsageError, match="cannot be compared"):
            a_trainer(linear, data)

    def test_a_loss_that_is_no_single_number_is_refused(self):
        with pytest.raises(UsageError, match="one number"):
            a_trainer(loss=lambda outputs, _: outputs)

    def test_a_loss_that_does_not_depend_on_the_model_is_refused(self):
        with pytest.raises(UsageError, match="depends on"):
            a_trainer(loss=lambda outputs, _: outputs.detach().sum())

    def test_build_model_must_return_a_module(self):
        with pytest.raises(UsageError, match=r"build_model\(\) returned a str"):
            a_trainer(lambda: "model")

    def test_every_split_is_tried(self):
        odd = Dataset(x=np.zeros((5, 3), np.float32), y=np.zeros(5, np.int64))
        with pytest.raises(UsageError, match=r"\(5, 3\)"):
            a_trainer(linear, replace(BLOBS, test=odd))


class TestShippedRows:
    def test_a_device_without_data_trains_on_what_it_is_sent(self, make_job):
        sent = BLOBS.train.take(np.arange(60))
        trainer = TorchTrainer(a_task(), None, seed=1, shards=lambda _: (sent.x, sent.y))
        trained = trainer.train(make_job(trainer.initial(0), shard="ab", rows=((5, 9),)))
        assert trainer.train_rows == 0
        assert trained.samples == 60
        assert math.isfinite(trained.loss)

    def test_a_shard_that_does_not_fit_the_model_is_the_peers_fault(self, make_job):
        trainer = TorchTrainer(
            a_task(), None, seed=1, shards=lambda _: (np.ones((9, 7), np.float32), np.zeros(9, np.int64))
        )
        for _ in range(2):
            with pytest.raises(ProtocolError) as caught:
                trainer.train(make_job(trainer.initial(0), shard="ab"))
            assert caught.value.reason == "shard"


def test_digits_reach_95_percent_on_one_device(make_job):
    task = resolve("digits")
    trainer = TorchTrainer(task, task.load_data(), seed=1)
    params = trainer.initial(1)
    for step in range(15):
        job = make_job(params, samples=trainer.train_rows, epochs=1, key=(step,))
        params = trainer.train(job).params
    accuracy = trainer.score(params, "test").accuracy
    assert accuracy is not None
    assert accuracy >= 0.95
