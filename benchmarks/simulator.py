"""Where the simulator's time goes: processor time per event in fleets of 100, 1,000 and 10,000 boards, and by module.

Ratios within one run: seconds on a shared machine say little by themselves.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import hermes_iot
from hermes_iot.config import RunConfig
from hermes_iot.runtime.simulation.benches import equipment_of
from hermes_iot.runtime.simulation.outcome import Outcome, SimLimits
from hermes_iot.runtime.simulation.profiles import fleet_of, link_of
from hermes_iot.runtime.simulation.run import simulate

SIZES = (100, 1_000, 10_000)
SOURCES = Path(hermes_iot.__file__).parent


def simulated(strategy: str, boards: int, virtual_s: float) -> Outcome:
    """So large a fleet of edge10000's mixture, with the cost model."""
    fleet = fleet_of("edge10000")
    groups = tuple(replace(group, count=group.count * boards // fleet.devices) for group in fleet.groups)
    config = RunConfig(task="cost", strategy=strategy)
    equipment = equipment_of(config, devices=boards, data_dir=None)
    return simulate(
        config,
        fleet=replace(fleet, groups=groups),
        link=link_of("wifi20"),
        bench=equipment.bench,
        trainer_of=equipment.trainer_of,
        until=SimLimits(virtual_s=virtual_s),
    )


def cost(strategy: str, boards: int, virtual_s: float) -> dict[str, Any]:
    """Processor time of one event."""
    begun = time.process_time()
    events = simulated(strategy, boards, virtual_s).events
    seconds = time.process_time() - begun
    return {"boards": boards, "events": events, "cpu_s": round(seconds, 2), "us_per_event": seconds / events * 1e6}


def profile(strategy: str, boards: int, virtual_s: float) -> list[dict[str, Any]]:
    """Own time by module of ours, and by package of others, largest first."""
    profiler = cProfile.Profile()
    profiler.runcall(simulated, strategy, boards, virtual_s)
    spent: Counter[str] = Counter()
    for (file, _line, name), (_calls, _all, own, _below, _callers) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        spent[_place(file, name)] += own
    whole = sum(spent.values())
    return [{"where": where, "share": own / whole} for where, own in spent.most_common(15)]


def _place(file: str, name: str) -> str:
    path = Path(file)
    if path.is_relative_to(SOURCES):
        return path.relative_to(SOURCES).as_posix()
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1]
    return name if file == "~" else path.stem


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", default="hermes-plus")
    parser.add_argument("--virtual", type=float, default=120.0, metavar="S", help="virtual seconds [default: 120]")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here as well")
    given = parser.parse_args()
    cost(given.strategy, SIZES[0], 10.0)  # the first run pays for imports
    costs = [cost(given.strategy, boards, given.virtual) for boards in SIZES]
    document = {
        "strategy": given.strategy,
        "virtual_s": given.virtual,
        "costs": costs,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "own_time": profile(given.strategy, SIZES[1], given.virtual),
    }
    text = json.dumps(document) + "\n"
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text)
    if given.json:
        sys.stdout.write(text)
        return
    lines = [f"{given.strategy}, {given.virtual:g} virtual seconds, peak {document['peak_mib']:.0f} MiB"]
    for row in costs:
        ratio = row["us_per_event"] / costs[0]["us_per_event"]
        lines.append(
            f"  {row['boards']:6,} boards {row['events']:9,} events {row['cpu_s']:7.2f} s"
            f" {row['us_per_event']:6.1f} us an event  {ratio:4.2f}x"
        )
    lines.append(f"own time with {SIZES[1]:,} boards")
    lines += [f"  {row['share']:6.1%}  {row['where']}" for row in document["own_time"]]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
