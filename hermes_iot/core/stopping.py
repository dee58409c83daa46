"""When a run ends: five independent rules, checked after every event. The first that holds gives the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hermes_iot.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """None switches a rule off.

    Attributes:
        target_accuracy: stop when the global model reaches this share of right answers on the validation rows.
        patience: stop after this many aggregations in a row without a new best validation loss (the paper's rule).
        max_wall_s: seconds since the run started, those of earlier processes of the same run included.
        max_bytes: bytes of tensor and data messages the coordinator sent and received.
        max_pushes: updates applied.
    """

    target_accuracy: float | None = None
    patience: int | None = None
    max_wall_s: float | None = None
    max_bytes: int | None = None
    max_pushes: int | None = None

    def __post_init__(self) -> None:
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise UsageError(f"target accuracy {self.target_accuracy} is not in (0, 1]", mend="Use 0.97 for 97 %")
        for name in ("patience", "max_wall_s", "max_bytes", "max_pushes"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} {value} is not a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the rules look at."""

    elapsed_s: float = 0.0
    bytes_total: int = 0
    applied: int = 0
    accuracy: float | None = None
    best_loss: float = math.inf
    since_best: int = 0


def reason_to_stop(rules: StopRules, progress: Progress) -> str | None:
    """The rule that holds, as a phrase for a person; None to go on."""
    if (
        rules.target_accuracy is not None
        and progress.accuracy is not None
        and progress.accuracy >= rules.target_accuracy
    ):
        return f"target accuracy {rules.target_accuracy:g} reached"
    if rules.patience is not None and progress.since_best >= rules.patience:
        return f"no better loss in {rules.patience} aggregations"
    if rules.max_pushes is not None and progress.applied >= rules.max_pushes:
        return f"{rules.max_pushes} updates applied"
    if rules.max_bytes is not None and progress.bytes_total >= rules.max_bytes:
        return f"{rules.max_bytes} bytes transferred"
    if rules.max_wall_s is not None and progress.elapsed_s >= rules.max_wall_s:
        return f"{rules.max_wall_s:g} s of wall time"
    return None
