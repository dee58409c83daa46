"""Who is given which work, and when: first sizes, new sizes, the next shard, and what a restart has lost.

An allocation is written down before it is said (`Remember` stands before `Send`): a device must never obey what a
crash lets us forget, for its newer version would then hide ours from it for ever. Where that happens all the same -
a damaged disk, a registry from a backup - the version a device reports shows it, and it is given one above that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from hermes_iot.algorithms.speed import Report
from hermes_iot.core import records, sizing
from hermes_iot.core.allotment import Allotment, ShardOf
from hermes_iot.core.effects import Effect, Remember, Send
from hermes_iot.core.member import Member
from hermes_iot.core.roster import Roster
from hermes_iot.core.settings import CoordinatorSettings
from hermes_iot.domain import DeviceId, Ranges, Sizing
from hermes_iot.protocol.messages import DeviceState, Request, RunManifest, Shard


class Assigner:
    """Mutable, owned by the `Coordinator`."""

    def __init__(
        self, manifest: RunManifest, settings: CoordinatorSettings, roster: Roster, shard_of: ShardOf | None
    ) -> None:
        self.allotment = Allotment(manifest.run, manifest.data, shard_of)
        self._manifest = manifest
        self._settings = settings
        self._roster = roster

    def restore(self, cursor: int, shards: Mapping[str, Ranges]) -> None:
        """Take up where another process stopped; the roster is as it left it."""
        self.allotment.restore(cursor, shards)
        for member in self._roster:
            member.reissue = member.allocation is not None and not self.allotment.serves(member.allocation)

    def welcome(self, member: Member, *, now: float) -> list[Effect]:
        """A device that came back finds its allocation as it left it; a new one gets its first."""
        allocation = member.allocation
        if allocation is None:
            return self._assign(member, self._settings.first, "first allocation", now)
        size = Sizing(samples=allocation.samples, batch=allocation.batch)
        if member.reissue or member.obeyed > allocation.version or size != self._fitted(member, size):
            return self._assign(member, size, "the device came back", now)
        return [remember(member), *self.say(member)]

    def say(self, member: Member) -> list[Effect]:
        """The allocation as it stands; one that must be numbered anew is not said again."""
        allocation = member.allocation
        return [Send(message=allocation, device=member.device)] if allocation is not None and not member.reissue else []

    def say_all(self) -> list[Effect]:
        """Everybody's."""
        return [effect for member in self._roster for effect in self.say(member)]

    def follow(self, member: Member, state: DeviceState, *, now: float) -> list[Effect]:
        """What a report calls for: the next shard, or an allocation above one that we have forgotten."""
        allocation = member.allocation
        if allocation is None:
            return []
        if member.online and member.obeyed > allocation.version:
            size = Sizing(samples=allocation.samples, batch=allocation.batch)
            return self._assign(member, size, "an earlier allocation was lost", now)
        if state.allocation_version != allocation.version or not allocation.next_shard:
            return []
        if state.shard != allocation.next_shard:
            return []
        member.allocation = self.allotment.rotate(allocation, self._roster.allocations())
        return [remember(member), *self.say(member)]

    def ship(self, member: Member, request: Request, *, now: float) -> list[Effect]:
        """A device asks for a shard. It is sent what its allocation names and nothing else."""
        allocation, sha256 = member.allocation, request.sha256
        named = allocation is not None and sha256 in {allocation.shard, allocation.next_shard}
        body = self.allotment.body(sha256) if named else None
        if body is not None:
            return [Send(message=Shard(run=self._manifest.run, sha256=sha256, body=body), device=member.device)]
        refused = records.refused(member.device, "request", "unknown shard")
        if allocation is None or not named:
            return [refused, *self.say(member)]
        size = Sizing(samples=allocation.samples, batch=allocation.batch)
        return [refused, *self._assign(member, size, "its shard was lost", now)]

    def reports(self, *, now: float) -> dict[DeviceId, Report]:
        """What the allocator may know; empty until every device that is there has been measured."""
        since = now - self._settings.measure_patience_s
        manifest = self._manifest
        return sizing.reports(self._roster, manifest.data, manifest.epochs, waited_since=since) or {}

    def resize(self, sizes: Mapping[DeviceId, Sizing], *, now: float) -> list[Effect]:
        """The strategy wants these sizes."""
        effects: list[Effect] = []
        for device, asked in sizes.items():
            member = self._roster.members[device]
            before, size = member.allocation, self._fitted(member, asked)
            if before is not None and (before.samples, before.batch) != (size.samples, size.batch):
                why = f"{before.samples} rows took {member.iteration_s:.3g} s"
                effects += self._assign(member, size, why, now)
        return effects

    def _fitted(self, member: Member, size: Sizing) -> Sizing:
        return sizing.fitted(size, sizing.rows_max(member, self._manifest.data))

    def _assign(self, member: Member, asked: Sizing, reason: str, now: float) -> list[Effect]:
        size, held = self._fitted(member, asked), self._roster.allocations()
        allocation = self.allotment.allot(member.device, size, held, above=member.obeyed, reason=reason)
        member.allotted(allocation, now=now)
        return [remember(member), *self.say(member), records.allocated(allocation)]


def remember(member: Member) -> Remember:
    """A device's row in the registry, and its allocation."""
    row = {
        "session": member.session,
        "seq": member.handled[1] if member.handled[0] == member.session else 0,
        "counters": asdict(member.totals()),
        "status": "online" if member.online else "offline",
    }
    allocations = {} if member.allocation is None else {str(member.device): member.allocation}
    return Remember(devices={member.device: row}, allocations=allocations)
