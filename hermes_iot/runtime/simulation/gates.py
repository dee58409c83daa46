"""What each gate of hermes-plus would have pushed of a run's iterations.

Of a simulated run it is counted as they happen, of a live one from its records. How, and what the count does not say,
is in `algorithms.gate_counts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final, Literal

from hermes_iot.algorithms import gate_counts
from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.gate_counts import KINDS, Counted, Rules, Seen
from hermes_iot.algorithms.strategies.base import Strategy
from hermes_iot.algorithms.strategies.hermes import Hermes
from hermes_iot.algorithms.strategies.hermes_plus import HermesPlus
from hermes_iot.config import RunConfig
from hermes_iot.runtime import strategies
from hermes_iot.runtime.simulation.benches import COST

#: Counted at most: six gates take 20 microseconds an iteration, and a fleet of thousands makes millions.
ITERATIONS_MAX: Final = 100_000

Loss = Literal["training", "held-out", "modelled"]


class Gates:
    """Mutable: one run's counts.

    Args:
        rules: the gates that are asked.
        loss: what an iteration's is: of "training", as in a walk, of "held-out" rows, or "modelled".
    """

    def __init__(self, rules: Rules, *, loss: Loss) -> None:
        self._rules = rules
        self._loss = loss
        self._lives: dict[tuple[str, int], Counted] = {}
        self._counted = self._passed_over = 0

    def iterated(self, device: str, session: int, fields: Mapping[str, Any]) -> None:
        """The next iteration of a device, as an ``iteration`` record tells it. A session begins with fresh gates."""
        if self._counted >= ITERATIONS_MAX:
            self._passed_over += 1
            return
        self._counted += 1
        loss, life = _number(fields.get("loss")), (device, session)
        seen = Seen(
            loss=math.nan if loss is None or fields.get("gate") == "diverged" else loss,
            z=_number(fields.get("z")),
            norm=_number(fields.get("norm")),
            published=fields.get("published") is True,
        )
        before = self._lives.get(life) or gate_counts.start(self._rules)
        self._lives[life] = gate_counts.add(before, seen, self._rules)

    def document(self) -> dict[str, Any]:
        """JSON-able: `gate` that ran, `iterations` counted and those `passed_over`, how many the run `published`.

        ``would_push`` has for every kind how many `pushes` it would have made, how many of them `forced`
        by its age and how many made by `both`; None = what it
        decides by was not recorded. ``loss`` tells what the z-score read, see `Loss`.
        """
        lives = [*self._lives.values()]
        counts = dict(gate_counts.start(self._rules).counts)
        for one in lives:
            counts = gate_counts.total(counts, one.counts)
        return {
            "gate": self._rules.tested or "none",
            "iterations": sum(one.iterations for one in lives),
            "passed_over": self._passed_over,
            "published": sum(one.published for one in lives),
            "loss": self._loss,
            "would_push": {kind: asdict(counts[kind]) if kind in counts else None for kind in KINDS},
        }


def gates_of(config: RunConfig, asked: RunConfig | None = None) -> Gates | None:
    """For a run of these settings; None where it is not one of hermes-plus.

    Args:
        config: the run's.
        asked: constants of gates to ask instead of the run's own, where they are of a strategy that has them.
    """
    ran, other = _strategy(config), _strategy(asked or config)
    if not isinstance(ran, HermesPlus):
        return None
    rules = Rules(
        own=other.config.gate if isinstance(other, HermesPlus) else ran.config.gate,
        paper=other.config.gate if isinstance(other, Hermes) else GateConfig(),
        tested=ran.config.gate.kind,
    )
    walks = (config.sampling or ran.regime.sampling) == "walk"
    return Gates(rules, loss="modelled" if config.task == COST else "training" if walks else "held-out")


def counted(records: Iterable[Mapping[str, Any]], recorded: RunConfig, asked: RunConfig) -> dict[str, Any] | None:
    """A live run's counts from its ``iteration`` records; None where it did not record every iteration."""
    gates = gates_of(recorded, asked)
    if gates is None or recorded.telemetry != "full":
        return None
    for one in sorted(records, key=lambda one: (one["device"], one["session"], one["iteration"])):
        gates.iterated(one["device"], one["session"], one)
    return gates.document()


def _strategy(config: RunConfig) -> Strategy[Any, Any]:
    return strategies.resolve(config.strategy).build(config.constants)[0]


def _number(value: object) -> float | None:
    """Records come from files, too."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite and isinstance(value, int | float) else None
