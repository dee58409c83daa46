"""One frozen dataclass per message. Field names are what a person reads with ``mosquitto_sub``.

JSON carries everything a person may want to read; msgpack (the last section) only tensors and data. Who sent a
message follows from the topic, never from the payload: the broker's access list guards topics, not contents.

Identities: `session` is a counter a device bumps and stores at every start, `seq` counts its updates within the
session, so (run, device, session, seq) names an update for ever. Counters decide what is stale or repeated, never
clocks: boards have no real-time clock. `epoch` counts the coordinators of a fleet: every word of one carries its own
(`Wire` sees to that), and devices refuse what one says that another has taken over from. 0 = not said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hermes_iot.domain import Codec, DataMode, Fine, GateSplit, Ranges, Sampling, Telemetry
from hermes_iot.protocol.schema import (
    Bitmap,
    ChunkBytes,
    Count,
    Digest,
    MaybeName,
    MaybeSha256,
    Name,
    Positive,
    Rate,
    Seconds,
    Sha256,
    Share,
    Slowdown,
    Text,
)

#: Major version of every payload. Another one is refused on both sides; the topics carry it as ``v1`` too.
VERSION = 1

RunState = Literal["running", "finished", "stopped"]
Outcome = Literal["applied", "duplicate", "stale", "rejected"]
Phase = Literal["starting", "waiting", "training", "pushed", "paused", "idle", "finished"]
CommandName = Literal["ping", "pause", "resume", "resend", "drain", "push"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorStatus:
    """``all/coordinator``, retained: who leads. The last will is the same with state offline.

    Attributes:
        reason: why it takes nothing in for now although it leads, a full disk for one; empty where all is well.
    """

    state: Literal["online", "offline"]
    session: Name
    run: Text = ""
    model_version: Count = 0
    devices_online: Count = 0
    updates_applied: Count = 0
    loss: float | None = None
    accuracy: float | None = None
    elapsed_s: Seconds = 0.0
    host: Text = ""
    software: Text = ""
    epoch: Count = 0
    reason: Text = ""
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """What is trained. Names and hashes only: no code ever crosses the wire."""

    name: Text
    source_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyInfo:
    """How it is trained: the strategy's name, and every constant that both sides must share."""

    name: Text
    source_sha256: MaybeSha256 = ""
    constants: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Layout of the flat vector; `tensors` are (name, shape) in order."""

    sha256: Sha256
    parameters: Positive
    tensors: tuple[tuple[Text, tuple[Count, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataInfo:
    """Which rows there are and how they are given out.

    Attributes:
        rows: training rows that can be allotted; 0 in local mode.
        sha256: digest of the training set, so that a device with another one is noticed; "" in local mode.
    """

    mode: DataMode
    sampling: Sampling
    gate_split: GateSplit
    rows: Count
    validation_fraction: Share
    sha256: MaybeSha256 = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """``all/run``, retained: what a device needs to know to take part.

    Attributes:
        codec, codec_down: of updates, and of the models that answer them.
        fine: tensors that travel in fp16 whatever the codec, both ways; which, follows from `model` (`algorithms.split`).
    """

    run: Name
    state: RunState
    seed: Count
    task: TaskInfo
    strategy: StrategyInfo
    model: ModelInfo
    data: DataInfo
    epochs: Positive
    learning_rate: Rate
    codec: Codec
    chunk_bytes: ChunkBytes
    telemetry: Telemetry = "off"
    reason: Text = ""
    software: Text = ""
    codec_down: Codec = "fp16"
    epoch: Count = 0
    fine: Fine = "none"
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHead:
    """``all/model``, retained: points at the keyframe whose chunks lie on ``all/model/{part}``."""

    run: Name
    version: Count
    sha256: Sha256
    bytes: Positive
    parts: Positive
    epoch: Count = 0
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """``down/{device}/alloc``, retained: the share of data and the mini-batch one device shall use.

    Attributes:
        version: grows with every change for this device in this run; an older one is never obeyed.
        rows: positions in the run's permutation; in local mode empty, `samples` then caps the device's own rows.
        shard: digest of the rows to fetch in shipped mode, and in `shard_bytes` how many bytes they are.
        next_shard: digest of the shard to prefetch while training on this one.
        reason: why it changed, for a person.
        steps: mini-batches of one iteration in a walk; 0 where `samples` and the run's epochs make an iteration.
        share: of the fleet's speed; about the weight this device's update gets. 0 where nothing goes by speed.
        shards: in a walk over shipped data, digests of the pieces to walk over; it begins with those at hand, and
            `shard_bytes` is the longest one's length.
        codec: of this device's updates, if it knows it; "" = the run's.
    """

    run: Name
    device: Name
    version: Positive
    samples: Positive
    batch: Positive
    rows: Ranges = ()
    shard: MaybeSha256 = ""
    shard_bytes: Count = 0
    next_shard: MaybeSha256 = ""
    next_shard_bytes: Count = 0
    reason: Text = ""
    steps: Count = 0
    share: Share = 0.0
    shards: tuple[Sha256, ...] = ()
    codec: Text = ""
    epoch: Count = 0
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """``down/{device}/ack``, retained: the newest update of this device that was handled, and how.

    Attributes:
        newest: the newest session heard of, which need not have sent any yet; a device in an earlier one has lost its
            memory.
    """

    run: Name
    session: Count
    seq: Count
    outcome: Outcome
    reason: Text = ""
    epoch: Count = 0
    newest: Count = 0
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """``down/{device}/cmd``: one order with a transaction id that the answer repeats; `push` is followed once per id.

    Attributes:
        transfer, parts, missing: of a `resend`, which parts of which transfer; without them the update as a whole.
    """

    id: Name
    name: CommandName
    transfer: MaybeSha256 = ""
    parts: Count = 0
    missing: Bitmap = b""
    epoch: Count = 0
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """``up/{device}/status``, retained: birth and death. The will carries only state and session.

    Attributes:
        instance: random word made once per state directory: tells a restart from a second device of the same id.
        slowdown: factor by which a fast machine pretends to be a slower board; 1 = not emulated.
        rows: rows the device holds itself (local mode), 0 = not said.
        memory_rows_max: most rows its memory takes, 0 = not said.
    """

    state: Literal["online", "offline"]
    session: Count
    instance: Text = ""
    host: Text = ""
    software: Text = ""
    slowdown: Slowdown = 1.0
    rows: Count = 0
    memory_rows_max: Count = 0
    reason: Text = ""
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """``up/{device}/state``, retained: what is in force, reported back. Counters are of this session.

    Attributes:
        iteration_s: seconds of the newest iteration; 0 before the first one under this allocation.
        z: the gate's statistic at the newest iteration; null where it has none.
        bytes_up: payload bytes this device handed to the broker, `bytes_down` what it received, tensors and control.
        dropped: messages it refused as malformed, foreign or stale.
        batch_s: seconds of one mini-batch, everything an iteration does counted in: comparable between sizes.
    """

    run: Text
    session: Count
    seq: Count
    phase: Phase
    allocation_version: Count
    model_version: Count
    iterations: Count
    published: Count
    samples: Count = 0
    batch: Count = 0
    mini_batches: Count = 0
    iteration_s: Seconds = 0.0
    loss: float | None = None
    z: float | None = None
    threshold: float | None = None
    gate: Text = ""
    shard: MaybeSha256 = ""
    diverged: Count = 0
    dropped: Count = 0
    bytes_up: Count = 0
    bytes_down: Count = 0
    batch_s: Seconds = 0.0
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``up/{device}/request``: please send the model, or the shard of this digest, or all of these; or say the run again.

    Attributes:
        transfer, parts, missing: rather only these parts of a transfer that came in part, if they can still be had.
    """

    run: Name
    session: Count
    want: Literal["model", "shard", "run"]
    sha256: MaybeSha256 = ""
    shards: tuple[Sha256, ...] = ()
    transfer: MaybeSha256 = ""
    parts: Count = 0
    missing: Bitmap = b""
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """``up/{device}/metrics``, QoS 0: one local iteration.

    Attributes:
        norm: length of the displacement that a push would have sent; None where none is sent.
    """

    run: Name
    session: Count
    iteration: Count
    seconds: Seconds
    samples: Count
    batch: Count
    mini_batches: Count
    loss: float | None
    z: float | None
    threshold: float | None
    published: bool
    norm: float | None = None
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """``up/{device}/rsp``: the answer to a `Command`."""

    id: Name
    status: Literal["ok", "error"]
    detail: Text = ""
    v: Literal[1] = 1


# --- msgpack from here on: one header, one binary body -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """``up/{device}/update``: what a device learnt, compressed.

    Attributes:
        base_version: the model version the device last received.
        model: signature digest; anything else is refused before the body is looked at.
        body: `parameters` numbers in `codec`; what they are (model, displacement) is the strategy's.
        loss: the device's own test loss. Reported for people; the coordinator measures for itself.
        samples, mini_batches, train_s: of the newest iteration; `iterations`: local iterations since the last push.
        steps: mini-batches since the last push.
        base: SHA-256 of the vector the device last received, where this update is made from it or an answer may be.
        device: whose it is; on the topic of another it is refused. Empty from a device that does not say it yet.
    """

    run: Name
    session: Count
    seq: Positive
    base_version: Count
    model: Sha256
    codec: Codec
    parameters: Positive
    loss: float
    samples: Count
    batch: Count
    mini_batches: Count
    train_s: Seconds
    iterations: Count
    steps: Count = 0
    base: MaybeSha256 = ""
    device: MaybeName = ""
    body: bytes
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """``down/{device}/model`` (an answer to one update), or the keyframe on ``all/model/{part}``.

    Attributes:
        session, seq: the update this answers; 0 in a keyframe and in an answer to a `Request`.
        base: SHA-256 of the vector that `body` is to be added to; empty where it is the whole model.
        iterations: how many local iterations to make before the next push; 0 = as the device's strategy finds.
    """

    run: Name
    version: Count
    session: Count = 0
    seq: Count = 0
    base: MaybeSha256 = ""
    iterations: Count = 0
    model: Sha256
    codec: Codec
    parameters: Positive
    body: bytes
    epoch: Count = 0
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Shard:
    """``down/{device}/data``: rows of the training set, named by the digest of `body`.

    Whoever makes them may find one that is still on its way to somebody, and send the same.
    """

    run: Name
    sha256: Sha256
    body: bytes
    v: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What really travels on the tensor topics: a slice of one encoded message.

    Attributes:
        id: SHA-256 of the whole encoded message; chunks with the same id belong together.
        part, parts: number of this slice, and how many there are.
        total: length of the whole in bytes.
    """

    id: Digest
    part: Count
    parts: Positive
    total: Positive
    body: bytes
    v: Literal[1] = 1


TensorMessage = Update | Model | Shard
UpMessage = DeviceStatus | DeviceState | Update | Request | Metrics | Response
DownMessage = Allocation | Ack | Command | Model | Shard
AllMessage = CoordinatorStatus | RunManifest | ModelHead
Message = UpMessage | DownMessage | AllMessage
