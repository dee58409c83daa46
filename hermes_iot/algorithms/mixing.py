"""Displacements into a model, one at a time, each at its device's share of the fleet's speed, with delayed momentum.

Equal-time iterations (every device trains for about T* seconds) and shares by speed make one *fleet round*, every
device's contribution once, equal one round of federated averaging weighted by the mini-batches done, in whatever order
the contributions arrive and however many times a fast device comes before a slow one. So no knob for staleness is
needed, and nobody waits.

Momentum over single contributions would be momentum over one device's noise. As in delayed Nesterov momentum (Liu et
al. 2024, "Asynchronous Local-SGD Training for Language Modeling", arXiv 2401.09135) the velocity is therefore renewed
once per fleet round from the mean of the round, and each contribution moves the model by its part of the look-ahead:

    w += eta * s * ((1 + mu) * q + mu^2 * el * v)
    acc += s * q;  c += s * el;  when c >= 1:  v = mu * v + acc / c;  acc = 0;  c = 0

with q the displacement, s the share, and el how much of an iteration it stands for: the mini-batches since the device's
last push over those of one planned iteration, at most `ELAPSED_MAX`.

The model that is served is an exponential average of the one devices train from, at rate `ema_rate` per fleet round:
what single contributions add in noise it leaves out. At first its rate is 1/(1+m) after m merges, or it would remember
the untrained model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from hermes_iot.algorithms.trees import is_finite
from hermes_iot.domain import Params

#: A device that was away for long has not done more than so many iterations' worth of good.
ELAPSED_MAX: Final = 3.0
#: Shares that add up to 1 on paper may add up to a little less here; the round is then over all the same.
ROUND: Final = 1 - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """The outer optimizer's memory.

    Attributes:
        velocity: v, shape (P,).
        gathered, gathered_share: acc, shape (P,), and c: of the fleet round under way.
        average: the served model, shape (P,).
        merges: contributions so far.
        rounds: fleet rounds that are over.
    """

    velocity: Params
    gathered: Params
    gathered_share: float = 0.0
    average: Params
    merges: int = 0
    rounds: int = 0


def start(initial: Params) -> Mixing:
    """Nothing mixed yet; the served model is the first one."""
    nothing = np.zeros_like(initial)
    return Mixing(velocity=nothing, gathered=nothing, average=initial)


def elapsed(steps: int, planned: int) -> float:
    """el: `steps` mini-batches in iterations of `planned`; with no plan known, one iteration."""
    return min(ELAPSED_MAX, max(1, steps) / planned) if planned > 0 else 1.0


def mix(
    state: Mixing,
    model: Params,
    displacement: Params,
    *,
    share: float,
    elapsed: float,
    momentum: float,
    rate: float,
    ema_rate: float,
) -> tuple[Mixing, Params]:
    """One contribution. All vectors have shape (P,); none of those given is changed.

    Args:
        state: from the contribution before.
        model: w, what devices train from.
        displacement: q.
        share: s, in (0, 1].
        elapsed: el, in (0, `ELAPSED_MAX`].
        momentum: mu in [0, 1).
        rate: eta, above 0.
        ema_rate: rho in (0, 1]; 1 serves the model itself.

    Returns:
        The new state and the new model. Either may hold infinities where a sum overflows: whoever asked looks.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        merged: Params = model + displacement * np.float32(rate * share * (1 + momentum))
        if momentum:
            merged = merged + state.velocity * np.float32(rate * share * momentum**2 * elapsed)
        gathered: Params = state.gathered + displacement * np.float32(share)
        gathered_share = state.gathered_share + share * elapsed
        velocity: Params = state.velocity
        rounds = state.rounds
        if gathered_share >= ROUND:
            mean: Params = gathered / np.float32(gathered_share)
            velocity = velocity * np.float32(momentum) + mean
            gathered, gathered_share = np.zeros_like(model), 0.0
            rounds += 1
        follow = max(1 - (1 - ema_rate) ** (share * elapsed), 1 / (1 + state.merges))
        average = state.average + (merged - state.average) * np.float32(follow)
    mixing = Mixing(
        velocity=velocity,
        gathered=gathered,
        gathered_share=gathered_share,
        average=average,
        merges=state.merges + 1,
        rounds=rounds,
    )
    return mixing, merged


def is_sound(before: Mixing, after: Mixing) -> bool:
    """Whether the state and the model that `mix` made of a contribution are finite, seen from as little as tells it.

    The average takes in the new model, so it is not finite where the model is not. At the end of a round what was
    gathered is in the velocity, and in between the velocity is the one from before.
    """
    newest = after.gathered if after.velocity is before.velocity else after.velocity
    return is_finite(after.average) and is_finite(newest)
