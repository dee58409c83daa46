"""``hermes-iot simulate --faults``: fleets of toys to which everything happens, seed by seed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Final

import typer

from hermes_iot.cli import logs
from hermes_iot.cli.what_if import was_typed
from hermes_iot.errors import UsageError

#: What can be said of trials; all else follows from a seed.
_OF_TRIALS: Final = frozenset({"faults", "seeds", "jobs", "strategy", "plain", "as_json", "config", "verbose"})
_SEEDS: Final = "0:20"
_SEEDS_MAX: Final = 1_000_000


def under_faults(
    context: typer.Context,
    words: str,
    *,
    seeds: str | None,
    jobs: int | None,
    plain: bool,
    as_json: bool,
    verbose: bool,
) -> int:
    """Run the trials; 0 where everything held, 1 where something did not.

    Raises:
        UsageError: a fault, a strategy or seeds that are not understood, or options of a simulation beside them.
    """
    for option in context.command.params:
        if option.name not in _OF_TRIALS and was_typed(context, str(option.name)):
            raise UsageError(
                f"--faults and {option.opts[0]} contradict each other",
                why="a trial's fleet, task and settings follow from its seed",
                mend="Give --faults with --seeds, --strategy and --jobs only",
            )
    from rich.console import Console

    from hermes_iot.reporting import trials as view
    from hermes_iot.reporting.summary import envelope
    from hermes_iot.runtime import strategies
    from hermes_iot.runtime.simulation.faults import FAULTS, chosen

    if words == "list":
        if as_json:
            sys.stdout.write(envelope({"faults": dict(FAULTS)}, kind="faults") + "\n")
        else:
            view.explain(FAULTS, Console())
        return 0
    faults = chosen(words)
    numbers = seed_range(seeds or _SEEDS)
    strategy = str(context.params["strategy"]) if was_typed(context, "strategy") else None
    if strategy is not None:
        strategies.resolve(strategy)
    logs.configure(verbose=verbose, quiet=True)

    from hermes_iot.runtime.simulation.trial import Ask
    from hermes_iot.runtime.simulation.trials import Totals, attempts

    asks = [Ask(seed=seed, faults=faults, strategy=strategy) for seed in numbers]
    totals, begun = Totals(faults=faults, strategy=strategy), time.monotonic()
    with view.Progress(Console(stderr=True), seeds=len(asks), plain=plain) as progress:
        for found in attempts(asks, jobs=min(jobs or os.cpu_count() or 1, len(asks))):
            totals.add(found)
            progress.on_found(violated=len(totals.violated))
    document = {**totals.document(), "real_s": time.monotonic() - begun}
    _tell(document, as_json=as_json)
    return 1 if totals.violated else 0


def seed_range(text: str) -> range:
    """Seeds as ``START:STOP``, half-open, or one seed.

    Raises:
        UsageError: anything else.
    """
    start, colon, stop = text.partition(":")
    if start.isdecimal() and (stop.isdecimal() if colon else True):
        seeds = range(int(start), int(stop) if colon else int(start) + 1)
        if 0 < len(seeds) <= _SEEDS_MAX:
            return seeds
    raise UsageError(f"--seeds {text[:40]!r} is not understood", mend="Use START:STOP, for example 0:500")


def _tell(document: Mapping[str, object], *, as_json: bool) -> None:
    from rich.console import Console

    from hermes_iot.reporting.summary import envelope
    from hermes_iot.reporting.trials import render

    violated = document["violated"]
    assert isinstance(violated, list)  # noqa: S101 - `Totals.document` makes one
    if as_json:
        sys.stdout.write(envelope(document, kind="trials", ok=not violated) + "\n")
    else:
        render(document, Console())
    for one in violated:
        sys.stderr.write(f"hermes-iot: seed {one['seed']}: {one['invariant']} is violated. {one['replay']}\n")
