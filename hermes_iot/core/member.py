"""What the coordinator knows of one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hermes_iot.core.quota import Quota
from hermes_iot.domain import DeviceId, Sizing
from hermes_iot.protocol.messages import Allocation, DeviceState, DeviceStatus

#: Sizes whose time is kept beside the first one.
_TIMINGS_MAX: Final = 16


@dataclass(slots=True, kw_only=True)
class Timing:
    """How long an iteration took under one size."""

    version: int
    samples: int
    batch: int
    iteration_s: float

    def dump(self) -> dict[str, Any]:
        """For a checkpoint; `asdict` copies deeply, which a thousand devices' checkpoint spent most of its time on."""
        return {name: getattr(self, name) for name in _TIMED}


_TIMED: Final = tuple(Timing.__dataclass_fields__)


@dataclass(slots=True, kw_only=True)
class Totals:
    """Counters a device reports per session. Spelled out: thousands of reports a second are added up here."""

    iterations: int = 0
    published: int = 0
    mini_batches: int = 0
    diverged: int = 0
    dropped: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    @classmethod
    def of(cls, state: DeviceState) -> Totals:
        """Those in one report."""
        return cls(
            iterations=state.iterations,
            published=state.published,
            mini_batches=state.mini_batches,
            diverged=state.diverged,
            dropped=state.dropped,
            bytes_up=state.bytes_up,
            bytes_down=state.bytes_down,
        )

    def dump(self) -> dict[str, int]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in _COUNTERS}

    def plus(self, other: Totals) -> Totals:
        """Added up."""
        return Totals(
            iterations=self.iterations + other.iterations,
            published=self.published + other.published,
            mini_batches=self.mini_batches + other.mini_batches,
            diverged=self.diverged + other.diverged,
            dropped=self.dropped + other.dropped,
            bytes_up=self.bytes_up + other.bytes_up,
            bytes_down=self.bytes_down + other.bytes_down,
        )


_COUNTERS: Final = tuple(Totals.__dataclass_fields__)


@dataclass(slots=True, kw_only=True)
class Member:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        index: order of joining, from 0.
        session: the newest session seen; an older one's will or update is stale.
        handled: (session, seq) of the newest update handled.
        reissue: the allocation comes from another process and cannot be served as it is: it is numbered anew before
            it is said again.
        state: the newest report; None before the first one to this process.
        counted_session, counted: the session of the newest report, and its counters.
        earlier: the counters of all sessions before it.
        timings: one entry for each size it was measured under, the first and the newest ones, oldest first.
        iteration_s: newest time under the allocation in force; 0 when it has not been measured yet.
        batch_s: seconds of one mini-batch, whatever the size, as reported last; 0 when not known.
        worked_at: when it last gave a sign of work (see `patience`), or could begin to.
        pause_s: the longest of its recent pauses between two signs of work; an old one counts half at each.
        failures: iterations in a row that diverged, by its reports; `refusals`: updates in a row that were refused.
        silent: it has given no sign of work for too long.
        excused: why nobody waits for it, as said last; empty where it is waited for.
        base: digest of the vector it held when it sent its newest update, where answers are differences.
        owed: its newest update was taken, and its answer waits for others.
        requests: how often it may have a model that no update of its has earned: by asking for one, or for parts of what
            it was sent, or with an update that is refused.
        shards: how often it may have each of the shards that its allocation names.
        waited_since: since when it could have been measured: it came, or got another size.
    """

    device: DeviceId
    index: int
    online: bool = False
    session: int = 0
    handled: tuple[int, int] = (0, 0)
    allocation: Allocation | None = None
    reissue: bool = False
    birth: DeviceStatus | None = None
    state: DeviceState | None = None
    iteration_s: float = 0.0
    batch_s: float = 0.0
    worked_at: float = 0.0
    pause_s: float = 0.0
    failures: int = 0
    refusals: int = 0
    silent: bool = False
    excused: str = ""
    base: str = ""
    owed: bool = False
    requests: Quota = field(default_factory=Quota)
    shards: dict[str, Quota] = field(default_factory=dict)
    waited_since: float = 0.0
    applied: int = 0
    timings: list[Timing] = field(default_factory=list)
    counted_session: int = 0
    counted: Totals = field(default_factory=Totals)
    earlier: Totals = field(default_factory=Totals)

    @property
    def acked(self) -> tuple[int, int]:
        """What a birth of an earlier session is told: a device that lost its memory must begin above it."""
        return max(self.handled, (self.session, 0))

    @property
    def sizing(self) -> Sizing | None:
        """The size it was given last."""
        one = self.allocation
        if one is None:
            return None
        return Sizing(samples=one.samples, batch=one.batch, steps=one.steps, share=one.share)

    @property
    def obeyed(self) -> int:
        """The newest allocation version it has reported to obey, or to have obeyed."""
        return self.state.allocation_version if self.state is not None else 0

    def handle(self, session: int, seq: int) -> None:
        """The update (session, seq) met its end, and whatever came before it from this device will not be taken."""
        self.handled = max(self.handled, (session, seq))

    def worked(self, *, now: float) -> None:
        """It gave a sign of work."""
        self.pause_s = max(now - self.worked_at, self.pause_s / 2)
        self.worked_at, self.silent = now, False

    def contributed(self) -> None:
        """An update of it was applied."""
        self.failures = self.refusals = 0

    def reported(self, state: DeviceState, *, now: float) -> bool:
        """Take over a reported state; False for one of an earlier session than reported before."""
        if state.session < max(self.session, self.counted_session):
            return False
        if state.session > self.counted_session:  # counters begin anew with a session
            self.earlier, self.counted = self.earlier.plus(self.counted), Totals()
        made, diverged = state.iterations - self.counted.iterations, state.diverged - self.counted.diverged
        if made > 0:
            self.worked(now=now)
            # Between two reports only the newest iteration is told from the others.
            self.failures = self.failures + diverged if diverged >= made else int(state.gate == "diverged")
        self.counted_session, self.counted = state.session, Totals.of(state)
        self.state = state
        self.batch_s = state.batch_s or self.batch_s
        self._measure(state)
        return True

    def allotted(self, allocation: Allocation, *, now: float) -> None:
        """Another allocation: what was measured under the one before says nothing about it."""
        self.allocation, self.reissue = allocation, False
        self.iteration_s = 0.0
        self.waited_since = now

    def totals(self) -> Totals:
        """Counters over all sessions."""
        return self.earlier.plus(self.counted)

    def dump(self) -> dict[str, Any]:
        """For a checkpoint. Allocations are the registry's: they change more often than the model."""
        return {
            "index": self.index,
            "session": self.session,
            "handled": list(self.handled),
            "owed": self.owed,
            "batch_s": self.batch_s,
            "iteration_s": self.iteration_s,
            "applied": self.applied,
            "counted_session": self.counted_session,
            "counted": self.counted.dump(),
            "earlier": self.earlier.dump(),
            "timings": [timing.dump() for timing in self.timings],
        }

    @classmethod
    def load(cls, device: DeviceId, row: Mapping[str, Any]) -> Member:
        """The inverse of `dump`; what an older version did not write begins at nothing.

        Raises:
            KeyError, TypeError, ValueError: no such row.
        """
        session, seq = row["handled"]
        return cls(
            device=device,
            index=int(row["index"]),
            session=int(row["session"]),
            handled=(int(session), int(seq)),
            owed=bool(row.get("owed", False)),
            batch_s=float(row.get("batch_s", 0.0)),
            iteration_s=float(row.get("iteration_s", 0.0)),
            applied=int(row["applied"]),
            counted_session=int(row.get("counted_session", 0)),
            counted=Totals(**row.get("counted", {})),
            earlier=Totals(**row.get("earlier", {})),
            timings=[Timing(**timing) for timing in row.get("timings", ())],
        )

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
            "steps": self.allocation.steps if self.allocation is not None else 0,
            "share": self.allocation.share if self.allocation is not None else 0.0,
            "batch_s": self.batch_s or None,
            "excused": self.excused,
        }

    def _measure(self, state: DeviceState) -> None:
        allocation = self.allocation
        if allocation is None or not state.iteration_s:
            return
        size = (allocation.samples, allocation.batch)
        if (state.samples, state.batch) != size:
            return
        self.iteration_s = state.iteration_s
        if self.timings and (self.timings[-1].samples, self.timings[-1].batch) == size:
            self.timings[-1].iteration_s = state.iteration_s
            return
        self.timings.append(
            Timing(
                version=allocation.version,
                samples=allocation.samples,
                batch=allocation.batch,
                iteration_s=state.iteration_s,
            )
        )
        del self.timings[1:-_TIMINGS_MAX]
