"""What a coordinator must not forget between two checkpoints, as entries of a redo log.

The model, the strategy's state and the counters are changed by three calls only: an update is taken, the working fleet
changes, devices are re-sized. An entry holds what such a call was given and what it found out by computing (scores),
so that doing it again gives the same bits on any machine and measures nothing. Everything else a coordinator knows is
said again by whoever knows it: devices repeat their births and reports, allocations are in the registry.

An entry is made after its call and is on disk before anybody is told of the outcome: what a crash forgets was never
acknowledged, never answered and never published, and comes again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from hermes_iot.algorithms.speed import Report
from hermes_iot.domain import DeviceId, Params, Score
from hermes_iot.protocol.messages import Outcome, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a call computed, and how the run stood after it.

    Attributes:
        scores: of the vectors the strategy asked about, in its order.
        measured: of the served model, where it was measured besides.
        version: of the global model.
        elapsed_s: of the run.
        up, down: payload bytes carried so far, by kind.
    """

    scores: tuple[Score, ...] = ()
    measured: Score | None = None
    version: int
    elapsed_s: float
    up: Mapping[str, int] = field(default_factory=dict)
    down: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTaken:
    """An update met its end.

    Attributes:
        update: as it came; of one that was not applied only the header, with an empty body.
        planned: mini-batches of an iteration by the device's allocation; 0 where it named none.
        base: the vector it was made from, shape (P,), where the strategy wanted it.
    """

    device: DeviceId
    update: Update
    outcome: Outcome
    reason: str
    lag: int
    planned: int
    base: Params | None
    found: Found


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetChanged:
    """A device works from now on, or no longer."""

    device: DeviceId
    works: bool
    found: Found


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """The strategy was asked for sizes."""

    reports: Mapping[DeviceId, Report]
    found: Found


Entry: TypeAlias = UpdateTaken | FleetChanged | Resized

#: What an entry takes beside its tensors, about; a small one is mostly this.
HEAD_BYTES: Final = 512


def weight(entry: Entry) -> int:
    """How many bytes of a log an entry takes, about."""
    if not isinstance(entry, UpdateTaken):
        return HEAD_BYTES
    return HEAD_BYTES + len(entry.update.body) + (entry.base.nbytes if entry.base is not None else 0)


class Crew:
    """The working fleet as the log tells it, in the order of joining (`strategies.base.Fleet`)."""

    def __init__(self, devices: tuple[DeviceId, ...] = ()) -> None:
        self._devices: dict[DeviceId, None] = dict.fromkeys(devices)

    def follow(self, entry: Entry) -> None:
        """Somebody came or left."""
        match entry:
            case FleetChanged(device=device, works=True):
                self._devices.setdefault(device)
            case FleetChanged(device=device):
                self._devices.pop(device, None)

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[DeviceId]:
        return iter(self._devices)

    def __contains__(self, device: object) -> bool:
        return device in self._devices
