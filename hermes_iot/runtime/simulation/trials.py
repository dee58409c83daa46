"""Many seeds, on as many processes as one likes: what came of each, and of all of them together."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hermes_iot.errors import HermesError
from hermes_iot.runtime.bench.workers import Failure, each
from hermes_iot.runtime.simulation.faults import FAULTS
from hermes_iot.runtime.simulation.processes import DEATHS
from hermes_iot.runtime.simulation.trial import Ask, Found, attempt

#: Net allocations between two looks for cycles: a trial is over before they matter.
_ALLOCATIONS: Final = 100_000


@dataclass(slots=True, kw_only=True)
class Totals:
    """Mutable: what all trials came to.

    Attributes:
        faults, strategy: what was asked for.
        violated: those in which something did not hold, in the order of their seeds.
        logs: by seed, the hash of all that happened.
    """

    faults: tuple[str, ...]
    strategy: str | None = None
    trials: int = 0
    strategies: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    torn_tails: int = 0
    checks: int = 0
    applied: int = 0
    lives: int = 0
    virtual_s: float = 0.0
    violated: list[Found] = field(default_factory=list)
    logs: dict[int, str] = field(default_factory=dict)

    def add(self, found: Found) -> None:
        """One more."""
        self.trials += 1
        self.strategies[found.strategy] += 1
        self.injected.update(found.injected)
        self.exits.update(found.exits)
        self.deaths.update(found.deaths)
        self.torn_tails += found.torn_tails
        self.checks += found.checks
        self.applied += found.applied
        self.lives += found.lives
        self.virtual_s += found.virtual_s
        self.logs[found.seed] = found.log_sha256
        if not found.held:
            self.violated = sorted([*self.violated, found], key=lambda one: one.seed)

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "seeds": self.trials,
            "faults": {name: self.injected[name] for name in FAULTS if name in self.faults},
            "strategies": dict(self.strategies),
            "checks": self.checks,
            "updates_applied": self.applied,
            "lives": self.lives,
            "exits": {str(code): count for code, count in sorted(self.exits.items())},
            "deaths": {place: self.deaths[place] for place in DEATHS},
            "torn_tails": self.torn_tails,
            "virtual_s": self.virtual_s,
            "log_sha256": {str(seed): digest for seed, digest in sorted(self.logs.items())},
            "violated": [
                {
                    "seed": one.seed,
                    "strategy": one.strategy,
                    "invariant": one.invariant,
                    "what": one.what,
                    "event": one.event,
                    "trace": one.trace,
                    "replay": replay(one, self.faults, strategy=self.strategy),
                }
                for one in self.violated
            ],
        }


def replay(found: Found, faults: Sequence[str], *, strategy: str | None = None) -> str:
    """The command that does a trial again. `strategy`: the one that was asked for, where it was not the seed's own."""
    words = "all" if set(faults) == set(FAULTS) else ",".join(faults)
    given = f" --strategy {strategy}" if strategy is not None else ""
    return f"hermes-iot simulate --faults {words} --seeds {found.seed}:{found.seed + 1}{given}"


def attempts(asks: Sequence[Ask], *, jobs: int, started: Callable[[Ask], None] = lambda _ask: None) -> Iterator[Found]:
    """Run trials, as they become ready.

    Args:
        asks: begun in this order.
        jobs: processes; 1 = this one.
        started: told of each that is begun.

    Raises:
        HermesError: a process could not do its work.
    """
    if jobs == 1:
        yield from _here(asks, started)
        return
    for ask, found in each(asks, quietly, jobs=jobs, started=started):
        if isinstance(found, Failure):
            raise HermesError(f"seed {ask.seed} could not be run", why=str(found))
        yield found


def quietly(ask: Ask) -> Found:
    """One trial; what its processes would tell a person is not told."""
    threshold, before = gc.get_threshold(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    gc.set_threshold(_ALLOCATIONS, *threshold[1:])
    try:
        return attempt(ask)
    finally:
        gc.set_threshold(*threshold)
        logging.disable(before)


def _here(asks: Iterable[Ask], started: Callable[[Ask], None]) -> Iterator[Found]:
    for ask in asks:
        started(ask)
        yield quietly(ask)
