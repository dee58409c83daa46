"""What each gate would have pushed (`algorithms.gate_counts`), as people read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hermes_iot.reporting.units import NOTHING, format_share

NOT_RECORDED: Final = "not recorded"
OPEN_LOOP: Final = (
    "an open-loop count: every gate decides by what this run measured, and another gate's pushes would have brought"
    " other models, and with them other measurements"
)
_LOSSES: Final[Mapping[str, str]] = {
    "training": "z-score is the paper's gate; here it read losses of training, not of held-out rows",
    "held-out": "z-score is the paper's gate",
    "modelled": "z-score is the paper's gate; losses and statistics are those of a model of training",
}


def lines_of(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Gate, pushes, their share of the iterations, and how many of these the run pushed, too."""
    lines = []
    for kind, count in found["would_push"].items():
        name = f"{kind} (it ran)" if kind == found["gate"] else kind
        if count is None:
            lines.append((name, NOT_RECORDED, NOTHING, NOTHING))
        else:
            lines.append((name, f"{count['pushes']:,}", _part(count["pushes"], found), f"{count['both']:,}"))
    return lines


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """What must be said beside the numbers."""
    over = found["passed_over"]
    more = [f"{over:,} later iterations were not counted"] if over else []
    return [OPEN_LOOP, _LOSSES[found["loss"]], *more]


def shares_of(several: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Runs of the same gate together: of their iterations, how many it pushed and each kind would have."""
    whole = sum(one["iterations"] for one in several)
    shares = {"pushed": format_share(sum(one["published"] for one in several) / whole) if whole else NOTHING}
    for kind in several[0]["would_push"]:
        counts = [one["would_push"][kind] for one in several]
        if any(count is None for count in counts):
            shares[kind] = NOT_RECORDED
        else:
            shares[kind] = format_share(sum(count["pushes"] for count in counts) / whole) if whole else NOTHING
    return shares


def _part(pushes: int, found: Mapping[str, Any]) -> str:
    return format_share(pushes / found["iterations"]) if found["iterations"] else NOTHING
