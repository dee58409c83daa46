"""How many rows a device may have, and who has been measured well enough for the strategy to size the fleet anew.

A device is told to use no more rows than exist, than it says it owns (local mode), or than its memory takes. The same
bound goes to the allocator: one that does not know it would offer a fast device more rows than there are, for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from hermes_iot.algorithms.speed import Report
from hermes_iot.core.member import Member
from hermes_iot.domain import DeviceId, Sizing
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import DataInfo


def rows_max(member: Member, data: DataInfo) -> int | None:
    """The most rows a device can train on; None = not known to be limited."""
    birth = member.birth
    own = birth.rows if birth is not None and data.mode == "local" else 0
    memory = birth.memory_rows_max if birth is not None else 0
    return min((limit for limit in (data.rows, own, memory) if limit), default=None)


def fitted(size: Sizing, most: int | None) -> Sizing:
    """No more rows than `most`, a mini-batch no larger than its rows, and at least one of each."""
    samples = max(1, size.samples if most is None else min(size.samples, most))
    return Sizing(samples=samples, batch=max(1, min(size.batch, samples)))


def reports(
    members: Iterable[Member], data: DataInfo, epochs: int, *, waited_since: float
) -> dict[DeviceId, Report] | None:
    """What the allocator may know of the devices that are online; None until each was measured at its present size.

    Nobody may hold up the whole fleet: a device that is paused is not waited for, nor one whose time is no
    measurement (a claim of years), nor one that has been there since before `waited_since` without any.
    """
    found: dict[DeviceId, Report] = {}
    for member in members:
        if not member.online or (member.state is not None and member.state.phase == "paused"):
            continue
        if member.allocation is None or not member.iteration_s:
            if member.waited_since < waited_since:
                continue
            return None
        try:
            found[member.device] = Report(
                seconds=member.iteration_s,
                samples=member.allocation.samples,
                batch=member.allocation.batch,
                epochs=epochs,
                rows_max=rows_max(member, data),
                iteration=member.state.iterations if member.state is not None else 0,
            )
        except ProtocolError:
            continue
    return found
