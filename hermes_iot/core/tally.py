"""Counters of a run: what became of every update, and how many bytes of which kind went which way.

Every update received ends in exactly one of applied, duplicate, stale or rejected (with a reason), so that
``received == applied + duplicate + stale + rejected`` holds after every event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hermes_iot.protocol.messages import Outcome

Kind = Literal["model", "data", "control"]

#: What a channel carries; everything else is control.
KINDS: Mapping[str, Kind] = {"update": "model", "model": "model", "model_part": "model", "data": "data"}


def kind_of(channel: str, *, tensor: bool = True) -> Kind:
    """Model, data or control traffic; the head on ``all/model`` is JSON and therefore control."""
    return KINDS.get(channel, "control") if tensor else "control"


@dataclass(slots=True, kw_only=True)
class Tally:
    """Mutable, owned by one `Coordinator`. Bytes are MQTT payloads as the coordinator sent and received them."""

    applied: int = 0
    duplicate: int = 0
    stale: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)

    @property
    def received(self) -> int:
        """Updates that arrived, whatever became of them."""
        return self.applied + self.duplicate + self.stale + self.rejected

    @property
    def tensor_bytes(self) -> int:
        """Model and data traffic, both ways."""
        up, down = self.up, self.down
        return up["model"] + up["data"] + down["model"] + down["data"]

    def count(self, outcome: Outcome, reason: str = "") -> None:
        """One update met its end."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        if reason:
            self.reasons[reason] += 1

    def carried(self, channel: str, *, up: int = 0, down: int = 0, tensor: bool = True) -> None:
        """So many payload bytes went over `channel`."""
        kind = kind_of(channel, tensor=tensor)
        self.up[kind] += up
        self.down[kind] += down

    def dump(self) -> dict[str, Any]:
        """For a checkpoint."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}

    @classmethod
    def load(cls, mapping: Mapping[str, Any]) -> Tally:
        """The inverse of `dump`.

        Raises:
            TypeError: the mapping has other fields.
        """
        values: dict[str, Any] = {
            name: Counter(value) if isinstance(value, dict) else value for name, value in mapping.items()
        }
        return cls(**values)
