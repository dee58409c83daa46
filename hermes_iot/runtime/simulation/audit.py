"""The invariants of a fleet, held against every event: what no fault may ever break.

I1 no update is applied twice; I2 what was acknowledged or published survives a crash, bit for bit; I3 nothing of another
run or model is applied; I4 the allocation in force only grows, and none that was told is forgotten; I5 rows are given
to two devices only when there are no others; I6 the model is finite and each update makes one version; I7 received =
applied + duplicate + stale + rejected; I8 whatever is kept of others' doings is within its bound.

The auditor believes nobody: it counts updates as they arrive and remembers what was told as it was told, and compares
that with what the machines say of themselves. It knows machines and messages and nothing of brokers, disks and time,
so whoever drives machines can have them audited: the simulator here, the machines' own tests as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from hermes_iot.algorithms.partition import merged, rows_of
from hermes_iot.core.coordinator import Coordinator
from hermes_iot.core.device import Device
from hermes_iot.core.member import Member
from hermes_iot.core.redo import Entry, UpdateTaken
from hermes_iot.domain import DeviceId, Params, Ranges
from hermes_iot.errors import HermesError
from hermes_iot.protocol.messages import Ack, Allocation, Message, RunManifest

Mark = tuple[int, int]


class Violated(HermesError):
    """An invariant does not hold.

    Attributes:
        invariant: ``I1`` to ``I8``, ``liveness``, or another word for what must never be.
    """

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant} is violated", why=what)
        self.invariant = invariant


class Auditor:
    """Mutable, one for a fleet; see the module."""

    def __init__(self) -> None:
        self.checks = 0
        self._begin_run()
        self._in_force: dict[tuple[str, str], int] = {}

    def _begin_run(self) -> None:
        self._arrived = 0
        self._applied: list[tuple[str, int, int]] = []  # in the order in which they were counted
        self._once: set[tuple[str, int, int]] = set()
        self._version = 0
        self._digests: dict[int, str] = {}
        self._told_version = 0
        self._acked: dict[str, Mark] = {}
        self._allotted: dict[str, int] = {}
        self._rows: dict[DeviceId, Ranges] = {}

    @property
    def applied(self) -> int:
        """Updates applied in this run."""
        return len(self._applied)

    def applied_of(self, device: str) -> int:
        """Those of one device."""
        return sum(name == device for name, _, _ in self._applied)

    # --- the coordinator ------------------------------------------------------------------------------------------

    def led(self, machine: Coordinator, *, fresh: bool = False) -> None:
        """A coordinator begins, with what its predecessor left; `fresh`: with nothing, on purpose."""
        if fresh:
            self._begin_run()
        _hold(
            "I2", machine.version >= self._told_version, f"version {self._told_version} was told, now it is forgotten"
        )
        known = self._digests.get(machine.version)
        _hold("I2", known in (None, _digest(machine.model)), f"version {machine.version} came back with other bits")
        _hold("I2", machine.tally.applied <= len(self._applied), "more was applied than there was to apply")
        del self._applied[machine.tally.applied :]
        self._once = set(self._applied)
        for device, mark in self._acked.items():
            member = machine.members.get(DeviceId(device))
            handled = member.handled if member is not None else (0, 0)
            _hold("I2", handled >= mark, f"update {mark} of {device} was acknowledged, now the newest is {handled}")
        for device, version in self._allotted.items():
            member = machine.members.get(DeviceId(device))
            present = member.allocation.version if member is not None and member.allocation is not None else 0
            _hold("I4", present >= version, f"allocation {version} of {device} was told, now the newest is {present}")
        self._version = machine.version
        self._digests = {version: digest for version, digest in self._digests.items() if version <= machine.version}
        self._arrived = machine.tally.received
        self._rows = _rows_of(machine)

    def forgiven(self) -> None:
        """Somebody takes the journal or the registry away: what was told may be forgotten this once."""
        self._told_version = 0
        self._digests.clear()
        self._acked.clear()
        self._allotted.clear()

    def arrived(self) -> None:
        """An update has come, or something that should have been one."""
        self._arrived += 1

    def decided(self, manifest: RunManifest, entries: Iterable[Entry], *, one_each: bool) -> None:
        """The coordinator writes down what it did. `one_each`: by its strategy every update makes a version."""
        for entry in entries:
            least, most = 0, 1
            if isinstance(entry, UpdateTaken):
                applied = entry.outcome == "applied"
                least, most = int(applied and one_each), int(applied)
                if applied:
                    self._apply(manifest, entry)
            step = entry.found.version - self._version
            _hold("I6", least <= step <= most, f"version {self._version} is followed by {entry.found.version}")
            self._version = entry.found.version

    def published(self, version: int) -> None:
        """The coordinator sends a model of this version."""
        self._told_version = max(self._told_version, version)

    def told(self, message: Message, device: str) -> None:
        """The coordinator says something to a device."""
        match message:
            case Ack(outcome="applied", session=session, seq=seq):
                self._acked[device] = max(self._acked.get(device, (0, 0)), (session, seq))
                key = (device, session, seq)
                _hold("I2", key in self._once, f"update {key} is acknowledged and was never written down")
            case Allocation():
                before = self._allotted.get(device, 0)
                _hold("I4", message.version >= before, f"allocation {message.version} of {device} after {before}")
                self._allotted[device] = message.version

    def leader(self, machine: Coordinator) -> None:
        """Whatever has happened to the coordinator, this holds after it."""
        self.checks += 1
        tally = machine.tally
        parts = tally.applied + tally.duplicate + tally.stale + tally.rejected
        _hold("I7", tally.received == parts == self._arrived, f"{self._arrived} updates came, {parts} met an end")
        _hold("I6", machine.version == self._version, f"version {machine.version} is nowhere written down")
        if machine.version not in self._digests:
            _hold("I6", bool(np.isfinite(machine.model).all()), f"version {machine.version} is not finite")
            self._digests[machine.version] = _digest(machine.model)
        self.keeps("the coordinator", machine.bounded)
        self._hold_rows(machine)

    # --- the devices ----------------------------------------------------------------------------------------------

    def wiped(self, name: str) -> None:
        """A device has lost its disk."""
        self._in_force = {key: version for key, version in self._in_force.items() if key[0] != name}

    def device(self, name: str, machine: Device) -> None:
        """Whatever has happened to a device, this holds after it."""
        self.checks += 1
        allocation, learner = machine.allocation, machine.learner
        if allocation is not None:
            key = (name, allocation.run)
            before = self._in_force.get(key, 0)
            _hold("I4", allocation.version >= before, f"{name} obeys allocation {allocation.version} after {before}")
            self._in_force[key] = allocation.version
        if learner is not None and learner.base is not None:
            _hold("I6", bool(np.isfinite(learner.base).all()), f"{name} trains from a model that is not finite")
        self.keeps(name, machine.bounded)

    def keeps(self, whose: str, bounded: Mapping[str, tuple[int, int]]) -> None:
        """Whatever is kept, by name: how much, and how much at most."""
        for name, (count, most) in bounded.items():
            _hold("I8", count <= most, f"{whose} keeps {count} {name}, at most {most}")

    # --- inside ---------------------------------------------------------------------------------------------------

    def _apply(self, manifest: RunManifest, entry: UpdateTaken) -> None:
        update, key = entry.update, (str(entry.device), entry.update.session, entry.update.seq)
        _hold("I1", key not in self._once, f"update {key} is applied a second time")
        of_run = (update.run, update.model, update.codec) == (manifest.run, manifest.model.sha256, manifest.codec)
        _hold("I3", of_run, f"update {key} is of run {update.run!r} and model {update.model[:12]}")
        self._once.add(key)
        self._applied.append(key)

    def _hold_rows(self, machine: Coordinator) -> None:
        """Where a device was given rows that another has, too, none was free."""
        rows = _rows_of(machine)
        if rows == self._rows:
            return
        before, self._rows = self._rows, rows
        for device, own in rows.items():
            if before.get(device) == own:
                continue
            others = merged(one for holder, ranges in rows.items() if holder != device for one in ranges)
            held = merged((*others, *own))
            shared = rows_of(own) + rows_of(others) - rows_of(held)
            kept = before.get(device, ())
            shared_before = rows_of(kept) + rows_of(others) - rows_of(merged((*others, *kept)))
            claimed = merged(one for ranges in _claimed(machine) for one in ranges)
            free = machine.manifest.data.rows - rows_of(claimed)
            _hold("I5", shared <= shared_before or free <= 0, f"{device} shares {shared} rows, and {free} are free")


def _rows_of(machine: Coordinator) -> dict[DeviceId, Ranges]:
    """What the devices that are there have been given of rows that shall be theirs alone."""
    if machine.manifest.data.sampling == "fresh":
        return {}
    return {device: _ranges(member) for device, member in machine.members.items() if _is_there(member)}


def _is_there(member: Member) -> bool:
    return member.online and not member.silent and not member.reissue and member.allocation is not None


def _ranges(member: Member) -> Ranges:
    return member.allocation.rows if member.allocation is not None else ()


def _claimed(machine: Coordinator) -> list[Ranges]:
    return [_ranges(member) for member in machine.members.values()]


def _digest(vector: Params) -> str:
    return hashlib.sha256(vector.tobytes()).hexdigest()


def _hold(invariant: str, holds: bool, what: str) -> None:  # noqa: FBT001 - it reads as a sentence
    if not holds:
        raise Violated(invariant, what)
