"""The pictures of a comparison: accuracy over time and over bytes, and what the boards did when.

matplotlib stays out of everything but the drawing itself (bench_figure.py), as in `plots`: without it a comparison
loses its pictures and nothing else.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hermes_iot.reporting.plots import INSTALL
from hermes_iot.storage.atomic import write_atomic

#: Points of a line: more than a screen has pixels would be wasted.
_GRID: Final = 400
#: More boards than this are thinned out evenly.
LANES_MAX: Final = 16
#: Rows of a comparison whose boards are shown: more would be a picture that nobody scrolls to the end of.
ROWS_MAX: Final = 8
#: Shown before others where there are more.
_FIRST: Final = ("bsp", "hermes", "hermes-plus")
_DOINGS: Final = ("train", "wait", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row's accuracy over time or bytes: median, least and most over its seeds, where all of them were still run."""

    label: str
    seeds: int = 1
    x: tuple[float, ...]
    median: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]


def write_pictures(pictures: Mapping[str, Any], folder: Path) -> tuple[list[Path], str]:
    """Draw a comparison's plots, each as PNG and SVG.

    Args:
        pictures: ``name``, ``labels``, ``targets``, ``curves`` (each ``label``, ``seed``, ``t_s``, ``bytes``,
            ``accuracy``), ``gantt`` (label -> board -> [start, end, doing]) and ``gantt_s``, up to which it goes.
        folder: where; names begin with the comparison's.

    Returns:
        The files, and a sentence where some are missing.

    Raises:
        StorageError: one cannot be written.
    """
    try:
        from hermes_iot.reporting import bench_figure  # noqa: PLC0415 - loads matplotlib, which may not be there
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        return [], f"no plots: matplotlib {why}; get it with {INSTALL}"
    drawn: dict[str, dict[str, bytes]] = {}
    for across in ("time", "bytes"):
        lines = lines_of(pictures["labels"], pictures["curves"], across=across)
        if lines:
            drawn[across] = bench_figure.accuracy(lines, targets=pictures["targets"], across=across)
    if pictures["gantt"]:
        shown, left_out = chosen([*pictures["gantt"]])
        lanes = {label: lanes_of(pictures["gantt"][label]) for label in shown}
        drawn["boards"] = bench_figure.gantt(lanes, until_s=pictures["gantt_s"], left_out=left_out)
    files = []
    for kind, images in drawn.items():
        for ending, image in images.items():
            files.append(folder / f"{pictures['name']}-{kind}.{ending}")
            write_atomic(files[-1], image)
    idle = pictures["curves"] and not {"time", "bytes"} & drawn.keys()
    return (
        files,
        f"no plots of accuracy for {pictures['name']}: its cells ended before a model was merged" if idle else "",
    )


def lines_of(labels: Sequence[str], curves: Sequence[Mapping[str, Any]], *, across: str) -> list[Line]:
    """Curves of several seeds as one line with a band, on a logarithmic grid over ``time`` or ``bytes``."""
    key = {"time": "t_s", "bytes": "bytes"}[across]
    lines = []
    for label in labels:
        own = [_steps(curve[key], curve["accuracy"]) for curve in curves if curve["label"] == label]
        own = [steps for steps in own if steps]
        if own:
            lines.append(_line(label, own))
    return lines


def chosen(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """The rows whose boards are shown, in the order of the table, and those left out where there are more."""
    ranked = sorted(labels, key=lambda label: label not in _FIRST)
    kept = set(ranked[:ROWS_MAX])
    return [label for label in labels if label in kept], [label for label in labels if label not in kept]


def lanes_of(boards: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, Sequence[Sequence[Any]]]:
    """The boards to show: all, or `LANES_MAX` of them, evenly chosen, the first and last among them."""
    names = list(boards)
    if len(names) > LANES_MAX:
        names = [names[round(number * (len(names) - 1) / (LANES_MAX - 1))] for number in range(LANES_MAX)]
    return {name: boards[name] for name in names}


def time_shares(lanes: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, float]:
    """Which part of their time boards trained, waited and were off, all together."""
    sums = dict.fromkeys(_DOINGS, 0.0)
    for stretches in lanes.values():
        for start, end, doing in stretches:
            sums[doing] += end - start
    whole = sum(sums.values())
    return {doing: one / whole if whole else 0.0 for doing, one in sums.items()}


def _steps(x: Sequence[float], accuracy: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(at, value) for at, value in zip(x, accuracy, strict=True) if value is not None and at > 0]


def _line(label: str, own: Sequence[Sequence[tuple[float, float]]]) -> Line:
    first, last = max(steps[0][0] for steps in own), min(steps[-1][0] for steps in own)
    ratio = max(last / first, 1.0)
    count = _GRID if ratio > 1 else 1
    grid = sorted({first * ratio ** (number / max(1, count - 1)) for number in range(count)} | {first, last})
    grid = [x for x in grid if first <= x <= last] or [first]
    values = [[_at(steps, x) for steps in own] for x in grid]
    return Line(
        label=label,
        seeds=len(own),
        x=tuple(grid),
        median=tuple(statistics.median(one) for one in values),
        least=tuple(min(one) for one in values),
        most=tuple(max(one) for one in values),
    )


def _at(steps: Sequence[tuple[float, float]], x: float) -> float:
    """The newest value at `x`."""
    number = bisect_right(steps, (x, math.inf))
    return steps[max(0, number - 1)][1]
