"""Timing and manners of the two machines: what a person may tune without changing what is decided."""

from __future__ import annotations

from dataclasses import dataclass, field

from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Sizing


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Timing and manners of one device.

    Attributes:
        retry_s, retry_max_s: first and longest pause before an unanswered update is repeated.
        alone_after_s: without an answer for so long, training goes on from the local model.
        state_interval_s: the reported state is refreshed at most this often (pushes and allocations at once).
        once: quit when the run ends instead of waiting for the next one.
    """

    retry_s: float = 5.0
    retry_max_s: float = 60.0
    alone_after_s: float = 15.0
    state_interval_s: float = 1.0
    once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """Timing and manners of the coordinator.

    Attributes:
        rules: when the run ends.
        first: size of a device nobody has measured yet.
        lag_max: an update made from a model older by more versions is stale; None = never.
        keyframe_interval_s, checkpoint_interval_s, status_interval_s, resize_interval_s: at most this often.
        measure_patience_s: a device that reports no time for so long no longer holds up the others' sizes.
        linger_s: after the end, how long to wait for the devices' last counters.
        farewell_s: after the end, how long to wait for a broker that is away: until it is told, devices train on.
        devices_max: more devices than this are not let in.
        measure_interval_s: models whose score the strategy did not need are measured at most this often; 0 = each.
    """

    rules: StopRules = field(default_factory=StopRules)
    first: Sizing = field(default_factory=lambda: Sizing(samples=256, batch=16))
    lag_max: int | None = None
    keyframe_interval_s: float = 5.0
    checkpoint_interval_s: float = 10.0
    status_interval_s: float = 2.0
    resize_interval_s: float = 1.0
    measure_patience_s: float = 300.0
    linger_s: float = 5.0
    farewell_s: float = 600.0
    devices_max: int = 100_000
    measure_interval_s: float = 0.0
