"""A run's directory: registry, checkpoints, journal, and what is only told of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hermes_iot.runtime.repair.findings import Diagnosis, Finding, Step, look, put_aside, put_back
from hermes_iot.runtime.repair.log import LogReport, examine_log
from hermes_iot.storage import atomic, checkpoints, registry
from hermes_iot.storage.checkpoints import CheckpointStore

_SUMMARY_BYTES_MAX: Final = 256 * 1024 * 1024


def examine_run(directory: Path, *, forget_journal: bool = False) -> Diagnosis:
    """See `repair.examine`."""
    saved = _Checkpoints(directory / "checkpoints")
    nothing_left = saved.newest is None and saved.damaged
    log = examine_log(
        directory / "journal", saved.first, needed=saved.newest is not None, forget=forget_journal or nothing_left
    )
    record, files, steps, lost = _registry(directory, saved.record)
    run = str(record["run"]) if record else saved.run
    told, told_steps, told_lost = _told(directory, record)
    steps += saved.steps
    lost += saved.lost
    if nothing_left:
        lost.append("every checkpoint: the run begins anew from its first model")
    if any(one.state == "missing" for one in log.findings):
        lost.append("the journal: what was decided after the checkpoint is not known")
    if saved.newest is not None and saved.newest_damaged > saved.newest and log.kept[1] <= saved.first:
        lost.append(f"what was decided between model version {saved.newest} and {saved.newest_damaged}")
    return Diagnosis(
        kind="run",
        directory=directory,
        name=run,
        findings=(*files, *saved.findings, *log.findings, *told),
        steps=(*steps, *log.steps, *told_steps),
        updates_lost=log.updates_lost,
        records_unread=log.records_unread,
        lost=(*lost, *told_lost),
        afterwards=_afterwards(directory, record, saved, log),
    )


class _Checkpoints:
    """What is left of a run's checkpoints.

    Attributes:
        newest: version of the newest whole one; None where there is none.
        newest_damaged: version of the newest that is not whole; -1 where all are.
        first: the journal's record that the newest whole one goes on with.
        run, record: what it says of the run.
    """

    def __init__(self, directory: Path) -> None:
        store = CheckpointStore(directory)
        self.newest: int | None = None
        self.newest_damaged = -1
        self.first = 0
        self.run = ""
        self.record: Mapping[str, Any] = {}
        self.findings: list[Finding] = []
        self.steps: list[Step] = []
        self.lost: list[str] = []
        for version in store.versions:
            name = f"{directory.name}/{store.path(version).name}"
            try:
                _, metadata = store.read(version)
            except atomic.Damaged as damage:
                self.newest_damaged = version
                self.findings.append(Finding(file=name, state="damaged", about=damage.why))
                before = store.read_backup(version)
                if before is None:
                    self.steps.append(put_aside(store.path(version), name))
                    continue
                backup = atomic.backup_of(store.path(version))
                limit = checkpoints.CHECKPOINT_BYTES_MAX
                self.steps.append(put_back(store.path(version), name, backup, bytes_max=limit))
                _, metadata = before
            self.newest, self.first = version, int(metadata.get("journal", 0))
            self.run, self.record = str(metadata.get("run", "")), metadata.get("record") or {}
            self.findings.append(
                Finding(file=name, state="whole", about=f"model version {version}, journal from record {self.first} on")
            )

    @property
    def damaged(self) -> bool:
        """Whether any is not whole."""
        return self.newest_damaged >= 0


def _registry(
    directory: Path, kept: Mapping[str, Any]
) -> tuple[Mapping[str, Any], list[Finding], list[Step], list[str]]:
    """The run's record, from whichever copy has it."""
    path = directory / "registry.json"
    backup = atomic.backup_of(path)
    newest, found = look(path, registry.load_tables)
    previous, copy = look(backup, registry.load_tables)
    steps: list[Step] = []
    lost: list[str] = []
    if copy.state == "damaged":
        steps.append(put_aside(backup, copy.file))
    tables = (newest or previous or ({}, b""))[0]
    if newest is None and previous is not None:
        steps.append(put_back(path, path.name, backup))
        lost.append("the registry's last write: devices say again who they are and which allocation they obey")
    elif newest is None:
        if found.state == "damaged":
            steps.append(put_aside(path, path.name))
        if kept:
            steps.append(
                Step(words="make registry.json anew from the checkpoint", take=lambda: registry.rebuild(path, kept))
            )
            lost.append("the registry's devices and allocations: they are asked for, and numbered on from, anew")
        elif found.state == "damaged" or copy.state == "damaged":
            lost.append("both copies of the registry, and no checkpoint knows the run's settings: it cannot go on")
    rows = list(tables.get("runs", {}).values())
    return (rows[-1] if rows else kept), [found, copy], steps, lost


def _told(directory: Path, record: Mapping[str, Any]) -> tuple[list[Finding], list[Step], list[str]]:
    """What nothing is restored from: metrics, summary and the exported model."""
    findings: list[Finding] = []
    steps: list[Step] = []
    lost: list[str] = []
    metrics, summary, model = (directory / name for name in ("metrics.jsonl", "summary.json", "model.safetensors"))
    for one in sorted(directory.glob(f"{metrics.name}*")):
        lines, bad = _lines(one)
        about = f"{lines} lines" + (f", {bad} of them unreadable: they are passed over" if bad else "")
        findings.append(Finding(file=one.name, state="torn" if bad else "whole", about=about))
    if summary.exists():
        sound = _is_json(summary)
        findings.append(Finding(file=summary.name, state="whole" if sound else "damaged"))
        if not sound:
            steps.append(put_aside(summary, summary.name))
            if record.get("summary"):
                content = {"schema": "hermes-iot/run/1", "ok": True, **record["summary"]}
                data = json.dumps(content, indent=1).encode() + b"\n"
                words = "write summary.json anew from the registry"
                steps.append(Step(words=words, take=lambda: atomic.write_atomic(summary, data)))
            else:
                lost.append("the summary")
    if model.exists():
        try:
            checkpoints.load(model)
            findings.append(Finding(file=model.name, state="whole"))
        except atomic.Damaged as damage:
            findings.append(Finding(file=model.name, state="damaged", about=damage.why))
            steps.append(put_aside(model, model.name))
            lost.append("the exported model; the newest checkpoint has its numbers as one vector")
    return findings, steps, lost


def _afterwards(directory: Path, record: Mapping[str, Any], saved: _Checkpoints, log: LogReport) -> str:
    if not record:
        return "Begin another run: hermes-iot coordinator --new"
    if record.get("state") != "running":
        return f"The run is {record.get('state')}: nothing of it goes on"
    place = f"model version {saved.newest}" if saved.newest is not None else "its first model"
    more = f" and {max(0, log.kept[1] - saved.first)} records of the journal" if saved.newest is not None else ""
    return f"The coordinator goes on from {place}{more}: run its command again, with --run-dir {directory}"


def _lines(path: Path) -> tuple[int, int]:
    lines = bad = 0
    try:
        with path.open("rb") as file:
            for line in file:
                lines += 1
                bad += not _parses(line)
    except OSError as error:
        raise atomic.storage_error(error, f"cannot read {path}", path.parent) from error
    return lines, bad


def _is_json(path: Path) -> bool:
    try:
        return _parses(atomic.read_bounded(path, _SUMMARY_BYTES_MAX) or b"")
    except atomic.Damaged:
        return False


def _parses(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
