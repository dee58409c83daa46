"""What one device learns in one run: the model it received, the one it is training, the gate's state, the counters.

Knows strategies and numbers, no messages. `Device` owns one per run and throws it away with the run.

Divergence sends a device back to the model it received, at half the learning rate for the next iteration. The gate is
told of it (its losses belong to a course that is thrown away) but not begun anew: its age goes on, so a device that
diverges again and again is still forced to publish at the next iteration that ends well (algorithms.md section 6).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from statistics import median
from typing import Any

from hermes_iot.algorithms.strategies.base import Decision, Strategy
from hermes_iot.algorithms.trees import is_finite
from hermes_iot.domain import DeviceId, Params, Trained, TrainJob, stable_int
from hermes_iot.protocol.messages import Allocation, RunManifest

#: The iteration time reported is the median of so many; one slow iteration (another process, a GC) is not a trend.
_TIMES_KEPT = 5


class Learner:
    """Mutable, owned by one `Device`.

    Attributes:
        base, base_version: the model last received; None before the first.
        iterations, published, mini_batches, diverged: counters of this process in this run.
        since_push: local iterations that the next push would stand for.
        decision, loss: of the newest iteration.
        outgoing: the vector to push and the iterations it stands for, after a decision to push; else None.
    """

    def __init__(self, manifest: RunManifest, strategy: Strategy[Any, Any], device: DeviceId) -> None:
        self._manifest = manifest
        self._strategy = strategy
        self._who = stable_int(device)
        self._policy: Any = None
        self._params: Params | None = None
        self._arrived: tuple[int, Params] | None = None
        self._rate_scale = 1.0
        self._size = (0, 0)
        self._times: deque[float] = deque(maxlen=_TIMES_KEPT)
        self.base: Params | None = None
        self.base_version = 0
        self.decision = Decision(push=False, why="")
        self.loss: float | None = None
        self.outgoing: tuple[Params, int] | None = None
        self.iterations = 0
        self.since_push = 0
        self.published = 0
        self.mini_batches = 0
        self.diverged = 0

    @property
    def iteration_s(self) -> float:
        """Typical seconds of one iteration at the present size; 0 when not known yet."""
        return median(self._times) if self._times else 0.0

    def adopt(self, version: int, vector: Params) -> None:
        """Train from the fleet's model from now on."""
        if self._policy is None:
            self._policy = self._strategy.device_start(vector)
        self.base = self._params = vector
        self.base_version = version
        self.since_push = 0
        self._arrived = None

    def adopt_later(self, version: int, vector: Params) -> None:
        """The same, at the end of the iteration that is running."""
        self._arrived = (version, vector)

    def reallocated(self, allocation: Allocation) -> None:
        """Another allocation is in force; times of another size say nothing about it (a new shard is no new size)."""
        size = (allocation.samples, allocation.batch)
        if size != self._size:
            self._size = size
            self._times.clear()

    def job(self, allocation: Allocation, shard: str, session: int) -> TrainJob | None:
        """The next iteration; None without a model."""
        if self._params is None:
            return None
        manifest = self._manifest
        return TrainJob(
            start=self._params,
            samples=allocation.samples,
            batch=allocation.batch,
            epochs=manifest.epochs,
            learning_rate=manifest.learning_rate * self._rate_scale,
            sampling=manifest.data.sampling,
            gate_split=manifest.data.gate_split,
            rows=allocation.rows,
            shard=shard,
            key=(manifest.seed, self._who, session, self.iterations),
            slice_key=(manifest.seed, self._who),
        )

    def recount(self) -> None:
        """Begin the counters anew."""
        self.iterations = self.published = self.mini_batches = self.diverged = 0

    def take(self, result: Trained, seconds: float) -> Decision:
        """Count one iteration, ask the gate, and make what is to be pushed."""
        # The first iteration of a process pays for lazy initialisation and says nothing about the board's speed.
        if self.iterations > 0:
            self._times.append(seconds)
        self.iterations += 1
        self.since_push += 1
        self.mini_batches += result.mini_batches
        self.outgoing = None
        self.loss = result.loss if math.isfinite(result.loss) else None
        if self._arrived is not None:
            # The answer to an earlier push came while this iteration ran: the fleet's model wins over local work.
            self.adopt(*self._arrived)
            self.decision = Decision(push=False, why="superseded")
        elif self.loss is None or not is_finite(result.params):
            self._diverge(result)
        else:
            self._go_on(result)
        return self.decision

    def _go_on(self, result: Trained) -> None:
        policy, decision = self._strategy.observe(self._policy, result)
        if decision.push:
            assert self.base is not None  # noqa: S101 - there is no job without a model
            policy, vector = self._strategy.contribution(policy, base=self.base, params=result.params)
            if not is_finite(vector):  # a difference or a sum may overflow where the model itself does not
                self._diverge(result)
                return
            self.outgoing = (vector, self.since_push)
            self.since_push = 0
            self.published += 1
        self._rate_scale = 1.0
        self._params, self._policy, self.decision = result.params, policy, decision

    def _diverge(self, result: Trained) -> None:
        """Back to the model received; nothing of this is ever pushed."""
        self.diverged += 1
        self._rate_scale *= 0.5
        self._params = self.base
        self._policy, judged = self._strategy.observe(self._policy, replace(result, loss=math.nan))
        self.decision = replace(judged, push=False, why="diverged")
