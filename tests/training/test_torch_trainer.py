import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hermes_iot.errors import Incompatible, ProtocolError, UsageError
from hermes_iot.training.base import Trainer
from hermes_iot.training.data import Dataset, TaskData
from hermes_iot.training.flat_model import FlatModel
from hermes_iot.training.tasks import Task, TaskDefaults, resolve
from hermes_iot.training.torch_trainer import TorchTrainer, default_accuracy, default_loss

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

    def test_plain_sgd_does_not_load_torchs_compiler(self):
        code = (
            "import sys; from hermes_iot.training.tasks import resolve; assert 'torch' not in sys.modules;"
            "from hermes_iot.training.torch_trainer import TorchTrainer; from hermes_iot.domain import TrainJob;"
            "task = resolve('digits'); trainer = TorchTrainer(task, task.load_data(), seed=1);"
            "trainer.train(TrainJob(start=trainer.initial(0), samples=50, batch=8, epochs=1, learning_rate=.1,"
            "sampling='fresh', gate_split='fresh', rows=(), shard='', key=(1,), slice_key=(1,)));"
            "assert 'torch._dynamo' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestScore:
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
