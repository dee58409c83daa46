"""The redo log on disk: entries of `core.redo` as records of a journal, and back.

A record is one line of JSON, then the update as it would go over the wire and the vector it was made from, where there
are any: ``head -1`` of a record can be read by a person, and no second format for tensors is needed. Losses travel as
hexadecimal floats, for JSON knows neither infinity nor NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from hermes_iot.algorithms.speed import Report
from hermes_iot.core.redo import Entry, FleetChanged, Found, Resized, UpdateTaken
from hermes_iot.domain import DeviceId, Score
from hermes_iot.errors import ProtocolError, StorageError
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Outcome, Update
from hermes_iot.protocol.schema import from_json, to_json
from hermes_iot.storage.journal import RECORD_BYTES_MAX, Journal

_LIMITS: Final = Limits(message_bytes_max=RECORD_BYTES_MAX, inflated_bytes_max=RECORD_BYTES_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Score:
    loss: str
    accuracy: str | None

    @classmethod
    def of(cls, score: Score) -> _Score:
        return cls(loss=score.loss.hex(), accuracy=None if score.accuracy is None else score.accuracy.hex())

    @property
    def score(self) -> Score:
        accuracy = None if self.accuracy is None else float.fromhex(self.accuracy)
        return Score(loss=float.fromhex(self.loss), accuracy=accuracy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The line of JSON; `update_bytes` and `base_bytes` follow it."""

    kind: Literal["update", "fleet", "sizes"]
    version: int
    elapsed_s: float
    scores: tuple[_Score, ...] = ()
    measured: _Score | None = None
    up: Mapping[str, int] = field(default_factory=dict)
    down: Mapping[str, int] = field(default_factory=dict)
    device: str = ""
    outcome: Outcome = "applied"
    reason: str = ""
    lag: int = 0
    planned: int = 0
    works: bool = False
    reports: Mapping[str, Report] = field(default_factory=dict)
    update_bytes: int = 0
    base_bytes: int = 0

    @property
    def found(self) -> Found:
        return Found(
            scores=tuple(one.score for one in self.scores),
            measured=None if self.measured is None else self.measured.score,
            version=self.version,
            elapsed_s=self.elapsed_s,
            up=self.up,
            down=self.down,
        )


def append(journal: Journal, entries: Iterable[Entry]) -> None:
    """Append entries; safe after the journal's next `sync`."""
    for entry in entries:
        journal.append(*_pieces(entry))


def read(journal: Journal, start: int) -> Iterator[Entry]:
    """The entries from record `start` on.

    Raises:
        StorageError: the journal is damaged, or another version wrote it.
    """
    for index, record in journal.read(start):
        try:
            yield _entry(record)
        except (ProtocolError, ValueError, TypeError) as error:
            raise StorageError(
                f"record {index} of the run's journal cannot be read",
                why=f"it is intact, but not as this version writes it ({error!r:.200})",
                mend="Go on with the version of hermes-iot that wrote it",
            ) from error


def applies(record: bytes) -> bool:
    """Whether a record is an update that was applied; False for one that cannot be read."""
    try:
        head = from_json(record.partition(b"\n")[0], _Head)
    except ProtocolError:
        return False
    return head.kind == "update" and head.outcome == "applied"


def _pieces(entry: Entry) -> tuple[bytes, ...]:
    found = entry.found
    common: dict[str, Any] = {
        "version": found.version,
        "elapsed_s": found.elapsed_s,
        "scores": tuple(_Score.of(score) for score in found.scores),
        "measured": None if found.measured is None else _Score.of(found.measured),
        "up": found.up,
        "down": found.down,
    }
    match entry:
        case UpdateTaken():
            update = codec.encode_pieces(entry.update, compress=False)
            base = b"" if entry.base is None else entry.base.astype("<f4").tobytes()
            head = _Head(
                kind="update",
                device=entry.device,
                outcome=entry.outcome,
                reason=entry.reason,
                lag=entry.lag,
                planned=entry.planned,
                update_bytes=sum(map(len, update)),
                base_bytes=len(base),
                **common,
            )
            return to_json(head), b"\n", *update, base
        case FleetChanged():
            return to_json(_Head(kind="fleet", device=entry.device, works=entry.works, **common)), b"\n"
        case Resized():
            reports = {str(device): report for device, report in entry.reports.items()}
            return to_json(_Head(kind="sizes", reports=reports, **common)), b"\n"


def _entry(record: bytes) -> Entry:
    line, _, rest = record.partition(b"\n")
    head = from_json(line, _Head)
    if head.update_bytes + head.base_bytes != len(rest):
        raise ValueError(f"{len(rest)} bytes follow, {head.update_bytes} and {head.base_bytes} were written")
    if head.kind == "fleet":
        return FleetChanged(device=DeviceId(head.device), works=head.works, found=head.found)
    if head.kind == "sizes":
        reports = {DeviceId(device): report for device, report in head.reports.items()}
        return Resized(reports=reports, found=head.found)
    base = rest[head.update_bytes :]
    return UpdateTaken(
        device=DeviceId(head.device),
        update=codec.decode_tensors(rest[: head.update_bytes], Update, _LIMITS),
        outcome=head.outcome,
        reason=head.reason,
        lag=head.lag,
        planned=head.planned,
        base=np.frombuffer(base, dtype="<f4").astype(np.float32) if base else None,
        found=head.found,
    )
