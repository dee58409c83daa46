"""What all boards of a simulation share: time, network, ledger, the run's words, and the seed of all chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hermes_iot.algorithms.strategies.base import Strategy
from hermes_iot.core.settings import DeviceSettings
from hermes_iot.domain import stable_int
from hermes_iot.protocol.messages import StrategyInfo
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Received
from hermes_iot.runtime.link import Link
from hermes_iot.runtime.simulation.clock import VirtualClock
from hermes_iot.runtime.simulation.gates import Gates
from hermes_iot.runtime.simulation.ledger import Ledger
from hermes_iot.runtime.simulation.network import Network
from hermes_iot.transport.base import Delivery


@dataclass(slots=True, kw_only=True, eq=False)
class World:
    """See the module.

    Attributes:
        rows_are_own: each board has rows of its own, in local mode, and says how many.
        gates: told of every iteration; None where nobody asks what other gates would have done.
    """

    clock: VirtualClock
    ledger: Ledger
    network: Network
    topics: Topics
    seed: int
    settings: DeviceSettings
    strategy_of: Callable[[StrategyInfo], Strategy[Any, Any]]
    rows_are_own: bool = False
    gates: Gates | None = None
    _heard: dict[str, tuple[bytes, Received]] = field(default_factory=dict)

    def chance(self, device: str, purpose: str) -> np.random.Generator:
        """A generator of its own for each device and purpose: one more draw here moves nothing there."""
        return np.random.default_rng([self.seed, stable_int(device), stable_int(purpose)])

    def decoded(self, link: Link, delivery: Delivery, *, now: float) -> Received | None:
        """The message in a delivery. One said to everybody is decoded once: the same bytes are the same message.

        Raises:
            ProtocolError: it breaks the rules.
        """
        known = self._heard.get(delivery.topic)
        if known is not None and known[0] is delivery.payload:
            return known[1]
        received = link.decode(delivery, now=now)
        if received is not None and not received.device and not received.tensor:
            self._heard[delivery.topic] = delivery.payload, received
        return received
