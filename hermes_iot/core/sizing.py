"""How many rows a device may have, and who has been measured well enough for the strategy to size the fleet anew.

A device is told to use no more rows than exist, than it says it owns (local mode), or than its memory takes. The same
bound goes to the allocator: one that does not know it would offer a fast device more rows than there are, for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hermes_iot.algorithms.allocation import ROWS_MAX
from hermes_iot.algorithms.speed import Report
from hermes_iot.core.member import Member
from hermes_iot.core.patience import iteration_s
from hermes_iot.domain import DeviceId, Sizing
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import DataInfo


def rows_max(member: Member, data: DataInfo) -> int | None:
    """The most rows a device can train on; None = not known to be limited."""
    birth = member.birth
    own = birth.rows if birth is not None and data.mode == "local" else 0
    memory = birth.memory_rows_max if birth is not None else 0
    limits = [limit for limit in (data.rows, own, memory) if limit]
    return min(limits) if limits else None


def fitted(size: Sizing, most: int | None) -> Sizing:
    """No more rows than `most`, a mini-batch no larger than its rows, and at least one of each."""
    samples = max(1, size.samples if most is None else min(size.samples, most))
    return replace(size, samples=samples, batch=max(1, min(size.batch, samples)))


def in_rows(size: Sizing, data: DataInfo) -> Sizing:
    """A size that is given as a share of the data, in rows; in local mode a device uses all it has."""
    if not size.share:
        return size
    return replace(size, samples=max(size.batch, round(size.share * data.rows)) if data.rows else ROWS_MAX)


def reports(
    members: Iterable[Member],
    data: DataInfo,
    epochs: int,
    *,
    now: float,
    patience_s: float,
    early: bool,
) -> dict[DeviceId, Report] | None:
    """What the allocator may know of the devices that are online; None until each was measured at its present size.

    Nobody may hold up the whole fleet: a device that is paused or silent (`patience`) does not count, nor one whose time
    is no measurement (a claim of years), and one that has been there for `patience_s` without any is not waited for.
    With `early` nobody is waited for, and a time at another size will do.
    """
    found: dict[DeviceId, Report] = {}
    for member in members:
        if not member.online or member.silent or (member.state is not None and member.state.phase == "paused"):
            continue
        if early:
            report = _early(member, data, epochs)
        elif member.allocation is None or not member.iteration_s:
            if member.waited_since < now - patience_s:
                continue
            return None
        else:
            report = _report(member, data, epochs, member.iteration_s)
        if report is not None:
            found[member.device] = report
    return found


def _early(member: Member, data: DataInfo, epochs: int) -> Report | None:
    if member.allocation is None or not member.batch_s:
        return None
    return _report(member, data, epochs, iteration_s(member, epochs), batch_s=member.batch_s)


def _report(member: Member, data: DataInfo, epochs: int, seconds: float, *, batch_s: float = 0.0) -> Report | None:
    allocation = member.allocation
    if allocation is None:
        return None
    try:
        return Report(
            seconds=seconds,
            samples=allocation.samples,
            batch=allocation.batch,
            epochs=epochs,
            rows_max=rows_max(member, data),
            iteration=member.state.iterations if member.state is not None else 0,
            batch_s=batch_s,
        )
    except ProtocolError:
        return None
