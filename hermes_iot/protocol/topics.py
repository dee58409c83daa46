"""Every topic string is built and parsed here.

``{prefix}/v1/{fleet}/all/…`` is what everybody reads, ``…/down/{device}/…`` what one device reads and
``…/up/{device}/…`` what one device writes: the direction word stands before the device id so that one ACL pattern
(``pattern write hermes/v1/+/up/%u/#``) covers a device. At most 7 slashes (AWS IoT Core), no wildcard on a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hermes_iot.domain import DeviceId
from hermes_iot.errors import UsageError

VERSION: Final = 1
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: One spelling per number: 07 is not 7.
PART: Final = re.compile(r"0|[1-9][0-9]{0,5}")

#: Addresses kept in mind: three for each of twenty thousand devices.
_REMEMBERED_MAX: Final = 1 << 16

ALL: Final = frozenset({"coordinator", "run", "model"})
DOWN: Final = frozenset({"alloc", "ack", "model", "data", "cmd"})
UP: Final = frozenset({"status", "state", "update", "request", "metrics", "rsp"})

#: The device of a topic that names none.
NOBODY: Final = DeviceId("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a message came from: ``all/run``, ``down/pi-01/alloc``, ``all/model/3`` ...

    Attributes:
        direction: ``all``, ``down`` or ``up``.
        channel: the last word, e.g. ``update``; ``model_part`` for a keyframe's chunk.
        device: the device named in the topic, "" under ``all``.
        part: number of the keyframe's chunk, else 0.
    """

    direction: str
    channel: str
    device: DeviceId = NOBODY
    part: int = 0


def check_name(what: str, value: str) -> str:
    """A fleet, device or prefix that is safe inside a topic.

    Raises:
        UsageError: it holds anything but letters, digits, ``_`` and ``-``, or is empty or longer than 64.
    """
    if not NAME.fullmatch(value):
        raise UsageError(
            f"{what} {value[:80]!r} cannot be part of a topic",
            why="only letters, digits, '_' and '-' are allowed, 1 to 64 of them",
            mend=f"Choose another {what}, for example 'lab-1'",
        )
    return value


class Topics:
    """The topics of one fleet."""

    def __init__(self, fleet: str, *, prefix: str = "hermes") -> None:
        self.fleet = check_name("fleet", fleet)
        self.prefix = check_name("prefix", prefix)
        self._root = f"{prefix}/v{VERSION}/{fleet}"
        self._parsed: dict[str, Address] = {}

    def all(self, channel: str) -> str:
        """``…/all/{channel}``."""
        return f"{self._root}/all/{channel}"

    def model_part(self, part: int) -> str:
        """``…/all/model/{part}``, a chunk of the retained keyframe."""
        return f"{self._root}/all/model/{part}"

    def down(self, device: str, channel: str) -> str:
        """``…/down/{device}/{channel}``; `device` may be ``+``."""
        return f"{self._root}/down/{device}/{channel}"

    def up(self, device: str, channel: str) -> str:
        """``…/up/{device}/{channel}``; `device` may be ``+``."""
        return f"{self._root}/up/{device}/{channel}"

    def of_device(self, device: str) -> tuple[str, ...]:
        """What a device subscribes to, without any wildcard (AWS does not deliver retained messages on one).

        Raises:
            UsageError: `device` cannot be part of a topic.
        """
        check_name("device", device)
        return (
            self.all("run"),
            self.all("coordinator"),
            self.all("model"),
            *(self.down(device, channel) for channel in ("cmd", "ack", "alloc", "model", "data")),
        )

    def of_coordinator(self) -> tuple[str, ...]:
        """What the coordinator subscribes to: everything that devices say."""
        return tuple(self.up("+", channel) for channel in ("status", "state", "update", "request", "rsp", "metrics"))

    def of_viewer(self) -> tuple[str, ...]:
        """What `status` reads: all but tensors and data."""
        return (
            self.all("run"),
            self.all("coordinator"),
            self.all("model"),
            self.down("+", "alloc"),
            self.down("+", "ack"),
            self.up("+", "status"),
            self.up("+", "state"),
        )

    def parse(self, topic: str) -> Address | None:
        """The address in a topic of this fleet; None for any other topic.

        Whoever listens hears the same topics all the time, so those of this fleet are remembered, within bounds.
        """
        known = self._parsed.get(topic)
        if known is not None:
            return known
        address = self._parse(topic)
        if address is not None:
            if len(self._parsed) >= _REMEMBERED_MAX:
                self._parsed.clear()
            self._parsed[topic] = address
        return address

    def _parse(self, topic: str) -> Address | None:
        head = f"{self._root}/"
        if not topic.startswith(head):
            return None
        match topic[len(head) :].split("/"):
            case ["all", channel] if channel in ALL:
                return Address(direction="all", channel=channel)
            case ["all", "model", part] if PART.fullmatch(part):
                return Address(direction="all", channel="model_part", part=int(part))
            case ["down", device, channel] if channel in DOWN and NAME.fullmatch(device):
                return Address(direction="down", channel=channel, device=DeviceId(device))
            case ["up", device, channel] if channel in UP and NAME.fullmatch(device):
                return Address(direction="up", channel=channel, device=DeviceId(device))
        return None
