"""A coordinator and a device as processes of a simulated fleet: what each is given, and what of it is audited."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.effects import Effect, Journal
from hermes_iot.domain import ModelSignature, Params, Score, Split, Trained, TrainJob
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import RunManifest, Update
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire
from hermes_iot.runtime.coordinator import SESSION_EXPIRY_S, CoordinatorRunner
from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
from hermes_iot.runtime.link import expect_models_of
from hermes_iot.runtime.loop import Inbox
from hermes_iot.runtime.run_dir import RunDir
from hermes_iot.runtime.simulation.audit import Auditor
from hermes_iot.runtime.simulation.faulty_link import FaultyTransport
from hermes_iot.runtime.simulation.processes import BoardClock, Process
from hermes_iot.runtime.trainers import Bench
from hermes_iot.runtime.worker import Failed
from hermes_iot.runtime.workshop import Result
from hermes_iot.storage.disk import using
from hermes_iot.storage.journal import MARK_BYTES
from hermes_iot.training.base import Trainer
from hermes_iot.transport.base import Delivery, Transport, Will

_RUN_DIRECTORY: Final = Path("/run")
_STATE_DIRECTORY: Final = Path("/state")


class CoordinatorProcess(Process):
    """Leads one run, whatever happens to it.

    Attributes:
        topics: of the fleet.
        runner: of its present life; None while it is down.
        torn_tails: lives that began with a journal whose last write was cut short.
    """

    runner: _Watched | None = None

    def __init__(
        self,
        name: str,
        *,
        run: str,
        config: RunConfig,
        bench: Bench,
        settings: CoordinatorSettings,
        topics: Topics,
        one_each: bool,
        **place: Any,
    ) -> None:
        super().__init__(name, **place)
        self.topics = topics
        self.torn_tails = 0
        self._run_id = run
        self._config, self._bench, self._settings = config, bench, settings
        self._one_each = one_each
        self._wire = Wire(topics)
        with using(self.disk):  # so that the run has a name that the seed gave it
            directory = RunDir(_RUN_DIRECTORY)
            directory.begin(run, fleet=topics.fleet, config=config, created_at="")
            directory.close()

    def _begin(self) -> None:
        self._wire = Wire(self.topics)
        self.runner = self._runner = _Watched(
            self._config,
            audit=self._audit,
            one_each=self._one_each,
            fleet=self.topics.fleet,
            run_dir=_RUN_DIRECTORY,
            bench=self._bench,
            connect=self._connect,
            settings=self._settings,
            takeover=True,
            session=f"{self.life:016x}",
            clock=self.clock,
        )
        self.torn_tails += self.runner.run_dir.journal.torn_bytes > MARK_BYTES
        self._audit.led(self.runner.machine)
        expect_models_of(self.runner.machine.manifest, self._wire)  # it counts what the runner counts
        self.runner.start()

    def _connect(self, client_id: str, will: Will | None) -> Transport:
        if will is None:
            return self._network.look(client_id)
        self.transport = FaultyTransport(
            self._network,
            client_id=client_id,
            will=will,
            session_expiry_s=SESSION_EXPIRY_S,
            manual_ack=True,
            before_send=self.touch,
            heard=self.wake,
        )
        return self.transport

    def _forget(self) -> None:
        super()._forget()
        self.runner = None

    def _heard(self, delivery: Delivery) -> None:
        """Count updates as they arrive, by what the wire says and nobody else."""
        address = self.topics.parse(delivery.topic)
        if address is None or address.channel != "update" or not delivery.payload:
            return
        if self.runner is not None and self.runner.suspended:
            return
        self._wire.expire(now=self.clock())
        try:
            received = self._wire.incoming(delivery.topic, delivery.payload, now=self.clock())
        except ProtocolError:
            self._audit.arrived()
        else:
            if received is not None and isinstance(received.message, Update):
                self._audit.arrived()

    def _says(self, topic: str, payload: bytes) -> None:
        address = self.topics.parse(topic)
        if self.runner is None or address is None:
            return
        if address.channel in {"ack", "alloc"}:
            received = self._wire.incoming(topic, payload, now=self.clock())
            if received is not None:
                self._audit.told(received.message, address.device)
        elif address.channel in {"model", "model_part"}:
            self._audit.published(self.runner.machine.version)

    def _check(self) -> None:
        if self.runner is not None:
            self._audit.leader(self.runner.machine)
            self._audit.keeps("the coordinator", self.runner.bounded)


class _Watched(CoordinatorRunner):
    """Its decisions are seen before anything of them is performed."""

    def __init__(self, config: RunConfig, *, audit: Auditor, one_each: bool, **options: Any) -> None:
        self._audit, self._one_each = audit, one_each
        super().__init__(config, **options)

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Journal):
                self._audit.decided(self.machine.manifest, effect.entries, one_each=self._one_each)
        super()._perform(effects)


class DeviceProcess(Process):
    """One board.

    Args:
        trainer: does the real training.
        batch_s: its seconds per mini-batch.

    Attributes:
        runner: of its present life; None while it is down.
        trained: iterations over all its lives.
    """

    runner: DeviceRunner | None = None

    def __init__(
        self,
        name: str,
        *,
        topics: Topics,
        settings: DeviceSettings,
        trainer: Callable[[Callable[[str], Any]], Trainer],
        batch_s: float,
        own_rows: int,
        **place: Any,
    ) -> None:
        super().__init__(name, **place)
        self.trained = 0
        self._trainer = trainer
        self._batch_s = batch_s
        self._config = DeviceConfig(
            fleet=topics.fleet,
            device=name,
            state_dir=_STATE_DIRECTORY,
            own_rows=own_rows,
            settings=settings,
        )

    def _begin(self) -> None:
        self.runner = self._runner = DeviceRunner(
            self._config,
            connect=self._connect,
            trainer_of=self._trainer_of,
            worker_of=self._worker_of,
            clock=self.clock,
        )
        self.runner.start()

    def _connect(self, client_id: str, will: Will | None) -> Transport:
        assert will is not None  # noqa: S101 - a device always has one
        self.transport = FaultyTransport(
            self._network, client_id=client_id, will=will, before_send=self.touch, heard=self.wake
        )
        return self.transport

    def _trainer_of(self, manifest: RunManifest, shards: Callable[[str], Any]) -> Trainer:  # noqa: ARG002 - a toy is a toy
        return _Paced(self._trainer(shards), clock=self.clock, batch_s=self._batch_s)

    def _worker_of(self, inbox: Inbox) -> _VirtualWorker:
        return _VirtualWorker(self, inbox)

    def _forget(self) -> None:
        super()._forget()
        self.runner = None

    def _check(self) -> None:
        if self.runner is not None:
            self._audit.device(self.name, self.runner.machine)
            self._audit.keeps(self.name, self.runner.bounded)

    def work(self, inbox: Inbox, call: Callable[[], object], then: Callable[[], None]) -> None:
        """Compute now what comes to the inbox when the board would have done it, if it still lives then."""
        life, begun_s = self.life, self.clock.spent_s
        try:
            outcome = call()
        except Exception as error:  # noqa: BLE001 - as `runtime.worker` does
            outcome = Failed(error)
        seconds, self.clock.spent_s = self.clock.spent_s - begun_s, begun_s

        def done() -> None:
            if self.life == life and self.alive:
                self.trained += isinstance(outcome, Result)
                inbox.post(outcome)
                self.wake()
                self._guarded(then)

        self._world.at(self._world.now + seconds / self.clock.rate, done)


class _VirtualWorker:
    """One piece of work after the other, in virtual time; implements `runtime.worker.Worker`."""

    def __init__(self, process: DeviceProcess, inbox: Inbox) -> None:
        self._process, self._inbox = process, inbox
        self._waiting: deque[Callable[[], object]] = deque()
        self._busy = False

    def submit(self, work: Callable[[], object]) -> None:
        """See `Worker`."""
        self._waiting.append(work)
        if not self._busy:
            self._next()

    def close(self) -> None:
        """See `Worker`."""
        self._waiting.clear()

    def _next(self) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            self._process.work(self._inbox, self._waiting.popleft(), self._next)


class _Paced:
    """A trainer whose iterations take the time of a board; implements `training.base.Trainer`."""

    def __init__(self, trainer: Trainer, *, clock: BoardClock, batch_s: float) -> None:
        self._trainer, self._clock, self._batch_s = trainer, clock, batch_s

    @property
    def signature(self) -> ModelSignature:
        """See `Trainer`."""
        return self._trainer.signature

    @property
    def train_rows(self) -> int:
        """See `Trainer`."""
        return self._trainer.train_rows

    def initial(self, seed: int) -> Params:
        """See `Trainer`."""
        return self._trainer.initial(seed)

    def train(self, job: TrainJob) -> Trained:
        """See `Trainer`."""
        result = self._trainer.train(job)
        self._clock.spent_s += self._batch_s * max(1, result.mini_batches)
        return result

    def score(self, params: Params, split: Split) -> Score:
        """See `Trainer`."""
        return self._trainer.score(params, split)
