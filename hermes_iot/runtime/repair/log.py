"""A run's journal: which of its records still lead from a checkpoint on, and what is behind the first that does not.

What is kept is one unbroken stretch of whole records around the place where the checkpoint left off: those behind it
are done again, those before it would serve an older checkpoint. Everything else cannot be done again, because each
record builds on the model that the one before it made.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hermes_iot.runtime import redo_log
from hermes_iot.runtime.repair.findings import Finding, Step, put_aside
from hermes_iot.storage import atomic, journal
from hermes_iot.storage.journal import Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReport:
    """What is to be said of a journal and done about it; `kept` are the records that stay, half-open."""

    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]
    kept: tuple[int, int]
    updates_lost: int
    records_unread: int


def examine_log(directory: Path, first: int, *, forget: bool = False) -> LogReport:
    """Look at every record.

    Args:
        directory: the journal's.
        first: the record that the checkpoint to be resumed from goes on with.
        forget: let nothing of it stay.

    Raises:
        StorageError: unreadable, or written by a newer version.
    """
    starts = journal.segments(directory)
    scans = [
        journal.scan(directory, start, until=following)
        for start, following in itertools.zip_longest(starts, starts[1:])
    ]
    kept = (first, first) if forget else _kept(scans, first)
    end = max((stop for one in scans for _, stop, *_ in one.pieces), default=first)
    behind = [
        redo_log.applies(payload)
        for one in scans
        for index, payload in journal.payloads(directory, one)
        if index >= max(kept[1], first)
    ]
    unread = max(0, end - max(kept[1], first)) - len(behind)
    return LogReport(
        findings=tuple(_finding(one, last=one is scans[-1]) for one in scans),
        steps=tuple(_steps(directory, scans, kept)) if forget or _is_harmed(scans, first) else (),
        kept=kept,
        updates_lost=sum(behind),
        records_unread=unread,
    )


def _kept(scans: list[Scan], first: int) -> tuple[int, int]:
    """The unbroken stretch that holds `first`, or ends right before it; an empty one where there is none."""
    begin = stop = -1
    stretches = []
    for index, following, *_ in (piece for one in scans for piece in one.pieces):
        if index != stop:
            stretches.append((begin, stop))
            begin = index
        stop = following
    stretches.append((begin, stop))
    return next((one for one in reversed(stretches) if one[0] <= first <= one[1] and one[0] >= 0), (first, first))


def _is_harmed(scans: list[Scan], first: int) -> bool:
    """Whether it could not be opened, or not be read from `first` on."""
    if not scans:
        return False
    expected = scans[0].first
    for one in scans:
        whole = one.sound and len(one.pieces) <= 1 and one.first == expected
        if one is not scans[-1] and (not whole or one.end != one.length):
            return True
        if not whole and not (one is scans[-1] and not one.pieces and one.length < journal.START_BYTES):
            return True
        if one.pieces and one.pieces[0][0] != one.first:
            return True
        expected = one.pieces[-1][1] if one.pieces else one.first
    return not scans[0].first <= first <= expected


def _finding(one: Scan, *, last: bool) -> Finding:
    file = f"journal/{journal.path_of(Path(), one.first).name}"
    records = sum(stop - index for index, stop, *_ in one.pieces)
    span = f"{records} records from {one.first} on" if records else "no record"
    rest = one.length - one.end
    if not one.sound and one.length >= journal.START_BYTES:
        return Finding(
            file=file, state="damaged", about=f"its beginning is not what was written; {records} whole records"
        )
    if len(one.pieces) > 1 or (one.pieces and one.pieces[0][0] != one.first):
        place = one.pieces[0][1] if one.pieces[0][0] == one.first else one.first
        return Finding(
            file=file, state="damaged", about=f"record {place} is not what was written; {records} whole records"
        )
    if rest and not last:
        return Finding(file=file, state="damaged", about=f"{span}, and then {rest} bytes that are none")
    if rest:
        why = "a last write that was cut short, acknowledged to nobody, or a last record that was damaged"
        return Finding(file=file, state="torn", about=f"{span}, and then {rest} bytes that are none: {why}")
    return Finding(file=file, state="whole", about=span)


def _steps(directory: Path, scans: list[Scan], kept: tuple[int, int]) -> list[Step]:
    """A stretch's new beginning first, then its end, then what lies outside, the newest first."""
    heads, ends, outside = [], [], []
    for one in scans:
        path, name = journal.path_of(directory, one.first), f"journal/{journal.path_of(Path(), one.first).name}"
        inside = [
            (max(index, kept[0]), min(stop, kept[1]))
            for index, stop, *_ in one.pieces
            if max(index, kept[0]) < min(stop, kept[1])
        ]
        if not inside:
            outside.append(put_aside(path, name))
            continue
        begin, stop = inside[0][0], inside[-1][1]
        unharmed = one.sound and [piece[:2] for piece in one.pieces] == [(one.first, stop)] and begin == one.first
        if unharmed and (one.end == one.length or one is scans[-1]):
            continue
        excerpt = partial(_rewrite, directory, one, begin, stop)
        if begin == one.first:
            ends.append(Step(words=f"keep {name} as {name}.damaged-… and cut it before record {stop}", take=excerpt))
        else:
            words = f"take records {begin} to {stop - 1} out of {name}"
            heads.append(Step(words=words, take=excerpt))
            outside.append(put_aside(path, name))
    return [*heads, *ends, *reversed(outside)]


def _rewrite(directory: Path, one: Scan, begin: int, stop: int) -> None:
    content = journal.excerpt(directory, one, begin, stop)
    path = journal.path_of(directory, begin)
    if path.exists():
        atomic.keep_aside(path)
    atomic.write_atomic(path, content)
