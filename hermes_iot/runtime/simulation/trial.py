"""One seed of a fleet under faults: a run of toys that everything happens to, and then nothing any more.

The seed decides all of it: the strategy (they take turns), who holds the rows, the chunk size, the boards, the faults.
For `FAULTY_S` seconds things go wrong; then the world is in order and every device must come to something within
`LIVELY_WITHIN_S`: two iterations, and an update of its that is applied. At the end the coordinator loses power once
more, and what comes back is held against what was. The auditor looks on all the time; equal seeds give equal logs.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np

from hermes_iot.algorithms.compression import pack
from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.settings import DeviceSettings
from hermes_iot.domain import Ranges, Sizing, stable_int
from hermes_iot.protocol.messages import TaskInfo, Update
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire
from hermes_iot.runtime.simulation.audit import Auditor, Violated
from hermes_iot.runtime.simulation.clock import VirtualClock
from hermes_iot.runtime.simulation.fake_disk import FakeDisk
from hermes_iot.runtime.simulation.faults import Faults
from hermes_iot.runtime.simulation.faulty_link import FaultyNetwork
from hermes_iot.runtime.simulation.ledger import Ledger
from hermes_iot.runtime.simulation.processes import Process
from hermes_iot.runtime.simulation.roles import CoordinatorProcess, DeviceProcess
from hermes_iot.runtime.trainers import Bench
from hermes_iot.training.data import lay_out
from hermes_iot.training.shards import encode_shard
from hermes_iot.training.tasks import TaskDefaults
from hermes_iot.training.toy import ToyTrainer
from hermes_iot.transport.memory import MemoryTransport

#: Seconds in which things go wrong.
FAULTY_S: Final = 30.0
#: After them, how long a device may take until it has come to something.
LIVELY_WITHIN_S: Final = 120.0
#: Strategies take turns over seeds, with constants that make a small fleet push often.
STRATEGIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "hermes-plus": {"shares": {"target_s": 1.0}},
    "hermes": {"gate": {"max_age": 4}},
    "bsp": {},
    "asp": {},
    "selsync": {},
    "ssp": {},
    "fedbuff": {},
}
#: Where every update that is applied makes a version of its own.
_ONE_EACH: Final = frozenset({"hermes", "hermes-plus", "asp", "ssp", "fedasync"})
_FLEET: Final = "trial"
_TOY: Final = TaskInfo(name="toy", source_sha256="0" * 64)
_DEVICES: Final = (3, 5)
_QUEUED_MAX: Final = 50
_LOOK_S: Final = 0.5
_STRANGER: Final = "stranger"
#: The shape of the toy: small, but its updates do not fit one chunk of the smallest size.
_TOY_SHAPE: Final[Mapping[str, Any]] = {"seed": 0, "rows": 400, "features": 60, "classes": 10, "spread": 0.8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One trial: a seed, what may go wrong, and the strategy, where it is not the seed's own."""

    seed: int
    faults: tuple[str, ...]
    strategy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of a trial.

    Attributes:
        injected: how often each fault came.
        checks: events after which the invariants were held against somebody.
        applied: updates.
        lives: processes begun.
        exits: by exit code, processes that an error ended.
        deaths: by place, ``disk`` or ``message``, processes that died there.
        torn_tails: journals that were found with less than a whole group at their end (half a mark is no group).
        virtual_s: how long it was.
        log_sha256: over all that happened, in order.
        invariant, what, event: of what was violated; empty where all held.
        trace: where a bug showed.
    """

    seed: int
    strategy: str
    injected: Mapping[str, int] = field(default_factory=dict)
    checks: int = 0
    applied: int = 0
    lives: int = 0
    exits: Mapping[int, int] = field(default_factory=dict)
    deaths: Mapping[str, int] = field(default_factory=dict)
    torn_tails: int = 0
    virtual_s: float = 0.0
    log_sha256: str = ""
    invariant: str = ""
    what: str = ""
    event: str = ""
    trace: str = ""

    @property
    def held(self) -> bool:
        """Whether everything held."""
        return not self.invariant


def attempt(ask: Ask, *, trial: Trial | None = None) -> Found:
    """Run one trial to its end, or to the first thing that must not be. `trial`: one that was tampered with."""
    trial = trial or Trial(ask)
    try:
        trial.run()
    except Violated as error:
        return trial.found(invariant=error.invariant, what=error.why)
    except Exception as error:  # noqa: BLE001 - whatever the software raised on the way is what was looked for
        what = f"{type(error).__name__}: {error}"
        return trial.found(invariant="no bug", what=what, trace=traceback.format_exc())
    return trial.found()


def strategy_of(ask: Ask) -> str:
    """Which one a trial runs."""
    return ask.strategy or list(STRATEGIES)[ask.seed % len(STRATEGIES)]


class Trial:
    """See the module.

    Attributes:
        audit: holds the invariants.
        coordinator, devices: the processes.
    """

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.strategy = strategy_of(ask)
        self.clock = VirtualClock()
        self.audit = Auditor()
        self.topics = Topics(_FLEET)
        self._ledger = Ledger(self.topics)
        self._newest = "nothing yet"
        self._standing: dict[str, Process] = {}
        self._faults = Faults(ask.faults, seed=ask.seed, clock=self.clock, topics=self.topics, until_s=FAULTY_S)
        self.network = FaultyNetwork(self.clock, self._faults, queued_messages_max=_QUEUED_MAX)
        self._stranger = MemoryTransport(self.network.broker, client_id=_STRANGER)
        self._stranger.start(lambda _event: None, timeout_s=0.0)
        chance = self._draws("fleet")
        self.config = RunConfig(
            task="toy",
            strategy=self.strategy,
            constants=STRATEGIES.get(self.strategy, {}),
            seed=ask.seed,
            data_mode=("indexed", "shipped", "local")[int(chance.integers(3))],
            chunk_bytes=(1024, 120_000)[int(chance.integers(2))],
        )
        self.bench = _bench(self.config)
        one_each = self.strategy in _ONE_EACH
        self.coordinator = CoordinatorProcess(
            "coordinator",
            client_id=f"{_FLEET}-coordinator",
            run=f"trial-{ask.seed}",
            config=self.config,
            bench=self.bench,
            settings=_SETTINGS,
            topics=self.topics,
            one_each=one_each,
            **self._place("coordinator"),
        )
        names = [f"pi-{number + 1}" for number in range(int(chance.integers(_DEVICES[0], _DEVICES[1] + 1)))]
        self.devices = {name: self._board(name, chance) for name in names}
        self._standing = {process.name: process for process in self.processes}

    @property
    def processes(self) -> list[Process]:
        """All of them."""
        return [self.coordinator, *self.devices.values()]

    def run(self) -> None:
        """To the end.

        Raises:
            Violated: something did not hold.
        """
        clock = self.clock
        self.coordinator.start()
        for board in self.devices.values():
            clock.at(float(self._draws(board.name).uniform(0.0, 2.0)), board.start)
        self._faults.begin(self.network, self.coordinator, list(self.devices.values()), self._say_something_foreign)
        self._until(FAULTY_S)
        self._faults.end(self.network, self.processes)
        self._live()
        self._come_back()

    def found(self, *, invariant: str = "", what: str = "", trace: str = "") -> Found:
        """What came of it so far."""
        exits: Counter[int] = Counter()
        deaths: Counter[str] = Counter()
        for process in self.processes:
            exits.update(process.exits)
            deaths.update(process.deaths)
        return Found(
            seed=self.ask.seed,
            strategy=self.strategy,
            injected=dict(self._faults.injected),
            checks=self.audit.checks,
            applied=self.audit.applied,
            lives=sum(process.life for process in self.processes),
            exits=dict(exits),
            deaths=dict(deaths),
            torn_tails=self.coordinator.torn_tails,
            virtual_s=self.clock.now,
            log_sha256=self._ledger.log_sha256,
            invariant=invariant,
            what=what,
            event=self._newest if invariant else "",
            trace=trace,
        )

    # --- the course of time -----------------------------------------------------------------------------------------

    def _until(self, time_s: float) -> None:
        """Let time pass."""
        come = [False]
        self.clock.at(time_s, lambda: come.__setitem__(0, True))
        while not come[0]:
            self.clock.step()

    def _live(self) -> None:
        """Nothing goes wrong any more: everybody must come to something."""
        before = {name: (board.trained, self._applied(name)) for name, board in self.devices.items()}
        ends_at = self.clock.now + LIVELY_WITHIN_S
        while stuck := [name for name in self.devices if not self._came_to_something(name, *before[name])]:
            if self.clock.now >= ends_at:
                raise Violated("liveness", "; ".join(self._told_of(name, *before[name]) for name in stuck))
            self._until(self.clock.now + _LOOK_S)

    def _came_to_something(self, name: str, trained: int, applied: int) -> bool:
        return self.devices[name].trained > trained + 1 and self._applied(name) > applied

    def _told_of(self, name: str, trained: int, applied: int) -> str:
        board = self.devices[name]
        phase = board.runner.machine.phase if board.runner is not None else f"ended by {board.ended_by}"
        made, taken = board.trained - trained, self._applied(name) - applied
        leader = "" if self.coordinator.alive else f", no coordinator ({self.coordinator.ended_by})"
        return (
            f"{LIVELY_WITHIN_S:g} s after the last fault {name} is {phase}, {made} iterations, {taken} updates{leader}"
        )

    def _applied(self, name: str) -> int:
        return self.audit.applied_of(name)

    def _come_back(self) -> None:
        """Power is cut once more: what comes back is what was."""
        self.coordinator.die()
        self.coordinator.disk.power_cut(torn=True)
        ends_at = self.clock.now + LIVELY_WITHIN_S
        while not self.coordinator.alive:
            if self.clock.now >= ends_at:
                raise Violated("liveness", f"the coordinator does not come back: {self.coordinator.ended_by}")
            self._until(self.clock.now + _LOOK_S)

    # --- casting ----------------------------------------------------------------------------------------------------

    def _draws(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.ask.seed, stable_int("trial"), stable_int(purpose)])

    def _place(self, name: str, *, started_at: float = 0.0) -> dict[str, Any]:
        """What a process of this name stands on."""

        def touched() -> None:
            if name in self._standing:  # else it is being made: what it finds at its first start
                self._standing[name].touch()

        disk = FakeDisk(self._draws(f"disk of {name}"), on_operation=touched)
        return {
            "network": self.network,
            "disk": disk,
            "audit": self.audit,
            "log": self._note,
            "death": partial(self._faults.death, name),
            "started_at": started_at,
        }

    def _board(self, name: str, chance: np.random.Generator) -> DeviceProcess:
        rows = self.bench.trainer.train_rows
        return DeviceProcess(
            name,
            client_id=name,
            topics=self.topics,
            settings=_MANNERS,
            trainer=lambda shards: _toy().sharing(shards=shards),
            batch_s=float(np.exp(chance.uniform(np.log(0.02), np.log(0.2)))),
            own_rows=rows if self.config.data_mode == "local" else 0,
            **self._place(name, started_at=float(chance.uniform(0.0, 1e6))),
        )

    def _note(self, now: float, who: str, what: str, content: bytes = b"") -> None:
        self._newest = f"{now:.3f} s {who} {what}"
        self._ledger.note(now, who, what, content)

    def _say_something_foreign(self, chance: np.random.Generator) -> None:
        """An update that nobody may take, under a name of its own: to speak in another's is the access list's business."""
        if self.coordinator.runner is None:
            return
        manifest = self.coordinator.runner.machine.manifest
        parameters = manifest.model.parameters
        nowhere = np.full(parameters, np.nan, dtype="<f4").tobytes()
        bends: list[dict[str, Any]] = [
            {"run": "another"},
            {"model": "0" * 64},
            {"codec": "fp16" if manifest.codec != "fp16" else "int8"},
            {"parameters": 7},
            {"body": b"too little"},
            {"codec": "fp32", "body": nowhere},
            {"session": 2**40, "run": "another"},
        ]
        update = Update(
            run=manifest.run,
            session=int(chance.integers(9)),
            seq=int(chance.integers(1, 99)),
            base_version=int(chance.integers(99)),
            model=manifest.model.sha256,
            codec=manifest.codec,
            parameters=parameters,
            loss=0.1,
            samples=8,
            batch=8,
            mini_batches=1,
            train_s=0.1,
            iterations=1,
            body=pack(np.zeros(parameters, dtype=np.float32), manifest.codec),
        )
        bent = replace(update, **bends[int(chance.integers(len(bends)))])
        for packet in Wire(self.topics).outgoing(bent, device=_STRANGER):
            self._stranger.publish(packet.topic, packet.payload)


_SETTINGS: Final = CoordinatorSettings(
    first=Sizing(samples=40, batch=8),
    checkpoint_interval_s=2.0,
    keyframe_interval_s=1.0,
    measure_patience_s=20.0,
    retry_s=1.0,
    retry_max_s=8.0,
)
_MANNERS: Final = DeviceSettings(retry_s=1.0, retry_max_s=8.0, alone_after_s=3.0, state_interval_s=0.5)


@functools.cache
def _toy() -> ToyTrainer:
    return ToyTrainer(**_TOY_SHAPE)


@functools.cache
def _shard(ranges: Ranges) -> bytes:
    toy = _toy()
    part = toy.data.train.take(lay_out(toy.data, seed=_TOY_SHAPE["seed"], validation_fraction=0.1).allotted(ranges))
    return encode_shard(part.x, part.y)


def _bench(config: RunConfig) -> Bench:
    return Bench(
        trainer=_toy(),
        task=_TOY,
        defaults=TaskDefaults(samples=40, batch=8, epochs=1, learning_rate=0.1),
        data_sha256="",
        rows=0 if config.data_mode == "local" else _toy().train_rows,
        shard_of=_shard if config.data_mode == "shipped" else None,
    )
