"""The simulated coordinator is the live one: the same events, at the same times, make the same model."""

import hashlib
from dataclasses import replace

import pytest

from hermes_iot.core.coordinator import Coordinator
from hermes_iot.core.settings import DeviceSettings
from hermes_iot.protocol.messages import CoordinatorStatus
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime import strategies
from hermes_iot.runtime.simulation.bridge import SimulatedCoordinator
from hermes_iot.runtime.simulation.clock import VirtualClock
from hermes_iot.runtime.simulation.ledger import Ledger
from hermes_iot.runtime.simulation.network import Network
from hermes_iot.runtime.simulation.world import World
from hermes_iot.transport.base import Connected, Delivery
from tests.support.fleet import Lockstep, in_memory

PACES = {"pi-01": 0.001, "pi-02": 0.0016, "pi-03": 0.008, "pi-04": 0.001}


def fresh(live):
    """A machine as the live one was at its beginning."""
    runner, config = live, live.config
    strategy, _ = strategies.resolve(config.strategy).build(config.constants)
    manifest = replace(runner.machine.manifest, state="running", reason="")
    return Coordinator(
        manifest=manifest,
        status=CoordinatorStatus(state="online", session="another"),
        strategy=strategy,
        initial=runner.bench.trainer.initial(config.seed),
        score=lambda params: runner.bench.trainer.score(params, config.score_on),
        settings=runner.machine.settings,
        now=0.0,
    )


def replayed(machine, events, fleet):
    """The events through the simulated shell; the machine's timers ring when they rang live."""
    topics = Topics(fleet)
    clock = VirtualClock()
    ledger = Ledger(topics)
    world = World(
        clock=clock,
        ledger=ledger,
        network=Network(clock, ledger),
        topics=topics,
        seed=0,
        settings=DeviceSettings(),
        strategy_of=strategies.from_manifest,
    )
    merges = []
    shell = SimulatedCoordinator(
        machine, world=world, observe=lambda event, fields: merges.append(fields) if event == "merge" else None
    )
    for now, event in events:
        clock.now = now
        if event is None:
            shell._expire()
        else:
            shell._handle(event)
    return merges


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A live run in lockstep, and everything its coordinator's machine was told."""
    fleet = "replay"
    with Lockstep(in_memory(), tmp_path, fleet=fleet, paces=PACES, toy={"rows": 400}) as live:
        runner, events = live.coordinator, []
        handle, expire = runner.handle, runner.expire

        def handling(event):
            if isinstance(event, Connected | Delivery):
                events.append((live.clock(), event))
            handle(event)

        def expiring():
            events.append((live.clock(), None))
            expire()

        monkeypatch.setattr(runner, "handle", handling)
        monkeypatch.setattr(runner, "expire", expiring)
        summary = live.run()
        yield live, events, summary


def test_a_live_run_replayed_in_the_simulator_makes_the_same_models(recorded):
    live, events, summary = recorded
    machine = fresh(live.coordinator)
    merges = replayed(machine, events, live.coordinator.fleet)
    assert hashlib.sha256(machine.model.tobytes()).hexdigest() == live.final
    assert machine.version == live.models[-1][0] == len(merges) > 5
    assert machine.tally.received == summary["updates_received"]
    assert machine.manifest.reason == summary["reason"]


def test_a_run_with_one_update_left_out_makes_another_model(recorded):
    """The comparison above would notice."""
    live, events, _ = recorded
    chosen = [
        number
        for number, (_, event) in enumerate(events)
        if event is not None and "/update" in getattr(event, "topic", "")
    ]
    del events[chosen[0]]
    machine = fresh(live.coordinator)
    replayed(machine, events, live.coordinator.fleet)
    assert hashlib.sha256(machine.model.tobytes()).hexdigest() != live.final
