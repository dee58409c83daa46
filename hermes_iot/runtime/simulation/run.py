"""One simulated run from its settings to its outcome."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from hermes_iot import __version__
from hermes_iot.algorithms.strategies.base import Strategy
from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import Coordinator, CoordinatorSettings
from hermes_iot.core.settings import DeviceSettings
from hermes_iot.protocol.messages import CoordinatorStatus, StrategyInfo
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime import strategies
from hermes_iot.runtime.manifest import first_size, manifest_of
from hermes_iot.runtime.simulation.benches import COST
from hermes_iot.runtime.simulation.board import SimulatedBoard
from hermes_iot.runtime.simulation.bridge import SESSION, SimulatedCoordinator
from hermes_iot.runtime.simulation.clock import VirtualClock
from hermes_iot.runtime.simulation.gates import gates_of
from hermes_iot.runtime.simulation.ledger import Ledger
from hermes_iot.runtime.simulation.network import Network
from hermes_iot.runtime.simulation.outcome import Outcome, Point, SimLimits
from hermes_iot.runtime.simulation.profiles import Availability, FleetProfile, Group, LinkProfile
from hermes_iot.runtime.simulation.timeline import STRETCHES_MAX, Timeline
from hermes_iot.runtime.simulation.world import World
from hermes_iot.runtime.trainers import Bench
from hermes_iot.training.base import Trainer

#: Stretches of all boards' timelines together: a chart's size does not grow with the fleet.
_STRETCHES_IN_ALL: Final = 200_000

#: Net allocations between two looks for cycles.
_ALLOCATIONS: Final = 500_000

Observe = Callable[[str, Mapping[str, Any]], None]


def simulate(
    config: RunConfig,
    *,
    fleet: FleetProfile,
    link: LinkProfile,
    bench: Bench,
    trainer_of: Callable[[int], Trainer],
    until: SimLimits,
    observe: Observe | None = None,
    settings: CoordinatorSettings | None = None,
) -> Outcome:
    """Run a fleet in virtual time.

    Args:
        config: the run's settings, as a coordinator takes them; its rules end the run as well.
        fleet: the boards.
        link: between each of them and the broker, where their group says nothing else.
        bench: what the coordinator measures with and ships from.
        trainer_of: what the board of this number, from 0, trains with; one may serve them all. Rows that are shipped
            are found by a lookup the caller gave to it, see `shelf.Shards`.
        until: when it ends besides.
        observe: told of the coordinator's records, of each ``point`` of the curve, and of ``time`` as it passes.
        settings: the coordinator's timing.
    """
    simulation = _Simulation(
        config,
        fleet=fleet,
        link=link,
        bench=bench,
        trainer_of=trainer_of,
        until=until,
        observe=observe,
        settings=settings or CoordinatorSettings(),
    )
    return simulation.run()


class _Simulation:
    def __init__(
        self,
        config: RunConfig,
        *,
        fleet: FleetProfile,
        link: LinkProfile,
        bench: Bench,
        trainer_of: Callable[[int], Trainer],
        until: SimLimits,
        observe: Observe | None,
        settings: CoordinatorSettings,
    ) -> None:
        self._config, self._fleet, self._bench, self._until = config, fleet, bench, until
        self._observe = observe
        self._curve: list[Point] = []
        strategy, info = strategies.resolve(config.strategy).build(config.constants, seed=config.seed)
        topics = Topics("simulated")
        clock = VirtualClock()
        ledger = Ledger(topics)
        self._world = World(
            clock=clock,
            ledger=ledger,
            network=Network(clock, ledger),
            topics=topics,
            seed=config.seed,
            settings=DeviceSettings(),
            strategy_of=_strategy_of(config, info),
            rows_are_own=config.data_mode == "local",
            gates=gates_of(config),
        )
        self._coordinator = SimulatedCoordinator(
            self._machine(strategy, info, settings), world=self._world, observe=observe
        )
        self._boards = [
            self._board(number, name, group, link, trainer_of)
            for number, (name, group) in enumerate((name, group) for group in fleet.groups for name in group.devices)
        ]

    def _machine(self, strategy: Strategy[Any, Any], info: StrategyInfo, settings: CoordinatorSettings) -> Coordinator:
        config, bench = self._config, self._bench
        return Coordinator(
            manifest=manifest_of(f"simulated-{config.seed}", config, bench, info, strategy.regime),
            status=CoordinatorStatus(state="online", session=SESSION, host="simulated", software=__version__),
            strategy=strategy,
            initial=bench.trainer.initial(config.seed),
            score=lambda params: bench.trainer.score(params, config.score_on),
            settings=replace(
                settings,
                checkpoint_interval_s=math.inf,  # they would be thrown away
                rules=config.rules,
                first=first_size(config, bench, strategy.regime, settings.first),
                codec_for=config.codec_for,
                lag_max=config.lag_max,
            ),
            shard_of=bench.shard_of,
            now=0.0,
        )

    def _board(
        self, number: int, name: str, group: Group, link: LinkProfile, trainer_of: Callable[[int], Trainer]
    ) -> SimulatedBoard:
        own = 1.0
        if group.spread:
            own = float(self._world.chance(name, "slowness").lognormal(0.0, group.spread))
        return SimulatedBoard(
            name,
            group=group,
            world=self._world,
            batch_s=self._fleet.batch_s * group.slowness * own,
            jitter=self._fleet.jitter if group.jitter is None else group.jitter,
            forward_share=self._fleet.forward_share,
            link=group.link.over(link) if group.link is not None else link,
            trainer=partial(trainer_of, number),
            timeline=Timeline(most=max(20, min(STRETCHES_MAX, _STRETCHES_IN_ALL // self._fleet.devices))),
        )

    # --- the course of time ---------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """To the end."""
        clock = self._world.clock
        self._coordinator.start()
        for board in self._boards:
            self._plan(board)
        clock.at(self._until.virtual_s, partial(self._coordinator.finish, f"{self._until.virtual_s:g} virtual seconds"))
        self._look()
        with _rare_collections():
            while self._coordinator.running:
                clock.step()
        return self._outcome()

    def _plan(self, board: SimulatedBoard) -> None:
        """A board's comings and goings that are known beforehand."""
        clock, group = self._world.clock, board.group
        for stay in group.stays:
            clock.at(stay.from_s, board.power_on)
            if stay.until_s is not None:
                clock.at(stay.until_s, board.leave if stay.orderly else board.power_off)
        if group.stays:
            return
        clock.at(group.join_at_s, board.power_on)
        if group.leave_at_s is not None:
            clock.at(group.leave_at_s, board.leave)
        if group.crash_at_s is not None:
            clock.at(group.crash_at_s, board.power_off)
        if group.availability is not None:
            self._come_and_go(board, group.availability, group.join_at_s)

    def _come_and_go(self, board: SimulatedBoard, means: Availability, from_s: float) -> None:
        clock, chance = self._world.clock, self._world.chance(board.name, "availability")

        def go() -> None:
            board.power_off()
            clock.at(clock.now + float(chance.exponential(means.down_s)), come)

        def come() -> None:
            board.power_on()
            clock.at(clock.now + float(chance.exponential(means.up_s)), go)

        clock.at(from_s + float(chance.exponential(means.up_s)), go)

    def _look(self) -> None:
        """On the grid: evaluate the model where it is another than at the last look."""
        clock = self._world.clock
        if not self._coordinator.running:
            return
        if self._observe is not None:
            self._observe("time", {"t_s": clock.now})
        self._evaluate()
        clock.at(clock.now + self._until.interval_s, self._look)

    def _evaluate(self) -> None:
        machine, ledger = self._coordinator.machine, self._world.ledger
        if self._curve and self._curve[-1].version == machine.version:
            return
        score, validation = self._bench.trainer.score(machine.model, "test"), machine.score
        both = {kind: ledger.total.up[kind] + ledger.total.down[kind] for kind in ledger.total.up}
        point = Point(
            # At the end the model is as old as the run; the clock has gone on for the devices' last words.
            t_s=min(self._world.clock.now, machine.progress.elapsed_s) if machine.finished else self._world.clock.now,
            version=machine.version,
            bytes_model=both["model"],
            bytes_data=both["data"],
            bytes_control=both["control"],
            pushes=machine.tally.received - machine.tally.duplicate,
            iterations=ledger.work.iterations,
            samples=ledger.work.samples,
            loss=score.loss,
            accuracy=score.accuracy,
            validation_loss=validation.loss if validation is not None else None,
            validation_accuracy=validation.accuracy if validation is not None else None,
        )
        self._curve.append(point)
        if self._observe is not None:
            self._observe("point", asdict(point))
        reason = self._until.stop(self._curve) if self._until.stop is not None else None
        if reason is not None:
            self._coordinator.finish(reason)

    # --- the end --------------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        self._evaluate()
        machine, clock, ledger = self._coordinator.machine, self._world.clock, self._world.ledger
        manifest, test = machine.manifest, self._bench.trainer.score(machine.model, "test")
        for board in self._boards:
            board.timeline.settle(now=clock.now)
        summary = machine.summary(test)
        boards = {board.name: board for board in self._boards}
        devices = [
            {
                **row,
                "train_s": boards[row["device"]].timeline.train_s,
                "energy_j": _energy_j([boards[row["device"]]]),
                "link": ledger.link(row["device"]).document(),
            }
            for row in summary["devices"]
        ]
        return Outcome(
            summary={
                "run": manifest.run,
                "fleet": self._fleet.name,
                "task": manifest.task.name,
                "strategy": manifest.strategy.name,
                "seed": manifest.seed,
                "reason": manifest.reason,
                # The cost model has no rows that its losses could be measured on.
                "scored_on": "modelled" if self._config.task == COST else self._config.score_on,
                **summary,
                "devices": devices,
                "boards": len(self._boards),
                "virtual_s": clock.now,
                "samples": ledger.work.samples,
                "energy_j": _energy_j(self._boards),
                "links": ledger.total.document(),
                "software": __version__,
            },
            curve=tuple(self._curve),
            timeline={board.name: board.timeline.document(now=clock.now) for board in self._boards},
            log_sha256=ledger.log_sha256,
            events=clock.handled,
            gates=self._world.gates.document() if self._world.gates is not None else None,
        )


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for cycles seldom: walking ten thousand live machines every 700 allocations took a third of the time."""
    before = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _energy_j(boards: Iterable[SimulatedBoard]) -> float | None:
    """Of those whose fleet file says what a mini-batch takes; None where it says so of none."""
    known = [board.energy_j for board in boards if board.group.battery is not None]
    return sum(known) if known else None


def _strategy_of(config: RunConfig, led: StrategyInfo) -> Callable[[StrategyInfo], Strategy[Any, Any]]:
    """A device's half, from the manifest as in the field; all boards share what comes of the same manifest."""
    given = config.strategy if config.strategy != led.name else None
    built: list[tuple[StrategyInfo, Strategy[Any, Any]]] = []

    def build(info: StrategyInfo) -> Strategy[Any, Any]:
        if not built or built[0][0] != info:
            built[:] = [(info, strategies.from_manifest(info, given))]
        return built[0][1]

    return build
