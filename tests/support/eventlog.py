"""Everything a live coordinator's machine was told and when, and the same told to a fresh machine in the simulator."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace

from hermes_iot.core.coordinator import Coordinator
from hermes_iot.core.settings import DeviceSettings
from hermes_iot.protocol.messages import CoordinatorStatus
from hermes_iot.runtime import strategies
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.simulation.bridge import SimulatedCoordinator
from hermes_iot.runtime.simulation.clock import VirtualClock
from hermes_iot.runtime.simulation.ledger import Ledger
from hermes_iot.runtime.simulation.network import Network
from hermes_iot.runtime.simulation.world import World
from hermes_iot.transport.base import Connected, Delivery, Disconnected


class HeldClock:
    """Seconds that stand still while an event is handled, so that its time is one number."""

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._held: float | None = None

    def __call__(self) -> float:
        return self._source() if self._held is None else self._held

    def hold(self) -> float:
        self._held = self._source()
        return self._held

    def release(self) -> None:
        self._held = None


class EventLog:
    """What a runner with this clock handles from now on.

    Attributes:
        begun: when the machine was made.
        events: (time, event), oldest first; None for a timer that rang.
    """

    def __init__(self, runner: CoordinatorRunner, clock: HeldClock) -> None:
        self.runner = runner
        self.begun = runner.machine._watch.started_at
        self.events: list[tuple[float, object]] = []
        handle, expire = runner.handle, runner.expire

        def handling(event: object) -> None:
            now = clock.hold()
            # Who leads is looked into by the live shell alone.
            ours = isinstance(event, Delivery) and not runner._leadership.concerns(event)
            if ours or isinstance(event, Connected | Disconnected):
                self.events.append((now, event))
            try:
                handle(event)
            finally:
                clock.release()

        def expiring() -> None:
            self.events.append((clock.hold(), None))
            try:
                expire()
            finally:
                clock.release()

        runner.handle, runner.expire = handling, expiring

    def fresh(self) -> Coordinator:
        """A machine as the live one was at its beginning."""
        runner, config = self.runner, self.runner.config
        said = runner.machine._status
        strategy, _ = strategies.resolve(config.strategy).build(config.constants)
        return Coordinator(
            manifest=replace(runner.machine.manifest, state="running", reason=""),
            status=CoordinatorStatus(state="online", session=said.session, host=said.host, software=said.software),
            strategy=strategy,
            initial=runner.bench.trainer.initial(config.seed),
            score=lambda params: runner.bench.trainer.score(params, config.score_on),
            settings=runner.machine.settings,
            now=self.begun,
        )

    def replay(self, *, without: int | None = None) -> tuple[Coordinator, list[tuple[int, str]]]:
        """Through the simulator's shell, perhaps without the event of that number.

        The machine at the end, and version and digest of each model it had.
        """
        machine, topics, clock = self.fresh(), self.runner.topics, VirtualClock()
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
        models: list[tuple[int, str]] = []
        shell = SimulatedCoordinator(
            machine,
            world=world,
            observe=lambda event, _fields: models.append(model_of(machine)) if event == "merge" else None,
        )
        shell.start()  # so that there is somebody to send to; what it hears there is never handled
        for number, (now, event) in enumerate(self.events):
            if number == without:
                continue
            clock.now = now
            if event is None:
                shell._expire()
            else:
                shell._handle(event)
        return machine, models


def model_of(machine: Coordinator) -> tuple[int, str]:
    """Version and SHA-256 of the vector served."""
    return machine.version, hashlib.sha256(machine.model.tobytes()).hexdigest()
