"""From the curve of a cell to its numbers: pure functions.

A target counts as reached at the first of two consecutive evaluations at or above it: near a plateau single
evaluations cross by luck, and a strategy that is evaluated more often would be lucky more often. It counts only up to
the point at which our stop rule held: some cells are watched beyond it, for the paper's rule, and others are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

from hermes_iot.runtime.simulation.outcome import Point

COLUMNS: Final = tuple(one.name for one in fields(Point))
#: What a point says of the effort up to it.
_EFFORT: Final = ("t_s", "bytes_model", "bytes_data", "bytes_control", "pushes", "iterations", "samples")


def first_crossing(curve: Sequence[Point], target: float, *, until_s: float = math.inf) -> Point | None:
    """The first of two consecutive points at or above `target`; None where there are none, or only after `until_s`."""
    above = [point.accuracy is not None and point.accuracy >= target for point in curve]
    for number in range(len(curve) - 1):
        if curve[number].t_s > until_s:
            break
        if above[number] and above[number + 1]:
            return curve[number]
    return None


def point_at(curve: Sequence[Point], t_s: float) -> Point:
    """The first point at or after a time; the last one where none is."""
    return next((point for point in curve if point.t_s >= t_s), curve[-1])


def effort(point: Point) -> dict[str, Any]:
    """What it had cost to come here, with the accuracy there."""
    values = {name: getattr(point, name) for name in _EFFORT}
    return {**values, "iterations_per_push": independence(point.iterations, point.pushes), "accuracy": point.accuracy}


def independence(iterations: int, pushes: int) -> float | None:
    """Local iterations per push: how seldom a board needs the others. None without a push."""
    return iterations / pushes if pushes else None


def numbers(document: Mapping[str, Any], targets: Sequence[float]) -> dict[str, Any]:
    """A finished cell's document (see `cell_run`) as the numbers a comparison needs, JSON-able."""
    curve = points(document)
    patience, plateau = document["paper_stop"], document["stop_rule"]
    until_s = plateau["t_s"] if plateau["t_s"] is not None else math.inf
    crossings = ((target, first_crossing(curve, target, until_s=until_s)) for target in targets)
    accuracies = [point.accuracy for point in curve if point.accuracy is not None]
    return {
        "end": document["end"],
        "targets": [
            {"target": target, "reached": effort(point) if point is not None else None} for target, point in crossings
        ],
        "paper_stop": {
            "patience": patience["patience"],
            "reached": {**effort(point_at(curve, patience["t_s"])), "t_s": patience["t_s"]}
            if patience["t_s"] is not None
            else None,
        },
        "stop_rule": {"reached": effort(point_at(curve, plateau["t_s"])) if plateau["t_s"] is not None else None},
        "best_accuracy": max(accuracies, default=None),
        "at_end": effort(curve[-1]),
    }


def columns(curve: Sequence[Point]) -> list[list[Any]]:
    """A curve as lists in the order of `COLUMNS`: a third of the size of mappings."""
    return [list(asdict(point).values()) for point in curve]


def points(document: Mapping[str, Any]) -> tuple[Point, ...]:
    """The inverse, from a cell's document; a loss that was not finite comes back as NaN."""
    named = (dict(zip(document["columns"], one, strict=True)) for one in document["points"])
    return tuple(Point(**{**one, "loss": float("nan") if one["loss"] is None else one["loss"]}) for one in named)
