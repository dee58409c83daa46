"""Trials under faults as a person sees them: how far they are, what was done to the fleets, and what did not hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from hermes_iot.reporting.bar import BarOrLines
from hermes_iot.reporting.parts import columns, heading, indented
from hermes_iot.reporting.summary import WIDTH_MAX
from hermes_iot.reporting.terminal import Printable, clean
from hermes_iot.reporting.units import format_number_of, format_seconds

#: Without a terminal, a line after so many seeds.
_LINE_SEEDS = 50
_INVARIANTS = {
    "I1": "no update is applied twice",
    "I2": "what was acknowledged or published survives a crash, bit for bit",
    "I3": "nothing of another run or model is applied",
    "I4": "allocations only grow, and none that was told is forgotten",
    "I5": "rows are shared only where there are no others",
    "I6": "the model is finite and each update makes one version",
    "I7": "received = applied + duplicate + stale + rejected",
    "I8": "everything that is kept is within its bound",
    "liveness": "when faults stop, every device gets on",
    "progress": "nothing is done for ever while time stands still",
    "no bug": "the software raises nothing that is not its own",
}


class Progress(BarOrLines):
    """A bar of seeds on a terminal, else a line now and then.

    Args:
        console: where; stderr, as stdout is for what came of it.
        seeds: how many there are.
        plain: lines even on a terminal.
    """

    def __init__(self, console: Console, *, seeds: int, plain: bool) -> None:
        words = TextColumn("{task.description}", markup=False)
        super().__init__(
            console, BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), words, plain=plain, total=seeds
        )
        self._seeds = seeds
        self.done = 0

    def on_found(self, *, violated: int) -> None:
        """One more is done."""
        self.done += 1
        words = f"{violated} violated" if violated else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=words)
        elif self.done % _LINE_SEEDS == 0 and self.done < self._seeds:
            self._console.print(f"{self.done} of {self._seeds} seeds {words}".rstrip(), markup=False, highlight=False)


def explain(faults: Mapping[str, str], console: Console) -> None:
    """Print what each fault is."""
    table = columns("", "")
    for name, words in faults.items():
        table.add_row(name, words)
    console.print(Printable(table), width=min(console.width, WIDTH_MAX))


def render(document: Mapping[str, Any], console: Console) -> None:
    """Print what came of it."""
    violated = document["violated"]
    parts: list[RenderableType] = [
        Text(f"{format_number_of(document['seeds'], 'seed')} under faults", style="bold"),
        Padding(_outcome(document), (1, 0, 0, 2)),
        heading("What went wrong, and how often"),
        indented(_injected(document["faults"])),
        heading("What held"),
        indented(_held({one["invariant"] for one in violated})),
    ]
    for one in violated:
        parts += [heading(f"Seed {one['seed']}: {one['invariant']} is violated"), indented(_violation(one))]
    console.print(Printable(Group(*parts)), width=min(console.width, WIDTH_MAX))


def _outcome(document: Mapping[str, Any]) -> RenderableType:
    table = columns("", "")
    strategies = ", ".join(f"{clean(name, 60)} {count}" for name, count in document["strategies"].items())
    table.add_row("strategies", strategies)
    table.add_row("real time", f"{format_seconds(document['real_s'])} for {format_seconds(document['virtual_s'])}")
    table.add_row("updates", f"{document['updates_applied']:,} applied")
    exits = ", ".join(f"{count} with exit code {code}" for code, count in document["exits"].items())
    table.add_row("processes", f"{document['lives']:,} begun, {exits or 'none ended by an error'}")
    deaths = " and ".join(f"{count:,} at a {place}" for place, count in _places(document["deaths"]).items())
    table.add_row("killed", f"{deaths}; {format_number_of(document['torn_tails'], 'journal')} found torn")
    table.add_row("checked", f"after {document['checks']:,} events")
    return table


def _places(deaths: Mapping[str, int]) -> dict[str, int]:
    words = {"disk": "change of the disk", "message": "message"}
    return {words[place]: count for place, count in deaths.items()}


def _injected(faults: Mapping[str, int]) -> RenderableType:
    table = columns("", "times")
    for name, count in faults.items():
        table.add_row(name, f"{count:,}")
    return table


def _held(violated: set[str]) -> RenderableType:
    table = columns("", "", "")
    for name, words in _INVARIANTS.items():
        table.add_row(name, "VIOLATED" if name in violated else "held", words)
    return table


def _violation(one: Mapping[str, Any]) -> RenderableType:
    table = columns("", "")
    table.add_row("what", clean(one["what"], 1000))
    table.add_row("event", clean(one["event"], 200))
    table.add_row("strategy", clean(one["strategy"], 60))
    table.add_row("again", clean(one["replay"], 1000))
    return Group(table, Text(clean(one["trace"], 4000))) if one["trace"] else table
