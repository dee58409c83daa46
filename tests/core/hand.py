"""One machine driven by hand: short names for messages in, and for picking effects out."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

import numpy as np

from hermes_iot.algorithms.compression import pack
from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.strategies.hermes import Hermes, HermesConfig
from hermes_iot.core.coordinator import Coordinator, CoordinatorSettings
from hermes_iot.core.device import Device, DeviceSettings
from hermes_iot.core.effects import Effect, Record, Send, StoreMemory
from hermes_iot.domain import DeviceId, ModelSignature, RunId, Score, TensorSpec, Trained
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    Command,
    CoordinatorStatus,
    DataInfo,
    DeviceState,
    DeviceStatus,
    Message,
    Model,
    ModelHead,
    ModelInfo,
    RunManifest,
    StrategyInfo,
    TaskInfo,
    Update,
)
from hermes_iot.protocol.wire import Received

M = TypeVar("M")
E = TypeVar("E")

PARAMETERS = 4
LAYOUT = ModelSignature(tensors=(TensorSpec(name="w", shape=(PARAMETERS,)),)).sha256
NOBODY = DeviceId("")
ME = DeviceId("d1")
#: A gate that fires at every iteration, and one that never does.
ALWAYS = Hermes(HermesConfig(gate=GateConfig(max_age=1)))
NEVER = Hermes(HermesConfig(gate=GateConfig(alpha=-1e6, max_age=None)))


def manifest(run: str = "run-a", **changes: Any) -> RunManifest:
    data = {"mode": "indexed", "sampling": "fresh", "gate_split": "fresh", "rows": 100, "validation_fraction": 0.1}
    fields: dict[str, Any] = {
        "run": RunId(run),
        "state": "running",
        "seed": 1,
        "task": TaskInfo(name="toy", source_sha256="0" * 64),
        "strategy": StrategyInfo(name="hermes"),
        "model": ModelInfo(sha256=LAYOUT, parameters=PARAMETERS, tensors=(("w", (PARAMETERS,)),)),
        "data": DataInfo(**{**data, **changes.pop("data", {})}),
        "epochs": 1,
        "learning_rate": 0.5,
        "codec": "fp32",
        "codec_down": "fp32",
        "chunk_bytes": 120_000,
    }
    return RunManifest(**{**fields, **changes})


def vector(value: float = 1.0) -> np.ndarray:
    return np.full(PARAMETERS, value, dtype=np.float32)


def body(value: float = 1.0) -> bytes:
    return pack(vector(value), "fp32")


def online(session: str = "c1") -> CoordinatorStatus:
    return CoordinatorStatus(state="online", session=session, run="run-a")


def offline(session: str = "c1") -> CoordinatorStatus:
    return CoordinatorStatus(state="offline", session=session, run="run-a")


def allocation(version: int = 1, **changes: Any) -> Allocation:
    fields: dict[str, Any] = {"run": "run-a", "device": ME, "samples": 20, "batch": 5, "rows": ((0, 100),)}
    return Allocation(version=version, **{**fields, **changes})


def model(version: int = 0, value: float = 1.0, **changes: Any) -> Model:
    fields: dict[str, Any] = {"run": "run-a", "model": LAYOUT, "codec": "fp32", "parameters": PARAMETERS}
    return Model(version=version, body=body(value), **{**fields, **changes})


def head(version: int = 0, run: str = "run-a", parts: int = 1) -> ModelHead:
    return ModelHead(run=run, version=version, sha256="2e" * 32, bytes=100, parts=parts)


def ack(session: int, seq: int, run: str = "run-a") -> Ack:
    return Ack(run=run, session=session, seq=seq, outcome="applied")


def update(seq: int = 1, value: float = 2.0, **changes: Any) -> Update:
    fields: dict[str, Any] = {
        "run": "run-a",
        "session": 1,
        "base_version": 0,
        "model": LAYOUT,
        "codec": "fp32",
        "parameters": PARAMETERS,
        "loss": 0.5,
        "samples": 20,
        "batch": 5,
        "mini_batches": 4,
        "train_s": 0.1,
        "iterations": 1,
        "body": body(value),
    }
    return Update(seq=seq, **{**fields, **changes})


def birth(session: int = 1, **changes: Any) -> DeviceStatus:
    return DeviceStatus(state="online", session=session, **changes)


def death(session: int = 1) -> DeviceStatus:
    return DeviceStatus(state="offline", session=session, reason="connection lost")


def state(session: int = 1, **changes: Any) -> DeviceState:
    fields: dict[str, Any] = {
        "run": "run-a",
        "seq": 0,
        "phase": "training",
        "allocation_version": 1,
        "model_version": 0,
        "iterations": 1,
        "published": 0,
    }
    return DeviceState(session=session, **{**fields, **changes})


def rows_as_bytes(ranges) -> bytes:
    """A stand-in for encoded rows."""
    return json.dumps(ranges).encode()


def sent(effects: list[Effect], kind: type[M]) -> list[M]:
    return [one.message for one in effects if isinstance(one, Send) and isinstance(one.message, kind)]


def of(effects: list[Effect], kind: type[E]) -> list[E]:
    return [one for one in effects if isinstance(one, kind)]


def recorded(effects: list[Effect], event: str) -> list[dict[str, Any]]:
    return [dict(one.fields) for one in effects if isinstance(one, Record) and one.event == event]


def kinds(effects: list[Effect]) -> list[str]:
    return [type(one.message if isinstance(one, Send) else one).__name__ for one in effects]


class Board:
    """A `Device` and the clock in its hand."""

    def __init__(self, strategy: Any = ALWAYS, *, memory: StoreMemory | None = None, **settings: Any) -> None:
        self.now = 10.0
        memory = memory or StoreMemory(session=1, seq=0, run="", allocation_version=0)
        self.machine = Device(
            device=ME,
            memory=memory,
            birth=DeviceStatus(state="online", session=memory.session),
            strategy_of=lambda _info: strategy,
            settings=DeviceSettings(**settings),
        )

    def tell(self, message: Message, *, keyframe: bool = False) -> list[Effect]:
        for_all = keyframe or isinstance(message, RunManifest | CoordinatorStatus | ModelHead)
        received = Received(message=message, device=NOBODY if for_all else ME, tensor=isinstance(message, Model))
        return self.machine.received(received, now=self.now)

    def command(self, name: Any) -> list[Effect]:
        return self.tell(Command(id=f"c-{name}", name=name))

    def prepare(self, run: str = "run-a") -> list[Effect]:
        return self.machine.prepared(run, LAYOUT, now=self.now)

    def trained(self, value: float = 2.0, loss: float = 0.5, seconds: float = 0.1) -> list[Effect]:
        self.now += seconds
        result = Trained(params=vector(value), loss=loss, samples=20, mini_batches=4)
        return self.machine.trained(result, seconds, now=self.now)

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass; every timer that falls due is obeyed, none may spin."""
        end, effects = self.now + seconds, []
        while (due := self.machine.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            effects += self.machine.expire(now=self.now)
            after = self.machine.next_deadline()
            assert after is None or after > self.now, "a timer spins"
        self.now = end
        return effects

    def at_work(self, **changes: Any) -> Board:
        """Connected, in the run, led, with model and allocation: its first iteration is running."""
        self.machine.connected(now=self.now)
        self.tell(online())
        self.tell(manifest(**changes))
        self.prepare()
        self.tell(head())
        self.tell(model(), keyframe=True)
        self.tell(allocation())
        assert self.machine.phase == "training"
        return self


class Desk:
    """A `Coordinator` and the clock in its hand. Scores a vector by its distance from 3."""

    def __init__(self, strategy: Any = ALWAYS, *, about: RunManifest | None = None, **options: Any) -> None:
        self.now = options.pop("now", 50.0)
        self.scored = 0
        restored = options.pop("restored", None)
        shard_of = options.pop("shard_of", None)
        session = options.pop("session", "c1")
        self.machine = Coordinator(
            manifest=about or manifest(),
            status=CoordinatorStatus(state="online", session=session),
            strategy=strategy,
            initial=vector(0.0),
            score=self.score,
            settings=CoordinatorSettings(**options),
            shard_of=shard_of,
            restored=restored,
            now=self.now,
        )

    def score(self, params: np.ndarray) -> Score:
        self.scored += 1
        distance = float(np.abs(params.astype(np.float64) - 3).mean())
        return Score(loss=distance, accuracy=math.exp(-distance))

    def up(self) -> Desk:
        self.machine.connected(now=self.now)
        return self

    def hear(self, message: Message, device: str = ME) -> list[Effect]:
        received = Received(message=message, device=DeviceId(device), tensor=isinstance(message, Update))
        effects = self.machine.received(received, now=self.now)
        tally = self.machine.tally
        assert tally.received == tally.applied + tally.duplicate + tally.stale + tally.rejected
        return effects

    def wait(self, seconds: float) -> list[Effect]:
        end, effects = self.now + seconds, []
        while (due := self.machine.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            effects += self.machine.expire(now=self.now)
            after = self.machine.next_deadline()
            assert after is None or after > self.now, "a timer spins"
        self.now = end
        return effects
