"""What one device learns in one run: the model it received, the one it is training, the gate's state, the counters.

Knows strategies and numbers, no messages. `Device` owns one per run and throws it away with the run.

Where a strategy sends displacements, three things are kept that a whole model does not need: the vector from which the
next displacement counts (`origin`: the model received, or the local one at the last push), what the codec has cut off
so far (`residual`, added to the next one), and, when an answer comes while training went on, what was learnt since the
push, which is put on top of it. So nothing learnt is sent twice, and nothing is thrown away for having waited.

Divergence sends a device back to the model it received, at half the learning rate for the next iteration. The gate is
told of it (its losses belong to a course that is thrown away) but not begun anew: its age goes on, so a device that
diverges again and again is still forced to publish at the next iteration that ends well (algorithms.md section 6).

Divergence is a loss or a parameter that is no finite number, and in a walk, which sends displacements of whatever length,
also an explosion: a loss far above any sound one, or parameters that leapt. Merged at a twelfth, a model at a loss of
millions is the end of the fleet's model as surely as one at infinity. What far is, is doubled by every explosion in a row,
so nothing that a device does at an ever smaller rate is refused for ever.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np

from hermes_iot.algorithms.compression import CODINGS, pack, pack_with_feedback
from hermes_iot.algorithms.split import split_of
from hermes_iot.algorithms.strategies.base import Decision, Strategy, Work
from hermes_iot.algorithms.trees import is_finite, norm, sha256
from hermes_iot.domain import Codec, DeviceId, Params, Probe, Ranges, Trained, TrainJob, stable_int
from hermes_iot.protocol.messages import Allocation, RunManifest

#: The iteration time reported is the median of so many; one slow iteration (another process, a GC) is not a trend.
_TIMES_KEPT = 5
#: So many times the highest loss of a sound iteration, or of a model received: a single mini-batch of such a model may
#: have been an easy one.
_EXPLOSION = 10.0
#: So many times the received model's own length, or 1 where it is shorter (a new model may be all zeros).
_LEAP = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What is to be pushed: the encoded vector, and the local iterations and mini-batches it stands for."""

    body: bytes
    codec: Codec
    iterations: int
    steps: int


class _Arrived(NamedTuple):
    """A model that waits for the end of an iteration; see `Learner.adopt`."""

    version: int
    vector: Params
    iterations: int
    stale: bool


class Learner:
    """Mutable, owned by one `Device`.

    Attributes:
        regime: what the strategy asks of the run.
        split: which entries travel in fp16 whatever the codec.
        codec: of what is pushed: the allocation's where it names one that can be used, else the run's.
        base, base_version, base_sha256: the model last received; None before the first. The digest is kept only where
            updates or answers are made from it.
        iterations, published, mini_batches, diverged: counters of this process in this run.
        since_push, steps_since_push: local iterations and mini-batches that the next push would stand for.
        decision, loss: of the newest iteration.
        moved: where a strategy displaces, how far the newest iteration ended from where a displacement pushed then begins.
        outgoing: after a decision to push; else None.
        summoned: the fleet wants a push at the end of this iteration, whatever the strategy decides.
    """

    def __init__(self, manifest: RunManifest, strategy: Strategy[Any, Any], device: DeviceId) -> None:
        self._manifest = manifest
        self.split = split_of(manifest.model.tensors, manifest.fine)
        self._strategy = strategy
        self._who = stable_int(device)
        self._policy: Any = None
        self._params: Params | None = None
        self._origin: Params | None = None
        self._residual: Params | None = None
        self._arrived: _Arrived | None = None
        self._rate_scale = 1.0
        self._highest_loss = 0.0
        self._lenience = 1.0
        self._warmed = 0
        self._size = (0, 0, 0)
        self._times: deque[float] = deque(maxlen=_TIMES_KEPT)
        self._batch_times: deque[float] = deque(maxlen=_TIMES_KEPT)
        self._walked = self._walked_at_base = 0
        self._ground: tuple[Ranges, tuple[str, ...]] = ((), ())
        self.regime = strategy.regime
        self.codec: Codec = manifest.codec
        self.base: Params | None = None
        self.base_version = 0
        self.base_sha256 = ""
        self.decision = Decision(push=False, why="")
        self.loss: float | None = None
        self.moved: float | None = None
        self.outgoing: Outgoing | None = None
        self.summoned = False
        self.iterations = 0
        self.since_push = 0
        self.steps_since_push = 0
        self.published = 0
        self.mini_batches = 0
        self.diverged = 0

    @property
    def iteration_s(self) -> float:
        """Typical seconds of one iteration at the present size; 0 when not known yet."""
        return median(self._times) if self._times else 0.0

    @property
    def measured(self) -> tuple[bool, bool]:
        """Whether `iteration_s` and `batch_s` are known."""
        return bool(self._times), bool(self._batch_times)

    @property
    def batch_s(self) -> float:
        """Typical seconds of one mini-batch, whatever the size; 0 when not known yet."""
        return median(self._batch_times) if self._batch_times else 0.0

    def adopt(self, version: int, vector: Params, iterations: int = 0, *, stale: bool = False) -> None:
        """Train from the fleet's model from now on; `iterations` as in `Model`.

        `stale`: what was learnt since the last push is from a model too old, and is not taken along.
        """
        if stale:
            self._params = self._origin
        if self._policy is None:
            self._policy = self._strategy.device_start(vector)
        self._policy = self._strategy.adopted(self._policy, vector, iterations=iterations)
        ahead = self.regime.displaces and self._params is not None and self._params is not self._origin
        if ahead and self._params is not None and self._origin is not None:
            self._params = vector + (self._params - self._origin)
        else:
            self._params = vector
            self.since_push = self.steps_since_push = 0
        self.base = self._origin = vector
        self.base_version = version
        if self.regime.delta_down or self.regime.needs_base:
            self.base_sha256 = sha256(vector)
        self._walked_at_base = self._walked
        self._arrived = None

    def adopt_later(self, version: int, vector: Params, iterations: int = 0, *, stale: bool = False) -> None:
        """The same, at the end of the iteration that is running."""
        self._arrived = _Arrived(version, vector, iterations, stale)

    def _adopt_arrived(self, arrived: _Arrived) -> None:
        self.adopt(arrived.version, arrived.vector, arrived.iterations, stale=arrived.stale)

    def reallocated(self, allocation: Allocation) -> None:
        """Another allocation is in force; times of another size say nothing about it (a new shard is no new size)."""
        coding = CODINGS.get(allocation.codec)
        usable = coding is not None and (self.regime.displaces or not coding.partial)
        self.codec = cast("Codec", allocation.codec) if usable else self._manifest.codec
        size = (allocation.samples, allocation.batch, allocation.steps)
        if size != self._size:
            self._size = size
            self._times.clear()

    def job(self, allocation: Allocation, shard: str, session: int, *, shards: tuple[str, ...] = ()) -> TrainJob | None:
        """The next iteration; None without a model. `shards`: the pieces of a walk that are at hand."""
        if self._params is None:
            return None
        manifest = self._manifest
        walks = manifest.data.sampling == "walk"
        steps = 0
        if walks and (allocation.rows, shards) != self._ground:
            # Positions of the walk over other rows tell nothing about these.
            self._ground = (allocation.rows, shards)
            self._walked_at_base = self._walked
        if walks:
            steps = allocation.steps or max(1, round(manifest.epochs * allocation.samples / allocation.batch))
        return TrainJob(
            start=self._params,
            samples=allocation.samples,
            batch=allocation.batch,
            epochs=manifest.epochs,
            learning_rate=manifest.learning_rate * self._rate_scale * self._warmth(steps),
            sampling=manifest.data.sampling,
            gate_split=manifest.data.gate_split,
            rows=allocation.rows,
            shard=shard,
            key=(manifest.seed, self._who, session, self.iterations),
            slice_key=(manifest.seed, self._who),
            steps=steps,
            walked=self._walked,
            shards=shards,
            probe=self._probe(Work(steps=steps, batch=allocation.batch, share=allocation.share)) if walks else None,
        )

    def _warmth(self, steps: int) -> float:
        """The part of the learning rate that an iteration has: what a ramp over every mini-batch has in its middle.

        Only mini-batches of sound iterations are steps on it, and a new session does not begin it anew.
        """
        warmup = self.regime.warmup_steps
        return min(1.0, (self._warmed + steps / 2) / warmup) if warmup and steps else 1.0

    def _probe(self, work: Work) -> Probe | None:
        wanted = self._strategy.test(self._policy, work)
        if wanted is None or self.base is None or self._origin is None:
            return None
        return Probe(
            base=self.base,
            origin=self._origin,
            weight=wanted.weight,
            rows=wanted.rows,
            since=self._walked_at_base if wanted.strict else None,
        )

    def recount(self) -> None:
        """Begin the counters anew."""
        self.iterations = self.published = self.mini_batches = self.diverged = 0

    def take(self, result: Trained, seconds: float, *, hold: bool = False) -> Decision:
        """Count one iteration, ask the gate, and make what is to be pushed.

        Args:
            result: of the iteration.
            seconds: how long it took.
            hold: an earlier update is still under way. A displacement then waits for the end of a later iteration.
        """
        # The first iteration of a process pays for lazy initialisation and says nothing about the board's speed.
        if self.iterations > 0:
            self._times.append(seconds)
            if result.mini_batches:
                self._batch_times.append(seconds / result.mini_batches)
        self.iterations += 1
        self.since_push += 1
        self.mini_batches += result.mini_batches
        self.steps_since_push += result.mini_batches
        if self._manifest.data.sampling == "walk":
            self._walked += result.samples
        self.outgoing = self.moved = None
        self.loss = result.loss if math.isfinite(result.loss) else None
        sound = self.loss is not None and is_finite(result.params) and not self._exploded(result)
        if self._arrived is not None and (self._arrived.stale or not self.regime.displaces):
            # The answer to an earlier push came while this iteration ran: the fleet's model wins over local work, unless
            # that is a displacement and not too old.
            self._params = self._origin
            self._adopt_arrived(self._arrived)
            self.decision = Decision(push=False, why="superseded")
        elif not sound:
            self._diverge(result)
            if self._arrived is not None:
                self._adopt_arrived(self._arrived)
        else:
            self._go_on(result, hold=hold and self.regime.displaces)
        return self.decision

    def _exploded(self, result: Trained) -> bool:
        """Whether a finite result is one to be thrown away. Losses that may be negative have no ratio to judge by."""
        began = result.began
        if began is None or not math.isfinite(began):
            return False
        assert self.base is not None  # noqa: S101 - there is no job without a model
        assert self._origin is not None  # noqa: S101 - it is there with the base
        received = self._params is self.base
        if received:  # how good that is was not this device's doing
            self._highest_loss = max(self._highest_loss, began)
        high = result.loss if received else max(result.loss, began)
        far = self._lenience * self._highest_loss * _EXPLOSION
        leapt = _distance(result.params, self._origin)
        if (far > 0 and high > far) or leapt is None or leapt > self._lenience * _LEAP * max(1.0, norm(self.base)):
            self._lenience *= 2
            return True
        self._lenience, self._highest_loss = 1.0, max(self._highest_loss, result.loss)
        return False

    def _go_on(self, result: Trained, *, hold: bool) -> None:
        assert self.base is not None  # noqa: S101 - there is no job without a model
        assert self._origin is not None  # noqa: S101 - it is there with the base
        self._warmed += result.mini_batches
        before = self._policy
        policy, decision = self._strategy.observe(before, result, self._origin)
        self.moved = _distance(result.params, self._origin) if self.regime.displaces else None
        if self.summoned and not decision.push:
            decision = replace(decision, push=True, why="summoned")
        if hold and decision.push:
            decision = replace(decision, push=False, why="held")
        self._params, self._policy, self.decision = result.params, policy, decision
        if self._arrived is not None:
            self._adopt_arrived(self._arrived)
        if decision.push and not self._push():
            self._policy = before
            self._diverge(result)
            return
        self._rate_scale = 1.0

    def _push(self) -> bool:
        """Make what is sent; False where a difference or a sum overflows, as it may where the model itself does not."""
        regime, params = self.regime, self._params
        start = self._origin if regime.displaces else self.base
        assert params is not None  # noqa: S101 - just trained
        assert start is not None  # noqa: S101 - see `_go_on`
        policy, vector = self._strategy.contribution(self._policy, base=start, params=params)
        if not is_finite(vector):
            return False
        if regime.displaces:
            try:
                body, residual = pack_with_feedback(vector, self._residual, self.codec, self.split)
            except ValueError:  # with what was cut off before, the sum leads out of float32
                return False
            if not is_finite(residual):
                return False
            self._residual, self._origin = residual, params
        else:
            body = pack(vector, self.codec, self.split)
        self._policy = policy
        self.outgoing = Outgoing(body=body, codec=self.codec, iterations=self.since_push, steps=self.steps_since_push)
        self.since_push = self.steps_since_push = 0
        self.published += 1
        self.summoned = False
        return True

    def _diverge(self, result: Trained) -> None:
        """Back to the model received; nothing of this is ever pushed."""
        self.diverged += 1
        self._rate_scale *= 0.5
        self._params = self._origin = self.base
        self._residual = None
        self.steps_since_push = 0
        assert self.base is not None  # noqa: S101 - there is no job without a model
        self._policy, judged = self._strategy.observe(self._policy, replace(result, loss=math.nan), self.base)
        self.decision = replace(judged, push=False, why="diverged")


def _distance(one: Params, other: Params) -> float | None:
    """Euclidean; None where the difference leads out of float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = norm(one - other)
    return length if math.isfinite(length) else None
