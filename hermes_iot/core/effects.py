"""What the machines ask their shell to do. Effects are performed in order; none is allowed to fail silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hermes_iot.core.redo import Entry
from hermes_iot.domain import Params, TrainJob
from hermes_iot.errors import HermesError
from hermes_iot.protocol.messages import Allocation, Message, Model, RunManifest, Shard, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Publish one message; `device` names the topic's device where there is one.

    Attributes:
        reminder: it was sent before: only the last of its parts, so that whoever has the others asks for what it lacks.
    """

    message: Message
    device: str = ""
    reminder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resend:
    """Publish these parts of a message that was sent before, if it is still cut and encoded as it was then.

    Attributes:
        transfer, parts, missing: as `Request` and `Command` name them.
    """

    message: Update | Model | Shard
    device: str
    transfer: str
    parts: int
    missing: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SendKeyframe:
    """Publish the retained keyframe and then the head that points at it."""

    model: Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Build task, model and data for this run, then call `prepared`."""

    manifest: RunManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Run one local iteration beside the loop, then call `trained`."""

    job: TrainJob


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchKeyframe:
    """Subscribe to the keyframe's chunks 0 .. parts-1."""

    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetKeyframe:
    """Unsubscribe from the keyframe's chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindShard:
    """Look for a shard in the local cache, then call `shard_found`."""

    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreShard:
    """Keep a shard that arrived, then call `shard_found`."""

    sha256: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMemory:
    """Write down what a device must not forget over a restart.

    Attributes:
        update: the newest one, until it is known to have been handled. One that was written need not be removed when
            it is None again: sent once more it is a duplicate, and a card lives longer.
    """

    session: int
    seq: int
    run: str
    allocation_version: int
    update: Update | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebirth:
    """Connect anew: the session changed, and with it the will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quit:
    """Leave the loop; with an error where one ends the process."""

    error: HermesError | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Write down what was decided. Nothing that follows may be performed before it would survive a crash."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Write model and state to disk, atomically. `arrays` holds ``model`` and the strategy's own vectors."""

    version: int
    arrays: Mapping[str, Params]
    scalars: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """Write what changed about devices and their allocations to the registry."""

    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    allocations: Mapping[str, Allocation] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line for programs (metrics.jsonl, plots, the live view). `event` names its kind."""

    event: str
    fields: Mapping[str, Any]


Effect: TypeAlias = (
    Send
    | Resend
    | SendKeyframe
    | Prepare
    | Train
    | FetchKeyframe
    | ForgetKeyframe
    | FindShard
    | StoreShard
    | StoreMemory
    | Rebirth
    | Quit
    | Journal
    | Checkpoint
    | Remember
    | Record
)
