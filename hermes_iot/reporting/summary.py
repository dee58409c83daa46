"""The end of a run: printed for a person, as one JSON envelope for a program, and kept in summary.json.

Two sides count bytes. Devices report everything they handed to and received from the broker; that is what is printed
as this run's traffic. What BSP would have sent is worked out by the coordinator for the same local iterations (one
update and one model each, at this run's own mean sizes) and counts those model messages alone, so the comparison errs
against this run; the text says so beside the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hermes_iot.reporting.gates import forced_of
from hermes_iot.reporting.metrics import finite
from hermes_iot.reporting.parts import heading, indented, note
from hermes_iot.reporting.plots import Plotted
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
from hermes_iot.storage.atomic import write_atomic

#: Wider lines are hard to read back from their end to the next one's beginning.
WIDTH_MAX: Final = 110
#: More devices than this are left to summary.json.
DEVICES_MAX: Final = 64
_FILES: Final = ("summary.json", "metrics.jsonl", "model.safetensors")
_NAME_MAX: Final = 20


def envelope(summary: Mapping[str, Any], *, kind: str, ok: bool = True) -> str:
    """The one JSON document of ``--json``, on one line: ``schema``, ``ok``, then the summary's own keys.

    Args:
        summary: what the coordinator's runner gave, and what the caller knows besides (broker).
        kind: names the schema, ``hermes-iot/<kind>/1``.
        ok: whether it is good news.
    """
    return json.dumps(_document(summary, kind, ok=ok))


def write_summary(path: Path, summary: Mapping[str, Any], *, kind: str = "run") -> None:
    """The same keys as a file, replaced atomically.

    Raises:
        StorageError: disk full, no permission, ...
    """
    write_atomic(path, json.dumps(_document(summary, kind), indent=2).encode() + b"\n")


def _document(summary: Mapping[str, Any], kind: str, *, ok: bool = True) -> dict[str, Any]:
    head = {"schema": f"hermes-iot/{kind}/1", "ok": ok}
    return {**head, **finite(summary), **head}


def render(summary: Mapping[str, Any], console: Console, *, plot: Plotted | None = None) -> None:
    """Print the run for a person."""
    devices: Sequence[Mapping[str, Any]] = summary["devices"]
    parts: list[RenderableType] = [
        *_outcome(summary),
        heading("Local iterations and published updates"),
        _iterations(summary, devices[:DEVICES_MAX]),
        _left_out(devices),
        _emulated(devices),
        _lagging(devices),
        _received(summary),
        _forced(summary),
        _excused(devices),
        heading("Allocation and iteration time, first to last"),
        _allocations(devices[:DEVICES_MAX]),
        _left_out(devices),
        *_evened_out(devices),
        heading("Traffic"),
        *_traffic(summary),
        heading("Files"),
        *_files(summary, plot),
    ]
    shown = Group(*(part for part in parts if part))
    console.print(Printable(shown), width=min(console.width, WIDTH_MAX))


# --- what came of it --------------------------------------------------------------------------------------------------


def _outcome(summary: Mapping[str, Any]) -> list[RenderableType]:
    validation, version = summary["validation_accuracy"], summary["model_version"]
    loss = f"loss {format_loss(summary['loss'])}"
    table = _table("", "")
    if summary["accuracy"] is None:
        _row(table, "final loss", Text(f"{format_loss(summary['loss'])} on the test rows", style="bold"))
    else:
        _row(table, "final accuracy", _bold(format_share(summary["accuracy"]), f" on the test rows, {loss}"))
    if summary.get("scored_on") == "test":
        _row(table, "", "the test rows steered this run (--score-on test): not a clean result")
    elif validation is not None:
        _row(table, "validation accuracy", f"{format_share(validation)}, model version {version}")
    else:
        _row(table, "model version", str(version))
    _row(table, "wall time", f"{format_seconds(summary['wall_s'])}, ended by: {clean(summary['reason'])}")
    names = [(name, clean(summary.get(name, ""), 60)) for name in ("task", "strategy", "fleet", "seed", "broker")]
    return [
        Text(f"Run {clean(summary['run'])}", style="bold"),
        *(indented(Wrapped(pairs)) for pairs in (names[:4], names[4:]) if any(value for _name, value in pairs)),
        Padding(table, (1, 0, 0, 2)),
    ]


def _bold(value: str, rest: str) -> Text:
    return Text.assemble((value, "bold green"), rest)


# --- updates ----------------------------------------------------------------------------------------------------------


def _iterations(summary: Mapping[str, Any], devices: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("device", "emulated", "local iterations", "published", "share", "applied", totals=True)
    for name, one in _named(devices):
        counts = (one["iterations"], one["updates_published"], one["updates_applied"])
        _row(table, name, _slowdown(one), *_counts(*counts))
    totals = (summary["iterations"], summary["updates_published"], summary["updates_applied"])
    table.columns[0].footer = "total"
    for column, text in zip(table.columns[2:], _counts(*totals), strict=True):
        column.footer = text
    return indented(table)


def _counts(iterations: int, published: int, applied: int) -> tuple[str, str, str, str]:
    share = format_share(published / iterations) if iterations else NOTHING
    return f"{iterations:,}", f"{published:,}", share, f"{applied:,}"


def _emulated(devices: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not any(one["slowdown"] > 1 for one in devices):
        return ""
    return note("emulated: the process pauses after each iteration, so that it takes so many times as long")


def _lagging(devices: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Two sides count; where one is ahead of the other it must not look like an error."""
    if all(one["updates_applied"] <= one["updates_published"] for one in devices):
        return ""
    return note(
        "iterations and published are the devices' last reports; applied, the coordinator's count, may be ahead"
    )


def _received(summary: Mapping[str, Any]) -> RenderableType:
    fates = " + ".join(
        f"{summary[f'updates_{fate}']:,} {fate}" for fate in ("applied", "duplicate", "stale", "rejected")
    )
    reasons = ", ".join(f"{clean(reason, 40)} {count:,}" for reason, count in sorted(summary["reasons"].items()))
    words = f"updates received: {summary['updates_received']:,} = {fates}"
    return indented(Text(f"{words} (reasons: {reasons})" if reasons else words))


def _forced(summary: Mapping[str, Any]) -> RenderableType:
    """Whether the gate decided or the age; a summary made elsewhere may not know."""
    words = forced_of(summary.get("gate_words", {}))
    return indented(Text(words)) if words else ""


def _excused(devices: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Whom nobody waited for at the end, and why."""
    reasons = [f"{name} ({clean(one['excused'], 60)})" for name, one in _named(devices) if one.get("excused")]
    more = f" and {len(reasons) - DEVICES_MAX} more" if len(reasons) > DEVICES_MAX else ""
    return note(f"not waited for any more: {', '.join(reasons[:DEVICES_MAX])}{more}") if reasons else ""


# --- allocations ------------------------------------------------------------------------------------------------------


def _allocations(devices: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("device", "data rows", "mini-batch", "iteration time")
    table.columns[-1].justify = "left"
    for name, one in _named(devices):
        measured = bool(one["samples_before"])
        rows = _change(one["samples_before"], one["samples"], str) if measured else str(one["samples"])
        batch = _change(one["batch_before"], one["batch"], str) if measured else str(one["batch"])
        _row(table, name, rows, batch, _iteration_time(one))
    return indented(table)


def _iteration_time(one: Mapping[str, Any]) -> Text:
    before, after = one["iteration_s_before"], one["iteration_s"]
    if before is None or after is None:
        return Text("never measured", style="dim")
    if not _resized(one):
        why = "not re-sized" if one["allocations"] <= 1 else "ended at its first size"
        return Text.assemble(format_seconds(after), (f", {why}", "dim"))
    if before == after:  # one measurement only, and two sizes
        return Text.assemble(f"{format_seconds(before)} → ?", (", not measured again", "dim"))
    return Text(_change(before, after, format_seconds))


def _resized(one: Mapping[str, Any]) -> bool:
    return (one["samples"], one["batch"]) != (one["samples_before"], one["batch_before"]) and bool(
        one["samples_before"]
    )


def _evened_out(devices: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """How unequal the fleet was and is, where devices were re-sized and all of those measured again."""
    measured = [one for one in devices if one["iteration_s_before"] and one["iteration_s"]]
    resized = [one["iteration_s_before"] != one["iteration_s"] for one in measured if _resized(one)]
    if not resized or not all(resized) or len(measured) == 1:
        return []
    first, last = (_spread([one[name] for one in measured]) for name in ("iteration_s_before", "iteration_s"))
    return [indented(Text(f"slowest / fastest iteration: {first} at first, {last} at the end"))]


def _spread(times_s: Sequence[float]) -> str:
    return format_factor(max(times_s) / min(times_s))


# --- traffic and files ------------------------------------------------------------------------------------------------


def _traffic(summary: Mapping[str, Any]) -> list[RenderableType]:
    up, down, bsp = summary["bytes_up"], summary["bytes_down"], summary["bytes_bsp"]
    table = _table("", "up", "down", "together")
    _row(table, "this run", format_bytes(up), format_bytes(down), _bold(format_bytes(up + down), ""))
    _row(table, "BSP, same iterations", "", "", format_bytes(bsp) if bsp else NOTHING)
    if not bsp or not up + down:
        return [indented(table), note("No update was published, so there is nothing to hold against BSP.")]
    ratio = bsp / (up + down)
    words = f"BSP would have sent {format_factor(ratio)} the bytes of this run."
    how = (
        f"BSP is bulk-synchronous training of the same {summary['iterations']:,} local iterations: one whole"
        " model up and one down each, in half precision. It counts these bodies only, whereas this run's bytes are all"
        " payloads its devices report, control messages included: the comparison is conservative. It is for equal"
        " iterations, not for equal accuracy."
    )
    return [indented(table), indented(Text(words)), note(how)]


def _files(summary: Mapping[str, Any], plot: Plotted | None) -> list[RenderableType]:
    directory = Path(summary["run_dir"])
    names = [name for name in _FILES if (directory / name).is_file()]
    if plot is not None and plot.path is not None:
        names.append(plot.path.name if plot.path.parent == directory else str(plot.path))
    # Whole and on a line of its own, however long: it is there to be copied.
    lines: list[RenderableType] = [indented(Text(clean(directory, 4096), style="bold", overflow="fold"))]
    lines += [note("  ".join(clean(name, 255) for name in names))] if names else []
    return lines + ([note(clean(plot.note))] if plot is not None and plot.note else [])


# --- cells ------------------------------------------------------------------------------------------------------------


def _table(*heads: str, totals: bool = False) -> Table:
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_header=any(heads),
        show_footer=totals,
        header_style="dim",
        footer_style="bold",
    )
    for number, head in enumerate(heads):
        words = head in {"device", ""}
        table.add_column(head, justify="left" if words or number == 0 else "right", no_wrap=bool(head))
    return table


def _row(table: Table, *cells: str | Text) -> None:
    """Rich would read markup out of plain strings."""
    table.add_row(*(Text(one) if isinstance(one, str) else one for one in cells))


def _named(devices: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return zip(shortened([clean(one["device"], 64) for one in devices], _NAME_MAX), devices, strict=True)


def _slowdown(one: Mapping[str, Any]) -> Text:
    return Text(f"{format_factor(one['slowdown'])} slower" if one["slowdown"] > 1 else NOTHING, style="magenta")


def _change(before: Any, after: Any, form: Any) -> str:
    return str(form(after)) if before == after else f"{form(before)} → {form(after)}"


def _left_out(devices: Sequence[object]) -> RenderableType:
    more = len(devices) - DEVICES_MAX
    return note(f"… and {format_count(more)} more in summary.json") if more > 0 else ""
