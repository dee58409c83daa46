"""``hermes-iot repair``: what a disk has done to a run or a device's state, and what can be mended."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hermes_iot.cli import logs, options
from hermes_iot.errors import StorageError

if TYPE_CHECKING:
    from hermes_iot.runtime.repair import Diagnosis


def repair(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or a device's --state-dir.")],
    yes: Annotated[bool, typer.Option("--yes", help="Mend it. Without it nothing is changed.")] = False,
    forget_journal: Annotated[
        bool, typer.Option("--forget-journal", help="Go on from the newest checkpoint alone, whatever came after it.")
    ] = False,
    as_json: options.Json = False,
    config: options.Config = None,  # read before parsing, see files.py
    verbose: options.Verbose = False,
) -> int:
    """Say what of a run's files is whole and what is damaged, what mending costs, and, with --yes, mend it."""
    logs.configure(verbose=verbose, quiet=True)

    from hermes_iot.runtime.repair import examine, locate, locked, mend

    directory, kind = locate(run)
    with locked(directory, kind):
        found = examine(directory, kind, forget_journal=forget_journal)
        if yes and not found.healthy:
            mend(found)
            left = examine(directory, kind)
            if not left.healthy:
                raise StorageError(
                    f"{directory} is still damaged after it was mended",
                    why="; ".join(step.words for step in left.steps),
                    mend="The disk changes what is written to it: copy the directory to another one, and begin again there",
                )
    sys.stdout.write(_envelope(found, mended=yes) if as_json else _words(found, mended=yes))
    return 0 if yes or found.healthy else StorageError.exit_code


def _envelope(found: Diagnosis, *, mended: bool) -> str:
    """The one document of ``--json``."""
    document: dict[str, Any] = {
        "schema": "hermes-iot/repair/1",
        "ok": mended or found.healthy,
        "kind": found.kind,
        "directory": str(found.directory),
        "name": found.name,
        "healthy": found.healthy,
        "mended": mended and not found.healthy,
        "files": [{"file": one.file, "state": one.state, "about": one.about} for one in found.findings],
        "steps": [step.words for step in found.steps],
        "lost": {
            "updates": found.updates_lost,
            "records_unread": found.records_unread,
            "besides": list(found.lost),
        },
        "afterwards": found.afterwards,
    }
    return json.dumps(document) + "\n"


def _words(found: Diagnosis, *, mended: bool) -> str:
    """The same for a person."""
    lines = [f"{found.kind} in {found.directory}" + (f": {found.name}" if found.name else "")]
    width = max((len(one.file) for one in found.findings), default=0)
    lines += [f"  {one.file:{width}}  {one.state:8} {one.about}".rstrip() for one in found.findings]
    if found.healthy:
        return _lined([*lines, "Nothing is to be mended.", *_cost(found), f"{found.afterwards}."])
    lines.append("Done:" if mended else "To be done:")
    lines += [f"  {step.words}" for step in found.steps]
    lines += _cost(found) or ["Nothing is lost."]
    if mended:
        return _lined([*lines, f"Mended. {found.afterwards}."])
    return _lined([*lines, "Nothing was changed. The same command with --yes mends it."])


def _cost(found: Diagnosis) -> list[str]:
    lost = list(found.lost)
    if found.updates_lost or found.records_unread:
        unread = f", and {found.records_unread} records of which nothing is known" if found.records_unread else ""
        lost.insert(0, f"{found.updates_lost} updates that were applied and acknowledged{unread}")
    return ["Lost:", *(f"  {one}" for one in lost)] if lost else []


def _lined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
