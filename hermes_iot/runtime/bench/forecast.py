"""How long cells will take: guesses at first, then what cells of the same row took.

The order in which cells are begun and the time left that a person reads follow from it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hermes_iot.runtime.bench.cells import Cell

#: Relative effort to a target, about as measured on MNIST; what is not here counts as `_OTHER`.
_STRATEGIES: Final[Mapping[str, float]] = {
    "hermes-plus": 2.0,
    "single": 3.0,
    "bsp-tuned": 4.0,
    "hermes": 5.0,
    "ebsp": 6.0,
}
_OTHER: Final = 10.0
_TASKS: Final[Mapping[str, float]] = {"digits": 0.1, "cost": 0.05, "occupancy": 0.2, "mnist-cnn": 5.0, "cifar10": 30.0}


def guess(cell: Cell) -> float:
    """Relative effort of a cell."""
    return _STRATEGIES.get(cell.row.strategy, _OTHER) * _TASKS.get(cell.setting.workload.task, 1.0)


class Forecast:
    """Mutable: what cells took so far."""

    def __init__(self) -> None:
        self._real_s = 0.0
        self._guessed = 0.0
        self._by_row: dict[tuple[str, str], list[float]] = {}

    def took(self, cell: Cell, real_s: float) -> None:
        """A cell is finished."""
        self._real_s += real_s
        self._guessed += guess(cell)
        self._by_row.setdefault(_row(cell), []).append(real_s)

    def expected_s(self, cell: Cell) -> float | None:
        """Seconds a cell will take; None before any is known."""
        if taken := self._by_row.get(_row(cell)):
            return sum(taken) / len(taken)
        return guess(cell) * self._real_s / self._guessed if self._guessed else None

    def left_s(self, cells: list[Cell], *, jobs: int) -> float | None:
        """Seconds until all of these are finished; None while nothing is known."""
        expected = [self.expected_s(cell) for cell in cells]
        known = [one for one in expected if one is not None]
        if len(known) < len(expected):
            return None
        return max(sum(known) / jobs, max(known, default=0.0))


def _row(cell: Cell) -> tuple[str, str]:
    return cell.setting.name, cell.row.label
