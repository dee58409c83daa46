"""The house's rules that a machine can check: import directions, forbidden calls, what importing costs."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import hermes_iot

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "hermes_iot").rglob("*.py"))

#: Third-party library -> the only modules (by path below hermes_iot/) that may import it.
HOMES = {
    "paho": {"transport/mqtt.py"},
    "msgpack": {"protocol/codec.py"},
    "zstandard": {"protocol/codec.py"},
    "msgspec": {"protocol/schema.py"},
    "scipy": {"algorithms/allocation.py"},
    "tinydb": {"storage/registry.py"},
    "safetensors": {"storage/checkpoints.py"},
    "matplotlib": {"reporting/figure.py", "reporting/bench_figure.py"},
    "sklearn": {"training/builtin/digits.py"},
}
#: torch belongs to training alone; tasks are torch code by nature.
TORCH = {
    "training/torch_trainer.py",
    "training/flat_model.py",
    "training/half_casts.py",
    "training/losses.py",
}


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Top-level packages a module imports, wherever in it."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return frozenset(names)


def test_imports_run_downwards_only():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_has_one_home(library):
    users = {path.relative_to(ROOT / "hermes_iot").as_posix() for path in SOURCES if library in imported(path)}
    assert users == HOMES[library]


def test_torch_is_imported_by_training_alone():
    users = {path.relative_to(ROOT / "hermes_iot").as_posix() for path in SOURCES if "torch" in imported(path)}
    assert users
    assert all(user in TORCH or user.startswith("training/builtin/") for user in users)


def test_nothing_unpickles_evaluates_or_polls():
    forbidden_modules = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
    found = []
    for path in SOURCES:
        if imported(path) & forbidden_modules:
            found.append(f"{path.name}: imports {imported(path) & forbidden_modules}")
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{path.name}:{node.lineno}: bare except")
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in {"eval", "exec", "time.sleep", "sleep", "torch.load", "np.load", "numpy.load", "os.system"}:
                found.append(f"{path.name}:{node.lineno}: {called}")
    assert found == []


def test_public_names_are_what_is_exported():
    assert hermes_iot.__all__ == ["__version__"]
    public = {name for name in vars(hermes_iot) if not name.startswith("_")}
    submodules = {path.stem for path in (ROOT / "hermes_iot").iterdir()}
    assert public <= submodules


def test_importing_the_package_costs_nothing():
    code = "import sys, hermes_iot; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(ast.literal_eval(done.stdout)) & {"numpy", "torch", "scipy", "paho", "typer", "msgspec"}
