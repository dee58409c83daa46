"""What a device trains with: the run's trainer, the shards that were shipped, and the worker beside the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from hermes_iot.domain import Trained, TrainJob
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import RunManifest
from hermes_iot.runtime.worker import Worker
from hermes_iot.storage.device_state import ShardCache
from hermes_iot.training.base import Trainer

SHARD_CACHE_BYTES: Final = 1024 * 1024 * 1024


class TrainerOf(Protocol):
    """Builds the trainer of a run: resolves the task, loads the data, checks both against the manifest."""

    def __call__(self, manifest: RunManifest, shards: Callable[[str], Any]) -> Trainer:
        """Raise HermesError when the run cannot be taken part in."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run's trainer is built; the workshop uses it from now on."""

    run: str
    trainer: Trainer


@dataclass(frozen=True, slots=True)
class Result:
    """One iteration is over."""

    result: Trained
    seconds: float


class Workshop:
    """Work is submitted here and comes back as an event; the loop and the worker share nothing but the shards.

    Args:
        worker: runs the work, posts what comes of it.
        trainer_of: builds a run's trainer, on the worker.
        shards_dir: where shipped shards are kept.
        slowdown: idle after every iteration so that it takes so many times as long.
        clock: seconds, to measure iterations with.
    """

    def __init__(
        self, worker: Worker, *, trainer_of: TrainerOf, shards_dir: Path, slowdown: float, clock: Callable[[], float]
    ) -> None:
        self._worker = worker
        self._trainer_of = trainer_of
        self._trainer: Trainer | None = None
        self._cache = ShardCache(shards_dir, SHARD_CACHE_BYTES)
        self._cache_lock = threading.Lock()  # the loop stores shards, the worker reads them
        self._slowdown = slowdown
        self._clock = clock
        self._leaving = threading.Event()

    def prepare(self, manifest: RunManifest) -> None:
        """Build the trainer of a run; `Prepared` comes back."""
        self._worker.submit(lambda: Prepared(manifest.run, self._trainer_of(manifest, self._arrays)))

    def adopt(self, prepared: Prepared) -> None:
        """Train with this trainer from now on."""
        self._trainer = prepared.trainer

    def train(self, job: TrainJob) -> None:
        """Run one iteration; `Result` comes back."""
        trainer = self._trainer
        assert trainer is not None  # noqa: S101 - the machine trains only after it was prepared
        self._worker.submit(lambda: self._train(trainer, job))

    def has(self, sha256: str) -> bool:
        """Whether a shard is at hand, undamaged."""
        return self._body(sha256) is not None

    def put(self, sha256: str, body: bytes) -> None:
        """Keep a shard.

        Raises:
            ProtocolError: it does not hash to its name.
            StorageError: it cannot be kept.
        """
        with self._cache_lock:
            self._cache.put(sha256, body)

    def leave(self) -> None:
        """Idle no longer."""
        self._leaving.set()

    def close(self) -> None:
        """Wait a little for the work under way."""
        self.leave()
        self._worker.close()

    def _train(self, trainer: Trainer, job: TrainJob) -> Result:
        begun = self._clock()
        result = trainer.train(job)
        seconds = self._clock() - begun
        if self._slowdown > 1:
            self._leaving.wait((self._slowdown - 1) * seconds)
            seconds *= self._slowdown
        return Result(result, seconds)

    def _arrays(self, sha256: str) -> Any:
        from hermes_iot.training.shards import decode_shard  # noqa: PLC0415 - numpy, on the worker's thread

        body = self._body(sha256)
        if body is None:
            raise ProtocolError("shard", f"shard {sha256[:12]} is not in the cache any more")
        return decode_shard(body)

    def _body(self, sha256: str) -> bytes | None:
        with self._cache_lock:
            return self._cache.get(sha256)
