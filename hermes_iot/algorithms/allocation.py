"""How many rows and which mini-batch each device gets, so that unequal devices finish at about the same time.

Source: arXiv 2410.20495, dynamic allocation: a device whose last time lies outside the quartiles of the others' by
1.5 interquartile ranges is given the (n, b) whose predicted time K*E*n/b meets the median time, by a dual binary
search. The defaults are the paper's; `scope`, `target` and `speed` name the sounder choices. Where we depart from it:

- The search is correct. The authors' walks the wrong way, only ever finds b = 16, and can find nothing and crash.
- An outlier's time must also differ from the quartile by more than `tolerance`. Where the others' times are equal,
  their interquartile range is 0 and the paper's rule makes an outlier of everybody, those exactly equal included.
- A size that changes by no more than `republish_change` is left alone: it would cost more than it brings.

The rule finds what stands out, not what is slow: of the times 1 x2, 1.6 x3, 2.4 x3, 4 x2, 8 x2 the pair at 8 is
re-sized and the pair at 4 is not - until the pair at 8 has become fast and the quartiles have closed up. Among equal
devices any difference beyond `tolerance` stands out.

scipy costs 690 ms to load and only the coordinator ever needs it: the first search for outliers loads it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from hermes_iot.algorithms.checks import refusal, require_number, require_option, require_whole
from hermes_iot.algorithms.speed import SECONDS_MAX, Followed, Report, follow, predicted_s
from hermes_iot.domain import DeviceId, Sizing

Scope = Literal["outliers", "everybody"]
Target = Literal["first_median", "median", "fixed"]
Speed = Literal["last", "ewma"]

#: Also the longest range a 32-bit board can search.
ROWS_MAX: Final = 2**31 - 1
BATCH_MAX: Final = 2**20
DEVICES_MAX: Final = 2**20
#: The two quartiles of fewer than four devices' others rest on the same two times.
OUTLIER_REPORTS_MIN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationConfig:
    """Constants of the allocator; the defaults are the paper's where it has one.

    Attributes:
        scope: whose size is looked at.
        iqr_factor: how many interquartile ranges beyond a quartile a time stands out.
        reports_min: devices that must have reported before anybody is re-sized; at least 4 to look for outliers.
        target: the time to meet: the median when sizes were first given, the present median, or `target_s`.
        target_s: seconds of one iteration, with target "fixed" only.
        speed: a device's newest time, or K smoothed over its reports with weight `ewma` on the newest.
        tolerance: relative; times that differ by less are equal.
        search_batch: choose the mini-batch too, a power of two in `batch_min` .. `batch_max`.
        samples_min, samples_max: rows; a device's memory goes before `samples_min`.
        republish_change: relative change of the rows up to which a size stays as it is.

    Raises:
        UsageError: a value is outside its range.
    """

    scope: Scope = "outliers"
    iqr_factor: float = 1.5
    reports_min: int = 4
    target: Target = "first_median"
    target_s: float | None = None
    speed: Speed = "last"
    ewma: float = 0.3
    tolerance: float = 0.05
    search_batch: bool = False
    batch_min: int = 4
    batch_max: int = 256
    samples_min: int = 32
    samples_max: int | None = None
    republish_change: float = 0.10

    def __post_init__(self) -> None:
        require_option(self, "scope", Scope)
        require_option(self, "target", Target)
        require_option(self, "speed", Speed)
        require_number(self, "iqr_factor", 0, 1e6)
        require_whole(self, "reports_min", OUTLIER_REPORTS_MIN if self.scope == "outliers" else 1, DEVICES_MAX)
        require_number(self, "ewma", 1e-6, 1)
        require_number(self, "tolerance", 0, 0.99)
        require_number(self, "republish_change", 0, 1e6)
        require_whole(self, "batch_max", 1, BATCH_MAX)
        require_whole(self, "batch_min", 1, self.batch_max)
        require_whole(self, "samples_min", 1, ROWS_MAX)
        if self.samples_max is not None:
            require_whole(self, "samples_max", self.samples_min, ROWS_MAX)
        if self.target == "fixed":
            require_number(self, "target_s", 1e-6, SECONDS_MAX)
        elif self.target_s is not None:
            raise refusal(self, "target_s", "left out unless the target is fixed")
        for name in ("batch_min", "batch_max"):
            if getattr(self, name).bit_count() != 1:
                raise refusal(self, name, "a power of two")
        if not isinstance(self.search_batch, bool):
            raise refusal(self, "search_batch", "true or false")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationState:
    """What the allocator remembers.

    Attributes:
        target_s: the median when sizes were first given, with target "first_median"; None before.
        followed: smoothed speeds, with speed "ewma". Losing them (a restart) only restarts the smoothing.
    """

    target_s: float | None = None
    followed: Mapping[DeviceId, Followed] = field(default_factory=dict)


def allocate(
    reports: Mapping[DeviceId, Report], state: AllocationState, config: AllocationConfig
) -> tuple[AllocationState, dict[DeviceId, Sizing]]:
    """The devices that must be re-sized, given the newest report of every live device.

    Args:
        reports: held against one another; nobody is re-sized before there are `reports_min`.
        state: from the call before, `AllocationState()` at first.
        config: constants.

    Returns:
        The new state, and a size for each device whose rows change by more than `republish_change`, whose mini-batch
        changes, or which has more rows than it may.
    """
    followed = follow(state.followed, reports, config.ewma) if config.speed == "ewma" else {}
    speeds: Mapping[DeviceId, Followed | Report] = followed or reports
    if len(reports) < config.reports_min:
        return AllocationState(target_s=state.target_s, followed=followed), {}
    times = {device: speed.seconds for device, speed in speeds.items()}
    target_s = _target(times, state, config)
    sizes: dict[DeviceId, Sizing] = {}
    for device in sorted(reports if config.scope == "everybody" else outliers(times, config)):
        report = reports[device]
        current = Sizing(samples=report.samples, batch=report.batch)
        new = size(
            speeds[device].seconds_per_batch,
            target_s,
            epochs=report.epochs,
            current=current,
            memory_rows_max=report.rows_max,
            config=config,
        )
        changed = abs(new.samples - current.samples) > config.republish_change * current.samples
        if changed or new.batch != current.batch or current.samples > _rows_max(report.rows_max, config):
            sizes[device] = new
    first_s = target_s if config.target == "first_median" else None
    return AllocationState(target_s=first_s, followed=followed), sizes


def outlier(seconds: float, others: Sequence[float] | NDArray[np.float64], config: AllocationConfig) -> bool:
    """Whether a time stands out from the other devices': T >= Q3 + 1.5 IQR or T <= Q1 - 1.5 IQR, quartiles interpolated.

    Besides, it must differ from that quartile by more than `tolerance`; the module's header says why.
    """
    from scipy.stats import iqr  # noqa: PLC0415 - 690 ms that no device and no `--help` shall pay

    low, high = np.percentile(others, (25, 75)).tolist()
    reach = config.iqr_factor * float(iqr(others))
    slow = seconds >= high + reach and seconds > high * (1 + config.tolerance)
    fast = seconds <= low - reach and seconds < low * (1 - config.tolerance)
    return bool(slow or fast)


def outliers(times: Mapping[DeviceId, float], config: AllocationConfig) -> set[DeviceId]:
    """Every device whose time stands out from all the others'; `times` has four or more.

    Looked for from both ends inwards, up to the first that does not stand out. None further in can: leaving out a less
    extreme time instead moves the near quartile towards the end, if at all, and the far one not.
    """
    ranked = sorted(times, key=lambda device: (times[device], device))
    seconds = np.array([times[device] for device in ranked])
    found: set[DeviceId] = set()
    for places in (range(len(ranked)), reversed(range(len(ranked)))):
        for place in places:
            if not outlier(float(seconds[place]), np.delete(seconds, place), config):
                break
            found.add(ranked[place])
    return found


def size(
    k: float,
    target_s: float,
    *,
    epochs: int,
    current: Sizing,
    memory_rows_max: int | None,
    config: AllocationConfig,
) -> Sizing:
    """The most rows whose predicted time is at most `target_s` * (1 + tolerance); else as few rows as allowed.

    Time grows with n and falls with b, so both searches are binary: the inner one for the largest n at a given b, the
    outer one for the smallest b that allows the largest n of all. When no n comes within the tolerance of the target,
    this is the closest from below.

    The mini-batch is kept unless `search_batch`. K is taken to be the same for every b, as in the paper, which makes
    larger mini-batches look free: that is why the search is off. Where not even one full mini-batch an epoch fits, b
    is kept (up to `batch_max`): a larger one would be faster in this arithmetic only.

    Args:
        k: seconds per mini-batch.
        target_s: seconds one iteration should take.
        epochs: passes over the rows in an iteration.
        current: what the device has now.
        memory_rows_max: the most rows it can hold, at least 1; None = not limited.
        config: constants.
    """
    limit_s = target_s * (1 + config.tolerance)
    most = _rows_max(memory_rows_max, config)
    choices = range(min(config.samples_min, most), most + 1)

    def rows(batch: int) -> int:
        fitting = bisect_right(choices, limit_s, key=lambda samples: predicted_s(k, epochs, samples, batch))
        return choices[max(0, fitting - 1)]

    batch = current.batch
    if config.search_batch:
        batch = min(batch, config.batch_max)
        if predicted_s(k, epochs, batch, batch) <= limit_s:
            batches = [1 << power for power in range(config.batch_min.bit_length() - 1, config.batch_max.bit_length())]
            batch = batches[bisect_left(batches, rows(batches[-1]), key=rows)]
            batch = min(batch, rows(batch))  # where memory holds less than a mini-batch: all of it at once
    return Sizing(samples=rows(batch), batch=batch)


def _target(times: Mapping[DeviceId, float], state: AllocationState, config: AllocationConfig) -> float:
    if config.target_s is not None:
        return config.target_s
    if config.target == "first_median" and state.target_s is not None:
        return state.target_s
    return float(np.median(list(times.values())))


def _rows_max(memory_rows_max: int | None, config: AllocationConfig) -> int:
    return min(limit for limit in (config.samples_max, memory_rows_max, ROWS_MAX) if limit is not None)
