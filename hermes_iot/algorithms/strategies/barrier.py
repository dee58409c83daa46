"""A barrier over a fleet that comes and goes: what was handed in, who is still awaited, the mean when nobody is.

Devices that are there are waited for, devices that have gone are not, and what one handed in before it went still
counts: the work is done, and the model it began from is the others'. A device that hands in twice is held once, with
the newer vector: it was restarted, or its first was sent again.

The mean is summed in the order of the devices' names, never of arrival: the network then has no say in the last bit.

What is held is in every checkpoint: it was acknowledged, so nobody will send it again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from hermes_iot.algorithms.aggregation import weighted_mean
from hermes_iot.algorithms.strategies.base import Merged, StateDump
from hermes_iot.domain import DeviceId, Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one device handed in: a vector of shape (P,), and how much it counts, above 0."""

    vector: Params
    weight: float = 1.0


_HELD: Final = "held."

#: What was handed in since the barrier last opened. Never changed in place.
Round: TypeAlias = Mapping[DeviceId, Entry]


def handed_in(entries: Round, device: DeviceId, entry: Entry) -> Round:
    """The round with this device's newest."""
    return {**entries, device: entry}


def complete(entries: Round, fleet: Collection[DeviceId]) -> bool:
    """Whether there is something to merge and nobody to wait for; looks at the whole fleet only where it may be so."""
    return len(entries) >= max(1, len(fleet)) and all(device in entries for device in fleet)


def awaited(entries: Round, fleet: Collection[DeviceId]) -> tuple[DeviceId, ...]:
    """Who is there and has handed in nothing, in the fleet's order."""
    return tuple(device for device in fleet if device not in entries)


def closed(entries: Round, *, by: DeviceId | None) -> Merged:
    """The mean of a round; it answers all who handed something in, by name, those that have gone since among them.

    Its weight is that of `by`, whose entry closed the round; 0 where nobody's in particular did.

    Raises:
        ValueError: nothing was handed in, or the vectors differ in shape or are not flat float32.
    """
    members = tuple(sorted(entries))
    weights = [entries[device].weight for device in members]
    model = weighted_mean([entries[device].vector for device in members], weights)
    weight = entries[by].weight / sum(weights) if by is not None and by in entries else 0.0
    return Merged(model=model, reply_to=members, weight=weight)


def kept(entries: Round, **scalars: Any) -> StateDump:
    """A round, and what else there is, for a checkpoint."""
    weights = {str(device): entry.weight for device, entry in entries.items()}
    return StateDump(
        scalars={"weights": weights, **scalars},
        arrays={f"{_HELD}{device}": entry.vector for device, entry in entries.items()},
    )


def kept_of(dump: StateDump) -> Round:
    """The round in a dump, in the order in which it was handed in.

    Raises:
        KeyError, TypeError, ValueError: there is none.
    """
    return {
        DeviceId(device): Entry(vector=dump.arrays[f"{_HELD}{device}"], weight=float(weight))
        for device, weight in dict(dump.scalars["weights"]).items()
    }
