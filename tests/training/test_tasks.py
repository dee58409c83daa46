import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from hermes_iot.errors import DataUnavailable, Incompatible, UsageError
from hermes_iot.training import tasks
from hermes_iot.training.tasks import TaskDefaults, resolve, task_names
from hermes_iot.training.torch_trainer import TorchTrainer

ROOM = """
import numpy as np
from torch import nn

DEFAULTS = {"samples": 40, "learning_rate": 0.2}

def build_model():
    return nn.Linear(3, 2)

def load_data():
    x = np.random.default_rng(0).standard_normal((80, 3))
    return x, (x[:, 0] > 0).astype(int)
"""

EMPTY = "def build_model(): ...\ndef load_data(): ...\n"


def write(path: Path, source: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return str(path)


def refusal(name, **arguments) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(name, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """An installed package that offers a task called shop."""
    write(tmp_path / "site" / "shop_task_package.py", ROOM)
    monkeypatch.syspath_prepend(tmp_path / "site")
    point = importlib.metadata.EntryPoint("shop", "shop_task_package", "hermes_iot.tasks")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == "hermes_iot.tasks" else []
    )
    yield
    sys.modules.pop("shop_task_package", None)


def test_the_names_of_tasks_are_known_without_torch():
    code = "import sys, hermes_iot.training.tasks as tasks; sys.exit(not tasks.task_names() or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


class TestBuiltIn:
    def test_names_are_known_without_loading_anything_heavy(self):
        code = (
            "import sys; from hermes_iot.training.tasks import task_names;"
            "assert task_names() == ('cifar10', 'digits', 'mnist', 'mnist-cnn', 'occupancy');"
            "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    @pytest.mark.parametrize("name", task_names())
    @pytest.mark.parametrize("trusted", [True, False])
    def test_each_loads_trusted_or_not_and_builds_its_model(self, name, trusted):
        task = resolve(name, trusted=trusted)
        assert task.name == name
        assert len(task.source_sha256) == 64
        assert sum(p.numel() for p in task.build_model().parameters()) > 100
        assert task.defaults.learning_rate is not None

    def test_a_typing_error_is_answered_with_the_nearest_name(self):
        message = refusal("mnits")
        assert "cifar10, digits, mnist, mnist-cnn, occupancy" in message
        assert "Did you mean 'mnist'?" in message


class TestFile:
    def test_a_users_file_is_trained_end_to_end(self, tmp_path, make_job):
        task = resolve(write(tmp_path / "room.py", ROOM))
        assert task.name == "room.py"
        assert task.defaults == TaskDefaults(samples=40, learning_rate=0.2)
        trainer = TorchTrainer(task, task.load_data(), seed=1)
        params = trainer.initial(0)
        for step in range(20):
            params = trainer.train(make_job(params, samples=60, learning_rate=0.2, key=(step,))).params
        accuracy = trainer.score(params, "test").accuracy
        assert accuracy is not None
        assert accuracy > 0.8

    def test_optional_functions_are_found(self, tmp_path):
        extras = "def loss(o, t): return 1\ndef accuracy(o, t): return 2\ndef build_optimizer(p, lr): return lr\n"
        task = resolve(write(tmp_path / "t.py", EMPTY + extras))
        assert task.loss is not None
        assert task.accuracy is not None
        assert task.build_optimizer is not None
        assert (task.loss(0, 0), task.accuracy(0, 0), task.build_optimizer([], 0.5)) == (1, 2, 0.5)
        plain = resolve(write(tmp_path / "plain.py", EMPTY))
        assert (plain.loss, plain.accuracy, plain.build_optimizer) == (None, None, None)

    def test_the_digest_follows_the_source_and_what_runs_is_what_was_hashed(self, tmp_path):
        path = tmp_path / "t.py"
        source = "DEFAULTS = {'batch': 1}\n" + EMPTY
        first = resolve(write(path, source))
        second = resolve(write(path, source.replace("1", "2")))  # same size, same second: a .pyc would look fresh
        assert (first.defaults.batch, second.defaults.batch) == (1, 2)
        assert first.source_sha256 != second.source_sha256
        assert resolve(write(tmp_path / "copy" / "t.py", source)).source_sha256 == first.source_sha256

    def test_neighbours_can_be_imported_at_the_top_and_inside_a_function(self, tmp_path):
        write(tmp_path / "neighbour_one.py", "import numpy as np\nX = np.ones((4, 2))\n")
        write(tmp_path / "neighbour_two.py", "import numpy as np\nY = np.zeros(4)\n")
        source = """
            import neighbour_one
            def build_model(): ...
            def load_data():
                import neighbour_two
                return neighbour_one.X, neighbour_two.Y
        """
        before = list(sys.path)
        assert resolve(write(tmp_path / "t.py", source)).load_data().train.rows == 4
        assert sys.path == before

    def test_a_folder_is_a_package_and_every_file_of_it_is_hashed(self, tmp_path):
        write(tmp_path / "room" / "__init__.py", "from .data import load_data\ndef build_model(): ...\n")
        part = tmp_path / "room" / "data.py"
        write(part, "import numpy as np\ndef load_data(): return np.ones((2, 1)), np.ones(2)\n")
        task = resolve(str(tmp_path / "room"))
        assert task.name == "room"
        assert task.load_data().train.rows == 2
        part.write_text(part.read_text() + "# changed\n")
        assert resolve(str(tmp_path / "room")).source_sha256 != task.source_sha256

    def test_dataclasses_in_a_task_find_their_module(self, tmp_path):
        source = """
            from __future__ import annotations
            from dataclasses import dataclass
            @dataclass(slots=True)
            class Shape:
                inputs: int = 3
            def build_model(): return Shape().inputs
            def load_data(): ...
        """
        assert resolve(write(tmp_path / "t.py", source)).build_model() == 3

    @pytest.mark.parametrize(
        ("source", "parts"),
        [
            ("def build_model(:", ("importing it failed", "SyntaxError")),
            ("import no_such_module_anywhere", ("ModuleNotFoundError", "no_such_module_anywhere")),
            ("raise RuntimeError('first\\nsecond')", ("RuntimeError: first second",)),
            ("import sys; sys.exit(3)", ("SystemExit: 3",)),
            ("def build_model(): ...", ("lacks a function load_data()",)),
            (EMPTY + "build_model = 3", ("build_model is a int, not a function",)),
            (EMPTY + "loss = 'mse'", ("loss is a str, not a function",)),
            (EMPTY + "def build_model(width): ...", ("build_model() wants an argument 'width'",)),
            (EMPTY + "def load_data(folder): ...", ("load_data() wants an argument 'folder'", "data_dir")),
            (EMPTY + "DEFAULTS = {'epoch': 1}", ("'epoch'", "samples, batch, epochs, learning_rate")),
            (EMPTY + "DEFAULTS = [1]", ("DEFAULTS",)),
            (EMPTY + "DEFAULTS = {'batch': 0}", ("DEFAULTS: batch is 0",)),
            (EMPTY + "DEFAULTS = {'epochs': True}", ("epochs is True",)),
            (EMPTY + "DEFAULTS = {'samples': 2.0}", ("samples is 2.0",)),
            (EMPTY + "DEFAULTS = {'learning_rate': float('nan')}", ("learning_rate is nan",)),
            (EMPTY + "DEFAULTS = {'learning_rate': -1}", ("learning_rate is -1",)),
        ],
    )
    def test_a_broken_file_is_refused_on_one_line_that_names_it(self, tmp_path, source, parts):
        message = refusal(write(tmp_path / "broken.py", source))
        for part in ("broken.py", *parts):
            assert part in message

    @pytest.mark.parametrize("function", ["build_model", "load_data"])
    def test_what_a_function_raises_names_file_function_and_error(self, tmp_path, function):
        task = resolve(write(tmp_path / "t.py", EMPTY + f"def {function}(): return {{}}['sensor']\n"))
        with pytest.raises(UsageError, match=rf"t\.py: {function}\(\) failed: KeyError: 'sensor'"):
            getattr(task, function)()

    def test_what_load_data_returns_is_checked(self, tmp_path):
        task = resolve(write(tmp_path / "t.py", EMPTY))
        with pytest.raises(UsageError, match=r"t\.py: load_data\(\) returned a NoneType"):
            task.load_data()

    def test_our_own_errors_pass_unchanged(self, tmp_path):
        source = (
            EMPTY + "from hermes_iot.errors import DataUnavailable\ndef load_data(): raise DataUnavailable('gone')\n"
        )
        with pytest.raises(DataUnavailable, match=r"^gone$"):
            resolve(write(tmp_path / "t.py", source)).load_data()

    def test_a_missing_file_is_named(self, tmp_path):
        assert "no task file" in refusal(str(tmp_path / "none.py"))


class TestDataDir:
    SOURCE = """
        import numpy as np
        def build_model(): ...
        def load_data(data_dir=None):
            rows = 1 + len(data_dir.name if data_dir else "")
            return np.ones((rows, 1)), np.ones(rows)
    """

    def test_it_is_handed_to_a_function_that_takes_it(self, tmp_path):
        name = write(tmp_path / "t.py", self.SOURCE)
        assert resolve(name).load_data().train.rows == 1
        assert resolve(name, data_dir=Path("/abc")).load_data().train.rows == 4

    def test_it_comes_from_the_environment_unless_given(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HERMES_DATA_DIR", "/abcdef")
        name = write(tmp_path / "t.py", self.SOURCE)
        assert resolve(name).load_data().train.rows == 7
        assert resolve(name, data_dir=Path("/abc")).load_data().train.rows == 4


class TestModule:
    def test_a_module_of_the_current_folder_is_found(self, tmp_path, monkeypatch):
        write(tmp_path / "greenhouse_pkg" / "__init__.py", "")
        write(tmp_path / "greenhouse_pkg" / "task.py", ROOM)
        monkeypatch.chdir(tmp_path)
        task = resolve("greenhouse_pkg.task")
        assert task.name == "greenhouse_pkg.task"
        assert np.isfinite(task.load_data().train.x).all()

    def test_a_missing_module_is_an_unknown_task(self):
        assert "there is no task 'no_such.module'" in refusal("no_such.module")

    def test_a_module_whose_own_import_fails_says_so(self, tmp_path, monkeypatch):
        write(tmp_path / "leaky_pkg" / "__init__.py", "")
        write(tmp_path / "leaky_pkg" / "task.py", "import no_such_thing")
        monkeypatch.chdir(tmp_path)
        assert "No module named 'no_such_thing'" in refusal("leaky_pkg.task")


@pytest.mark.usefixtures("installed")
class TestEntryPoint:
    @pytest.mark.parametrize("trusted", [True, False])
    def test_an_installed_task_is_found_by_its_name(self, trusted):
        task = resolve("shop", trusted=trusted)
        assert task.name == "shop"
        assert task.load_data().train.rows == 80

    def test_it_is_listed_with_the_others(self):
        assert "Did you mean 'shop'?" in refusal("shopp")

    def test_a_broken_one_is_named(self, tmp_path):
        write(tmp_path / "site" / "shop_task_package.py", "raise OSError('no sensor')")
        assert "task shop: importing shop_task_package failed: OSError: no sensor" in refusal("shop")


class TestTheWire:
    @pytest.mark.parametrize("form", ["{folder}/evil.py", "{folder}/pkg", "pkg.task", "pkg", "../evil.py", "os.path"])
    def test_a_name_from_the_network_loads_no_file_and_no_module(self, tmp_path, monkeypatch, form):
        evil = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n" + EMPTY
        write(tmp_path / "evil.py", evil)
        write(tmp_path / "pkg" / "__init__.py", evil)
        write(tmp_path / "pkg" / "task.py", evil)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(Incompatible, match="start the device with --task NAME"):
            resolve(form.format(folder=tmp_path), trusted=False)
        assert not (tmp_path / "ran").exists()
        assert not [name for name in sys.modules if name == "pkg" or name.startswith("pkg.")]

    def test_a_hostile_name_is_quoted_and_cut(self):
        with pytest.raises(Incompatible) as caught:
            resolve("\x1b[2J" + "a" * 5000, trusted=False)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 400

    def test_built_in_names_are_a_literal(self):
        assert all(module.startswith("hermes_iot.training.builtin.") for module in tasks.BUILTIN.values())
