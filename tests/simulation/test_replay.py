"""The simulated coordinator is the live one: the same events, at the same times, make the same models."""

import pytest

from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from tests.support.eventlog import EventLog, HeldClock, model_of
from tests.support.fleet import Lockstep, in_memory, over_mqtt, running, toy_config, toy_coordinator, toy_device

PACES = {"pi-01": 0.001, "pi-02": 0.0016, "pi-03": 0.008, "pi-04": 0.001}
STRATEGIES = ("hermes", "hermes-plus", "bsp")
#: In real time, iterations as short as a toy's others.
CONSTANTS = {"hermes-plus": {"shares": {"target_s": 0.02}}}
RULES = StopRules(max_pushes=24)


def told(machine):
    """What a run comes to, wall time apart."""
    summary = machine.summary(machine.score)
    return {key: value for key, value in summary.items() if key != "wall_s"}, machine.manifest.reason


@pytest.fixture(scope="module", params=STRATEGIES)
def lockstep(request, tmp_path_factory):
    """A run in lockstep, in memory and virtual time: (its log, the models it had)."""
    directory = tmp_path_factory.mktemp(request.param)
    with Lockstep(
        in_memory(), directory, fleet="replay", paces=PACES, toy={"rows": 400}, strategy=request.param, rules=RULES
    ) as live:
        log = EventLog(live.coordinator, HeldClock(live.clock))
        live.run()
        yield log, live.models


def test_a_live_run_replayed_in_the_simulator_makes_the_same_models(lockstep):
    log, models = lockstep
    machine, replayed = log.replay()
    assert replayed == models[1:]
    assert len({digest for _, digest in replayed}) > 5
    assert model_of(machine) == models[-1]
    assert told(machine) == told(log.runner.machine)
    assert machine.progress.elapsed_s == log.runner.machine.progress.elapsed_s > 0


def test_a_run_with_one_update_left_out_makes_another_model(lockstep):
    """The comparison above would notice."""
    log, models = lockstep
    first = next(number for number, (_, event) in enumerate(log.events) if "/update" in getattr(event, "topic", ""))
    machine, replayed = log.replay(without=first)
    assert replayed != models[1:]
    assert model_of(machine)[1] != models[-1][1]


@pytest.mark.mosquitto
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_log_of_a_run_over_mosquitto_makes_the_same_models_in_the_simulator(mosquitto, tmp_path, strategy):
    """Threads, real time, whatever order the broker makes of it: the coordinator's log is all that counts."""
    fleet, clock, models = f"replay-{strategy}", HeldClock(), []
    connect = over_mqtt(mosquitto)

    def observe(event, _fields):
        if event == "merge":
            models.append(model_of(coordinator.machine))

    coordinator = toy_coordinator(
        connect,
        tmp_path / "run",
        fleet=fleet,
        config=toy_config(strategy=strategy, constants=CONSTANTS.get(strategy, {}), rules=RULES),
        clock=clock,
        on_record=observe,
        settings=CoordinatorSettings(linger_s=2.0, resize_interval_s=0.0),
    )
    log = EventLog(coordinator, clock)
    with (
        running(coordinator) as leading,
        running(*(toy_device(connect, tmp_path, name, fleet=fleet) for name in PACES)),
    ):
        summary = leading.wait()
    machine, replayed = log.replay()
    assert replayed == models
    assert len({digest for _, digest in replayed}) > 5
    assert machine.tally.received == summary["updates_received"] >= RULES.max_pushes
    assert told(machine) == told(coordinator.machine)
    assert {row["device"] for row in summary["devices"]} == set(PACES)
