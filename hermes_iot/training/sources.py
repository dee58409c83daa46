"""Loads the Python source of a task that somebody wrote, and says whose fault it is when it fails.

Bytecode caches are bypassed for files: what runs is what was hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

from hermes_iot.errors import HermesError, UsageError

_WHY_CHARACTERS_MAX: Final = 300


class _HashedSource(importlib.machinery.SourceFileLoader):
    """Compiles the source every time: a stale bytecode cache would run something else than was hashed."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load_file(path: Path) -> ModuleType:
    """Run a file, or a folder's `__init__.py`, as a module under a name of its own.

    Raises:
        UsageError: there is no such file, or it fails.
    """
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        raise UsageError(f"there is no task file {source}")
    resolved = source.resolve()
    name = "hermes_iot_task_" + hashlib.sha256(str(resolved).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(
        name,
        resolved,
        loader=_HashedSource(name, str(resolved)),
        submodule_search_locations=[str(resolved.parent)] if path.is_dir() else None,
    )
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be loaded as Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles inside the task look their module up
    try:
        with blaming(str(path), "importing it"), importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except HermesError:
        del sys.modules[name]
        raise
    return module


def load_module(name: str, folder: Path) -> ModuleType | None:
    """Import `package.module`, also from a folder; None when there is no such module.

    Raises:
        UsageError: the module is there but fails.
    """
    with blaming(f"task {name}", "importing it"), importable(folder):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                return None
            raise


def source_sha256(module: ModuleType, origin: str) -> str:
    """Hex digest of a module's file, or of every .py file of a package.

    Raises:
        UsageError: it has no source file.
    """
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py") or not Path(file).is_file():
        raise UsageError(f"{origin} has no Python source file", why="its source's digest names it in a run")
    path = Path(file)
    if path.name != "__init__.py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for part in sorted(path.parent.rglob("*.py")):
        content = part.read_bytes()
        digest.update(f"{part.relative_to(path.parent).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@contextlib.contextmanager
def blaming(origin: str, what: str) -> Iterator[None]:
    """Turn whatever a task's own code raises into one line that names the task."""
    try:
        yield
    except HermesError:
        raise
    except (Exception, SystemExit) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:_WHY_CHARACTERS_MAX]
        raise UsageError(f"{origin}: {what} failed", why=why) from error


@contextlib.contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Let a task import its neighbours, at load time and inside its two functions, and nobody else's."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the task may have edited the path itself
            sys.path.remove(str(folder))
