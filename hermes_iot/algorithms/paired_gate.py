"""The loss gate of hermes-plus: would my update, at the weight it will get, lower the loss on rows I have not used?

The paper's gate holds a loss against earlier losses of other models on other samples; with iterations of a few seconds
its noise drowns what an iteration brings. Here two models are compared on the *same* rows, the next ones of the
device's own walk (`domain.Probe`): the model received, and that model moved by what the merge will make of the update.
z is the paired statistic of their losses' differences; it fires from `z` on.

The damping matters: after a while a device's own model is worse on unseen rows than the average it received, although
its update improves the average. So it is the average with the update that is tested, not the device's model.

Besides, and for comparison: `strict` leaves out rows trained on since the model was received; `norm` fires when the
displacement is not much shorter than those pushed before (the rule of lazily aggregated gradients: Chen et al. 2018,
arXiv 1805.09965); `coin` at random; `none` always. None of them may fall silent: from `max_age` iterations on any
fires.

With `budget`, the threshold follows the wanted rate of pushes per iteration: the knob for metered links.

z is not corrected for being looked at up to `max_age` times per push, nor was its distribution checked where nothing
changes: it ranks iterations, it is no probability.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, replace
from typing import Final, Literal

from hermes_iot.algorithms.checks import require_number, require_option, require_whole
from hermes_iot.domain import Gain

Gate = Literal["paired", "strict", "norm", "coin", "none"]
#: first: the first iteration of a run. gain: z passed. age: too long without. norm, coin, always: the other gates'.
#: blind: too few unused rows for a strict test. no: none of these.
Reason = Literal["first", "gain", "age", "norm", "coin", "always", "blind", "no", "diverged"]

BUDGET_STEP: Final = 0.5
THRESHOLD_MIN: Final = -6.0
THRESHOLD_MAX: Final = 12.0
#: A deviation of fewer rows than this is no deviation.
ROWS_MIN: Final = 8
#: How fast the typical length of a pushed displacement follows the newest.
NORM_FOLLOWS: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedGateConfig:
    """Constants.

    Attributes:
        kind: which gate; null is "none" (the command line reads none as null).
        z: `paired` and `strict` fire from this on.
        max_age: tau, iterations after which any gate fires.
        weight_min: the test's weight is no smaller: too small a step and the differences drown in rounding.
        test_share, test_rows_min, test_rows_max: m as a part of the iteration's rows, and its bounds.
        budget: wanted pushes per iteration; None = `z` stays.
        norm: `norm` fires from this part of the typical length on.
        coin: probability of a push.

    Raises:
        UsageError: a value is outside its range.
    """

    kind: Gate | None = "paired"
    z: float = 1.0
    max_age: int = 2
    weight_min: float = 0.1
    test_share: float = 0.1
    test_rows_min: int = 16
    test_rows_max: int = 300
    budget: float | None = None
    norm: float = 0.9
    coin: float = 0.6

    def __post_init__(self) -> None:
        if self.kind is not None:
            require_option(self, "kind", Gate)
        require_number(self, "z", THRESHOLD_MIN, THRESHOLD_MAX)
        require_whole(self, "max_age", 1, 2**31)
        require_number(self, "weight_min", 1e-6, 1)
        require_number(self, "test_share", 0, 1)
        require_whole(self, "test_rows_min", 2, 2**20)
        require_whole(self, "test_rows_max", self.test_rows_min, 2**20)
        if self.budget is not None:
            require_number(self, "budget", 0, 1)
        require_number(self, "norm", 0, 1e6)
        require_number(self, "coin", 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedGateState:
    """What the gate remembers.

    Attributes:
        threshold: z fires from here on.
        age: iterations since the last push, diverged ones included.
        iterations: seen in all; 0 before the first.
        norm: typical length of a pushed displacement; None before the first.
    """

    threshold: float
    age: int = 0
    iterations: int = 0
    norm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether to push, why, and the statistic with what it was held against, where there is one."""

    fire: bool
    reason: Reason
    z: float | None = None
    threshold: float | None = None


def start(config: PairedGateConfig) -> PairedGateState:
    """State of a device that begins a run."""
    return PairedGateState(threshold=float(config.z))


def test_rows(rows: int, config: PairedGateConfig) -> int:
    """How many rows to test on after an iteration of so many; 0 where the gate makes no test."""
    if config.kind not in {"paired", "strict"}:
        return 0
    return min(config.test_rows_max, max(config.test_rows_min, round(config.test_share * rows)))


def statistic(gain: Gain) -> float:
    """The paired z = mean(d) / (std(d) / sqrt(m) + 1e-9)."""
    return gain.mean / (gain.std / math.sqrt(gain.rows) + 1e-9)


def observe(
    state: PairedGateState, config: PairedGateConfig, *, loss: float, gain: Gain | None, norm: float | None
) -> tuple[PairedGateState, Verdict]:
    """Judge one iteration. A push is noted by `pushed`, as others may decide one too.

    Args:
        state: from the iteration before.
        config: constants.
        loss: of the iteration; not finite = it diverged: nothing fires, the age goes on.
        gain: what the test found, where one was made.
        norm: length of the displacement that would be pushed; read by the norm gate alone.
    """
    z = statistic(gain) if gain is not None and gain.rows >= ROWS_MIN else None
    return judge(state, config, loss=loss, z=z, norm=norm)


def judge(
    state: PairedGateState, config: PairedGateConfig, *, loss: float, z: float | None, norm: float | None
) -> tuple[PairedGateState, Verdict]:
    """`observe` where the statistic is known, as of an iteration that a run recorded.

    Args:
        state: from the iteration before.
        config: constants.
        loss: of the iteration, as in `observe`.
        z: of this gate's own test; None where none was made. Read by `paired` and `strict` alone.
        norm: as in `observe`.
    """
    after = PairedGateState(
        threshold=state.threshold, age=state.age + 1, iterations=state.iterations + 1, norm=state.norm
    )
    if not math.isfinite(loss):
        return after, Verdict(fire=False, reason="diverged")
    z = z if config.kind in {"paired", "strict"} else None
    threshold: float | None = state.threshold if z is not None else None
    reason = _reason(after, config, loss=loss, z=z, norm=norm)
    if config.kind == "norm" and state.norm is not None:
        z, threshold = norm, config.norm * state.norm
    fire = reason != "no"
    if config.budget is not None:
        moved = after.threshold + BUDGET_STEP * (fire - config.budget)
        after = replace(after, threshold=min(max(moved, THRESHOLD_MIN), THRESHOLD_MAX))
    return after, Verdict(fire=fire, reason=reason, z=z, threshold=threshold)


def pushed(state: PairedGateState, *, norm: float | None) -> PairedGateState:
    """A push was made; `norm` is its displacement's length, where the gate wants it."""
    typical = norm if norm is None or state.norm is None else state.norm + NORM_FOLLOWS * (norm - state.norm)
    return PairedGateState(threshold=state.threshold, age=0, iterations=state.iterations, norm=typical)


def _reason(
    state: PairedGateState, config: PairedGateConfig, *, loss: float, z: float | None, norm: float | None
) -> Reason:
    if state.iterations == 1:
        return "first"
    match config.kind:
        case "none" | None:
            return "always"
        case "coin" if _coin(loss, state.iterations) < config.coin:
            return "coin"
        case "norm" if norm is not None and (state.norm is None or norm >= config.norm * state.norm):
            return "norm"
        case "strict" if z is None:
            return "blind"
        case "paired" | "strict" if z is not None and z >= state.threshold:
            return "gain"
    return "age" if state.age >= config.max_age else "no"


def _coin(loss: float, count: int) -> float:
    """A number in [0, 1) that the same iteration always gives: a pure function has no dice, but a loss has digits."""
    digest = hashlib.sha256(struct.pack("<dQ", loss, count)).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
