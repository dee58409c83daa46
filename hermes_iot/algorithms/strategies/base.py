"""What a synchronisation strategy is: two halves of pure functions over explicit state.

The device half decides after every local iteration whether the update is worth sending, and what is sent. The
coordinator half turns an update into a new global model, says who is answered, and sizes the devices' work. A
strategy object holds constants only; all that changes is in the state it is handed and gives back, so one strategy
serves every device of a simulation and every run can be replayed.

A strategy of your own is a file with ``Config`` (a frozen dataclass of JSON-able constants) and
``build_strategy(config)``; see ``examples/custom_strategy.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from hermes_iot.algorithms.speed import Report
from hermes_iot.domain import DeviceId, Params, Score, Sizing, Trained

D = TypeVar("D")
C = TypeVar("C")

#: Measures a vector on the coordinator's own held-out rows.
ScoreOf: TypeAlias = Callable[[Params], Score]


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
    """One accepted update as the coordinator half sees it.

    Attributes:
        vector: what the device sent, decoded, shape (P,).
        base: the vector the device had received before, shape (P,); None unless the strategy asks for bases.
        lag: global versions made since the device received its base.
        samples, iterations: rows of the newest iteration, and local iterations since the device's last push.
    """

    device: DeviceId
    vector: Params
    base: Params | None
    lag: int
    samples: int
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What the coordinator half made of a contribution.

    Attributes:
        model: the new global vector; None when this contribution only waits for others.
        score: of `model` on the held-out rows, where the strategy measured it anyway.
        weight: the share of the new model that came from this contribution, in [0, 1].
        reply_to: devices that get the global model now.
    """

    model: Params | None
    reply_to: tuple[DeviceId, ...]
    weight: float = 0.0
    score: Score | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDump:
    """A coordinator half's state, cut into what JSON and what a tensor file keeps."""

    scalars: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Params] = field(default_factory=dict)


class Strategy(Protocol[D, C]):
    """Constants and pure functions; D and C are the states of the device's and the coordinator's half."""

    @property
    def needs_base(self) -> bool:
        """Whether `merge` wants the vector each device had received (the coordinator then keeps them)."""

    # the device's half

    def device_start(self, initial: Params) -> D:
        """State of a device that has just received its first model of a run, `initial`."""

    def observe(self, state: D, trained: Trained) -> tuple[D, Decision]:
        """After one local iteration: push or not.

        A loss of NaN tells that the iteration diverged: the device has gone back to the model it received, whatever
        `trained.params` holds, and does not push whatever the decision says. The state goes on all the same (an age
        must go on counting).
        """

    def contribution(self, state: D, *, base: Params, params: Params) -> tuple[D, Params]:
        """The vector to send: made from the model last received and the local one.

        One that is not finite counts as a divergence: it is not sent, and the state returned is dropped.
        """

    # the coordinator's half

    def coordinator_start(self, initial: Params) -> C:
        """State at version 0, whose model is `initial`."""

    def merge(self, state: C, model: Params, contribution: Contribution, score: ScoreOf) -> tuple[C, Merged]:
        """Take one update into account.

        Raises:
            ProtocolError: the update is refused under the error's reason, and the state stays as it was.
        """

    def resize(self, state: C, reports: Mapping[DeviceId, Report]) -> tuple[C, Mapping[DeviceId, Sizing]]:
        """New sizes for the devices that need one; `reports` holds every device that has been measured."""

    def dump(self, state: C) -> StateDump:
        """Cut the state for a checkpoint."""

    def load(self, dump: StateDump) -> C:
        """Put it together again.

        Raises:
            KeyError, TypeError, ValueError: the dump is not one of this strategy's.
        """
