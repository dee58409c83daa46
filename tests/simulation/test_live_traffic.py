"""What a fleet sends live over Mosquitto and what it sends in the simulator: the ratio of two strategies is the same.

The quantity is model bytes, both ways and chunk headers included, as the coordinator counts them, in a run of so many
pushes: per push (codec, chunks, answers) and per local iteration (with it, how seldom the gate lets a device speak).
What boards count themselves is held against the simulator's links in `test_runs`: here it has reports in it that go by
the time a loaded machine takes.
Bytes per mini-batch are not compared: how many of them hermes-plus puts into an iteration follows the speed of the
machine at that moment, which two processes that share it do not have twice. Keyframes go by wall time, so only the
first and the last one are sent. The simulated boards are those that the live run's records tell of.
"""

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime import strategies
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
from hermes_iot.runtime.simulation.benches import equipment_of
from hermes_iot.runtime.simulation.measured import Told, fleet_of_records
from hermes_iot.runtime.simulation.outcome import SimLimits
from hermes_iot.runtime.simulation.profiles import LinkProfile
from hermes_iot.runtime.simulation.run import simulate
from hermes_iot.runtime.trainers import for_coordinator, for_device
from tests.support.fleet import Records, over_mqtt, running

pytestmark = pytest.mark.mosquitto

#: Idle for most of the time: three boards on one processor would else measure each other.
SLOWDOWNS = {"pi-01": 8.0, "pi-02": 10.0, "pi-03": 24.0}
PUSHES = 42
SETTINGS = CoordinatorSettings(linger_s=2.0, keyframe_interval_s=1e6)
#: Half a second for an iteration of hermes-plus instead of two.
CONSTANTS = {"hermes-plus": {"shares": {"target_s": 0.5}}, "bsp": {}}
LOOPBACK = LinkProfile(up_mbit=10_000, down_mbit=10_000, latency_s=0.0005)


def config_of(strategy):
    rules = StopRules(max_pushes=PUSHES)
    return RunConfig(task="digits", strategy=strategy, constants=CONSTANTS[strategy], seed=5, rules=rules)


def live(url, directory, strategy):
    """Summary and records of a run over Mosquitto."""
    config, records, connect = config_of(strategy), Records(), over_mqtt(url)
    fleet = f"traffic-{strategy}"
    coordinator = CoordinatorRunner(
        config,
        fleet=fleet,
        run_dir=directory / "run",
        bench=for_coordinator(config, data_dir=None),
        connect=connect,
        on_record=records,
        settings=SETTINGS,
    )
    devices = [
        DeviceRunner(
            DeviceConfig(
                fleet=fleet,
                device=name,
                state_dir=directory / name,
                slowdown=slowdown,
                settings=DeviceSettings(once=True),
            ),
            connect=connect,
            trainer_of=for_device(task=None, data_dir=None, rows=None),
        )
        for name, slowdown in SLOWDOWNS.items()
    ]
    with running(coordinator) as leading, running(*devices):
        summary = leading.wait(60.0)
    return summary, [{"event": event, **fields} for event, fields in records.all]


def simulated(strategy, summary, records):
    """The same fleet in the simulator: its summary."""
    config = config_of(strategy)
    waits = strategies.resolve(strategy).build(config.constants)[0].regime.waits
    fleet, left_out = fleet_of_records(
        records,
        told={
            row["device"]: Told(batch_s=row["batch_s"], mini_batches=row["mini_batches"]) for row in summary["devices"]
        },
        wall_s=summary["wall_s"],
        links=not waits,
        name="traffic",
        task="digits",
    )
    assert left_out == ()
    equipment = equipment_of(config, devices=fleet.devices, data_dir=None)
    until = SimLimits(virtual_s=600)
    given = {"bench": equipment.bench, "trainer_of": equipment.trainer_of, "until": until, "settings": SETTINGS}
    return simulate(config, fleet=fleet, link=LOOPBACK, **given).summary


def traffic(summary):
    """Model bytes per push and per local iteration."""
    assert summary["updates_applied"] == PUSHES
    sent = sum(summary["bytes_by_kind"][way]["model"] for way in ("up", "down"))
    return sent / summary["updates_received"], sent / summary["iterations"]


@pytest.fixture(scope="module")
def measured(mosquitto, tmp_path_factory):
    """(live, simulated) traffic by strategy."""
    found = {}
    for strategy in CONSTANTS:
        summary, records = live(mosquitto, tmp_path_factory.mktemp(strategy), strategy)
        assert {row["device"] for row in summary["devices"]} == set(SLOWDOWNS)
        found[strategy] = traffic(summary), traffic(simulated(strategy, summary, records))
    return found


@pytest.mark.parametrize("per", [0, 1], ids=["push", "iteration"])
def test_live_and_simulated_ratios_of_bytes_agree(measured, per):
    live_ratio, simulated_ratio = (
        measured["bsp"][where][per] / measured["hermes-plus"][where][per] for where in (0, 1)
    )
    assert live_ratio > 5, "hermes-plus sends few bytes, whatever they are counted for"
    assert live_ratio == pytest.approx(simulated_ratio, rel=0.1)


@pytest.mark.parametrize("strategy", CONSTANTS)
def test_a_push_costs_the_same_bytes_live_and_simulated(measured, strategy):
    """A whole model's length hardly depends on what was learnt; how many entries a difference has, and where, does."""
    (per_push, _), (simulated_push, _) = measured[strategy]
    assert per_push == pytest.approx(simulated_push, rel={"bsp": 0.03, "hermes-plus": 0.1}[strategy])
