"""What each gate would have pushed (`algorithms.gate_counts`), as people read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hermes_iot.reporting.terminal import clean
from hermes_iot.reporting.units import NOTHING, format_share

NOT_RECORDED: Final = "not recorded"
OPEN_LOOP: Final = (
    "an open-loop count: every gate decides by what this run measured, and another gate's pushes would have brought"
    " other models, and with them other measurements"
)
FORCED: Final = "forced: not the gate had decided, but that gate.max_age iterations had passed without a push"
_LOSSES: Final[Mapping[str, str]] = {
    "training": "z-score is the paper's gate; here it read losses of training, not of held-out rows",
    "held-out": "z-score is the paper's gate",
    "modelled": "z-score is the paper's gate; losses and statistics are those of a model of training",
}


#: What a device says of an iteration that no gate and no age had pushed; any other word is a push.
_SILENT: Final = frozenset({"", "no", "few", "flat", "diverged"})
_FORCED: Final = "age"
#: Words by which a strategy shows that it decides by a gate.
_FIRED: Final = frozenset({"gain", "loss", "norm", "coin", "blind", _FORCED})
_WORDS_MAX: Final = 32


class GateWords:
    """Mutable: what devices said of their newest iteration, each time they reported another one than before.

    A sample, as a device reports about once a second: no word travels with an update.

    Attributes:
        counts: reports by the gate's word.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._iterations: dict[str, int] = {}

    def on_record(self, event: str, fields: Mapping[str, Any]) -> None:
        """One record of the coordinator."""
        if event != "state":
            return
        before = self._iterations.get(fields["device"], 0)
        self._iterations[fields["device"]] = fields["iterations"]
        word = clean(fields["gate"], 16)
        if fields["iterations"] > before and word and (word in self.counts or len(self.counts) < _WORDS_MAX):
            self.counts[word] = self.counts.get(word, 0) + 1


def forced_of(counts: Mapping[str, int]) -> str:
    """How many of the pushes that `GateWords` heard of were forced; empty where there was no gate to force."""
    if not _FIRED & counts.keys():
        return ""
    pushes = sum(count for word, count in counts.items() if word not in _SILENT)
    forced = counts.get(_FORCED, 0)
    return (
        f"why: of {pushes:,} pushes whose reason the devices' reports told, {forced:,}"
        f" ({format_share(forced / pushes)}) were forced by gate.max_age, the others are the gate's own"
    )


def lines_of(found: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Gate, pushes, their share of the iterations, that of the forced ones, how many the run pushed, too."""
    lines = []
    for kind, count in found["would_push"].items():
        name = f"{kind} (it ran)" if kind == found["gate"] else kind
        if count is None:
            lines.append((name, NOT_RECORDED, NOTHING, NOTHING, NOTHING))
        else:
            pushes, forced = (_part(count[one], found) for one in ("pushes", "forced"))
            lines.append((name, f"{count['pushes']:,}", pushes, forced, f"{count['both']:,}"))
    return lines


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """What must be said beside the numbers."""
    over = found["passed_over"]
    more = [f"{over:,} later iterations were not counted"] if over else []
    return [OPEN_LOOP, FORCED, loss_of(found), *more]


def loss_of(found: Mapping[str, Any]) -> str:
    """What the z-score's column is about."""
    return _LOSSES[found["loss"]]


def shares_of(several: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Runs of the same gate together: of their iterations, how many it pushed and each kind would have.

    ``33.7 % (33.3 forced)`` where the age had decided some.
    """
    whole = sum(one["iterations"] for one in several)
    shares = {"pushed": format_share(sum(one["published"] for one in several) / whole) if whole else NOTHING}
    for kind in several[0]["would_push"]:
        counts = [one["would_push"][kind] for one in several]
        if any(count is None for count in counts):
            shares[kind] = NOT_RECORDED
        else:
            pushes, forced = (sum(count[name] for count in counts) for name in ("pushes", "forced"))
            some = f" ({format_share(forced / whole).removesuffix(' %')} forced)" if forced else ""
            shares[kind] = f"{format_share(pushes / whole)}{some}" if whole else NOTHING
    return shares


def _part(pushes: int, found: Mapping[str, Any]) -> str:
    return format_share(pushes / found["iterations"]) if found["iterations"] else NOTHING
