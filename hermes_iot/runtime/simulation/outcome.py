"""What comes out of a simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from hermes_iot.errors import UsageError

#: Evaluations in a run; a longer one is looked at less often.
_POINTS_MAX: Final = 2_000
_GRID_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One evaluation of the fleet's model on the test rows, and what the run had cost by then.

    Attributes:
        t_s: virtual seconds since the beginning.
        version: of the model.
        bytes_model, bytes_data, bytes_control: payload bytes over all links, both ways.
        pushes: updates that reached the coordinator, repetitions not counted.
        iterations, samples: of all boards; samples are rows trained on, an epoch's each time.
        loss, accuracy: on the test rows; accuracy None where the task has none.
        validation_loss, validation_accuracy: as the coordinator last measured, of this model or a slightly older one;
            None before it did. What ends a run may look at these and not at the test rows.
    """

    t_s: float
    version: int
    bytes_model: int
    bytes_data: int
    bytes_control: int
    pushes: int
    iterations: int
    samples: int
    loss: float
    accuracy: float | None
    validation_loss: float | None = None
    validation_accuracy: float | None = None


#: Looks at the curve so far after each new point: a reason to end the run, or None.
Stop: TypeAlias = Callable[[Sequence[Point]], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimLimits:
    """When a simulation ends, besides the run's own rules.

    Attributes:
        virtual_s: after so many virtual seconds.
        grid_s: how often the model is evaluated; None = every second, or 2,000 times in a longer run.
        stop: see `Stop`.
    """

    virtual_s: float
    grid_s: float | None = None
    stop: Stop | None = None

    def __post_init__(self) -> None:
        for name in ("virtual_s", "grid_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}", why="it must be a finite number above 0")

    @property
    def interval_s(self) -> float:
        """Seconds between two evaluations."""
        return self.grid_s if self.grid_s is not None else max(_GRID_S, self.virtual_s / _POINTS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One simulated run.

    Attributes:
        summary: the coordinator's own summary, with the links' bytes, energy and times in it. `links` counts what every
            board's link carried (a keyframe once for each board that got it), as do `bytes_up` and `bytes_down`, which the
            boards report; `bytes_by_kind` is what the coordinator handed to and got from the broker (a keyframe once).
            `energy_j` is None where the fleet has no power figures.
        curve: oldest first; a point for each grid time at which the model was another than before.
        timeline: per device what it did when, see `timeline`.
        log_sha256: a hash over every event in order: equal hashes, equal runs.
        events: how many calls the clock made.
        gates: what each gate would have pushed, see `gates`; None where the strategy is not hermes-plus.
    """

    summary: Mapping[str, Any]
    curve: tuple[Point, ...]
    timeline: Mapping[str, list[list[Any]]]
    log_sha256: str
    events: int
    gates: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """JSON-able; a loss may be NaN or infinite."""
        return {
            **self.summary,
            "curve": [asdict(point) for point in self.curve],
            "timeline": dict(self.timeline),
            "log_sha256": self.log_sha256,
            "events": self.events,
            **({"gates": self.gates} if self.gates is not None else {}),
        }
