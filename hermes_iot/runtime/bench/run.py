"""Runs a comparison's cells and puts the results together.

A finished cell is a file named by its key; a cell whose file is there is not run again, so a comparison that was
stopped, or gets another row or seed, goes on from what there is. One that fails is reported with the command that
runs it alone, and the others go on.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hermes_iot import __version__
from hermes_iot.runtime import strategies
from hermes_iot.runtime.bench import cell_run, ratios
from hermes_iot.runtime.bench.cells import Cell, Row, Setting, source_sha256
from hermes_iot.runtime.bench.ends import FLEET_ROUNDS, IMPROVEMENT
from hermes_iot.runtime.bench.forecast import Forecast, guess
from hermes_iot.runtime.bench.measure import numbers, points
from hermes_iot.runtime.bench.workers import Failure, each
from hermes_iot.runtime.simulation.benches import COST
from hermes_iot.storage.atomic import make_directory
from hermes_iot.training import tasks

SCHEMA: Final = "hermes-iot/bench/1"

Observe = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows times all seeds in one setting."""

    setting: Setting
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """In the order of the tables."""
        return tuple(Cell(setting=self.setting, row=row, seed=seed) for row in self.rows for seed in self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A cell on its way into a process."""

    cell: Cell
    key: str
    path: Path
    data_dir: Path | None


#: Does pieces in other processes, see `workers.each`.
Each = Callable[..., Iterator[tuple[Piece, Mapping[str, Any] | Failure]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of comparisons.

    Attributes:
        results: JSON-able, see `SCHEMA`.
        pictures: for each comparison what its plots show.
    """

    results: dict[str, Any]
    pictures: tuple[dict[str, Any], ...]


def run(
    plan: Sequence[Comparison],
    *,
    out: Path,
    data_dir: Path | None,
    jobs: int,
    observe: Observe = lambda _event, _fields: None,
    by: Each = each,
) -> Done:
    """Run what is not finished yet.

    Args:
        plan: what; each comparison under another name.
        out: its directory; finished cells are in ``cells``.
        data_dir: where the tasks' files are.
        jobs: processes.
        observe: told ``spoilt`` of finished cells that are not as they were written, ``plan``, then ``started``,
            ``finished`` and ``failed`` of cells.
        by: does the work.

    Raises:
        UsageError: a task or its data are not to be had.
        StorageError: a file cannot be read or written.
    """
    folder = out / "cells"
    make_directory(folder)
    data = {
        setting.workload.task: data_sha256(setting.workload.task, data_dir) for setting in (one.setting for one in plan)
    }
    source = source_sha256()
    cells = [cell for one in plan for cell in one.cells]
    versions = _versions("torch", "numpy")
    keys = {
        _name(cell): cell.key(data_sha256=data[cell.setting.workload.task], source=source, versions=versions)
        for cell in cells
    }
    by_key: dict[str, Cell] = {}
    for cell in cells:
        by_key.setdefault(keys[_name(cell)], cell)  # rows may be the same under two names
    documents: dict[str, Mapping[str, Any]] = {}
    for key, cell in by_key.items():
        path = folder / f"{key}.json"
        document = cell_run.read(path, key)
        if document is not None:
            documents[key] = document
        elif path.exists():
            observe("spoilt", {**_who(cell), "path": str(path)})
    pieces = [
        Piece(cell=cell, key=key, path=folder / f"{key}.json", data_dir=data_dir)
        for key, cell in by_key.items()
        if key not in documents
    ]
    failures = _do(pieces, documents, jobs=jobs, observe=observe, by=by, found=len(documents))
    found = {name: documents.get(key) for name, key in keys.items()}
    compared = [_compared(one, found, failures, keys) for one in plan]
    results = {
        "software": __version__,
        "source_sha256": source,
        "versions": {"python": platform.python_version(), **versions},
        "data_sha256": data,
        "stop_rule": {"fleet_rounds": FLEET_ROUNDS, "improvement": IMPROVEMENT},
        "comparisons": [one for one, _picture in compared],
    }
    return Done(results=results, pictures=tuple(picture for _one, picture in compared))


def data_sha256(task: str, data_dir: Path | None) -> str:
    """Hex digests of a task's source and of all its rows; also tells early whether they are there.

    Raises:
        UsageError: they are not.
    """
    if task == COST:
        return ""
    from hermes_iot.training.data import sha256_of_all  # noqa: PLC0415 - numpy

    found = tasks.resolve(task, data_dir=data_dir)
    return f"{found.source_sha256}-{sha256_of_all(found.load_data())}"


def command_of(cell: Cell) -> str:
    """The command that runs this cell alone."""
    setting, words = cell.setting, ["hermes-iot", "bench", "--only"]
    words += ["--workload", setting.workload.name, "--fleet", setting.fleet_name, "--link", setting.link_name]
    words += ["--strategies", cell.row.label, "--seeds", str(cell.seed)]
    words += ["--targets", ",".join(f"{target:g}" for target in setting.workload.targets)]
    words += ["--dirichlet", f"{setting.dirichlet:g}"] if setting.dirichlet is not None else []
    words += ["--virtual", f"{setting.virtual_s:g}"] if setting.virtual_s is not None else []
    words += ["--patience", str(setting.patience)] if setting.await_patience else ["--patience", "0"]
    words += ["--data", setting.workload.data_mode] if setting.dirichlet is None else []
    return shlex.join([*words, *(["--long"] if setting.long else [])])


def work(piece: Piece) -> Mapping[str, Any]:
    """In a process: run a cell and keep it."""
    document = cell_run.run_cell(piece.cell, key=piece.key, data_dir=piece.data_dir)
    cell_run.write(piece.path, document)
    return document


def _do(
    pieces: list[Piece],
    documents: dict[str, Mapping[str, Any]],
    *,
    jobs: int,
    observe: Observe,
    by: Each,
    found: int,
) -> dict[str, str]:
    """Run what is left, longest first; adds to `documents`, returns failures by key."""
    forecast, failures = Forecast(), dict[str, str]()
    left = {piece.key: piece.cell for piece in sorted(pieces, key=lambda piece: guess(piece.cell), reverse=True)}
    by_key = {piece.key: piece for piece in pieces}
    observe("plan", {"cells": found + len(pieces), "found": found, "jobs": jobs})

    def started(piece: Piece) -> None:
        observe("started", _who(piece.cell))

    for piece, result in by([by_key[key] for key in left], work, jobs=jobs, started=started):
        cell = left.pop(piece.key)
        fields = _who(cell)
        if isinstance(result, Failure):
            failures[piece.key] = str(result)
            observe("failed", {**fields, "why": str(result), "command": command_of(cell)})
            continue
        documents[piece.key] = result
        forecast.took(cell, result["real_s"])
        observe(
            "finished",
            {
                **fields,
                "end": result["end"],
                "reached": numbers(result, cell.setting.workload.targets)["targets"][-1],
                "real_s": result["real_s"],
                "left_s": forecast.left_s([*left.values()], jobs=jobs),
            },
        )
    return failures


def _compared(
    one: Comparison,
    documents: Mapping[tuple[str, str, int], Mapping[str, Any] | None],
    failures: Mapping[str, str],
    keys: Mapping[tuple[str, str, int], str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One comparison's results and what its pictures show."""
    setting = one.setting
    labels = [row.label for row in one.rows]
    targets = setting.workload.targets
    cells: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    lanes: dict[str, Any] = {}
    train_rows = 0
    for cell in one.cells:
        document, key = documents[_name(cell)], keys[_name(cell)]
        who = {"label": cell.row.label, "strategy": cell.row.strategy, "seed": cell.seed, "key": key}
        if document is None:
            failed.append({**who, "why": failures.get(key, ""), "command": command_of(cell)})
            continue
        train_rows = document["train_rows"]
        about = {name: document[name] for name in ("log_sha256", "gates", "summary", "real_s")}
        cells.append({**who, **numbers(document, targets), **about, "command": command_of(cell)})
        curves.append(_curve(cell, document))
        lanes.setdefault(cell.row.label, document["timeline"])  # of the first seed there is
    results = {
        "name": setting.name,
        "setup": _setup(one, train_rows),
        "cells": cells,
        "tables": [
            {"target": target, "rows": ratios.target_table(labels, cells, number)}
            for number, target in enumerate(targets)
        ],
        "paper_stop": {"patience": setting.patience, "rows": ratios.paper_table(labels, cells)},
        "stop_rule": {"rows": ratios.stop_table(labels, cells)},
        "failed": failed,
    }
    pictures = {
        "name": setting.name,
        "labels": labels,
        "targets": list(targets),
        "curves": curves,
        "gantt": lanes,
        "gantt_s": setting.workload.gantt_s,
    }
    return results, pictures


def _curve(cell: Cell, document: Mapping[str, Any]) -> dict[str, Any]:
    curve = points(document)
    return {
        "label": cell.row.label,
        "seed": cell.seed,
        "t_s": [point.t_s for point in curve],
        "bytes": [point.bytes_model + point.bytes_data + point.bytes_control for point in curve],
        "accuracy": [point.accuracy for point in curve],
    }


def _setup(one: Comparison, train_rows: int) -> dict[str, Any]:
    setting = one.setting
    workload, fleet, link = setting.workload, setting.fleet, setting.link
    return {
        "workload": workload.name,
        "task": workload.task,
        "modelled": workload.task == COST,
        "train_rows": train_rows,
        "data": f"dirichlet {setting.dirichlet:g}, kept" if setting.dirichlet is not None else workload.data_mode,
        "dirichlet": setting.dirichlet,
        "targets": list(workload.targets),
        "seeds": list(one.seeds),
        "fleet": {
            "name": setting.fleet_name,
            "boards": fleet.devices,
            "batch_s": fleet.batch_s,
            "jitter": fleet.jitter,
            "groups": [
                {"name": group.name, "count": group.count, "slowness": group.slowness} for group in fleet.groups
            ],
        },
        "link": {
            "name": setting.link_name,
            "up_mbit": link.up_mbit,
            "down_mbit": link.down_mbit,
            "latency_s": link.latency_s,
        },
        "grid_s": workload.grid_s,
        "measure_s": workload.measure_s,
        "rounds_max": workload.rounds_max,
        "virtual_s": setting.virtual_s,
        "long": setting.long,
        "await_patience": setting.await_patience,
        "rows": [
            {
                "label": row.label,
                "strategy": row.strategy,
                "constants": dict(strategies.resolve(row.strategy).build(row.constants)[1].constants),
                "changed": dict(row.constants),
                "codec": row.codec,
                "codec_down": row.codec_down,
            }
            for row in one.rows
        ],
    }


def _who(cell: Cell) -> dict[str, Any]:
    return {"setting": cell.setting.name, "label": cell.row.label, "seed": cell.seed}


def _name(cell: Cell) -> tuple[str, str, int]:
    return cell.setting.name, cell.row.label, cell.seed


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
