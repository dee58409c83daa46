"""The live view's table of devices: as many columns as the width has room for, the least telling given up first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table
from rich.text import Text

from hermes_iot.reporting.overview import Row
from hermes_iot.reporting.terminal import shortened
from hermes_iot.reporting.units import NOTHING, format_count, format_factor, format_seconds

_NAME_MIN: Final = 10
_STYLES: Final = {"offline": "red", "training": "green", "finished": "dim", "paused": "yellow", "idle": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """`width` in cells; columns with a greater `spare` go first where there is not room for all."""

    head: str
    width: int
    cell: Callable[[Row], Text]
    spare: int
    justify: str = "right"


def _state(row: Row) -> Text:
    word = (row.phase or "joined") if row.online else "offline"
    return Text(word, style=_STYLES.get(word, ""))


def _slowdown(row: Row) -> Text:
    return Text(format_factor(row.slowdown) if row.slowdown > 1 else NOTHING, style="magenta")


def _size(count: int) -> Text:
    return Text(format_count(count) if count else NOTHING)


def _gate(row: Row) -> Text:
    """The statistic and its threshold, lit when it passed."""
    if row.threshold is None:
        return Text(NOTHING)
    z = NOTHING if row.z is None else _score(row.z)
    passed = row.z is not None and row.z <= row.threshold
    return Text(f"{z}/{_score(row.threshold)}", style="bold green" if passed else "")


def _score(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"  # noqa: PLR2004 - five characters either way


_COLUMNS: Final = (
    _Column(head="state", width=8, cell=_state, spare=0, justify="left"),
    _Column(head="emulated\nslowdown", width=8, cell=_slowdown, spare=4),
    _Column(head="data\nrows", width=5, cell=lambda row: _size(row.samples), spare=2),
    _Column(head="mini-\nbatch", width=5, cell=lambda row: _size(row.batch), spare=5),
    _Column(
        head="iter.\ntime",
        width=7,
        cell=lambda row: Text(format_seconds(row.iteration_s) if row.iteration_s else NOTHING),
        spare=1,
    ),
    _Column(head="local\niter.", width=5, cell=lambda row: Text(format_count(row.iterations)), spare=0),
    _Column(head="pub-\nlished", width=6, cell=lambda row: Text(format_count(row.published)), spare=0),
    _Column(head="ap-\nplied", width=5, cell=lambda row: Text(format_count(row.applied)), spare=6),
    _Column(head="gate z /\nthreshold", width=11, cell=_gate, spare=3),
    _Column(head="gate\nsaid", width=8, cell=lambda row: Text(row.gate), spare=7, justify="left"),
)


def device_table(rows: Sequence[Row], width: int) -> Table:
    """One line per device, at most `width` wide."""
    columns = [one for one in _COLUMNS if one.cell is not _slowdown or any(row.slowdown > 1 for row in rows)]
    while len(columns) > 1 and _taken(columns) + _NAME_MIN > width:
        columns.remove(max(columns, key=lambda column: column.spare))
    name_width = max(_NAME_MIN, min(max((len(row.device) for row in rows), default=0), width - _taken(columns)))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", collapse_padding=True)
    table.add_column("device", width=name_width, no_wrap=True)
    for column in columns:
        table.add_column(
            column.head, width=column.width, no_wrap=True, justify="left" if column.justify == "left" else "right"
        )
    for name, row in zip(shortened([row.device for row in rows], name_width), rows, strict=True):
        table.add_row(Text(name), *(column.cell(row) for column in columns))
    return table


def _taken(columns: Sequence[_Column]) -> int:
    """Cells of these columns and of the blanks between them and the name."""
    return sum(column.width + 1 for column in columns)
