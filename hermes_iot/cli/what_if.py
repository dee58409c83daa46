"""``hermes-iot simulate --from``: what is the recorded run's, and what the person changed.

Only words of the command line change a recorded run: ``HERMES_*`` and ``hermes.toml`` say what a run is like that
nothing is known of yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hermes_iot.cli.run_options import FIELDS
from hermes_iot.config import RunConfig
from hermes_iot.errors import UsageError

if TYPE_CHECKING:
    from hermes_iot.runtime.simulation.profiles import FleetProfile
    from hermes_iot.runtime.simulation.recording import Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """A recorded run and the names of the options that were given beside it."""

    recording: Recording
    given: frozenset[str]
    strategy: str

    @classmethod
    def of(cls, directory: Path, context: typer.Context) -> WhatIf:
        """Read the run.

        Raises:
            UsageError: a fleet was named, too, or the directory does not hold what is needed.
        """
        from hermes_iot.reporting.metrics import read_metrics
        from hermes_iot.runtime.simulation.recording import check_files, recording_of

        given = frozenset(name for name in context.params if was_typed(context, name))
        if "fleet" in given:
            raise UsageError("--from and --fleet contradict each other", mend="Give one of them")
        check_files(directory)
        recording = recording_of(directory, read_metrics(directory / "metrics.jsonl"), links="link" not in given)
        strategy = str(context.params["strategy"]) if "strategy" in given else recording.config.strategy
        return cls(recording=recording, given=given, strategy=strategy)

    @property
    def fleet(self) -> FleetProfile:
        """The boards as they were measured."""
        return self.recording.fleet

    @property
    def virtual_s(self) -> float:
        """How long to simulate unless the person says so."""
        return self.recording.virtual_s

    @property
    def tables(self) -> Mapping[str, Any]:
        """The run's constants, where they belong to the strategy that is asked for."""
        config = self.recording.config
        return {Path(config.strategy).stem: config.constants} if self.strategy == config.strategy else {}

    def changed(self, settings: RunConfig) -> RunConfig:
        """The run's settings with what was given. Rows of one's own make it a local run, here as everywhere."""
        given = self.given | ({"data"} if "dirichlet" in self.given else set())
        return self.recording.changed(settings, {FIELDS.get(name, name) for name in given})

    def told(self, settings: RunConfig) -> dict[str, Any]:
        """What a simulation's document has besides: what was, and what the gate alone would have done."""
        from hermes_iot.runtime.simulation.gates import counted, gates_of
        from hermes_iot.runtime.simulation.regate import gate_of, regate

        recording = self.recording
        told: dict[str, Any] = {"recorded": dict(recording.summary), "left_out": list(recording.left_out)}
        if any(group.link is not None and group.link.latency_s is not None for group in recording.fleet.groups):
            told["link"] = "as measured"
        gate = gate_of(recording.config, settings)
        if gate is not None and recording.iterations:
            told["regate"] = regate(recording.iterations, gate)
        if gates_of(recording.config) is not None:
            told["recorded_gates"] = counted(recording.iterations, recording.config, settings)
        elif recording.config.telemetry == "full" and "regate" not in told:
            told["no_gates"] = (
                "which recorded iterations a gate would have pushed is told of runs of hermes-plus, and of runs of hermes"
                f" that drew fresh or kept rows where hermes is asked for, too; this run was of {recording.config.strategy}"
            )
        return told


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether this option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
