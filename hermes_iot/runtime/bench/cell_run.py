"""Runs one cell in the simulator, and says what a finished one looks like on disk.

The document holds the curve and not the numbers made of it: what is measured can change without a cell being run anew.
A file ends with a digest of all before it, so one that was changed by hand, or cut off, is not believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.errors import StorageError
from hermes_iot.runtime.bench.cells import Cell
from hermes_iot.runtime.bench.ends import Ending, Patience, Plateau
from hermes_iot.runtime.bench.measure import COLUMNS, columns
from hermes_iot.runtime.simulation import benches
from hermes_iot.runtime.simulation.benches import Equipment
from hermes_iot.runtime.simulation.outcome import SimLimits
from hermes_iot.runtime.simulation.run import simulate
from hermes_iot.runtime.trainers import Bench
from hermes_iot.storage.atomic import write_atomic
from hermes_iot.training.sampling import GATE_FRACTION

SCHEMA: Final = "hermes-iot/bench-cell/1"
#: The last key of the file; its digest is that of the bytes before this.
_SEAL: Final = b',"sha256":"'
_SEAL_BYTES: Final = len(_SEAL) + 64 + len(b'"}')
_SAMPLES, _BATCH, _EPOCHS = 256, 16, 5
_KEPT: Final = (
    "model_version",
    "iterations",
    "updates_received",
    "updates_applied",
    "updates_stale",
    "updates_rejected",
    "virtual_s",
    "samples",
    "energy_j",
    "links",
    "boards",
)


def run_cell(
    cell: Cell, *, key: str, data_dir: Path | None, now: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Simulate; the finished cell's document, JSON-able.

    Args:
        cell: what to run.
        key: the name of its result.
        data_dir: where the task's files are.
        now: real seconds, for the wall time.

    Raises:
        HermesError: a setting, task or data cannot be used.
    """
    begun, setting, workload = now(), cell.setting, cell.setting.workload
    config = cell.config()
    equipment = _equipment(cell, data_dir)
    cap_s = setting.virtual_s or workload.rounds_max * slowest_round_s(cell, equipment.bench)
    train_rows = equipment.bench.trainer.train_rows
    plateau, patience = Plateau(train_rows, least_s=workload.plateau_s), Patience(setting.patience)
    ending = Ending(
        target=workload.targets[-1],
        plateau=plateau,
        patience=patience,
        await_patience=setting.await_patience,
        long=setting.long,
    )

    def observe(event: str, fields: Mapping[str, Any]) -> None:
        if event == "merge":
            patience.merged(fields["elapsed_s"], fields["loss"])

    outcome = simulate(
        config,
        fleet=setting.fleet,
        link=setting.link,
        bench=equipment.bench,
        trainer_of=equipment.trainer_of,
        until=SimLimits(virtual_s=cap_s, grid_s=workload.grid_s, stop=ending),
        observe=observe,
        settings=CoordinatorSettings(measure_interval_s=workload.measure_s),
    )
    # The last look may have been made after the end: whatever it saw changes no reason.
    kind = ending.kind or ("cap" if outcome.summary["virtual_s"] >= cap_s else "run")
    document = {
        "schema": SCHEMA,
        "key": key,
        "cell": {"label": cell.row.label, "setting": setting.name, **cell.document()},
        "train_rows": train_rows,
        "end": {"kind": kind, "reason": outcome.summary["reason"], "t_s": outcome.curve[-1].t_s},
        "columns": list(COLUMNS),
        "points": columns(outcome.curve),
        "paper_stop": {"patience": setting.patience, "t_s": patience.at_s},
        "stop_rule": {"t_s": plateau.at.t_s if plateau.at is not None else None},
        "gates": outcome.gates,
        "summary": {name: outcome.summary[name] for name in _KEPT},
        "timeline": _clipped(outcome.timeline, workload.gantt_s),
        "log_sha256": outcome.log_sha256,
        "real_s": now() - begun,
    }
    cleaned: dict[str, Any] = _finite(document)
    return cleaned


def slowest_round_s(cell: Cell, bench: Bench) -> float:
    """Seconds of the slowest board's first iteration by the task's proposals: a round of the paper's BSP."""
    one = bench.defaults
    rows = min(one.samples or _SAMPLES, bench.trainer.train_rows)
    train = max(1, rows - round(GATE_FRACTION * rows))
    steps = (one.epochs or _EPOCHS) * -(-train // (one.batch or _BATCH))
    fleet = cell.setting.fleet
    return steps * fleet.batch_s * max(group.slowness for group in fleet.groups)


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Keep a finished cell: whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    write_atomic(path, _sealed(body[: -len(b"}")]))


def read(path: Path, key: str) -> dict[str, Any] | None:
    """A finished cell; None where there is none, or none that can be used.

    Raises:
        StorageError: the file is there and cannot be opened.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}", why=error.strerror or str(error)) from error
    if content != _sealed(content[:-_SEAL_BYTES]):
        return None
    document: dict[str, Any] = json.loads(content)  # ours, as it was written
    del document["sha256"]
    usable = document.get("schema") == SCHEMA and document.get("key") == key
    return document if usable and document.get("columns") == list(COLUMNS) else None


def _sealed(body: bytes) -> bytes:
    """A JSON object without its last bracket, as a whole one with its digest."""
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"}'


def _equipment(cell: Cell, data_dir: Path | None) -> Equipment:
    boards, alpha = cell.setting.fleet.devices, cell.setting.dirichlet
    return benches.equipment_of(cell.config(), devices=boards, data_dir=data_dir, dirichlet=alpha)


def _clipped(timeline: Mapping[str, list[list[Any]]], until_s: float) -> dict[str, list[list[Any]]]:
    return {
        board: [[start, min(end, until_s), doing] for start, end, doing in stretches if start < until_s]
        for board, stretches in timeline.items()
    }


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
