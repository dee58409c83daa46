"""Every strategy leads a live fleet to its end, and those with a barrier go on when a device dies."""

import threading
import time

import numpy as np
import pytest

from hermes_iot.algorithms.strategies import STRATEGIES
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime import strategies
from hermes_iot.transport.memory import MemoryBroker
from tests.support.fleet import Records, in_memory, over_mqtt, running, toy_config, toy_coordinator, toy_device

DEVICES = ("pi-01", "pi-02", "pi-03")
PUSHES = 24
FATES = ("applied", "duplicate", "stale", "rejected")
#: Iterations as short as a toy's others, instead of two seconds.
CONSTANTS = {"hermes-plus": {"shares": {"target_s": 0.02}}}
#: Those whose devices wait for each other. With `single` they wait as well, but one does all the work.
BARRIERS = sorted(
    name for name in STRATEGIES if name != "single" and strategies.resolve(name).build({})[0].regime.waits
)


@pytest.fixture(params=["memory", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def connect(request):
    """Ways to a broker."""
    return in_memory() if request.param == "memory" else over_mqtt(request.getfixturevalue("mosquitto"))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_live_fleet_reaches_its_stop_rule(strategy, connect, tmp_path):
    fleet = f"every-{strategy}"
    coordinator = toy_coordinator(
        connect,
        tmp_path / "run",
        fleet=fleet,
        config=toy_config(strategy=strategy, constants=CONSTANTS.get(strategy, {}), rules=StopRules(max_pushes=PUSHES)),
        settings=CoordinatorSettings(linger_s=2.0, resize_interval_s=0.05),
    )
    devices = [toy_device(connect, tmp_path, name, fleet=fleet) for name in DEVICES]
    with running(coordinator) as leading, running(*devices):
        summary = leading.wait()
    assert summary["reason"] == f"{PUSHES} updates applied"
    assert summary["updates_received"] == sum(summary[f"updates_{fate}"] for fate in FATES)
    assert summary["updates_applied"] == PUSHES
    assert summary["model_version"] > 0
    assert np.isfinite(coordinator.machine.model).all()
    trainer = coordinator.bench.trainer
    assert summary["loss"] < trainer.score(trainer.initial(coordinator.config.seed), "test").loss
    assert {row["device"] for row in summary["devices"]} == set(DEVICES)


def test_bulk_synchronous_training_is_among_those_with_a_barrier():
    assert "bsp" in BARRIERS
    assert "asp" not in BARRIERS


@pytest.mark.parametrize("strategy", BARRIERS)
def test_a_barrier_does_not_wait_for_a_device_that_died(strategy, tmp_path):
    """Its line is cut in the middle of the run; once its will is out the others go on without it."""
    broker, records = MemoryBroker(clock=time.monotonic), Records()
    connect = in_memory(broker)
    coordinator = toy_coordinator(
        connect,
        tmp_path / "run",
        config=toy_config(strategy=strategy, rules=StopRules()),
        settings=CoordinatorSettings(linger_s=2.0, resize_interval_s=0.05),
        on_record=records,
    )
    with running(coordinator), running(*(toy_device(connect, tmp_path, name) for name in DEVICES)):
        for name in DEVICES:
            records.wait("merge", 3, device=name)
        broker.drop("pi-03")
        broker._clock = lambda: time.monotonic() + 60  # the will is delayed
        broker.expire()
        records.wait("left", device="pi-03")
        left = records.all.index(next(one for one in records.all if one[0] == "left"))
        version = max(fields["version"] for event, fields in records.all[:left] if event == "merge")
        for name in ("pi-01", "pi-02"):
            records.until("merge", lambda one, name=name: one["device"] == name and one["version"] > version + 2, 2)
        later = {fields["device"] for event, fields in records.all[left:] if event == "merge"}
    assert later == {"pi-01", "pi-02"}


@pytest.mark.parametrize("strategy", BARRIERS)
def test_a_barrier_holds_while_nobody_leads_and_after_a_resume(strategy, tmp_path):
    """No device runs ahead meanwhile, and what waited for a leader is merged as if it had never been away."""
    broker = MemoryBroker(clock=time.monotonic)
    connect = in_memory(broker)
    settings = CoordinatorSettings(linger_s=2.0, resize_interval_s=0.05)

    def leader(records, **rules):
        return toy_coordinator(
            connect,
            tmp_path / "run",
            config=toy_config(strategy=strategy, rules=StopRules(**rules)),
            settings=settings,
            on_record=records,
        )

    before, after = Records(), Records()
    with running(*(toy_device(connect, tmp_path, name) for name in DEVICES)) as boards:
        with running(leader(before)) as leading:
            for name in DEVICES:
                before.wait("merge", 3, device=name)
            leading.leave()
            leading.wait()
        made = [board.runner.machine.part.learner for board in boards]
        stood = threading.Event()
        for _ in range(200):  # until nobody moves any more
            iterations = [learner.iterations for learner in made]
            stood.wait(0.1)
            if iterations == [learner.iterations for learner in made]:
                break
        assert iterations == [learner.iterations for learner in made]
        with running(leader(after, max_pushes=2 * PUSHES)) as leading:
            summary = leading.wait()
    lags = [fields["lag"] for event, fields in after.all if event == "merge"]
    assert max(lags) <= 4 * len(DEVICES), "ssp's bound: three iterations ahead of the slowest"
    assert summary["updates_applied"] >= 2 * PUSHES
    assert summary["updates_received"] == sum(summary[f"updates_{fate}"] for fate in FATES)
