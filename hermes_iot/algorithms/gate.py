"""The paper's loss gate: a device publishes only when its newest test loss stands out from the recent ones.

Source: arXiv 2410.20495, the z-score test with a decaying threshold alpha. After every local iteration the loss L is
scored against a window of the last `window` losses; z <= threshold is a major update and is published. After
`patience` minor ones every further minor update wears the threshold down by `beta`, towards 0, until the next push;
the count of minor updates restarts at a push only, not at a decay.

The defaults are the paper's, and some of its choices are weak. Each is a named option:

- `reference`: "including" scores L against a window that holds L itself, by the population's deviation. Such a z is
  never below -sqrt(m - 1) for m losses, so alpha = -1.3 cannot fire before the third loss, -1.6 not before the fourth.
  "preceding" scores L against the losses before it, by the sample deviation.
- `window_after_push`: "clear" makes the gate blind for two iterations after every push.
- `threshold_after_push`: "keep" never restores alpha, so in a long run the gate wears out to "L <= recent mean".
- `sigma`: with "exact", equal losses never fire (the authors' code divides by zero there). "floored" gives sigma a
  least value, a thousandth of the mean.
- `max_age`: not in the paper. Where a device keeps its rows its loss can rise from the second iteration on and the
  gate never fires again, so after `max_age` iterations the update is published whatever its loss.

A device imports this module before anything heavy is loaded: plain floats, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from hermes_iot.algorithms.checks import require_number, require_option, require_whole

Reference = Literal["including", "preceding"]
WindowAfterPush = Literal["clear", "keep"]
ThresholdAfterPush = Literal["keep", "reset"]
Sigma = Literal["exact", "floored"]

#: loss: z passed the threshold. age: `max_age` iterations without a push. no: z did not pass. few: not enough losses to
#: score against. flat: no deviation to score by. diverged: the loss is not a finite number.
Reason = Literal["loss", "age", "no", "few", "flat", "diverged"]

WINDOW_MAX: Final = 1000
BETA_MAX: Final = 0.999999
ITERATIONS_MAX: Final = 2**31
#: Finite losses enter the window clamped to this, so that no square overflows; a float32 loss is below 4e38 anyway.
LOSS_MAX: Final = 1e100
#: A deviation below this counts as none, so that no square underflows and z stays finite.
SIGMA_MIN: Final = 1e-100


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """Constants of the gate; the defaults are the paper's, `max_age` is ours.

    Attributes:
        window: w, how many losses are looked back on.
        alpha: the threshold's first value, at most 0.
        beta: the part of the threshold that goes at each decay.
        patience: lambda, minor updates in a row from which on the threshold decays.
        max_age: tau, iterations after which a device publishes whatever its loss; None = never forced (the paper).
        reference, window_after_push, threshold_after_push, sigma: see the module's header.

    Raises:
        UsageError: a value is outside its range.
    """

    window: int = 10
    alpha: float = -1.3
    beta: float = 0.1
    patience: int = 5
    reference: Reference = "including"
    window_after_push: WindowAfterPush = "clear"
    threshold_after_push: ThresholdAfterPush = "keep"
    sigma: Sigma = "exact"
    max_age: int | None = 10

    def __post_init__(self) -> None:
        require_whole(self, "window", 2, WINDOW_MAX)
        require_number(self, "alpha", -1e6, 0)
        require_number(self, "beta", 0, BETA_MAX)
        require_whole(self, "patience", 1, ITERATIONS_MAX)
        if self.max_age is not None:
            require_whole(self, "max_age", 1, ITERATIONS_MAX)
        require_option(self, "reference", Reference)
        require_option(self, "window_after_push", WindowAfterPush)
        require_option(self, "threshold_after_push", ThresholdAfterPush)
        require_option(self, "sigma", Sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateState:
    """What the gate remembers.

    Attributes:
        window: recent losses, oldest first.
        threshold: z at or below this fires.
        minors: minor updates since the last push; the paper's `last`.
        age: iterations since the last push, diverged ones included.
    """

    window: tuple[float, ...] = ()
    threshold: float
    minors: int = 0
    age: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The gate's answer to one loss.

    Attributes:
        fire: publish this iteration's update.
        reason: see `Reason`.
        z: the loss's z-score; None where there was nothing to score it by.
        threshold: what `z` was compared with.
    """

    fire: bool
    reason: Reason
    z: float | None
    threshold: float


def start(config: GateConfig) -> GateState:
    """State of a device that begins a run."""
    return GateState(threshold=float(config.alpha))


def observe(state: GateState, loss: float, config: GateConfig) -> tuple[GateState, Verdict]:
    """Judge the loss of one iteration.

    A loss that is not finite fires nothing and enters no window. It empties the window: the device goes back to the
    model it had received, so the losses seen belong to a course that is thrown away.
    """
    age = state.age + 1
    if not math.isfinite(loss):
        verdict = Verdict(fire=False, reason="diverged", z=None, threshold=state.threshold)
        return replace(state, window=(), age=age), verdict
    loss = min(max(float(loss), -LOSS_MAX), LOSS_MAX)
    window = (*state.window, loss)[-config.window :]
    reference = window if config.reference == "including" else state.window
    z = z_score(loss, reference, config)
    reason = _reason(z, reference, age, state.threshold, config)
    verdict = Verdict(fire=reason in {"loss", "age"}, reason=reason, z=z, threshold=state.threshold)
    after = _pushed(state, window, config) if verdict.fire else _minor(state, window, age, config)
    return after, verdict


def z_score(loss: float, reference: Sequence[float], config: GateConfig) -> float | None:
    """How many deviations `loss` lies above the mean of `reference`; None with fewer than two losses or no deviation.

    Reckoned from the oldest loss, not from 0: equal losses then have a deviation of exactly 0, where a rounded mean
    would leave a last digit and with it a z of -1.
    """
    count = len(reference)
    if count < 2:  # noqa: PLR2004 - one number has no deviation
        return None
    origin = reference[0]
    shifted = [other - origin for other in reference]
    mean = math.fsum(shifted) / count
    freedom = count if config.reference == "including" else count - 1
    sigma = math.sqrt(math.fsum([(other - mean) * (other - mean) for other in shifted]) / freedom)
    if config.sigma == "floored":
        sigma = max(sigma, 1e-3 * abs(origin + mean) + 1e-9)
    return None if sigma < SIGMA_MIN else (loss - origin - mean) / sigma


def _reason(z: float | None, reference: Sequence[float], age: int, threshold: float, config: GateConfig) -> Reason:
    if z is not None and z <= threshold:
        return "loss"
    if config.max_age is not None and age >= config.max_age:
        return "age"
    if z is not None:
        return "no"
    return "flat" if len(reference) > 1 else "few"


def _pushed(state: GateState, window: tuple[float, ...], config: GateConfig) -> GateState:
    return GateState(
        window=() if config.window_after_push == "clear" else window,
        threshold=state.threshold if config.threshold_after_push == "keep" else float(config.alpha),
    )


def _minor(state: GateState, window: tuple[float, ...], age: int, config: GateConfig) -> GateState:
    minors = state.minors + 1
    threshold = state.threshold
    if minors >= config.patience:
        threshold = min(0.0, threshold * (1 - config.beta))
    return GateState(window=window, threshold=threshold, minors=minors, age=age)
