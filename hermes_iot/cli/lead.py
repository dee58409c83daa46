"""One led run as a person sees it: live view, metrics file, summary, plot. Shared by `coordinator` and `demo`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_iot.cli.signals import leaving

if TYPE_CHECKING:
    from hermes_iot.runtime.coordinator import CoordinatorRunner

#: Builds the runner once the listener for its records is known.
RunnerOf = Callable[[Callable[[str, Mapping[str, Any]], None]], "CoordinatorRunner"]


def lead(
    runner_of: RunnerOf,
    *,
    broker: str,
    run_dir: Path,
    kind: str,
    as_json: bool,
    plain: bool,
    resume: str = "",
    beside: Callable[[CoordinatorRunner], None] = lambda _runner: None,
) -> int:
    """Run to the end and print what came of it; the exit code.

    Args:
        runner_of: see `RunnerOf`.
        broker: shown and recorded.
        run_dir: metrics, summary and plot go here.
        kind: names the JSON envelope's schema.
        as_json: one envelope on stdout, progress on stderr.
        plain: no live table even on a terminal.
        resume: how a run that was stopped goes on, where it can.
        beside: called once the runner exists, to start what belongs to it.
    """
    from rich.console import Console

    from hermes_iot.reporting.gates import GateWords
    from hermes_iot.reporting.live import LiveView
    from hermes_iot.reporting.metrics import MetricsLog
    from hermes_iot.reporting.plots import plot_run
    from hermes_iot.reporting.summary import envelope, render, write_summary

    console = Console(stderr=as_json)
    run_dir.mkdir(parents=True, exist_ok=True)
    words = GateWords()
    with MetricsLog(run_dir / "metrics.jsonl") as metrics, LiveView(console, plain=plain or as_json) as view:

        def on_record(event: str, fields: Mapping[str, Any]) -> None:
            metrics.on_record(event, fields)
            view.on_record(event, fields)
            words.on_record(event, fields)

        runner = runner_of(on_record)
        manifest = runner.machine.manifest
        view.title(
            run=manifest.run,
            task=manifest.task.name,
            strategy=manifest.strategy.name,
            broker=broker,
            fleet=runner.fleet,
        )
        if runner.resumed_version is not None:
            view.resumed(run=manifest.run, version=runner.resumed_version)
        with leaving(runner.stop) as caught:
            beside(runner)
            summary = runner.run()
    if summary is None:
        console.print(f"Stopped run {manifest.run} ({run_dir}).{' ' + resume if resume else ''}", markup=False)
        return caught.exit_code
    summary |= {"broker": broker, "gate_words": words.counts}
    write_summary(run_dir / "summary.json", summary)
    plot = plot_run(run_dir / "metrics.jsonl", run_dir / "progress.png")
    render(summary, console, plot=plot)
    if as_json:
        sys.stdout.write(envelope(summary, kind=kind) + "\n")
    return caught.exit_code
