"""The parts of a comparison beside each other: one table, before all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hermes_iot.reporting.bench_words import markdown, megabytes, percent, speedup
from hermes_iot.reporting.units import NOTHING, format_seconds


def overview(comparisons: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Per part the highest target: x BSP, median time and model bytes of each row, in Markdown.

    Args:
        comparisons: a report's; rows that not every part has are a dash where they are missing.
    """
    tables = [one["tables"][-1] for one in comparisons]
    parts = [{row["label"]: row for row in table["rows"]} for table in tables]
    labels = dict.fromkeys(label for part in parts for label in part)
    yield (
        "Of each part the highest target: how many times sooner than BSP, the median time, and the median of the model's"
        " bytes up to there. Where not every seed came there, it says how many did."
    )
    yield ""
    heads = [f"{one['name']}, {percent(table['target'])}" for one, table in zip(comparisons, tables, strict=True)]
    yield from markdown(
        ("strategy", *heads), [(label, *(_cell(part.get(label)) for part in parts)) for label in labels]
    )


def _cell(row: Mapping[str, Any] | None) -> str:
    """``13x, 1m23s, 18 MB``; ``2x, 8m56s, 78.5 MB (2/3)``; ``not reached``."""
    if row is None:
        return NOTHING
    if row["t_s"]["median"] is None:
        return f"not reached ({row['reached']}/{row['seeds']})" if row["reached"] else "not reached"
    times = f"{speedup(row['speedup'])}, " if row["speedup"] is not None else ""
    lost = f" ({row['reached']}/{row['seeds']})" if row["reached"] < row["seeds"] else ""
    return f"{times}{format_seconds(row['t_s']['median'])}, {megabytes(row['bytes_model']['median'])} MB{lost}"
