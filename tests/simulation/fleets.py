"""Small fleets of toys for the tests of the simulator."""

from __future__ import annotations

import functools

from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.simulation.outcome import SimLimits
from hermes_iot.runtime.simulation.profiles import FleetProfile, Group, LinkProfile
from hermes_iot.runtime.simulation.run import simulate
from tests.support.fleet import toy_bench, toy_config

LINK = LinkProfile(up_mbit=8, down_mbit=8, latency_s=0.02, notice_s=1.0)
FOUR = FleetProfile(
    batch_s=0.01,
    jitter=0.07,
    groups=(Group(name="fast", slowness=1.0, count=2), Group(name="slow", slowness=4.0, count=2)),
)


def toy_run(fleet=FOUR, *, link=LINK, virtual_s=30.0, config=None, bench=None, trainer_of=None, stop=None, **options):
    """A run of toys that only the virtual time ends."""
    config = config or toy_config(rules=StopRules())
    bench = bench or toy_bench(config)
    return simulate(
        config,
        fleet=fleet,
        link=link,
        bench=bench,
        trainer_of=trainer_of or (lambda _number: bench.trainer),
        until=SimLimits(virtual_s=virtual_s, stop=stop),
        **options,
    )


@functools.cache
def four_for_half_a_minute():
    """The run that `toy_run` makes when nothing is asked of it, for those who only look at what came of it."""
    return toy_run()


def devices(outcome):
    """The summary's rows by name."""
    return {row["device"]: row for row in outcome.summary["devices"]}
