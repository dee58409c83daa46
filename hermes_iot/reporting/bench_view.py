"""A comparison on a terminal: which cells are done and how long the others will take, and its tables at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from hermes_iot.reporting.bar import BarOrLines
from hermes_iot.reporting.bench_report import findings
from hermes_iot.reporting.bench_words import megabytes, percent, speedup
from hermes_iot.reporting.parts import heading, indented, note
from hermes_iot.reporting.terminal import Printable, clean, shortened
from hermes_iot.reporting.units import NOTHING, format_number_of, format_seconds, format_share

_NAME_MAX = 60
_SENTENCE_MAX = 1000


class Progress(BarOrLines):
    """A bar on a terminal, with the time gone by and the cells that are running, else a line for each cell.

    Args:
        console: where; stderr, as stdout is for what came of it.
        plain: lines even on a terminal.

    Attributes:
        cells: how many there are; 0 while that is not known.
        kept: those of them that are finished and stored.
    """

    def __init__(self, console: Console, *, plain: bool) -> None:
        # Words are cut at the right edge: a bar of two lines would flicker.
        words = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        super().__init__(console, BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), words, plain=plain)
        self.cells = 0
        self.kept = 0
        self._done = 0
        self._running: list[str] = []
        self._left = ""

    def on_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """What `runtime.bench.run` tells."""
        if event == "plan":
            self.cells = fields["cells"]
            self.kept = self._done = fields["found"]
            found = f", {fields['found']} of them finished before" if fields["found"] else ""
            self._say(f"{format_number_of(self.cells, 'cell')}{found}, {fields['jobs']} at a time")
        elif event == "spoilt":
            self._say(f"{_who(fields)} is run again: {clean(fields['path'], 400)} is not as it was written")
        elif event == "started":
            self._running.append(_short(fields))
        elif event == "finished":
            self._over(fields)
            self.kept += 1
            self._left = _left(fields)
            self._say(f"{self._done}/{self.cells} {_who(fields)}: {_ended(fields)}{self._left}")
        elif event == "failed":
            self._over(fields)
            self._say(f"{self._done}/{self.cells} {_who(fields)} failed: {clean(fields['why'])}")
            self._say(f"  to run it alone: {clean(fields['command'], 400)}")
        if self._bar is not None:
            running = f"running: {'; '.join(self._running)}" if self._running else ""
            words = "; ".join(one for one in (self._left.lstrip(", "), running) if one)
            self._bar.update(self._task, total=self.cells, completed=self._done, description=words)

    def _over(self, fields: Mapping[str, Any]) -> None:
        self._done += 1
        if _short(fields) in self._running:
            self._running.remove(_short(fields))

    def _say(self, words: str) -> None:
        self._console.print(words, markup=False, highlight=False, soft_wrap=True)


def render(results: Mapping[str, Any], console: Console, *, written: Sequence[Path], notes: Sequence[str]) -> None:
    """Print the tables, in short; the whole ones are in the report."""
    parts: list[RenderableType] = []
    for one in results["comparisons"]:
        parts.append(Text(clean(one["name"], _NAME_MAX), style="bold"))
        for table in one["tables"]:
            parts += [heading(f"To {percent(table['target'])} test accuracy"), indented(_table(table["rows"]))]
            parts += [indented(Text(f"- {clean(words.replace('`', ''), _SENTENCE_MAX)}")) for words in findings(table)]
        parts += [indented(Text(f"failed: {clean(_who(cell))}", style="bold red")) for cell in one["failed"]]
        parts.append(Text(""))
    parts += [
        Text("Files", style="bold cyan"),
        *(indented(Text(clean(path, 4096), overflow="fold")) for path in written),
    ]
    parts += [note(clean(words)) for words in notes]
    console.print(Printable(Group(*parts)))


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for word in ("strategy", "time", "seeds", "x BSP", "model MB", "of BSP's", "iter/push", "accuracy"):
        table.add_column(word, justify="left" if word == "strategy" else "right")
    labels = [row["label"] for row in rows]
    nested = _nested(labels)
    for row, full, name in zip(rows, nested, shortened([clean(one, 400) for one in nested], _NAME_MAX), strict=True):
        pushes, accuracy = row["iterations_per_push"]["median"], row["final_accuracy"]["median"]
        table.add_row(
            Text(f"  {name}" if full != row["label"] else name),
            format_seconds(row["t_s"]["median"]),
            f"{row['reached']}/{row['seeds']}",
            speedup(row["speedup"]),
            megabytes(row["bytes_model"]["median"]),
            format_share(row["model_share"]),
            NOTHING if pushes is None else f"{pushes:.2f}",
            format_share(accuracy),
        )
    return table


def _nested(labels: Sequence[str]) -> list[str]:
    """Variants under their strategy, without its name again: a table must fit into 80 columns."""
    shown, above = [], ""
    for label in labels:
        is_variant = bool(above) and label.startswith(f"{above} ")
        above = above if is_variant else label
        shown.append(label.removeprefix(above).strip() if is_variant else label)
    return shown


def _who(fields: Mapping[str, Any]) -> str:
    setting = f"{fields['setting']}, " if "setting" in fields else ""
    return f"{setting}{fields['label']}, seed {fields['seed']}"


def _short(fields: Mapping[str, Any]) -> str:
    return f"{clean(fields['label'], _NAME_MAX)}, seed {fields['seed']}"


def _ended(fields: Mapping[str, Any]) -> str:
    """When it came to its target, why it ended, and how long it took; where the time was over the reason names it.

    A cell may run on long after its target, for the paper's rule, so its end alone would mislead.
    """
    end, real, last = fields["end"], format_seconds(fields["real_s"]), fields["reached"]
    reached = f"{percent(last['target'])} after {format_seconds(last['reached']['t_s'])}; " if last["reached"] else ""
    if end["kind"] == "cap":
        return f"{reached}ended after {clean(end['reason'])}, in {real}"
    return f"{reached}{clean(end['reason'])}, {format_seconds(end['t_s'])} virtual in {real}"


def _left(fields: Mapping[str, Any]) -> str:
    left_s = fields.get("left_s")
    return f", about {format_seconds(left_s)} left" if left_s else ""
