"""Who is waited for: those who can contribute, not all who are connected.

A strategy does not see a device in its fleet, so no barrier waits for it and nothing is shared out to it, while the
device is excused: because `FAILURES_MAX` times in a row it came to nothing (its iteration diverged, its update was
refused), or because it gave no sign of work for three times what an iteration takes it. Its own doings let it in again:
an iteration that ends well, an update that is applied. Whoever waits for others has done its work and is never silent.

Signs of work are iterations and updates, not words: a board that cannot train what it was allotted goes on asking for
it, and one that crashes at every try goes on being born.

What an iteration takes is predicted from the device's own seconds per mini-batch. As seen from here models travel too,
so the longest of its recent pauses counts as well, but never beyond the patience shown to a device that nobody has
measured: one that stops for an hour must not be given three the next time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hermes_iot.algorithms.speed import mini_batches
from hermes_iot.core.member import Member

#: So many iterations that diverged, or updates that were refused, in a row.
FAILURES_MAX: Final = 3
#: Without a sign of work for so many iterations, no less than so many seconds and reports.
SILENT_ITERATIONS: Final = 3
SILENT_S: Final = 10.0
SILENT_REPORTS: Final = 2


def excuse_of(member: Member) -> str:
    """Why nobody waits for it, as a phrase for a person; empty for a device that is waited for."""
    if member.failures >= FAILURES_MAX:
        return "its iterations diverge"
    if member.refusals >= FAILURES_MAX:
        return "its updates are refused"
    return "it gives no sign of work" if member.silent else ""


def iteration_s(member: Member, epochs: int) -> float:
    """Predicted seconds of an iteration under the allocation in force; 0 for a device that was not measured."""
    one = member.allocation
    if one is None or not member.batch_s:
        return member.iteration_s
    return member.batch_s * (one.steps or mini_batches(epochs, one.samples, one.batch))


def patience_s(member: Member, *, epochs: int, pace_s: float, unmeasured_s: float) -> float:
    """How long a device may give no sign of work.

    Args:
        member: whose.
        epochs: of the run.
        pace_s: how often devices of this fleet report, at least.
        unmeasured_s: for a device whose speed is not known.
    """
    predicted_s = iteration_s(member, epochs)
    pauses_s = min(unmeasured_s, SILENT_ITERATIONS * member.pause_s) if predicted_s else unmeasured_s
    return max(SILENT_S, SILENT_ITERATIONS * predicted_s, pauses_s, SILENT_REPORTS * pace_s)


def fallen_silent(
    members: Iterable[Member], *, epochs: int, pace_s: float, unmeasured_s: float, now: float
) -> list[Member]:
    """Those of the devices at work that have given no sign of it for longer than that.

    Nearly all have given one lately: what each could be allowed is not reckoned for those that need no allowance.
    """
    least_s = max(SILENT_S, SILENT_REPORTS * pace_s)
    return [
        member
        for member in members
        if now > member.worked_at + least_s
        and not member.owed
        and not member.silent
        and now > member.worked_at + patience_s(member, epochs=epochs, pace_s=pace_s, unmeasured_s=unmeasured_s)
    ]
