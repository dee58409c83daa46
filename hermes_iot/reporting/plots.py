"""The picture of a run: what its metrics say, and a PNG of it.

matplotlib is in the `demo` extra only and takes 0.7 s to load, so it stays out of everything but the drawing itself
(figure.py). Without it a run loses its picture and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hermes_iot.reporting.metrics import read_metrics
from hermes_iot.storage.atomic import write_atomic

INSTALL: Final = "pip install 'hermes-iot[demo]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plotted:
    """Where the picture is, or a sentence saying why there is none."""

    path: Path | None = None
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Lane:
    """What happened to one device, in seconds since the run began.

    Attributes:
        presence: spans; an open one ends in NaN.
        size: rows and mini-batch last allotted.
    """

    presence: list[tuple[float, float]] = field(default_factory=list)
    applied_s: list[float] = field(default_factory=list)
    dropped_s: list[float] = field(default_factory=list)
    resized_s: list[float] = field(default_factory=list)
    size: tuple[int, int] | None = None


@dataclass(slots=True, kw_only=True)
class Course:
    """A run over time. The lists of the global model run in parallel: one entry per merge."""

    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    payload_bytes: list[float] = field(default_factory=list)
    lanes: dict[str, Lane] = field(default_factory=dict)
    end_s: float = 0.0
    reason: str = ""


def plot_run(metrics_path: Path, png_path: Path, *, title: str | None = None) -> Plotted:
    """Draw a run's metrics: accuracy over time and over bytes, and when each device published.

    Args:
        metrics_path: the run's metrics.jsonl.
        png_path: written atomically.
        title: above the picture; None = the name of the run's directory.

    Raises:
        StorageError: one cannot be read or the other not be written.
    """
    try:
        from hermes_iot.reporting.figure import draw  # noqa: PLC0415 - loads matplotlib, which may not be there
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        return Plotted(note=f"no plot: matplotlib {why}; get it with {INSTALL}")
    title = metrics_path.absolute().parent.name if title is None else title
    write_atomic(png_path, draw(course_of(read_metrics(metrics_path)), title=title))
    return Plotted(path=png_path)


def course_of(records: Iterable[Mapping[str, Any]]) -> Course:
    """Put records in order by what they are about.

    A coordinator that crashed goes on from its last checkpoint, and its clock with it: what had been recorded after
    that moment never happened to the model, and is left out. Records that lack what they should have are left out too.
    """
    kept: list[Mapping[str, Any]] = []
    for record in records:
        if record["event"] == "refused":
            continue  # not drawn; and the one record that may bear a time before the resumed run's
        while kept and kept[-1]["elapsed_s"] > record["elapsed_s"]:
            kept.pop()
        kept.append(record)
    course = Course()
    for record in kept:
        try:
            _add(course, record)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return course


def _add(course: Course, record: Mapping[str, Any]) -> None:
    now = float(record["elapsed_s"])
    course.end_s = max(course.end_s, now)
    match record["event"]:
        case "joined":
            _close(_lane(course, record), now)
            _lane(course, record).presence.append((now, math.nan))
        case "left":
            _close(_lane(course, record), now)
        case "allocation":
            _allotted(_lane(course, record), (int(record["samples"]), int(record["batch"])), now)
        case "dropped":
            _lane(course, record).dropped_s.append(now)
        case "finished":
            course.reason = str(record["reason"])
        case "merge":
            payload_bytes = float(record["bytes_up"] + record["bytes_down"])
            row = (now, _or_nan(record["accuracy"]), _or_nan(record["loss"]), payload_bytes)
            _lane(course, record).applied_s.append(now)
            lists = (course.seconds, course.accuracy, course.loss, course.payload_bytes)
            for one, value in zip(lists, row, strict=True):
                one.append(value)


def _allotted(lane: Lane, size: tuple[int, int], now: float) -> None:
    """The first is part of joining, and a coordinator that came back says the last one again."""
    if lane.size not in (None, size):
        lane.resized_s.append(now)
    lane.size = size


def _lane(course: Course, record: Mapping[str, Any]) -> Lane:
    return course.lanes.setdefault(str(record["device"])[:64], Lane())


def _close(lane: Lane, now: float) -> None:
    if lane.presence and math.isnan(lane.presence[-1][1]):
        lane.presence[-1] = (lane.presence[-1][0], now)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
