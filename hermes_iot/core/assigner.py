"""Who is given which work, and when: first sizes, new sizes, the next shard, and what a restart has lost.

An allocation is written down before it is said (`Remember` stands before `Send`): a device must never obey what a
crash lets us forget, for its newer version would then hide ours from it for ever. Where that happens all the same -
a damaged disk, a registry from a backup - the version a device reports shows it, and it is given one above that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final
from weakref import WeakValueDictionary

from hermes_iot.algorithms.speed import Report
from hermes_iot.core import records, sizing
from hermes_iot.core.allotment import Allotment, ShardOf
from hermes_iot.core.effects import Effect, Remember, Send
from hermes_iot.core.member import Member
from hermes_iot.core.quota import Quota
from hermes_iot.core.roster import Roster
from hermes_iot.core.settings import CoordinatorSettings
from hermes_iot.core.shelf import PIECES_UNDER_WAY
from hermes_iot.domain import DeviceId, Ranges, Sizing
from hermes_iot.protocol.messages import Allocation, DeviceState, Request, RunManifest, Shard

#: A share that changes by less is not worth a message.
SHARE_CHANGE: Final = 0.1

#: A device may have each of its shards so often at once, and again after so many seconds, which is a device's first
#: pause before it asks again.
_SHARD_BURST: Final = 3
_SHARD_INTERVAL_S: Final = 5.0


class Assigner:
    """Mutable, owned by the `Coordinator`. `early`: see `Regime.sizes_early`."""

    def __init__(
        self,
        manifest: RunManifest,
        settings: CoordinatorSettings,
        roster: Roster,
        shard_of: ShardOf | None,
        *,
        early: bool,
    ) -> None:
        self.allotment = Allotment(manifest.run, manifest.data, shard_of)
        self._manifest = manifest
        self._settings = settings
        self._roster = roster
        self._early = early
        self._on_their_way: WeakValueDictionary[str, Shard] = WeakValueDictionary()

    def restore(self, cursor: int, shards: Mapping[str, Ranges]) -> None:
        """Take up where another process stopped; the roster is as it left it."""
        self.allotment.restore(cursor, shards, self._roster.allocations())
        for member in self._roster:
            member.reissue = member.allocation is not None and not self.allotment.serves(member.allocation)

    def welcome(self, member: Member, *, now: float) -> list[Effect]:
        """A device that came back finds its allocation as it left it; a new one gets its first."""
        allocation = member.allocation
        size = member.sizing
        if allocation is None or size is None:
            return self._assign(member, self._settings.first, "first allocation", now)
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
        if member.online and member.obeyed > allocation.version and (size := member.sizing) is not None:
            return self._assign(member, size, "an earlier allocation was lost", now)
        if state.allocation_version != allocation.version or not allocation.next_shard:
            return []
        if state.shard != allocation.next_shard:
            return []
        member.allocation = replace(self.allotment.rotate(allocation), codec=allocation.codec)
        return [remember(member), *self.say(member)]

    def ship(self, member: Member, request: Request, *, now: float) -> list[Effect]:
        """A device asks for shards. It is sent what its allocation names and nothing else, and no shard too often.

        An honest device asks for a shard once, and again when it got lost; so each has a quota of its own, and however
        many there are they come as quickly as they are asked for. It asks for a few at a time, and no more are made.
        """
        allocation = member.allocation
        wanted = tuple(dict.fromkeys(request.shards or (request.sha256,)))[:PIECES_UNDER_WAY]
        named = {allocation.shard, allocation.next_shard, *allocation.shards} if allocation is not None else set()
        member.shards = {sha256: quota for sha256, quota in member.shards.items() if sha256 in named}
        found: list[Effect] = []
        unknown = lost = rated = False
        for sha256 in wanted:
            if sha256 not in named:
                unknown = True
            elif not _quota(member, sha256).take(now=now):
                rated = True
            elif (shard := self._shard(sha256)) is not None:
                found.append(Send(message=shard, device=member.device))
            else:
                lost = True
        if rated:
            found.append(records.refused(member.device, "request", "rate"))
        return [*found, *self._set_right(member, now, lost=lost)] if unknown or lost else found

    def _shard(self, sha256: str) -> Shard | None:
        """As a message, the one that is still on its way to somebody if there is one; None for a shard that is lost."""
        shard = self._on_their_way.get(sha256)
        if shard is None and (body := self.allotment.body(sha256)) is not None:
            shard = self._on_their_way[sha256] = Shard(run=self._manifest.run, sha256=sha256, body=body)
        return shard

    def _set_right(self, member: Member, now: float, *, lost: bool) -> list[Effect]:
        """A device asked for a shard that we do not have, or that is not its own: tell it what is."""
        refused = records.refused(member.device, "request", "unknown shard")
        if not member.requests.take(now=now):
            return [refused]
        size = member.sizing
        if size is None or not lost:
            return [refused, *self.say(member)]
        return [refused, *self._assign(member, size, "its shard was lost", now)]

    def reports(self, *, now: float) -> dict[DeviceId, Report]:
        """What the allocator may know; empty until every device that is there, or with `early` any, was measured."""
        manifest = self._manifest
        found = sizing.reports(
            self._roster,
            manifest.data,
            manifest.epochs,
            now=now,
            patience_s=self._settings.measure_patience_s,
            early=self._early,
        )
        return found or {}

    def resize(self, sizes: Mapping[DeviceId, Sizing], *, now: float) -> list[Effect]:
        """The strategy wants these sizes. Who shrinks comes first: what it gives up others can have."""
        changes: list[tuple[int, Member, Sizing]] = []
        for device, asked in sizes.items():
            member = self._roster.members[device]
            before, size = member.sizing, self._fitted(member, sizing.in_rows(asked, self._manifest.data))
            if before is not None and before != size:
                changes.append((size.samples - before.samples, member, size))
        effects: list[Effect] = []
        for _, member, size in sorted(changes, key=lambda change: change[0]):
            what = f"{member.batch_s:.3g} s a mini-batch" if size.share else f"{member.iteration_s:.3g} s"
            before = member.sizing
            why = f"{before.samples if before else 0} rows took {what}"
            effects += self._assign(member, size, why, now, unless_same=bool(size.share))
        return effects

    def reclaim(self) -> None:
        """Rows of devices that are gone or silent may be given to others; one that comes back is allotted anew."""
        for member in self._roster:
            idle = not member.online or member.silent
            if idle and not member.reissue and self.allotment.release(member.device):
                member.reissue = True

    def _codec(self, device: DeviceId) -> str:
        """The one a person wants for its updates; "" = the run's."""
        rules = self._settings.codec_for
        return next((codec for pattern, codec in rules if fnmatchcase(device, pattern)), "")

    def _fitted(self, member: Member, size: Sizing) -> Sizing:
        return sizing.fitted(size, sizing.rows_max(member, self._manifest.data))

    def _assign(
        self, member: Member, asked: Sizing, reason: str, now: float, *, unless_same: bool = False
    ) -> list[Effect]:
        size = self._fitted(member, asked)
        held = self._roster.allocations()
        allocation = self.allotment.allot(member.device, size, held, above=member.obeyed, reason=reason)
        allocation = replace(allocation, codec=self._codec(member.device))
        if unless_same and member.allocation is not None and _alike(member.allocation, allocation):
            return []  # whole blocks: what was asked for came out as what it has
        member.allotted(allocation, now=now)
        return [remember(member), *self.say(member), records.allocated(allocation)]


def _quota(member: Member, sha256: str) -> Quota:
    """How often a device may have one shard."""
    return member.shards.setdefault(sha256, Quota(burst=_SHARD_BURST, interval_s=_SHARD_INTERVAL_S))


def _alike(one: Allocation, other: Allocation) -> bool:
    """Whether two allocations ask for the same work but for a share that differs by less than a tenth."""
    same = (one.rows, one.shards, one.batch, one.steps) == (other.rows, other.shards, other.batch, other.steps)
    return same and abs(one.share - other.share) <= SHARE_CHANGE * one.share


def remember(member: Member) -> Remember:
    """A device's row in the registry, and its allocation."""
    row = {
        "session": member.session,
        "seq": member.handled[1] if member.handled[0] == member.session else 0,
        "counters": member.totals().dump(),
        "status": "online" if member.online else "offline",
    }
    allocations = {} if member.allocation is None else {str(member.device): member.allocation}
    return Remember(devices={member.device: row}, allocations=allocations)
