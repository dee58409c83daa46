"""How a comparison's numbers are written, wherever they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hermes_iot.reporting.units import NOTHING, format_factor, format_seconds

_MB: Final = 1e6


def percent(share: float) -> str:
    """``98 %``, ``98.5 %``."""
    return f"{share * 100:g} %"


def times(spread: Mapping[str, float | None]) -> str:
    """``87.0 s [78.0 s - not reached]``."""
    median, least, most = (
        format_seconds(spread[name]) if spread[name] is not None else "not reached"
        for name in ("median", "least", "most")
    )
    return median if least == most else f"{median} [{least} - {most}]"


def speedup(ratio: Mapping[str, Any] | None) -> str:
    """``13.9x``, ``>4.2x``, ``-``."""
    return NOTHING if ratio is None else f"{ratio['bound']}{format_factor(ratio['value'])}"


def megabytes(count: float | None) -> str:
    """Bytes in MB, so that a column can be compared."""
    return NOTHING if count is None else f"{count / _MB:.3g}" if count < 1000 * _MB else f"{count / _MB:.0f}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table's lines; all columns but the first are numbers."""
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
