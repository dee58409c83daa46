"""A run as a checkpoint keeps it: what is written down, how it is read again, and where each piece belongs.

Three things hold a run between two processes: the checkpoint (model, strategy, what was handled), the redo log (what
was decided since) and the registry (allocations, which change without the model). A device's counters are in the checkpoint because devices only report
those of their present session; without them a summary after a restart would forget the earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hermes_iot.algorithms.strategies.base import StateDump
from hermes_iot.core.aggregator import Aggregator
from hermes_iot.core.assigner import Assigner
from hermes_iot.core.effects import Checkpoint
from hermes_iot.core.member import Member
from hermes_iot.core.redo import Crew, Entry, UpdateTaken
from hermes_iot.core.roster import Roster
from hermes_iot.core.stopping import Progress
from hermes_iot.core.tally import Tally
from hermes_iot.domain import DeviceId, Params, Ranges
from hermes_iot.errors import StorageError
from hermes_iot.protocol.messages import Allocation

_MODEL: Final = "model"
_STRATEGY: Final = "strategy."


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A run as its last checkpoint, the registry and the redo log since then left it."""

    version: int
    arrays: Mapping[str, Params]
    scalars: Mapping[str, Any]
    allocations: Mapping[str, Allocation]
    entries: Iterable[Entry] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a checkpoint holds, in the machine's own types.

    Attributes:
        cursor, shards: see `Allotment`.
        crew: the devices that worked, in the order in which they came.
        summoned: devices that were asked to push and have not yet.
    """

    version: int
    model: Params
    strategy: StateDump
    tally: Tally
    progress: Progress
    cursor: int
    shards: Mapping[str, Ranges]
    members: tuple[Member, ...]
    crew: tuple[DeviceId, ...]
    summoned: tuple[DeviceId, ...]


def taken(
    aggregator: Aggregator, assigner: Assigner, roster: Roster, *, summoned: tuple[DeviceId, ...] = ()
) -> Snapshot:
    """The run as it stands."""
    return Snapshot(
        version=aggregator.model.version,
        model=aggregator.model.vector,
        strategy=aggregator.dump(),
        tally=aggregator.tally,
        progress=aggregator.progress,
        cursor=assigner.allotment.cursor,
        shards=assigner.allotment.shards(),
        members=tuple(roster),
        crew=tuple(roster.live),
        summoned=summoned,
    )


def resume(restored: Restored, aggregator: Aggregator, assigner: Assigner, roster: Roster) -> tuple[DeviceId, ...]:
    """The run as it stood; who was summoned and has not pushed since.

    Raises:
        StorageError: another version, or another strategy, wrote it.
    """
    try:
        snapshot = load(restored)
        aggregator.restore(
            version=snapshot.version,
            model=snapshot.model,
            strategy=snapshot.strategy,
            tally=snapshot.tally,
            progress=snapshot.progress,
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StorageError(
            "the run's checkpoint cannot be read",
            why=f"it is intact, but not as this version and strategy write it ({error!r:.200})",
            mend="Go on with the software that wrote it, or begin another run",
        ) from error
    roster.members.update({member.device: member for member in snapshot.members})
    crew = Crew(snapshot.crew)
    summoned = dict.fromkeys(snapshot.summoned)
    for entry in restored.entries:
        crew.follow(entry)
        member = roster.admit(entry.device) if isinstance(entry, UpdateTaken) else None
        merged = aggregator.redo(entry, member, crew)
        if isinstance(entry, UpdateTaken) and member is not None and entry.reason != "run":
            summoned.pop(member.device, None)
            if entry.reason != "session":  # else it was of an earlier life
                member.session = max(member.session, entry.update.session)
            member.handle(entry.update.session, entry.update.seq)
            member.base = entry.update.base
            member.owed = member.owed or entry.outcome == "applied"
        for device in merged.reply_to:
            roster.members[device].owed = False
        summoned |= dict.fromkeys(merged.summon)
    # Until they are heard of again those that worked are taken for there: a barrier that forgot who is awaited would
    # merge everybody's update alone.
    for device in crew:
        member = roster.admit(device)
        member.online = True
        roster.note(member)
    assigner.restore(snapshot.cursor, snapshot.shards)
    return tuple(summoned)


def dump(snapshot: Snapshot) -> Checkpoint:
    """Cut into tensors and JSON."""
    progress = snapshot.progress
    scalars = {
        "strategy": dict(snapshot.strategy.scalars),
        "tally": snapshot.tally.dump(),
        "members": {member.device: member.dump() for member in snapshot.members},
        "elapsed_s": progress.elapsed_s,
        "best_loss": progress.best_loss if math.isfinite(progress.best_loss) else None,
        "since_best": progress.since_best,
        "crew": list(snapshot.crew),
        "summoned": list(snapshot.summoned),
        "cursor": snapshot.cursor,
        "shards": {name: [list(one) for one in ranges] for name, ranges in snapshot.shards.items()},
    }
    arrays = {_MODEL: snapshot.model}
    arrays |= {f"{_STRATEGY}{name}": array for name, array in snapshot.strategy.arrays.items()}
    return Checkpoint(version=snapshot.version, arrays=arrays, scalars=scalars)


def load(restored: Restored) -> Snapshot:
    """The inverse, with the registry's allocations given to their devices.

    Raises:
        KeyError, TypeError, ValueError: not a checkpoint of ours (storage has already checked that it is intact).
    """
    scalars = restored.scalars
    tally = Tally.load(scalars["tally"])
    best = scalars["best_loss"]
    members = {DeviceId(name): Member.load(DeviceId(name), row) for name, row in scalars["members"].items()}
    for name, allocation in restored.allocations.items():
        member = members.setdefault(DeviceId(name), Member(device=DeviceId(name), index=len(members)))
        member.allocation = allocation
    return Snapshot(
        version=restored.version,
        model=restored.arrays[_MODEL],
        strategy=StateDump(
            scalars=scalars["strategy"],
            arrays={
                name.removeprefix(_STRATEGY): array
                for name, array in restored.arrays.items()
                if name.startswith(_STRATEGY)
            },
        ),
        tally=tally,
        progress=Progress(
            elapsed_s=float(scalars["elapsed_s"]),
            bytes_total=tally.tensor_bytes,
            applied=tally.applied,
            best_loss=math.inf if best is None else float(best),
            since_best=int(scalars["since_best"]),
        ),
        cursor=int(scalars["cursor"]),
        shards={name: tuple((int(a), int(b)) for a, b in ranges) for name, ranges in scalars["shards"].items()},
        members=tuple(sorted(members.values(), key=lambda member: member.index)),
        crew=_devices(scalars.get("crew", ())),
        summoned=_devices(scalars.get("summoned", ()), members),
    )


def _devices(names: object, known: Container[str] | None = None) -> tuple[DeviceId, ...]:
    """Devices in a list, all of them among the `known`, where those are given."""
    if not isinstance(names, list | tuple):
        raise TypeError(f"devices are a {type(names).__name__}")
    for name in names:
        if not isinstance(name, str) or (known is not None and name not in known):
            raise ValueError(f"there is no device {name!r:.80}")
    return tuple(DeviceId(name) for name in names)
