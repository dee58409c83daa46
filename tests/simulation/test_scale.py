"""How large a fleet may be: time and memory of the command a person types, and what one event costs in fleets of any size.

Seconds are the processor's, so that neighbours on the same machine do not decide the outcome.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.runtime.simulation.benches import equipment_of
from hermes_iot.runtime.simulation.outcome import SimLimits
from hermes_iot.runtime.simulation.profiles import fleet_of, link_of
from hermes_iot.runtime.simulation.run import simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GIB = 1024 * 1024  # in the kilobytes that Linux counts resident memory in
STRATEGIES = ("hermes-plus", "hermes")
#: A machine's caches hold a hundred boards and not ten thousand: what each event touches is then further away. Work
#: that grew with the fleet would cost ten times as much at ten times the size.
DEARER_MAX = 2.0


def simulated(*words):
    """The command's document, its processor seconds and its largest resident memory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HERMES_")}
    command = [sys.executable, "-m", "hermes_iot", "simulate", *words, "--plain", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return json.loads(out), used.ru_utime + used.ru_stime, used.ru_maxrss


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("words", "seconds_max", "virtual_s"),
    [(("--fleet", "edge1000", "--hours", "1"), 60, 3600), (("--fleet", "edge10000", "--virtual", "10m"), 180, 600)],
)
def test_a_large_fleet_is_simulated_in_little_time_and_memory(capsys, strategy, words, seconds_max, virtual_s):
    document, seconds, memory = simulated(*words, "--strategy", strategy)
    tell(capsys, f"{strategy} {' '.join(words)}: {seconds:.1f} s, {memory / 1024:.0f} MiB, {document['events']} events")
    assert document["wall_s"] == pytest.approx(virtual_s)
    assert all(row["updates_applied"] > 0 for row in document["devices"])
    assert seconds < seconds_max
    assert memory < GIB


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_event_costs_the_same_in_a_fleet_of_any_size(capsys, strategy):
    costs = {boards: microseconds(strategy, boards) for boards in (100, 1_000, 10_000)}
    tell(capsys, ", ".join(f"{strategy}, {boards} boards: {cost:.1f} us/event" for boards, cost in costs.items()))
    assert costs[10_000] < DEARER_MAX * costs[1_000]


def tell(capsys, line):
    """A person who waits for minutes wants to see what for."""
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")


def microseconds(strategy, boards):
    """Processor time of one event, in so large a fleet of the same mixture."""
    fleet = fleet_of("edge10000")
    groups = tuple(replace(group, count=group.count * boards // fleet.devices) for group in fleet.groups)
    config = RunConfig(task="cost", strategy=strategy)
    equipment = equipment_of(config, devices=boards, data_dir=None)
    begun = time.process_time()
    outcome = simulate(
        config,
        fleet=replace(fleet, groups=groups),
        link=link_of("wifi20"),
        bench=equipment.bench,
        trainer_of=equipment.trainer_of,
        until=SimLimits(virtual_s=120),
    )
    return (time.process_time() - begun) / outcome.events * 1e6
