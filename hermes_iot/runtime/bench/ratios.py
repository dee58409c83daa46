"""Numbers of several seeds as medians, and medians as ratios to BSP's.

A seed that did not reach a target took longer than any that did. It therefore counts as infinitely much in a median,
and is never left out: with two of three reached the median is the larger of the two, with one of three there is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

#: What everything is held against.
REFERENCE: Final = "bsp"
_MEASURES: Final = (
    "t_s",
    "bytes_model",
    "bytes_data",
    "bytes_control",
    "pushes",
    "iterations",
    "samples",
    "iterations_per_push",
    "accuracy",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of one number over seeds. None = not reached: an infinite median, or an infinite largest value."""

    median: float | None
    least: float | None
    most: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Of two medians. `bound` ">" where it is at least this, because the reference was not there when it was ended."""

    value: float
    bound: str = ""


def spread(values: Sequence[float | None]) -> Spread:
    """Median, least and most; None among the values counts as infinite."""
    known = sorted(math.inf if value is None else value for value in values)
    if not known:
        return Spread(median=None, least=None, most=None)
    return Spread(median=_finite(statistics.median(known)), least=_finite(known[0]), most=_finite(known[-1]))


def speedup(reference: Spread, own: Spread, *, ended: Spread) -> Ratio | None:
    """How many times the reference's median time is this row's.

    Args:
        reference: times of the reference.
        own: times of this row; where their median is not reached there is no ratio.
        ended: when the reference's cells ended, a lower bound of its times where it did not reach the target.
    """
    if own.median is None or own.median <= 0:
        return None
    if reference.median is not None:
        return Ratio(value=reference.median / own.median)
    return Ratio(value=ended.median / own.median, bound=">") if ended.median is not None else None


def share(reference: Spread, own: Spread) -> float | None:
    """This row's median as a part of the reference's; None where either is missing or the reference is 0."""
    if own.median is None or not reference.median:
        return None
    return own.median / reference.median


def target_table(labels: Sequence[str], cells: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
    """One target's table: a row for each label.

    Args:
        labels: in the order of the table.
        cells: of all rows and seeds: `measure.numbers` with ``label`` and ``seed``.
        number: of the target.
    """
    return _table(labels, cells, lambda cell: cell["targets"][number]["reached"])


def paper_table(labels: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The paper's stop rule's."""
    return _table(labels, cells, lambda cell: cell["paper_stop"]["reached"])


def stop_table(labels: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Our stop rule's."""
    return _table(labels, cells, lambda cell: cell["stop_rule"]["reached"])


def _table(
    labels: Sequence[str], cells: Sequence[Mapping[str, Any]], pick: Callable[[Mapping[str, Any]], Any]
) -> list[dict[str, Any]]:
    mine = {label: [cell for cell in cells if cell["label"] == label] for label in labels}
    spreads = {label: _spreads([pick(cell) for cell in mine[label]]) for label in labels}
    reference = spreads.get(REFERENCE)
    ended = spread([cell["at_end"]["t_s"] for cell in mine.get(REFERENCE, [])])
    rows = []
    for label in labels:
        one, reached = spreads[label], [pick(cell) for cell in mine[label] if pick(cell) is not None]
        times = speedup(reference["t_s"], one["t_s"], ended=ended) if reference is not None else None
        rows.append(
            {
                "label": label,
                "reached": len(reached),
                "seeds": len(mine[label]),
                **{name: asdict(value) for name, value in one.items()},
                "speedup": asdict(times) if times is not None else None,
                "model_share": share(reference["bytes_model"], one["bytes_model"]) if reference is not None else None,
                "all_share": share(reference["bytes_all"], one["bytes_all"]) if reference is not None else None,
                "final_accuracy": asdict(spread([cell["at_end"]["accuracy"] for cell in mine[label]])),
                "best_accuracy": asdict(spread([cell["best_accuracy"] for cell in mine[label]])),
                "ends": sorted({cell["end"]["kind"] for cell in mine[label]}),
            }
        )
    return rows


def _spreads(reached: Sequence[Mapping[str, Any] | None]) -> dict[str, Spread]:
    found = {name: spread([one[name] if one is not None else None for one in reached]) for name in _MEASURES}
    sums = [
        one["bytes_model"] + one["bytes_data"] + one["bytes_control"] if one is not None else None for one in reached
    ]
    return {**found, "bytes_all": spread(sums)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
