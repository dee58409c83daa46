"""A simulation as a person sees it: how far virtual time has come, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn
from rich.table import Table
from rich.text import Text

from hermes_iot.reporting.bar import BarOrLines
from hermes_iot.reporting.gates import lines_of, notes_of
from hermes_iot.reporting.parts import columns, heading, indented, note
from hermes_iot.reporting.summary import DEVICES_MAX, WIDTH_MAX
from hermes_iot.reporting.terminal import Printable, Wrapped, clean, shortened
from hermes_iot.reporting.units import (
    NOTHING,
    format_bytes,
    format_count,
    format_factor,
    format_loss,
    format_seconds,
    format_share,
)

#: Without a terminal, a line after so many seconds of real time.
_LINE_S: Final = 10.0
_NAME_MAX: Final = 20


class Progress(BarOrLines):
    """Virtual time as it passes: a bar on a terminal, else now and then a line.

    Args:
        console: where; stderr, as stdout is for what came of it.
        virtual_s: where it ends at the latest.
        plain: lines even on a terminal.
        modelled: nothing is trained, losses and accuracies are a cost model's.
        clock: real seconds.
    """

    def __init__(
        self,
        console: Console,
        *,
        virtual_s: float,
        plain: bool,
        modelled: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bar = (BarColumn(), TextColumn("{task.description}"))
        super().__init__(console, *bar, plain=plain, total=virtual_s, auto_refresh=False)
        self._virtual_s = virtual_s
        self._kind = "modelled " if modelled else ""
        self._clock = clock
        self._said_at = clock()
        self._model = "nothing merged yet"
        self._t_s = 0.0

    @property
    def come(self) -> str:
        """How far it is."""
        return f"{format_seconds(self._t_s)} of {format_seconds(self._virtual_s)} virtual time"

    def on_record(self, event: str, fields: Mapping[str, Any]) -> None:
        """What the simulation tells its observer."""
        if event == "point":
            accuracy = fields["accuracy"]
            found = f"loss {format_loss(fields['loss'])}" if accuracy is None else format_share(accuracy)
            self._model = f"model {fields['version']}, {self._kind}{found}"
        elif event == "time":
            self._t_s = fields["t_s"]
            self._show()

    def _show(self) -> None:
        words = f"{self.come}, {self._model}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._t_s, description=words, refresh=True)
        elif self._clock() - self._said_at >= _LINE_S:
            self._said_at = self._clock()
            self._console.print(words, markup=False, highlight=False)


def render(document: Mapping[str, Any], console: Console, *, written: Path | None) -> None:
    """Print what came of it."""
    devices: Sequence[Mapping[str, Any]] = document["devices"]
    names = [(name, clean(document[name], 60)) for name in ("task", "strategy", "fleet", "link", "seed")]
    parts: list[RenderableType] = [
        Text(f"Simulated {len(devices):,} of {document['boards']:,} boards", style="bold"),
        indented(Wrapped(names)),
        Padding(_outcome(document), (1, 0, 0, 2)),
        heading("Boards"),
        indented(_boards(devices)),
        heading("Payload over all links"),
        indented(_traffic(document["links"])),
    ]
    if "gates" in document:
        parts += gates_part(document["gates"], "What each gate would have pushed")
    if written is not None:
        parts += [heading("Files"), indented(Text(clean(written)))]
    console.print(Printable(Group(*parts)), width=min(console.width, WIDTH_MAX))


def is_modelled(document: Mapping[str, Any]) -> bool:
    """Whether losses and accuracies are those of the cost model, which trains nothing."""
    return bool(document["scored_on"] == "modelled")


def gates_part(found: Mapping[str, Any], title: str) -> list[RenderableType]:
    """The table of `gates`, with what must be said beside it."""
    table = columns("gate", "pushes", "of iterations", "forced", "pushed by the run, too")
    for line in lines_of(found):
        table.add_row(*line)
    about = f"of {found['iterations']:,} iterations the run pushed {found['published']:,}"
    return [heading(title), indented(table), *(note(words) for words in (about, *notes_of(found)))]


def _outcome(document: Mapping[str, Any]) -> Table:
    table, loss = columns("", ""), format_loss(document["loss"])
    if is_modelled(document):
        found = loss if document["accuracy"] is None else f"{format_share(document['accuracy'])}, loss {loss}"
        table.add_row(
            "modelled", f"{'loss' if document['accuracy'] is None else 'accuracy'} {found}: nothing was trained"
        )
    elif document["accuracy"] is None:
        table.add_row("final loss", f"{loss} on the test rows")
    else:
        table.add_row("final accuracy", f"{format_share(document['accuracy'])} on the test rows, loss {loss}")
    table.add_row("virtual time", f"{format_seconds(document['wall_s'])}, ended by: {clean(document['reason'])}")
    table.add_row("real time", f"{format_seconds(document['real_s'])}, {document['events']:,} events")
    fates = ("applied", "duplicate", "stale", "rejected")
    each = " + ".join(f"{document[f'updates_{fate}']:,} {fate}" for fate in fates)
    table.add_row("updates received", f"{document['updates_received']:,} = {each}")
    return table


def _boards(devices: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each board, or for each kind where there are too many."""
    each = len(devices) <= DEVICES_MAX
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for one in devices:
        by_name.setdefault(one["device"] if each else one["host"], []).append(one)
    energy = any(one["energy_j"] is not None for one in devices)
    words = ("board", *(() if each else ("boards",)), "slowness", "iterations", "published", "training", "up", "down")
    table = columns(*words, *(["energy"] if energy else []))
    names = shortened([clean(name) for name in by_name], _NAME_MAX)
    for name, rows in zip(names, by_name.values(), strict=True):
        table.add_row(
            name,
            *(() if each else (f"{len(rows):,}",)),
            format_factor(rows[0]["slowdown"]),
            format_count(sum(one["iterations"] for one in rows)),
            format_count(sum(one["updates_published"] for one in rows)),
            format_seconds(sum(one["train_s"] for one in rows)),
            format_bytes(sum(sum(one["link"]["up"].values()) for one in rows)),
            format_bytes(sum(sum(one["link"]["down"].values()) for one in rows)),
            *([_joules(rows)] if energy else []),
        )
    return table


def _joules(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [one["energy_j"] for one in rows if one["energy_j"] is not None]
    return f"{sum(known):,.0f} J" if known else NOTHING


def _traffic(links: Mapping[str, Any]) -> Table:
    table = columns("", "model", "data", "control", "MQTT framing")
    for way in ("up", "down"):
        sums = [format_bytes(links[way][kind]) for kind in ("model", "data", "control")]
        table.add_row(way, *sums, format_bytes(links["framing"][way]))
    return table
