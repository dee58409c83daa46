"""A live run read back from its directory, so that the simulator can run that fleet again.

The settings are those in registry.json (what the person gave; constants left at their defaults are this version's),
what came of it is summary.json's, and the boards are measured in metrics.jsonl (`measured`). What only the live run
knew stays out: links are estimated where they can be, and in local mode every board owns an equal part of the rows, in the
order of joining.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import ProtocolError, UsageError
from hermes_iot.protocol.schema import Count, Seconds, from_json, from_mapping
from hermes_iot.runtime import strategies
from hermes_iot.runtime.simulation.measured import Told, fleet_of_records
from hermes_iot.runtime.simulation.profiles import FleetProfile
from hermes_iot.storage.registry import Registry

#: A run that its rules ended is given so many times its own time to come to the same end.
_PATIENCE: Final = 10.0
_FILES: Final = ("registry.json", "summary.json", "metrics.jsonl")
_ANEW: Final = "Record the run anew with this version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What summary.json must tell of one device; versions that told less of its speed are read, too."""

    device: str
    batch_s: Seconds | None = None
    mini_batches: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What summary.json must tell so that a simulation can be compared with it; None = none, or not a finite one."""

    run: str
    strategy: str
    iterations: Count
    updates_published: Count
    updates_applied: Count
    bytes_up: Count
    bytes_down: Count
    accuracy: float | None
    loss: float | None
    wall_s: Seconds
    reason: str
    devices: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One finished run.

    Attributes:
        config: its settings.
        summary: the part of summary.json that a simulation is compared with.
        fleet: its boards as they were measured.
        left_out: boards that were never measured.
        iterations: the ``iteration`` records, oldest first; empty without telemetry.
    """

    config: RunConfig
    summary: Mapping[str, Any]
    fleet: FleetProfile
    left_out: tuple[str, ...]
    iterations: Sequence[Mapping[str, Any]]

    @property
    def virtual_s(self) -> float:
        """How long to simulate at the longest: the run's own limit, else `_PATIENCE` times what it took."""
        return self.config.rules.max_wall_s or _PATIENCE * max(1.0, float(self.summary["wall_s"]))

    def changed(self, settings: RunConfig, given: Iterable[str]) -> RunConfig:
        """The run's settings with those that a person gave anew.

        Args:
            settings: holds them. Its constants are taken in any case.
            given: which fields of `RunConfig` and of its `StopRules` they are; other names are passed over.
        """
        names = set(given)
        ours = {one.name for one in fields(RunConfig)} & names - {"constants", "rules"}
        ending = {one.name for one in fields(StopRules)} & names
        return replace(
            self.config,
            constants=settings.constants,
            rules=replace(self.config.rules, **{name: getattr(settings.rules, name) for name in ending}),
            **{name: getattr(settings, name) for name in ours},
        )


def recording_of(directory: Path, records: Iterable[Mapping[str, Any]], *, links: bool = True) -> Recording:
    """Read a run directory.

    Args:
        directory: of the run.
        records: those of its metrics.jsonl, oldest first.
        links: estimate the boards' links, where the strategy lets no device wait for others.

    Raises:
        UsageError: a file is missing, or lacks what is needed; the words name it.
        StorageError: a file is damaged.
    """
    check_files(directory)
    config = _config(directory / "registry.json")
    summary = _summary(directory / "summary.json")
    strategy, _ = strategies.resolve(config.strategy).build(config.constants)
    kept = list(records)
    fleet, left_out = fleet_of_records(
        kept,
        told={row.device: Told(batch_s=row.batch_s, mini_batches=row.mini_batches) for row in summary.devices},
        wall_s=summary.wall_s,
        links=links and not strategy.regime.waits,
        name=summary.run,
        task=config.task,
    )
    if fleet is None:
        raise UsageError(
            f"{directory / 'metrics.jsonl'} tells of no board's speed",
            why="no record has seconds and mini_batches, or batch_s; older versions did not write them",
            mend=_ANEW,
        )
    return Recording(
        config=config,
        summary={one.name: getattr(summary, one.name) for one in fields(Summary) if one.name != "devices"},
        fleet=fleet,
        left_out=left_out,
        iterations=[record for record in kept if record["event"] == "iteration" and _is_whole(record)],
    )


def check_files(directory: Path) -> None:
    """Whether a finished run's files are there.

    Raises:
        UsageError: the first that is not.
    """
    for name in _FILES:
        if not (directory / name).is_file():
            raise UsageError(
                f"there is no file {directory / name}",
                why="a run is read from its registry.json, summary.json (written at its end) and metrics.jsonl",
                mend="Give the directory of a finished run",
            )


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether an ``iteration`` record has what `regate` reads."""
    loss, numbers = record.get("loss"), (record.get("session"), record.get("iteration"))
    return (
        isinstance(record.get("device"), str)
        and all(isinstance(number, int) for number in numbers)
        and (loss is None or isinstance(loss, int | float))
        and isinstance(record.get("published"), bool)
    )


def _config(path: Path) -> RunConfig:
    with Registry(path, read_only=True) as registry:
        runs = registry.runs()
    if not runs:
        raise UsageError(f"{path} holds no run")
    try:
        return from_mapping(runs[-1]["config"], RunConfig)
    except (KeyError, ProtocolError) as error:
        raise UsageError(
            f"the settings in {path} cannot be read",
            why=str(error),
            mend="Use the version of hermes-iot that wrote them",
        ) from error


def _summary(path: Path) -> Summary:
    try:
        content = path.read_bytes()
        known = from_json(content, dict[str, Any])
    except (OSError, ProtocolError) as error:
        raise UsageError(f"{path} cannot be read", why=str(error)) from error
    missing = [one.name for one in fields(Summary) if one.name not in known]
    if missing:
        raise UsageError(f"{path} lacks {', '.join(missing)}", mend=_ANEW)
    try:
        return from_json(content, Summary)
    except ProtocolError as error:
        raise UsageError(f"{path} cannot be used", why=str(error), mend=_ANEW) from error
