"""The state of a run as its records tell it: what the live view draws. Knows no terminal and no clock."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hermes_iot.reporting.terminal import clean
from hermes_iot.reporting.units import format_factor


@dataclass(slots=True, kw_only=True)
class Row:
    """One device.

    Attributes:
        iterations, published: by its own last report, which may be a second old.
        applied: since this process began to watch, by the coordinator's count: often ahead of the report.
        noted_s: when something last happened to it besides training: it came, left, was re-sized or waited for no longer.
        allotted: rows and mini-batch asked of it, while `samples` and `batch` are in force; None = not heard of yet.
    """

    device: str
    slowdown: float = 1.0
    online: bool = False
    phase: str = ""
    samples: int = 0
    batch: int = 0
    iteration_s: float = 0.0
    iterations: int = 0
    published: int = 0
    applied: int = 0
    z: float | None = None
    threshold: float | None = None
    gate: str = ""
    noted_s: float = -math.inf
    allotted: tuple[int, int] | None = None


@dataclass(slots=True, kw_only=True)
class Overview:
    """Mutable; feed it every record in order.

    Attributes:
        merged: an update has been merged since this process began to watch, so there is a loss to tell.
        bytes_up, bytes_down: payload bytes through the coordinator at the newest merge.
        dropped: updates that were not applied, by outcome; `refused`: other messages, by reason.
        reason: why the run ended; empty while it goes on.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    elapsed_s: float = 0.0
    version: int = 0
    merged: bool = False
    accuracy: float | None = None
    loss: float | None = None
    best_accuracy: float | None = None
    best_loss: float | None = None
    applied: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    reason: str = ""
    _told: set[tuple[str, ...]] = field(default_factory=set)

    @property
    def online(self) -> int:
        """Devices that are there."""
        return sum(row.online for row in self.rows.values())

    @property
    def iterations(self) -> int:
        """Local iterations that devices have reported."""
        return sum(row.iterations for row in self.rows.values())

    @property
    def published(self) -> int:
        """Those of them that were published."""
        return sum(row.published for row in self.rows.values())

    @property
    def share(self) -> float | None:
        """Published updates to local iterations; both stand in the same reports."""
        return self.published / self.iterations if self.iterations else None

    def take(self, event: str, fields: Mapping[str, Any]) -> str:
        """One record; what a person should hear of it, or nothing."""
        self.elapsed_s = max(self.elapsed_s, fields.get("elapsed_s", 0.0))
        match event:
            case "joined":
                return self._joined(fields)
            case "left":
                return self._left(fields)
            case "excused":
                return self._noted(fields, f"is not waited for: {clean(fields['reason'])}")
            case "readmitted":
                return self._noted(fields, "is waited for again")
            case "suspended":
                return f"nothing is taken in: {clean(fields['reason'])}"
            case "resumed":
                return "updates are taken in again"
            case "allocation":
                return self._allotted(fields)
            case "state":
                self._reported(fields)
            case "merge":
                self._merged(fields)
            case "dropped":
                self.dropped[fields["outcome"]] += 1
                return self._once("update", fields["outcome"], fields)
            case "refused":
                self.refused[clean(fields["reason"], 40)] += 1
                return self._once(clean(fields["channel"], 40), "refused", fields)
            case "finished":
                self.reason = clean(fields["reason"])
                return f"finished: {self.reason}"
        return ""

    def _row(self, fields: Mapping[str, Any]) -> Row:
        name = clean(fields["device"], 64)
        return self.rows.setdefault(name, Row(device=name))

    def _joined(self, fields: Mapping[str, Any]) -> str:
        row = self._row(fields)
        row.online, row.phase, row.noted_s = True, "", self.elapsed_s
        row.slowdown = fields["slowdown"]
        slower = f" (emulated: {format_factor(row.slowdown)} slower)" if row.slowdown > 1 else ""
        return f"{row.device} joined{slower}"

    def _left(self, fields: Mapping[str, Any]) -> str:
        row = self._row(fields)
        row.online, row.noted_s = False, self.elapsed_s
        # At the end everybody leaves, for the reason already given.
        return "" if self.reason else f"{row.device} left: {clean(fields['reason'])}"

    def _noted(self, fields: Mapping[str, Any], what: str) -> str:
        row = self._row(fields)
        row.noted_s = self.elapsed_s
        return f"{row.device} {what}"

    def _allotted(self, fields: Mapping[str, Any]) -> str:
        row, size = self._row(fields), (fields["samples"], fields["batch"])
        before, row.allotted = row.allotted, size
        if before is None:  # its first, part of joining; or said again by a coordinator that came back
            row.samples, row.batch = size
            return ""
        if before == size:
            return ""
        row.noted_s = self.elapsed_s
        batch = f", mini-batch {_change(before[1], size[1])}" if before[1] != size[1] else ""
        return f"{row.device} re-sized: {_change(before[0], size[0])} rows{batch} ({clean(fields['reason'])})"

    def _reported(self, fields: Mapping[str, Any]) -> None:
        row = self._row(fields)
        row.online, row.phase, row.gate = fields["online"], fields["phase"], clean(fields["gate"], 16)
        row.iterations, row.published = fields["iterations"], fields["published"]
        row.iteration_s, row.z, row.threshold = fields["iteration_s"], fields["z"], fields["threshold"]
        if fields["samples"]:
            row.samples, row.batch = fields["samples"], fields["batch"]

    def _merged(self, fields: Mapping[str, Any]) -> None:
        self._row(fields).applied += 1
        self.merged = True
        self.version, self.applied = fields["version"], fields["applied"]
        self.bytes_up, self.bytes_down = fields["bytes_up"], fields["bytes_down"]
        self.accuracy, self.loss = _number(fields["accuracy"]), _number(fields["loss"])
        if self.accuracy is not None:
            self.best_accuracy = max(self.accuracy, -1.0 if self.best_accuracy is None else self.best_accuracy)
        if self.loss is not None:
            self.best_loss = min(self.loss, math.inf if self.best_loss is None else self.best_loss)

    def _once(self, what: str, outcome: str, fields: Mapping[str, Any]) -> str:
        """The first of its kind from a device is told, the rest only counted: anybody can send rubbish for ever."""
        device, reason = clean(fields["device"], 64), clean(fields["reason"])
        key = (device, what, outcome, reason)
        if self.reason or key in self._told or len(self._told) >= _TOLD_MAX:
            return ""
        self._told.add(key)
        return f"{device}: {what} {outcome}" + (f" ({reason})" if reason else "")


_TOLD_MAX = 200


def _change(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} → {after}"


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
