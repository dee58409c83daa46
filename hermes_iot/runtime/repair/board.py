"""A device's state directory: its memory, its newest update, the shards it was sent."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from hermes_iot.errors import StorageError
from hermes_iot.runtime.repair.findings import Diagnosis, Finding, Step, look, put_aside, put_back
from hermes_iot.storage import atomic, device_state

_SHARD: Final = re.compile(r"[0-9a-f]{64}")
_SHARD_BYTES_MAX: Final = 1024**3


def examine_board(directory: Path) -> Diagnosis:
    """See `repair.examine`."""
    path, update_path = directory / "device.json", directory / "update.bin"
    steps: list[Step] = []
    lost: list[str] = []
    memory, found = look(path, device_state.load_memory)
    backup, copy = look(atomic.backup_of(path), device_state.load_memory)
    update, saved = look(update_path, device_state.load_update)
    if copy.state == "damaged":
        steps.append(put_aside(atomic.backup_of(path), copy.file))
    if memory is None and backup is not None:
        steps.append(put_back(path, path.name, atomic.backup_of(path)))
        lost.append("what was remembered at the last write: at most the newest allocation's number")
    elif memory is None and found.state == "damaged":
        steps.append(put_aside(path, path.name))
        counted = "the update tells how far" if update is not None else "the coordinator tells it how far"
        lost.append(f"the count of its sessions: the device begins as a new instance, and {counted} it had come")
    if saved.state == "damaged":
        steps.append(put_aside(update_path, saved.file))
        lost.append("the newest update, if it had not arrived: the device trains on and pushes another")
    shards, bad = _shards(directory / "shards")
    steps += bad
    if bad:
        lost.append(f"{len(bad)} shards, which are asked for again")
    known = memory or backup
    name = f"session {known.session} of run {known.run or '(none yet)'}" if known is not None else ""
    return Diagnosis(
        kind="device",
        directory=directory,
        name=name,
        findings=(found, copy, saved, *shards),
        steps=tuple(steps),
        lost=tuple(lost),
        afterwards="Start the device as before",
    )


def _shards(directory: Path) -> tuple[list[Finding], list[Step]]:
    findings, steps = [], []
    try:
        entries = sorted(directory.iterdir()) if directory.exists() else []
    except OSError as error:
        raise atomic.storage_error(error, f"cannot read {directory}", directory) from error
    for entry in entries:
        if not _SHARD.fullmatch(entry.name):
            continue
        name = f"{directory.name}/{entry.name}"
        try:
            data = atomic.read_bounded(entry, _SHARD_BYTES_MAX)
            sound = data is not None and hashlib.sha256(data).hexdigest() == entry.name
        except StorageError:
            sound = False
        findings.append(Finding(file=name, state="whole" if sound else "damaged"))
        if not sound:
            steps.append(put_aside(entry, name))
    return findings, steps
