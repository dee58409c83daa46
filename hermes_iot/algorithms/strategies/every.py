"""Device halves that push after every iteration: the model itself, or how far the iteration moved it.

Neither remembers anything. `RemembersNothing` is their counterpart: a coordinator half that only answers the sender.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np

from hermes_iot.algorithms.strategies.base import BaseStrategy, C, Decision, StateDump
from hermes_iot.domain import Params, Trained

#: The state of a half that remembers nothing.
Nothing: TypeAlias = tuple[()]

ALWAYS: Final = Decision(push=True, why="every")


class PushesModel(BaseStrategy[Nothing, C]):
    """After every iteration, the local model."""

    def device_start(self, initial: Params) -> Nothing:  # noqa: ARG002
        """Nothing to remember."""
        return ()

    def observe(self, state: Nothing, trained: Trained, origin: Params) -> tuple[Nothing, Decision]:  # noqa: ARG002
        """Push."""
        return state, ALWAYS

    def contribution(self, state: Nothing, *, base: Params, params: Params) -> tuple[Nothing, Params]:  # noqa: ARG002
        """The model."""
        return state, params


class PushesDisplacement(PushesModel[C]):
    """After every iteration, the way from the model received to the local one."""

    def contribution(self, state: Nothing, *, base: Params, params: Params) -> tuple[Nothing, Params]:
        """The difference; it may overflow to infinity, and whoever asked looks."""
        with np.errstate(over="ignore", invalid="ignore"):
            return state, params - base


class RemembersNothing:
    """A coordinator half without a state: what it makes of a push depends on that push alone."""

    def coordinator_start(self, initial: Params) -> Nothing:  # noqa: ARG002
        """Nothing to remember."""
        return ()

    def dump(self, state: Nothing) -> StateDump:  # noqa: ARG002
        """Nothing to keep."""
        return StateDump()

    def load(self, dump: StateDump) -> Nothing:  # noqa: ARG002
        """Nothing was kept."""
        return ()
