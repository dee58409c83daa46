"""What a simulated fleet is made of: boards and links, as TOML files that a person writes.

`devices/fleets/` and `devices/links/` hold those that come with hermes-iot; an installed wheel carries them beside its
modules. A bare word names one of them, anything with a dot or a slash is a file. A key nobody reads is an error.

A board is its seconds per mini-batch, ``batch_s * slowness``: the one number in which the paper expresses a device's
speed (arXiv 2410.20495, K_i). Everything else is optional.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from hermes_iot.config import check_keys, read_toml
from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.protocol.limits import INTEGER_MAX
from hermes_iot.protocol.schema import from_mapping
from hermes_iot.protocol.topics import check_name

T = TypeVar("T")

#: In a checkout, and in an installed wheel (see `force-include` in pyproject.toml).
_PLACES: Final = (
    Path(__file__).resolve().parents[3] / "devices",
    Path(__file__).resolve().parents[2] / "profiles",
)
DEVICES_MAX: Final = 100_000
#: What a board can say of itself, see `protocol.schema`: its coordinator would drop a status that says more.
SLOWNESS_MAX: Final = 1e6
ROWS_MAX: Final = INTEGER_MAX
#: Least mean of the times with and without power. No board boots, connects and trains within a second, and each time
#: costs the simulator a life: 1,800 of them in a board's hour at this mean, and no end at a millionth of it.
POWER_MEAN_S_MIN: Final = 1.0
#: Forward passes that cost as much as training on one row: forward, and backward at twice that.
FORWARD_SHARE: Final = 1 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """The way between a board and the broker.

    Attributes:
        up_mbit, down_mbit: Mbit/s from and to the board, 10^6 bits.
        latency_s: one way, of every packet.
        loss: chance that a TCP segment must be sent again; see `network.Line` for what that costs.
        notice_s: until the broker notices that a board without power is gone; 1.5 keep-alives of 60 s (MQTT 5, 3.1.2.10).
    """

    up_mbit: float
    down_mbit: float
    latency_s: float = 0.0
    loss: float = 0.0
    notice_s: float = 90.0

    def __post_init__(self) -> None:
        _check_above_zero("link", up_mbit=self.up_mbit, down_mbit=self.down_mbit)
        _check_not_negative("link", latency_s=self.latency_s, notice_s=self.notice_s)
        if not 0 <= self.loss < 1:
            raise UsageError(f"link.loss is {self.loss}", why="it lies in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOverrides:
    """What a group's link has otherwise than the fleet's; see `LinkProfile`."""

    up_mbit: float | None = None
    down_mbit: float | None = None
    latency_s: float | None = None
    loss: float | None = None
    notice_s: float | None = None

    def over(self, link: LinkProfile) -> LinkProfile:
        """That link with these values."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(link, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Means of how long a board has power and how long it has none, both exponentially distributed, in seconds."""

    up_s: float
    down_s: float

    def __post_init__(self) -> None:
        for name, mean_s in (("up_s", self.up_s), ("down_s", self.down_s)):
            if not POWER_MEAN_S_MIN <= mean_s < math.inf:
                raise UsageError(
                    f"availability: {name} is {mean_s:g}",
                    why=f"it is a number of seconds from {POWER_MEAN_S_MIN:g}: no board boots and trains in less",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """Joules of one mini-batch, and of a full battery; a board whose battery is empty has no power any more.

    `capacity_j` 0 = mains: the energy is counted and never ends.
    """

    batch_j: float
    capacity_j: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative("battery", batch_j=self.batch_j, capacity_j=self.capacity_j)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """One time a board has power: from when to when (None = to the end), and whether it leaves in good order."""

    from_s: float
    until_s: float | None = None
    orderly: bool = True

    def __post_init__(self) -> None:
        _check_not_negative("stay", from_s=self.from_s)
        if self.until_s is not None and not self.until_s > self.from_s:
            raise UsageError(f"a stay from {self.from_s:g} s ends at {self.until_s:g} s", why="it must end later")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Boards that are alike.

    Attributes:
        name: the boards are called ``name-1`` and so on, all of one width.
        slowness: so many times `FleetProfile.batch_s` for a mini-batch.
        spread: sigma of a lognormal factor (median 1) on it, drawn once for each board: no two of a kind are equal.
        jitter: sigma of a lognormal factor (mean 1) on every iteration's time; None = the fleet's.
        memory_rows_max: the most rows a board takes; 0 = not limited.
        join_at_s: when it gets power for the first time.
        leave_at_s, crash_at_s: when it leaves in good order, or without a word; None = never.
        prepare_s: until it has loaded task and data, each time it gets power.
        stays: when it has power, where all of that is known; instead of the three above.
        names: the boards' own names instead of numbers.
    """

    name: str
    slowness: float
    count: int = 1
    spread: float = 0.0
    jitter: float | None = None
    memory_rows_max: int = 0
    join_at_s: float = 0.0
    leave_at_s: float | None = None
    crash_at_s: float | None = None
    availability: Availability | None = None
    battery: Battery | None = None
    link: LinkOverrides | None = None
    prepare_s: float = 0.0
    stays: tuple[Stay, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"group {self.name!r}"
        check_name("group", self.name)
        for name in self.names:
            check_name("board", name)
        if self.names and len(self.names) != self.count:
            raise UsageError(f"{where}: {len(self.names)} names for {self.count} boards", mend="Name all, or none")
        if not 1 <= self.count <= DEVICES_MAX:
            raise UsageError(f"{where}: count is {self.count}", why=f"it is a whole number from 1 to {DEVICES_MAX}")
        _check_above_zero(where, slowness=self.slowness)
        if self.slowness > SLOWNESS_MAX:
            raise UsageError(f"{where}: slowness is {self.slowness:g}", why=f"it is at most {SLOWNESS_MAX:g}")
        if not 0 <= self.memory_rows_max <= ROWS_MAX:
            raise UsageError(
                f"{where}: memory_rows_max is {self.memory_rows_max}",
                why=f"it is a whole number from 0 (not limited) to {ROWS_MAX}",
            )
        _check_not_negative(
            where,
            spread=self.spread,
            jitter=self.jitter or 0.0,
            join_at_s=self.join_at_s,
            prepare_s=self.prepare_s,
        )
        for name, at_s in (("leave_at_s", self.leave_at_s), ("crash_at_s", self.crash_at_s)):
            if at_s is not None and not self.join_at_s < at_s < math.inf:
                raise UsageError(
                    f"{where}: {name} is {at_s:g}",
                    why=f"it is a finite time later than join_at_s, {self.join_at_s:g}",
                    mend=f"Leave {name} out for a board that stays",
                )

    @property
    def devices(self) -> Iterator[str]:
        """The boards' names."""
        if self.names:
            return iter(self.names)
        width = len(str(self.count))
        return (f"{self.name}-{number:0{width}}" for number in range(1, self.count + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetProfile:
    """All boards of a simulation.

    Attributes:
        batch_s: seconds of one mini-batch at slowness 1.
        jitter: of the groups that name none.
        forward_share: what a forward pass of one row costs, in trainings of one; 0 where `batch_s` was measured with
            all that an iteration does counted in.
        task: what this fleet trains unless a person says otherwise; "" = no opinion.
        name: of the file.
    """

    batch_s: float
    groups: tuple[Group, ...]
    jitter: float = 0.0
    forward_share: float = FORWARD_SHARE
    task: str = ""
    name: str = "fleet"

    def __post_init__(self) -> None:
        _check_above_zero("fleet", batch_s=self.batch_s)
        _check_not_negative("fleet", jitter=self.jitter, forward_share=self.forward_share)
        if not self.groups:
            raise UsageError("the fleet has no groups", mend="Give at least one [[groups]]")
        _check_once("group", (group.name for group in self.groups), mend="Give each group a name of its own")
        boards = (name for group in self.groups for name in group.devices)
        _check_once("board", boards, mend="Give each board a name of its own")

    @property
    def devices(self) -> int:
        """How many boards there are."""
        return sum(group.count for group in self.groups)


def fleet_of(name: str) -> FleetProfile:
    """Read a fleet, by name or path.

    Raises:
        UsageError: there is none, or the file is not one.
    """
    path = _find(name, "fleets")
    return replace(_read(path, FleetProfile, _FLEET_TABLES), name=path.stem)


def link_of(name: str) -> LinkProfile:
    """Read a link, by name or path.

    Raises:
        UsageError: there is none, or the file is not one.
    """
    return _read(_find(name, "links"), LinkProfile, {})


def shipped(kind: str) -> tuple[str, ...]:
    """Names of the ``fleets`` or ``links`` that come with hermes-iot."""
    return tuple(sorted({path.stem for place in _PLACES for path in (place / kind).glob("*.toml")}))


_GROUP_TABLES: Final[Mapping[str, type]] = {
    "availability": Availability,
    "battery": Battery,
    "link": LinkOverrides,
    "stays": Stay,
}
_FLEET_TABLES: Final[Mapping[str, type]] = {"groups": Group}


def _find(name: str, kind: str) -> Path:
    if "." in name or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"there is no file {name}", mend=f"Known {kind} are {', '.join(shipped(kind))}")
        return path
    for place in _PLACES:
        if (path := place / kind / f"{name}.toml").is_file():
            return path
    known = shipped(kind)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "One of your own is given as path/to/file.toml"
    raise UsageError(f"there is no {kind[:-1]} {name!r}", why=f"known are {', '.join(known)}", mend=hint)


def _read(path: Path, kind: type[T], tables: Mapping[str, type]) -> T:
    values = read_toml(path)
    _check_known(values, kind, tables, where=str(path))
    try:
        return from_mapping(values, kind)
    except ProtocolError as error:
        raise UsageError(f"{path} cannot be used", why=str(error)) from error
    except UsageError as error:
        raise UsageError(f"{path}: {error.what}", why=error.why, mend=error.mend) from error


def _check_known(values: Mapping[str, Any], kind: type, tables: Mapping[str, type], *, where: str) -> None:
    known = {one.name for one in fields(kind)} - ({"name"} if kind is FleetProfile else set())
    check_keys(values, known, where=where)
    for key, nested in tables.items():
        value = values.get(key, [])
        for number, table in enumerate(value if isinstance(value, list) else [value], 1):
            if isinstance(table, Mapping):
                inside = f"{where}, {table.get('name', f'{key} {number}')}"
                _check_known(table, nested, _GROUP_TABLES if nested is Group else {}, where=inside)


def _check_once(what: str, names: Iterable[str], *, mend: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{what} {name!r} is there twice", mend=mend)
        seen.add(name)


def _check_above_zero(where: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{where}: {name} is {value:g}", why="it must be a finite number above 0")


def _check_not_negative(where: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{where}: {name} is {value:g}", why="it must be a finite number and not negative")
