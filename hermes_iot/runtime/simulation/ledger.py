"""What a simulation writes down: the bytes of every link, and a hash over all that happened.

Bytes are MQTT payloads, as the machines count them, by what they carry; what MQTT itself adds (headers, topics) is
counted apart as framing. Each is counted where it arrives: what a power cut catches on its way has not travelled.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any, Final

from hermes_iot.core.tally import Kind, kind_of
from hermes_iot.protocol.topics import Topics

_HEAD: Final = struct.Struct("<dHHQ")
KINDS: Final[tuple[Kind, ...]] = ("model", "data", "control")


class LinkBytes:
    """Mutable: payload bytes over one link by kind, and framing, each up and down."""

    __slots__ = ("down", "framing_down", "framing_up", "up")

    def __init__(self) -> None:
        self.up: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.down: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.framing_up = 0
        self.framing_down = 0

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "up": dict(self.up),
            "down": dict(self.down),
            "framing": {"up": self.framing_up, "down": self.framing_down},
        }


@dataclass(slots=True, kw_only=True)
class Work:
    """Mutable: local iterations, and rows trained on (a row in five epochs counts five times)."""

    iterations: int = 0
    samples: int = 0


class Ledger:
    """Mutable, one for a simulation.

    Attributes:
        total: the bytes of all links together.
        links: those of each device.
        work: what all boards have done.
    """

    def __init__(self, topics: Topics) -> None:
        self.total = LinkBytes()
        self.links: dict[str, LinkBytes] = {}
        self.work = Work()
        self._topics = topics
        self._kinds: dict[str, Kind] = {}
        self._log = hashlib.sha256()

    @property
    def log_sha256(self) -> str:
        """Hex digest over everything noted so far, in order."""
        return self._log.hexdigest()

    def link(self, device: str) -> LinkBytes:
        """The bytes of one device's link."""
        return self.links.setdefault(device, LinkBytes())

    def came_up(self, link: LinkBytes, topic: str, payload_bytes: int, packet_bytes: int) -> None:
        """A publish of a device has reached the broker."""
        kind, total = self._kind(topic), self.total
        link.up[kind] += payload_bytes
        total.up[kind] += payload_bytes
        link.framing_up += packet_bytes - payload_bytes
        total.framing_up += packet_bytes - payload_bytes

    def came_down(self, link: LinkBytes, topic: str, payload_bytes: int, packet_bytes: int) -> None:
        """A publish of the broker has reached a device."""
        kind, total = self._kind(topic), self.total
        link.down[kind] += payload_bytes
        total.down[kind] += payload_bytes
        link.framing_down += packet_bytes - payload_bytes
        total.framing_down += packet_bytes - payload_bytes

    def note(self, now: float, who: str, what: str, content: bytes = b"") -> None:
        """Something happened; all of it goes into the log's hash."""
        self._log.update(_HEAD.pack(now, len(who), len(what), len(content)) + f"{who}{what}".encode() + content)

    def _kind(self, topic: str) -> Kind:
        kind = self._kinds.get(topic)
        if kind is None:
            address = self._topics.parse(topic)
            if address is None:
                kind = "control"
            else:
                kind = kind_of(address.channel, tensor=(address.direction, address.channel) != ("all", "model"))
            self._kinds[topic] = kind
        return kind
