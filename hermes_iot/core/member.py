"""What the coordinator knows of one device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hermes_iot.algorithms.speed import Report
from hermes_iot.domain import DeviceId
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import Allocation, DeviceState, DeviceStatus


@dataclass(slots=True, kw_only=True)
class Timing:
    """How long an iteration took under one size."""

    version: int
    samples: int
    batch: int
    iteration_s: float


@dataclass(slots=True, kw_only=True)
class Totals:
    """Counters a device reports per session, added up over its sessions."""

    iterations: int = 0
    published: int = 0
    mini_batches: int = 0
    diverged: int = 0
    dropped: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


_COUNTERS = tuple(Totals.__dataclass_fields__)


@dataclass(slots=True, kw_only=True)
class Member:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        index: order of joining, from 0.
        session: the newest session seen; an older one's will or update is stale.
        handled: (session, seq) of the newest update handled.
        timings: one entry for each size it was measured under, oldest first.
        iteration_s: newest time under the allocation in force; 0 when it has not been measured yet.
    """

    device: DeviceId
    index: int
    online: bool = False
    session: int = 0
    handled: tuple[int, int] = (0, 0)
    allocation: Allocation | None = None
    birth: DeviceStatus | None = None
    state: DeviceState | None = None
    last_seen: float = 0.0
    iteration_s: float = 0.0
    applied: int = 0
    timings: list[Timing] = field(default_factory=list)
    earlier: Totals = field(default_factory=Totals)

    def reported(self, state: DeviceState) -> None:
        """Take over a reported state; counters start again with a session, so the old session's are put aside."""
        if self.state is not None and self.state.session != state.session:
            self._put_aside(self.state)
        self.state = state
        self._measure(state)

    def _put_aside(self, state: DeviceState) -> None:
        for name in _COUNTERS:
            setattr(self.earlier, name, getattr(self.earlier, name) + getattr(state, name))

    def _measure(self, state: DeviceState) -> None:
        allocation = self.allocation
        if allocation is None or not state.iteration_s:
            return
        if (state.samples, state.batch) != (allocation.samples, allocation.batch):
            return
        self.iteration_s = state.iteration_s
        size = (allocation.samples, allocation.batch)
        if self.timings and (self.timings[-1].samples, self.timings[-1].batch) == size:
            self.timings[-1].iteration_s = state.iteration_s
        else:
            self.timings.append(
                Timing(
                    version=allocation.version,
                    samples=allocation.samples,
                    batch=allocation.batch,
                    iteration_s=state.iteration_s,
                )
            )

    def totals(self) -> Totals:
        """Counters over all sessions."""
        state = self.state
        return Totals(
            **{
                name: getattr(self.earlier, name) + (getattr(state, name) if state is not None else 0)
                for name in _COUNTERS
            }
        )

    def report(self, epochs: int) -> Report | None:
        """What the allocator may know; None until this device was measured under its present size."""
        if self.allocation is None or not self.iteration_s:
            return None
        rows_max = self.birth.memory_rows_max if self.birth is not None else 0
        try:
            return Report(
                seconds=self.iteration_s,
                samples=self.allocation.samples,
                batch=self.allocation.batch,
                epochs=epochs,
                rows_max=rows_max or None,
                iteration=self.state.iterations if self.state is not None else 0,
            )
        except ProtocolError:
            return None

    def summary(self) -> dict[str, Any]:
        """One row of the run's summary."""
        totals = self.totals()
        first, last = (self.timings[0], self.timings[-1]) if self.timings else (None, None)
        return {
            "device": self.device,
            "slowdown": self.birth.slowdown if self.birth is not None else 1.0,
            "host": self.birth.host if self.birth is not None else "",
            "sessions": self.session,
            "iterations": totals.iterations,
            "updates_published": totals.published,
            "updates_applied": self.applied,
            "mini_batches": totals.mini_batches,
            "diverged": totals.diverged,
            "dropped": totals.dropped,
            "bytes_up": totals.bytes_up,
            "bytes_down": totals.bytes_down,
            "samples": self.allocation.samples if self.allocation is not None else 0,
            "batch": self.allocation.batch if self.allocation is not None else 0,
            "samples_before": first.samples if first is not None else 0,
            "batch_before": first.batch if first is not None else 0,
            "iteration_s_before": first.iteration_s if first is not None else None,
            "iteration_s": last.iteration_s if last is not None else None,
            "allocations": self.allocation.version if self.allocation is not None else 0,
        }
