"""Timing and manners of the two machines: what a person may tune without changing what is decided."""

from __future__ import annotations

from dataclasses import dataclass, field

from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Codec, Sizing


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Timing and manners of one device.

    Attributes:
        retry_s, retry_max_s: first and longest pause before an unanswered update is repeated.
        alone_after_s: without an answer for so long, training goes on from the local model.
        state_interval_s: the reported state is refreshed at most this often (allocations, and a time that is known for
            the first time, at once), and in a large fleet no more often than every `state_s_per_device` times its size.
        state_s_per_device: what everybody says costs broker and coordinator a message of each device. With this pace
            it is the same in a second however large the fleet is: 0.02 = 50 states a second, from 50 devices on.
        once: quit when the run ends instead of waiting for the next one.
    """

    retry_s: float = 5.0
    retry_max_s: float = 60.0
    alone_after_s: float = 15.0
    state_interval_s: float = 1.0
    state_s_per_device: float = 0.02
    once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """Timing and manners of the coordinator.

    Attributes:
        rules: when the run ends.
        first: size of a device nobody has measured yet.
        codec_for: (pattern of device ids, codec of their updates); the first that fits counts, else the run's codec.
        lag_max: an update made from a model older by more versions is stale; None = the strategy's bound.
        keyframe_interval_s, status_interval_s, resize_interval_s: at most this often, and in a large fleet no more often
            than every `announce_s_per_device` times its size.
        announce_s_per_device: what is said to everybody, or computed for everybody, costs a message or a sum for each
            device there. With this pace it costs broker and coordinator the same in a second however large the fleet
            is: 0.02 = 50 deliveries a second of each kind, from 100 (status) or 250 devices (keyframe) on. Devices
            slow their states down likewise, so a fleet is not sized more often than it reports.
        checkpoint_interval_s: at most this often; infinite = only at the beginning and the end.
        checkpoint_bytes: where the redo log since the last checkpoint has grown so large, one is made at once, also where
            the model has not changed: repetitions are written down, too.
        measure_patience_s: a device that reports no time for so long no longer holds up the others' sizes, nor, where
            it gives no other sign of work, what waits for everybody.
        linger_s: after the end, how long to wait for the devices' last counters.
        farewell_s: after the end, how long to wait for a broker that is away: until it is told, devices train on.
        devices_max: more devices than this are not let in.
        retry_s, retry_max_s: first and longest pause before a summons that was not followed is said again.
        measure_interval_s: models whose score the strategy did not need are measured at most this often; 0 = each.
    """

    rules: StopRules = field(default_factory=StopRules)
    first: Sizing = field(default_factory=lambda: Sizing(samples=256, batch=16))
    codec_for: tuple[tuple[str, Codec], ...] = ()
    lag_max: int | None = None
    keyframe_interval_s: float = 5.0
    status_interval_s: float = 2.0
    resize_interval_s: float = 1.0
    announce_s_per_device: float = 0.02
    checkpoint_interval_s: float = 10.0
    checkpoint_bytes: int = 256 * 1024 * 1024
    measure_patience_s: float = 300.0
    linger_s: float = 5.0
    farewell_s: float = 600.0
    devices_max: int = 100_000
    retry_s: float = 5.0
    retry_max_s: float = 60.0
    measure_interval_s: float = 0.0
