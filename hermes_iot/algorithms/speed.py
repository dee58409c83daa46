"""How fast a device is: K seconds per mini-batch, the one number that carries a time from one size to another.

Source: arXiv 2410.20495, dynamic allocation: K_i = T_i / (E * n_i / b_i). The count of mini-batches E*n/b is the
paper's, not rounded up. The true count is not ceil(n/b) an epoch either, as some of the n rows belong to the gate. In
a count linear in n that part, the evaluation and a part-filled last mini-batch cancel out when K is used again at
another n; what is left is less than one mini-batch an epoch. K is taken not to depend on b, which is only roughly so.

The paper uses the newest time as it is. On a board that throttles or shares its processor one time says little, so K
can be smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hermes_iot.domain import DeviceId
from hermes_iot.errors import ProtocolError

SECONDS_MAX: Final = 1e7
#: No board takes less: a claim below it would take a fleet's whole share, or overflow where it is inverted.
SECONDS_MIN: Final = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one device's newest iteration told.

    Attributes:
        seconds: its time, T_i.
        samples, batch, epochs: n_i, b_i and E, the size in force when it was measured.
        rows_max: the most rows the device can hold; None = not limited.
        iteration: counts the device's reports where known. A report equal to the one before it in every field is taken
            for the same report, and smoothed only once.
        batch_s: K_i as the device measured it over its mini-batches, where it says so; 0 = from `seconds` and the size.

    Raises:
        ProtocolError: numbers no device can truly report (reason ``timing``).
    """

    seconds: float
    samples: int
    batch: int
    epochs: int
    rows_max: int | None = None
    iteration: int = 0
    batch_s: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.samples, self.batch, self.epochs, 1 if self.rows_max is None else self.rows_max)
        batch_s = self.batch_s or SECONDS_MIN  # 0 = not said
        if (
            not SECONDS_MIN <= min(self.seconds, batch_s) <= max(self.seconds, batch_s) <= SECONDS_MAX
            or min(counts) < 1
        ):
            raise ProtocolError("timing", f"{self.seconds} s for (rows, batch, epochs) {counts[:3]} is no measurement")

    @property
    def seconds_per_batch(self) -> float:
        """K_i."""
        return self.batch_s or self.seconds / mini_batches(self.epochs, self.samples, self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A device's smoothed K and the report that moved it last."""

    seconds_per_batch: float
    report: Report

    @property
    def seconds(self) -> float:
        """What the reported size takes at the smoothed speed."""
        report = self.report
        return predicted_s(self.seconds_per_batch, report.epochs, report.samples, report.batch)


def mini_batches(epochs: int, samples: int, batch: int) -> float:
    """E*n/b; see the module's header for why it is not rounded up."""
    return epochs * samples / batch


def predicted_s(k: float, epochs: int, samples: int, batch: int) -> float:
    """Seconds of one iteration at `k` seconds per mini-batch: K*E*n/b."""
    return k * mini_batches(epochs, samples, batch)


def follow(
    followed: Mapping[DeviceId, Followed], reports: Mapping[DeviceId, Report], newest: float
) -> dict[DeviceId, Followed]:
    """Smooth the speed of every reporting device; devices without a report are forgotten.

    Args:
        followed: from the call before, empty at first.
        reports: the newest report of every device, be it new or already taken into account.
        newest: weight of a new report in (0, 1]; 1 = no smoothing.
    """
    return {device: _moved(followed.get(device), report, newest) for device, report in reports.items()}


def _moved(before: Followed | None, report: Report, newest: float) -> Followed:
    if before is None:
        return Followed(seconds_per_batch=report.seconds_per_batch, report=report)
    if before.report == report:
        return before
    moved = before.seconds_per_batch + newest * (report.seconds_per_batch - before.seconds_per_batch)
    return Followed(seconds_per_batch=moved, report=report)
