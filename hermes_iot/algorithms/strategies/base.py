"""What a synchronisation strategy is: two halves of pure functions over explicit state.

The device half decides after every local iteration whether the update is worth sending, and what is sent. The
coordinator half turns an update into a new global model, says who is answered, and sizes the devices' work. A
strategy object holds constants only; all that changes is in the state it is handed and gives back, so one strategy
serves every device of a simulation and every run can be replayed.

A strategy of your own is a file with ``Config`` (a frozen dataclass of JSON-able constants) and
``build_strategy(config)``; derive it from `BaseStrategy`, which answers what it has no opinion on, and see
``examples/custom_strategy.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from hermes_iot.algorithms.speed import Report
from hermes_iot.domain import Codec, DeviceId, Params, Sampling, Score, Sizing, Trained

D = TypeVar("D")
C = TypeVar("C")

#: Measures a vector on the coordinator's own held-out rows.
ScoreOf: TypeAlias = Callable[[Params], Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """What a strategy asks of a run. Sampling, codecs and first sizes are proposals: what a person says wins.

    Attributes:
        sampling: how an iteration finds its rows.
        codec_up, codec_down: of updates, and of the models that answer them.
        samples, batch, epochs: first size of a device in rows, and passes of an iteration; None = the task's.
        steps: mini-batches of an iteration before the device was measured; 0 where passes make an iteration.
        needs_base: `merge` wants the vector each device had received (the coordinator then keeps them).
        displaces: what is sent is a displacement. A codec's error is then carried over to the next update, what was
            learnt while an answer was on its way is kept, and an update is never replaced by a newer one: both would
            be needed.
        delta_down: an answer is the difference from what its device is known to hold.
        codec_whole: with `delta_down`, of the model for a device of which that is not known.
        waits: a device does not go on alone, however long its answer takes and whoever leads: the rule of barriers.
        overlaps: a device goes on training while its answer is on the way. Needs `displaces`.
        learning_rate_scale: of the task's own learning rate.
        warmup_steps: mini-batches of a walk over which a device that begins in a run comes to its learning rate, which is
            one for an iteration; 0 = at once.
        lag_per_device: what was made from a model older by more versions than this times the fleet's size is stale: an
            update is refused, and what a device learnt meanwhile gives way to the model it comes back to. None = never.
        sizes_early: `resize` is asked as soon as one device was measured; else once all that are there were.
    """

    sampling: Sampling = "fresh"
    codec_up: Codec = "fp16"
    codec_down: Codec = "fp16"
    samples: int | None = None
    batch: int | None = None
    epochs: int | None = None
    steps: int = 0
    needs_base: bool = False
    displaces: bool = False
    delta_down: bool = False
    codec_whole: Codec = "fp16"
    waits: bool = False
    overlaps: bool = False
    learning_rate_scale: float = 1.0
    warmup_steps: int = 0
    lag_per_device: int | None = None
    sizes_early: bool = False

    def lag_max(self, devices: int) -> int | None:
        """The bound in a fleet of so many; None = none."""
        return None if self.lag_per_device is None else self.lag_per_device * max(1, devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the device half may know of the iteration to come: its size, and the device's share of the fleet's speed."""

    steps: int
    batch: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """A test the device half wants made at the end of the iteration, see `domain.Probe`.

    Attributes:
        rows: m.
        weight: of the displacement in the model that is compared with the one received.
        strict: leave out rows trained on since the base was received.
    """

    rows: int
    weight: float
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The device half's answer after one iteration.

    Attributes:
        push: send the update now.
        why: one stable word: ``loss``, ``age``, ``no``, ``diverged`` or a strategy's own.
        z: the gate's statistic, None where it has none.
        threshold: what `z` was compared with, None where nothing was.
    """

    push: bool
    why: str
    z: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One accepted update as the coordinator half sees it. Numbers beside the vector are the device's own claims.

    Attributes:
        vector: what the device sent, decoded, shape (P,).
        base: the vector the device had received before, shape (P,); None unless the strategy asks for bases.
        lag: global versions made since the device received its base.
        samples, seconds, mini_batches: of the newest iteration.
        iterations, steps: local iterations and mini-batches since the device's last push.
        planned: mini-batches of an iteration by the device's allocation; 0 where it names none.
    """

    device: DeviceId
    vector: Params
    base: Params | None
    lag: int
    samples: int
    iterations: int
    seconds: float = 0.0
    mini_batches: int = 0
    steps: int = 0
    planned: int = 0


class Fleet(Protocol):
    """The devices that are there now: online, not paused, and not known to be unable to contribute (`core/patience`).

    Cheap to ask, whatever the fleet's size; iterating costs what it looks like. A contribution may come from one that
    is not in it: it is let in again right after.
    """

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[DeviceId]:
        """All of them, in the order in which they joined."""

    def __contains__(self, device: object) -> bool:
        """Whether this one is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What the coordinator half made of a contribution, or of a change in the fleet.

    Attributes:
        model: the new global vector, the one devices train from; None when nothing changed.
        score: of the served model, where the strategy measured it anyway.
        weight: the share of the new model that came from this contribution, in [0, 1].
        reply_to: devices that get the global model now.
        iterations: for devices in `reply_to`, how many local iterations to make before the next push; where a device
            is missing its own half decides.
        summon: devices that are asked to push at the end of the iteration they are at.
    """

    model: Params | None
    reply_to: tuple[DeviceId, ...]
    weight: float = 0.0
    score: Score | None = None
    iterations: Mapping[DeviceId, int] = field(default_factory=dict)
    summon: tuple[DeviceId, ...] = ()


#: Nothing changed and nobody is answered.
NOTHING = Merged(model=None, reply_to=())


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDump:
    """A coordinator half's state, cut into what JSON and what a tensor file keeps."""

    scalars: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Params] = field(default_factory=dict)


class Strategy(Protocol[D, C]):
    """Constants and pure functions; D and C are the states of the device's and the coordinator's half."""

    @property
    def regime(self) -> Regime:
        """What this strategy asks of a run."""

    # the device's half

    def device_start(self, initial: Params) -> D:
        """State of a device that has just received its first model of a run, `initial`."""

    def adopted(self, state: D, received: Params, *, iterations: int) -> D:
        """A model came, after `device_start` for the first one too; `iterations` as in `Merged`, 0 = not said."""

    def test(self, state: D, work: Work) -> PairedTest | None:
        """The test to make at the end of the coming iteration; asked in a walk only."""

    def observe(self, state: D, trained: Trained, origin: Params) -> tuple[D, Decision]:
        """After one local iteration: push or not. `origin`: where a displacement pushed now would begin, shape (P,).

        A loss of NaN tells that the iteration diverged: the device has gone back to the model it received, whatever
        `trained.params` holds, and does not push whatever the decision says. The state goes on all the same (an age
        must go on counting).
        """

    def contribution(self, state: D, *, base: Params, params: Params) -> tuple[D, Params]:
        """The vector to send: made from the model last received (or, where `displaces`, pushed) and the local one.

        Asked at a push only, also at one that somebody else decided. One that is not finite counts as a divergence:
        it is not sent, and the state returned is dropped.
        """

    # the coordinator's half

    def coordinator_start(self, initial: Params) -> C:
        """State at version 0, whose model is `initial`."""

    def merge(
        self, state: C, model: Params, contribution: Contribution, fleet: Fleet, score: ScoreOf
    ) -> tuple[C, Merged]:
        """Take one update into account.

        Raises:
            ProtocolError: the update is refused under the error's reason, and the state stays as it was.
        """

    def changed(self, state: C, model: Params, fleet: Fleet, score: ScoreOf) -> tuple[C, Merged]:
        """A device came or left: whoever waits for one that is gone must not wait for ever."""

    def resize(self, state: C, reports: Mapping[DeviceId, Report], fleet: Fleet) -> tuple[C, Mapping[DeviceId, Sizing]]:
        """New sizes for the devices that need one; `reports` holds those of the fleet that have been measured."""

    def served(self, state: C, model: Params) -> Params:
        """The model that is measured, saved and handed out, where it is not the one devices train from."""

    def dump(self, state: C) -> StateDump:
        """Cut the state for a checkpoint."""

    def load(self, dump: StateDump) -> C:
        """Put it together again.

        Raises:
            KeyError, TypeError, ValueError: the dump is not one of this strategy's.
        """


class BaseStrategy(Generic[D, C]):
    """The answers of a strategy without an opinion: fresh rows, fp16, no test, nobody re-sized, nothing averaged."""

    @property
    def regime(self) -> Regime:
        """The defaults."""
        return Regime()

    def adopted(self, state: D, received: Params, *, iterations: int) -> D:  # noqa: ARG002
        """Nothing to note."""
        return state

    def test(self, state: D, work: Work) -> PairedTest | None:  # noqa: ARG002
        """None."""
        return None

    def changed(self, state: C, model: Params, fleet: Fleet, score: ScoreOf) -> tuple[C, Merged]:  # noqa: ARG002
        """Nobody waits for anybody."""
        return state, NOTHING

    def resize(
        self,
        state: C,
        reports: Mapping[DeviceId, Report],  # noqa: ARG002
        fleet: Fleet,  # noqa: ARG002
    ) -> tuple[C, Mapping[DeviceId, Sizing]]:
        """Everybody keeps the first size."""
        return state, {}

    def served(self, state: C, model: Params) -> Params:  # noqa: ARG002
        """The one devices train from."""
        return model
