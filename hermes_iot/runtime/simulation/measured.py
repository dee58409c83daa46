"""A fleet as a live run measured it: from the records in metrics.jsonl to a `FleetProfile`.

**Speed.** Whatever says how long one iteration took and how many mini-batches it had is a measurement: each
``iteration`` where the run had telemetry, else each ``merge``, which tells the iteration that was pushed. A board's
noise is lognormal, sigma is 1.4826 times the median distance of the logarithms from their median (a deviation that
one pause of the process, or the first iteration with its lazy loading, does not move), and the mean is what the
simulator wants: ``median * exp(sigma^2 / 2)``. With fewer than `SAMPLES_MIN` of them the board's own ``state`` counts:
a running median, whose spread says little, so there is no noise. All of them have in them what an iteration does beside
training; the profile's `forward_share` is therefore 0.

**Waiting.** What is left of a board's time after training, per push: the way to the coordinator and back, and what that
one takes for a merge. Half of it is the estimate of the link's one-way latency. Nothing of the kind can be told where
devices wait for each other.

**Presence.** From ``joined`` and ``left``; until a board first says that it is no longer starting it loads its
libraries (`prepare_s`). One that vanished did so when it was last heard; what the broker took to notice becomes its link's `notice_s`. A
second ``joined`` of a later session is a life that began before the end of the earlier one was known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, TypeGuard

from hermes_iot.protocol.topics import NAME
from hermes_iot.runtime.device import WILL_DELAY_S
from hermes_iot.runtime.simulation.profiles import FleetProfile, Group, LinkOverrides, Stay

#: What can be a measurement, in seconds per mini-batch: no board that learns is faster, and none is heard of that is slower.
_BATCH_S_MIN: Final = 1e-6
_BATCH_S_MAX: Final = 1e6
#: At sigma 2 one iteration in six takes seven times as long as usual: more than that is no noise, and its mean overflows.
_SIGMA_MAX: Final = 2.0
#: Measurements below which their spread is not taken for a board's noise.
SAMPLES_MIN: Final = 5
#: Of a normal distribution, deviation over median distance from the median.
_DEVIATIONS: Final = 1.4826
_LOST: Final = "connection lost"


#: Of an estimated link: its latency has the transfer in it.
_MBIT: Final = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a run's summary tells of a board: typical seconds per mini-batch (None = not), and how many it had."""

    batch_s: float | None
    mini_batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A board's speed: mean seconds per mini-batch, sigma of their lognormal noise, measurements it was taken from."""

    batch_s: float
    jitter: float
    samples: int


@dataclass(slots=True, kw_only=True)
class _Board:
    """Mutable: what the records read so far say of one board."""

    iterations: list[float] = field(default_factory=list)
    merges: list[float] = field(default_factory=list)
    states: list[float] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    session: int = 0
    since: float | None = None
    ready: bool = False
    prepared_s: list[float] = field(default_factory=list)
    heard_s: float = 0.0
    notice_s: float | None = None

    def join(self, session: int, now: float) -> None:
        if self.since is not None and session == self.session:
            return  # the same life, heard again
        self.leave(now, orderly=False)
        self.session, self.since, self.ready, self.heard_s = session, now, False, now

    def leave(self, now: float, *, orderly: bool) -> None:
        if self.since is None:
            return
        until = now if orderly else self.heard_s
        if until > self.since:
            self.stays.append(Stay(from_s=self.since, until_s=until, orderly=orderly))
        self.since = None

    def hear(self, record: Mapping[str, Any], now: float) -> None:
        if self.since is not None and not self.ready and record.get("phase", "training") != "starting":
            self.ready = True
            self.prepared_s.append(now - self.since)
        self.heard_s = now
        match record["event"]:
            case "iteration":
                self.iterations += _per_batch(record)
            case "merge":
                self.merges += _per_batch(record)
            case "state":
                self.states += _measured(record.get("batch_s"))

    @property
    def prepare_s(self) -> float:
        """Typical seconds from joining to being ready."""
        return median(self.prepared_s) if self.prepared_s else 0.0

    def pace(self) -> Pace | None:
        """None where nothing was measured."""
        times = self.iterations if len(self.iterations) >= SAMPLES_MIN else self.merges
        if len(times) >= SAMPLES_MIN:
            return _lognormal(times)
        rest = self.states or times or self.iterations
        return Pace(batch_s=median(rest), jitter=0.0, samples=len(rest)) if rest else None


def fleet_of_records(
    records: Iterable[Mapping[str, Any]],
    *,
    told: Mapping[str, Told],
    wall_s: float,
    links: bool,
    name: str,
    task: str,
) -> tuple[FleetProfile | None, tuple[str, ...]]:
    """The boards in the order in which they joined, and those left out because nobody ever measured them.

    Args:
        records: of one run, oldest first.
        told: of the boards, by the run's summary.
        wall_s: when the run ended.
        links: give each board the link that its waiting tells of, where it pushed often enough.
        name: of the profile.
        task: of the profile.

    Returns:
        No profile where no board is left.
    """
    boards = _read(records)
    paces = {device: board.pace() or _pace_told(told.get(device)) for device, board in boards.items()}
    measured = {device: pace for device, pace in paces.items() if pace is not None}
    left_out = tuple(device for device in boards if device not in measured)
    if not measured:
        return None, left_out
    fastest_s = min(pace.batch_s for pace in measured.values())
    groups = tuple(
        Group(
            name=device,
            names=(device,),
            slowness=pace.batch_s / fastest_s,
            jitter=pace.jitter,
            prepare_s=boards[device].prepare_s,
            stays=tuple(boards[device].stays),
            link=_link(boards[device], pace, told.get(device) if links else None, wall_s),
        )
        for device, pace in measured.items()
    )
    return FleetProfile(name=name, task=task, batch_s=fastest_s, forward_share=0.0, groups=groups), left_out


def _read(records: Iterable[Mapping[str, Any]]) -> dict[str, _Board]:
    boards: dict[str, _Board] = {}
    for record in records:
        event, device, now = record["event"], record.get("device"), float(record["elapsed_s"])
        if event == "finished":
            break
        if not isinstance(device, str) or NAME.fullmatch(device) is None:
            continue
        if event == "joined":
            session = record.get("session")
            boards.setdefault(device, _Board()).join(session if isinstance(session, int) else 0, now)
        elif device not in boards:
            continue
        elif event == "left":
            board, orderly = boards[device], record.get("reason") != _LOST
            if not orderly:
                board.notice_s = max(0.0, now - board.heard_s - WILL_DELAY_S)
            board.leave(now, orderly=orderly)
        elif event in {"iteration", "merge", "state"}:
            boards[device].hear(record, now)
    for board in boards.values():
        if board.since is not None:
            board.stays.append(Stay(from_s=board.since))
    return {device: board for device, board in boards.items() if board.stays}


def _lognormal(times: list[float]) -> Pace:
    logs = [math.log(time_s) for time_s in times]
    middle = median(logs)
    sigma = min(_SIGMA_MAX, _DEVIATIONS * median(abs(one - middle) for one in logs))
    return Pace(batch_s=math.exp(middle + sigma * sigma / 2), jitter=sigma, samples=len(times))


def _per_batch(record: Mapping[str, Any]) -> list[float]:
    seconds, mini_batches = record.get("seconds"), record.get("mini_batches")
    if _is_number(seconds) and _is_number(mini_batches) and mini_batches >= 1:
        return _measured(seconds / mini_batches)
    return []


def _measured(batch_s: object) -> list[float]:
    """It, where it can be one."""
    return [float(batch_s)] if _is_number(batch_s) and _BATCH_S_MIN <= batch_s <= _BATCH_S_MAX else []


def _pace_told(told: Told | None) -> Pace | None:
    times = _measured(told.batch_s) if told is not None else []
    return Pace(batch_s=times[0], jitter=0.0, samples=1) if times else None


def _link(board: _Board, pace: Pace, told: Told | None, wall_s: float) -> LinkOverrides | None:
    known = {} if board.notice_s is None else {"notice_s": board.notice_s}
    if told is not None and len(board.merges) >= SAMPLES_MIN:
        present_s = sum((wall_s if stay.until_s is None else stay.until_s) - stay.from_s for stay in board.stays)
        waited_s = max(0.0, present_s - sum(board.prepared_s) - told.mini_batches * pace.batch_s)
        known |= {"latency_s": waited_s / len(board.merges) / 2, "up_mbit": _MBIT, "down_mbit": _MBIT}
    return LinkOverrides(**known) if known else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
