"""A run's journal: which of its records still lead from a checkpoint on, and what is behind the first that does not.

What is kept is one unbroken stretch of whole records around the place where the checkpoint left off: those behind it
are done again, those before it would serve an older checkpoint. Everything else cannot be done again, because each
record builds on the model that the one before it made. Where nothing can be kept, the journal begins anew at that place:
a run without one is refused, for it may have been lost.
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


def examine_log(directory: Path, first: int, *, needed: bool = False, forget: bool = False) -> LogReport:
    """Look at every record.

    Args:
        directory: the journal's.
        first: the record that the checkpoint to be resumed from goes on with.
        needed: there is such a checkpoint.
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
    end = max((max([one.safe_below, *(stop for _, stop, *_ in one.pieces)]) for one in scans), default=first)
    behind = [
        redo_log.applies(payload)
        for one in scans
        for index, payload in journal.payloads(directory, one)
        if index >= max(kept[1], first)
    ]
    unread = max(0, end - max(kept[1], first)) - len(behind)
    findings = [
        _finding(one, following) for one, following in itertools.zip_longest(scans, [one.first for one in scans[1:]])
    ]
    if needed and not scans:
        findings.append(Finding(file="journal", state="missing", about=f"records from {first} on, if there were any"))
    harmed = _is_harmed(scans, first) if scans else needed
    return LogReport(
        findings=tuple(findings),
        steps=tuple(_steps(directory, scans, kept)) if (forget and scans) or harmed else (),
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
    expected = scans[0].first
    for one in scans:
        if one.first != expected or not _is_one_stretch(one) or not (one.sound or one.torn):
            return True
        expected = one.pieces[-1][1] if one.pieces else one.first
    newest = scans[-1]
    return (newest.end < newest.length and not newest.torn) or not scans[0].first <= first <= expected


def _is_one_stretch(one: Scan) -> bool:
    return not one.pieces or (len(one.pieces) == 1 and one.pieces[0][0] == one.first)


def _finding(one: Scan, following: int | None) -> Finding:
    """`following`: the index with which the next segment begins."""
    file = f"journal/{journal.path_of(Path(), one.first).name}"
    records = sum(stop - index for index, stop, *_ in one.pieces)
    span = f"{records} records from {one.first} on" if records else "no record"
    rest = one.length - one.end
    stop = one.pieces[-1][1] if one.pieces else one.first
    if not one.sound and not one.torn:
        return Finding(
            file=file, state="damaged", about=f"its beginning is not what was written; {records} whole records"
        )
    if not _is_one_stretch(one) or (following is None and one.end < one.length and not one.torn):
        place = one.pieces[0][1] if one.pieces and one.pieces[0][0] == one.first else one.first
        return Finding(
            file=file, state="damaged", about=f"record {place} is not what was written; {records} whole records"
        )
    if following is not None and stop != following:
        return Finding(file=file, state="damaged", about=f"{span}, and the next segment begins at {following}")
    if following is None and rest:
        why = "a last write that was cut short, acknowledged to nobody"
        return Finding(file=file, state="torn", about=f"{span}, and then {rest} bytes that are none: {why}")
    return Finding(file=file, state="whole", about=span)


def _steps(directory: Path, scans: list[Scan], kept: tuple[int, int]) -> list[Step]:
    """A stretch's new beginning first, then its end, then what lies outside, the newest first."""
    heads, ends, outside = [], [], []
    anew = kept[0] if kept[0] == kept[1] else -1
    if anew >= 0 and not any(
        one.first == anew and one.sound and one.length == one.end and not one.pieces for one in scans
    ):
        heads.append(Step(words=f"begin the journal anew at record {anew}", take=partial(_begin, directory, anew)))
    for one in scans:
        path, name = journal.path_of(directory, one.first), f"journal/{journal.path_of(Path(), one.first).name}"
        inside = [
            (max(index, kept[0]), min(stop, kept[1]))
            for index, stop, *_ in one.pieces
            if max(index, kept[0]) < min(stop, kept[1])
        ]
        if not inside and one.first == anew:
            continue
        if not inside:
            outside.append(put_aside(path, name))
            continue
        begin, stop = inside[0][0], inside[-1][1]
        unharmed = one.sound and [piece[:2] for piece in one.pieces] == [(one.first, stop)] and begin == one.first
        if unharmed and (one.end == one.length or one.torn):
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
    _put(journal.path_of(directory, begin), journal.excerpt(directory, one, begin, stop))


def _begin(directory: Path, first: int) -> None:
    atomic.make_directory(directory)
    _put(journal.path_of(directory, first), journal.beginning(first))


def _put(path: Path, content: bytes) -> None:
    if path.exists():
        atomic.keep_aside(path)
    atomic.write_atomic(path, content)
