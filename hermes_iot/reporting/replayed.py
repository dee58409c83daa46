"""A recorded run beside what the simulator made of the same fleet under other settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType

from hermes_iot.reporting.parts import columns, heading, indented, note
from hermes_iot.reporting.simulated import gates_part, is_modelled
from hermes_iot.reporting.summary import DEVICES_MAX, WIDTH_MAX
from hermes_iot.reporting.terminal import Printable, clean, shortened
from hermes_iot.reporting.units import NOTHING, format_bytes, format_loss, format_seconds, format_share

_NAME_MAX: Final = 20
#: Shares of rows: their change is in points, not a part of the recorded share.
_SHARES: Final = frozenset({"accuracy"})
_ROWS: Final[Sequence[tuple[str, str, Callable[[Any], str]]]] = (
    ("local iterations", "iterations", "{:,}".format),
    ("updates published", "updates_published", "{:,}".format),
    ("updates applied", "updates_applied", "{:,}".format),
    ("bytes up", "bytes_up", format_bytes),
    ("bytes down", "bytes_down", format_bytes),
    ("accuracy", "accuracy", format_share),
    ("loss", "loss", format_loss),
    ("time", "wall_s", format_seconds),
)


def compare(document: Mapping[str, Any], console: Console) -> None:
    """Print the comparison.

    Args:
        document: a simulation's, with ``recorded``, ``left_out`` and perhaps ``regate``, ``recorded_gates`` or, where there
            are neither, a sentence ``no_gates``.
        console: where.
    """
    before = document["recorded"]
    table = columns("", "recorded", "simulated", "change")
    table.add_row("strategy", clean(before["strategy"], 40), clean(document["strategy"], 40), "")
    for word, name, shown in _ROWS:
        change = _points if name in _SHARES else _change
        table.add_row(word, shown(before[name]), shown(document[name]), change(before[name], document[name]))
    table.add_row("ended by", clean(before["reason"], 40), clean(document["reason"], 40), "")
    scored = "modelled: nothing was trained" if is_modelled(document) else "on the test rows"
    parts: list[RenderableType] = [
        heading(f"Recorded run {clean(before['run'])} beside it"),
        indented(table),
        note(f"bytes are those the devices counted, control included; accuracy and loss are {scored}"),
    ]
    if document["left_out"]:
        names = ", ".join(clean(name) for name in document["left_out"][:DEVICES_MAX])
        parts.append(note(f"left out, as nobody measured their speed: {names}"))
    if "regate" in document:
        parts += _regate(document["regate"])
    if "recorded_gates" in document:
        parts += _gates(document["recorded_gates"])
    if "no_gates" in document:
        parts.append(note(clean(document["no_gates"], 300)))
    console.print(Printable(Group(*parts)), width=min(console.width, WIDTH_MAX))


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or not before:
        return NOTHING
    return _unless_nothing(f"{after / before - 1:+.0%}", "0%")


def _points(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return NOTHING
    return _unless_nothing(f"{(after - before) * 100:+.1f}", "0.0") + " points"


def _unless_nothing(signed: str, nothing: str) -> str:
    """What is rounded to nothing has no sign."""
    return nothing if signed[1:] == nothing else signed


def _regate(found: Mapping[str, Any]) -> list[RenderableType]:
    """The gate alone, fed with the recorded losses."""
    table = columns("device", "recorded iterations", "published", "this gate", "forced", "both")
    names = ("recorded", "published", "would_publish", "forced", "both")
    devices = found["devices"][:DEVICES_MAX]
    for device, one in zip(shortened([clean(one["device"]) for one in devices], _NAME_MAX), devices, strict=True):
        table.add_row(device, *(f"{one[name]:,}" for name in names))
    table.add_row("all", *(f"{found[name]:,}" for name in names), style="bold")
    lost = f"; {found['missing']:,} iterations were not recorded" if found["missing"] else ""
    return [
        heading("This gate on the recorded losses, nothing trained anew"),
        indented(table),
        note(f"after the first difference the losses would have been others{lost}"),
    ]


def _gates(found: Mapping[str, Any] | None) -> list[RenderableType]:
    """The gates of hermes-plus on the recorded iterations."""
    if found is None:
        return [note("what each gate would have pushed was not recorded: that takes --telemetry full")]
    return gates_part(found, "What each gate would have pushed of the recorded iterations")
