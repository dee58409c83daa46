"""Who trains for how many mini-batches and on which part of the data, so that everybody's iteration takes T* seconds.

The paper (arXiv 2410.20495) re-sizes outliers towards the median time. Here everybody is sized, always, to a configured
time: H_i = T*/K_i mini-batches, with K_i smoothed, and the part of the data is the device's part of the fleet's speed,
(1/K_i) / sum_j (1/K_j). In a given time every row is then trained on about equally often.

A device that was not measured yet counts as one of mean speed. A size that changes by no more than a tenth is left
alone: every allocation is a retained message.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hermes_iot.algorithms.checks import require_number, require_option, require_whole
from hermes_iot.algorithms.speed import Followed, Report, follow
from hermes_iot.domain import DeviceId, Sizing

Rows = Literal["speed", "equal"]
Length = Literal["time", "steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesConfig:
    """Constants.

    Attributes:
        target_s: T*, seconds of one iteration; None = 2, or more in a fleet so large that its pushes would come faster
            than `pushes_per_s`.
        pushes_per_s: what the coordinator shall have to merge at most, for a `target_s` of None.
        first_s: T* at the beginning of a run, which then doubles every `rounds_per_doubling` fleet rounds until it is
            the one above: far from the goal short iterations bring more per second, near it they only cost bytes.
            None = no such beginning.
        passes_max: an iteration goes over a device's rows no more than so many times: on few rows, T* of training alone
            would learn them by heart. None = no such bound.
        probe_steps: mini-batches of an iteration before a device was measured.
        steps_min, steps_max: bounds of H.
        length: iterations of equal time, or, for comparison, of equally many mini-batches (`steps_equal`).
        rows: parts of the data by speed, or, for comparison, equal ones.
        ewma: weight of a new measurement of K.
        change: relative changes up to this are not worth a message.

    Raises:
        UsageError: a value is outside its range.
    """

    target_s: float | None = None
    pushes_per_s: float = 20.0
    first_s: float | None = 0.5
    rounds_per_doubling: int = 8
    passes_max: float | None = 2.0
    probe_steps: int = 10
    steps_min: int = 4
    steps_max: int = 100_000
    length: Length = "time"
    steps_equal: int = 100
    rows: Rows = "speed"
    ewma: float = 0.3
    change: float = 0.1

    def __post_init__(self) -> None:
        if self.target_s is not None:
            require_number(self, "target_s", 1e-3, 1e6)
        require_number(self, "pushes_per_s", 1e-3, 1e6)
        if self.first_s is not None:
            require_number(self, "first_s", 1e-3, 1e6)
        require_whole(self, "rounds_per_doubling", 1, 2**31)
        if self.passes_max is not None:
            require_number(self, "passes_max", 1e-3, 1e6)
        require_whole(self, "probe_steps", 1, 2**20)
        require_whole(self, "steps_max", 1, 2**31)
        require_whole(self, "steps_min", 1, self.steps_max)
        require_whole(self, "steps_equal", 1, 2**31)
        require_option(self, "length", Length)
        require_option(self, "rows", Rows)
        require_number(self, "ewma", 1e-6, 1)
        require_number(self, "change", 0, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesState:
    """What was measured, and what was given.

    Attributes:
        followed: smoothed speeds.
        shares: every measured device's part of the fleet's speed.
        given: the size every device was given last.
        measured: every device that ever was.
    """

    followed: Mapping[DeviceId, Followed] = field(default_factory=dict)
    shares: Mapping[DeviceId, float] = field(default_factory=dict)
    given: Mapping[DeviceId, Sizing] = field(default_factory=dict)
    measured: frozenset[DeviceId] = frozenset()

    def dump(self) -> dict[str, Any]:
        """For a checkpoint, JSON-able."""
        return {
            "followed": {device: [one.seconds_per_batch, asdict(one.report)] for device, one in self.followed.items()},
            "shares": dict(self.shares),
            "given": {device: asdict(size) for device, size in self.given.items()},
            "measured": sorted(self.measured),
        }

    @classmethod
    def load(cls, dump: Mapping[str, Any]) -> SharesState:
        """The inverse of `dump`.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        return cls(
            followed={
                DeviceId(device): Followed(seconds_per_batch=float(seconds), report=Report(**report))
                for device, (seconds, report) in dict(dump["followed"]).items()
            },
            shares={DeviceId(device): float(share) for device, share in dict(dump["shares"]).items()},
            given={DeviceId(device): Sizing(**size) for device, size in dict(dump["given"]).items()},
            measured=frozenset(DeviceId(device) for device in dump["measured"]),
        )


#: T* of a fleet that is not too large for it.
TARGET_S = 2.0
#: A share is never said to be 0, which would mean that nothing goes by shares.
SHARE_MIN = 1e-6
#: Rows are dealt in no fewer blocks than this, and a device lacks rows when it lacks more than so many blocks.
BLOCKS_LEAST = 256
COARSE_BLOCKS = 1.5
#: Beyond so many nobody counts: the first T* is then a millionth of the last.
DOUBLINGS_MAX = 20
#: From one size to the next an iteration grows or shrinks by no more than this factor.
STEPS_FACTOR_MAX = 2


def share_out(
    state: SharesState,
    reports: Mapping[DeviceId, Report],
    config: SharesConfig,
    *,
    fleet: Collection[DeviceId],
    rounds: int = 0,
) -> tuple[SharesState, dict[DeviceId, Sizing]]:
    """The sizes that changed, given the newest report of every device that is there and was measured.

    Args:
        state: from the call before, `SharesState()` at first.
        reports: see above.
        config: constants.
        fleet: the devices there are, measured or not. One that was once and has no report now has fallen silent.
        rounds: fleet rounds so far.
    """
    followed = follow(state.followed, reports, config.ewma)
    if not followed:
        return state, {}
    rates = {device: 1 / one.seconds_per_batch for device, one in followed.items()}
    measured = state.measured | rates.keys()
    strangers = sum(device not in measured for device in fleet)
    total = sum(rates.values()) * (1 + strangers / len(rates))
    shares = {device: rate / total for device, rate in rates.items()}
    devices = len(rates) + strangers
    target_s, least_s = _target_s(devices, rounds, config), devices / config.pushes_per_s
    given = {device: size for device, size in state.given.items() if device in reports}
    parts = {device: share if config.rows == "speed" else 1 / devices for device, share in shares.items()}
    unfair = _unfair({device: _excess(reports[device], part) for device, part in parts.items()}, config)
    sizes: dict[DeviceId, Sizing] = {}
    for device in shares:
        before = given.get(device)
        part, report = parts[device], reports[device]
        seconds = min(
            target_s, max(least_s, _longest_s(report, part, row_s=1 / (rates[device] * report.batch), config=config))
        )
        steps = _steps(seconds * rates[device], before, config)
        size = Sizing(samples=report.samples, batch=report.batch, steps=steps, share=max(SHARE_MIN, round(part, 6)))
        if before is None or device in unfair or _differs(before, size, config.change):
            sizes[device] = given[device] = size
    return SharesState(followed=followed, shares=shares, given=given, measured=measured), sizes


def _target_s(devices: int, rounds: int, config: SharesConfig) -> float:
    """T* as it stands; never so short that pushes come faster than they may."""
    least_s = devices / config.pushes_per_s
    target_s = config.target_s or max(TARGET_S, least_s)
    if config.first_s is None:
        return target_s
    doublings = min(rounds // config.rounds_per_doubling, DOUBLINGS_MAX)
    return min(target_s, max(config.first_s, least_s) * 2.0**doublings)


def _longest_s(report: Report, part: float, *, row_s: float, config: SharesConfig) -> float:
    """Seconds for `passes_max` passes over the rows a device will have, `row_s` seconds each.

    It will have its part of all there are; in local mode it has what it has, which is then what it reports.
    """
    if config.passes_max is None:
        return math.inf
    rows = max(report.samples, part * report.rows_max if report.rows_max is not None else 0.0)
    return config.passes_max * rows * row_s


def _excess(report: Report, part: float) -> tuple[float, float]:
    """Rows a device holds beyond its part of all there are, and that part; local rows are its own whatever its part."""
    wanted = part * report.rows_max if report.rows_max is not None else float(report.samples)
    return report.samples - wanted, wanted


def _unfair(excess: Mapping[DeviceId, tuple[float, float]], config: SharesConfig) -> set[DeviceId]:
    """Who must be sized anew although no share changed much: those who lack rows, and then those who hold too many.

    A newcomer to a large fleet changes nobody's share by a tenth; somebody must make room for it all the same.
    """
    coarse = _coarse(excess)
    lacking = {
        device
        for device, (rows, wanted) in excess.items()
        if rows < 0 and -rows > max(config.change * wanted, coarse * COARSE_BLOCKS)
    }
    if not lacking:
        return set()
    return lacking | {device for device, (rows, _) in excess.items() if rows > coarse}


def _coarse(excess: Mapping[DeviceId, tuple[float, float]]) -> float:
    """About the rows of one block: what is dealt out cannot be finer."""
    return sum(wanted for _, wanted in excess.values()) / BLOCKS_LEAST


def _steps(wanted: float, before: Sizing | None, config: SharesConfig) -> int:
    if config.length == "steps":
        return config.steps_equal
    steps = min(max(round(wanted), config.steps_min), config.steps_max)
    if before is not None:
        steps = min(max(steps, -(-before.steps // STEPS_FACTOR_MAX)), before.steps * STEPS_FACTOR_MAX)
    return steps


def _differs(before: Sizing, size: Sizing, change: float) -> bool:
    grown = abs(size.steps - before.steps) > change * before.steps
    return grown or abs(size.share - before.share) > change * before.share or size.batch != before.batch
