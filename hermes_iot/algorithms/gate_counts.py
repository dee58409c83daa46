"""What every gate would have pushed of the iterations that a run of hermes-plus made: counting, no training.

Each gate decides by the run's own statistics, one iteration after the other, and keeps a state of its own: its age, and
the lengths it thinks typical, are those since the pushes *it* would have made. It is an open-loop count: the models, and
with them every statistic, are those of the run's own pushes, and another gate's would have been others from its first
difference on. It compares appetites, not outcomes; those need a run each (the rows ``no gate``, ``norm``, ``coin`` of
a comparison).

A gate can only be asked about what was measured. `paired` and `strict` test on different rows, so a run has the
statistic of one of them or of neither; what was not recorded has no count, not a guess. Besides the gates of
hermes-plus there is the paper's z-score (`gate`). It reads the iteration's loss, which in a walk is that of training,
not of held-out rows as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, Literal, get_args

from hermes_iot.algorithms import gate, paired_gate
from hermes_iot.algorithms.gate import GateConfig, GateState
from hermes_iot.algorithms.paired_gate import Gate, PairedGateConfig, PairedGateState

Kind = Literal["paired", "strict", "norm", "coin", "none", "z-score"]

#: In the order in which they are shown.
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_OURS: Final[tuple[Gate, ...]] = get_args(Gate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a run recorded of one iteration.

    Attributes:
        loss: of the iteration; not finite where it diverged.
        z: the statistic of the run's own test, where one was made.
        norm: length of the displacement that a push would have sent; None = not recorded.
        published: the run pushed it.
    """

    loss: float
    z: float | None
    norm: float | None
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The gates that are asked.

    Attributes:
        own: constants of the gates of hermes-plus, whichever its kind is.
        paper: those of the z-score.
        tested: the kind of the gate that ran, which tells what `Seen.z` is a statistic of.
    """

    own: PairedGateConfig
    paper: GateConfig
    tested: Gate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Iterations that a gate would have pushed.

    Attributes:
        pushes: all of them.
        forced: of these, those that its age alone decided; what the gate says of the update is the rest.
        both: of these, those that the run pushed, too.
    """

    pushes: int = 0
    forced: int = 0
    both: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One device's iterations so far.

    Attributes:
        iterations, published: the run's own.
        counts: of every kind; a kind that cannot be asked is missing.
        states: of the gates of hermes-plus.
        paper: of the z-score.
    """

    iterations: int = 0
    published: int = 0
    counts: Mapping[Kind, Count] = field(default_factory=dict)
    states: Mapping[Gate, PairedGateState]
    paper: GateState


def start(rules: Rules) -> Counted:
    """Nothing seen yet. Of the two tests only the one that ran can be asked."""
    asked = [kind for kind in _OURS if kind not in {"paired", "strict"} or kind == rules.tested]
    return Counted(
        counts={**dict.fromkeys(asked, Count()), "z-score": Count()},
        states={kind: paired_gate.start(rules.own) for kind in asked},
        paper=gate.start(rules.paper),
    )


def add(before: Counted, seen: Seen, rules: Rules) -> Counted:
    """The next iteration. Where a finite one has no norm, the norm gate cannot be asked about any of them."""
    verdicts: dict[Kind, tuple[bool, str]] = {}
    states: dict[Gate, PairedGateState] = {}
    for kind, state in before.states.items():
        if kind == "norm" and seen.norm is None and math.isfinite(seen.loss):
            continue
        config = _as(rules.own, kind)
        after, verdict = paired_gate.judge(state, config, loss=seen.loss, z=seen.z, norm=seen.norm)
        wanted = seen.norm if kind == "norm" else None
        states[kind] = paired_gate.pushed(after, norm=wanted) if verdict.fire else after
        verdicts[kind] = verdict.fire, verdict.reason
    paper, answer = gate.observe(before.paper, seen.loss, rules.paper)
    verdicts["z-score"] = answer.fire, answer.reason
    return Counted(
        iterations=before.iterations + 1,
        published=before.published + seen.published,
        counts={kind: _one_more(before.counts[kind], *said, seen.published) for kind, said in verdicts.items()},
        states=states,
        paper=paper,
    )


def total(parts: Mapping[Kind, Count], more: Mapping[Kind, Count]) -> dict[Kind, Count]:
    """Of two devices or sessions; what one of them cannot answer, both cannot."""
    return {
        kind: Count(
            pushes=one.pushes + more[kind].pushes,
            forced=one.forced + more[kind].forced,
            both=one.both + more[kind].both,
        )
        for kind, one in parts.items()
        if kind in more
    }


@lru_cache(maxsize=64)
def _as(config: PairedGateConfig, kind: Gate) -> PairedGateConfig:
    """Checking a dozen constants anew took more than half of the time."""
    return replace(config, kind=kind)


def _one_more(count: Count, fires: bool, reason: str, published: bool) -> Count:  # noqa: FBT001 - facts of one iteration
    if not fires:
        return count
    return Count(pushes=count.pushes + 1, forced=count.forced + (reason == "age"), both=count.both + published)
