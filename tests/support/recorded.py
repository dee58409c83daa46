"""A run directory as a live run leaves it, made in virtual time: what is in it is known beforehand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from hermes_iot.config import RunConfig
from hermes_iot.reporting.metrics import MetricsLog
from hermes_iot.reporting.summary import write_summary
from hermes_iot.runtime.simulation.benches import equipment_of
from hermes_iot.runtime.simulation.outcome import SimLimits
from hermes_iot.runtime.simulation.profiles import FleetProfile, Group, LinkProfile
from hermes_iot.runtime.simulation.run import simulate
from hermes_iot.storage.registry import Registry

#: No forward passes are charged, so a mini-batch takes what is written here.
FLEET = FleetProfile(
    batch_s=0.01,
    forward_share=0.0,
    groups=(
        Group(name="fast", slowness=1.0, count=2, jitter=0.1),
        Group(name="slow", slowness=4.0, jitter=0.0),
        Group(name="late", slowness=2.0, jitter=0.0, join_at_s=20.0, leave_at_s=60.0),
        Group(name="lost", slowness=2.0, jitter=0.0, crash_at_s=30.0),
    ),
)
LINK = LinkProfile(up_mbit=100, down_mbit=100, latency_s=0.05, notice_s=10.0)


def record(directory: Path, config: RunConfig, *, fleet: FleetProfile = FLEET, virtual_s: float = 120.0) -> dict:
    """Simulate, and write the files; the summary. Records of `records_of` are those in metrics.jsonl."""
    directory.mkdir(parents=True)
    equipment = equipment_of(config, devices=fleet.devices, data_dir=None)
    with MetricsLog(directory / "metrics.jsonl") as metrics:
        outcome = simulate(
            config,
            fleet=fleet,
            link=LINK,
            bench=equipment.bench,
            trainer_of=equipment.trainer_of,
            until=SimLimits(virtual_s=virtual_s),
            observe=lambda event, fields: metrics.on_record(event, fields) if "elapsed_s" in fields else None,
        )
    with Registry(directory / "registry.json") as registry:
        registry.run_started(
            "recorded-1",
            fleet="lab",
            task=config.task,
            strategy=config.strategy,
            config=asdict(config),
            created_at="2026-01-01T00:00:00+00:00",
        )
    summary = {**outcome.summary, "run": "recorded-1"}
    write_summary(directory / "summary.json", summary)
    return summary
