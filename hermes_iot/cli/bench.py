"""``hermes-iot bench``: strategies against each other, in virtual time, with real training and real bytes."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from hermes_iot.cli import logs, options
from hermes_iot.cli.signals import Terminated
from hermes_iot.domain import DataMode
from hermes_iot.errors import HermesError, UsageError
from hermes_iot.protocol.limits import INTEGER_MAX

if TYPE_CHECKING:
    from hermes_iot.runtime.bench.cells import Row, Setting
    from hermes_iot.runtime.bench.presets import Part
    from hermes_iot.runtime.bench.run import Comparison, Done

_SEEDS_MAX = 100
#: Of the digits that `int` reads only those of a JSON number, and so few that it reads them.
_SEED = re.compile(r"[0-9]{1,16}")
_SHOWN_CHARS = 40
#: Options that no part of a preset names.
_UNSAID = {"data": None, "virtual": None}
#: Options that decide no number.
_SHOWS = frozenset({"jobs", "data_dir", "out", "plain", "as_json", "config", "verbose"})


def bench(
    context: typer.Context,
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="paper: the paper's comparison. fleets: other fleets, rows and links. gates: those of hermes-plus. "
            "quick: digits, under a minute and a half. Other options win over a preset's. [default: quick]",
        ),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="hermes-plus with one part switched off at a time, instead of strategies.")
    ] = False,
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            help="digits-mlp, mnist-mlp, mnist-cnn, cifar-alexnet, occupancy; several with commas. "
            "[default: digits-mlp, or the preset's]",
        ),
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option("--fleet", metavar="NAME", help="azure12, pi-mix, ..., or path/to/fleet.toml. [default: azure12]"),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option("--link", metavar="NAME", help="wifi20, slow1, asym, or path/to/link.toml. [default: wifi20]"),
    ] = None,
    chosen: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            metavar="ROWS",
            help="With commas: a strategy, a row with a name such as 'hermes-plus lean', or name[key=value;…] with constants, "
            "learning-rate or codec, such as 'hermes-plus[gate.z=2;codec=int8]'. "
            "[default: bsp,hermes,hermes-plus,single,single averaged,bsp-tuned, or the preset's]",
        ),
    ] = None,
    only: Annotated[
        bool, typer.Option("--only", help="Leave out the rows single and bsp-tuned where they are not named.")
    ] = False,
    seeds: Annotated[str | None, typer.Option("--seeds", help="With commas. [default: 0,1,2]")] = None,
    targets: Annotated[
        str | None,
        typer.Option("--targets", help="Test accuracies with commas, e.g. 0.97,0.98. [default: the workload's]"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="indexed, shipped or local: who holds the rows. [default: the workload's]"),
    ] = None,
    dirichlet: Annotated[
        float | None,
        typer.Option("--dirichlet", help="Boards keep rows of their own, classes spread with this, e.g. 0.3."),
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="Run on beyond the targets, to the stop rule.")] = False,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            min=0,
            help="Aggregations of the paper's stop rule; 0 = do not wait for it. [default: 10, or the preset's]",
        ),
    ] = None,
    virtual: Annotated[
        str | None, typer.Option("--virtual", help="End a cell after this virtual time. [default: the workload's]")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, max=256, help="Cells at a time. [default: the CPUs]")
    ] = None,
    data_dir: options.DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Report, plots, finished cells. [default: bench/<what is compared>]"),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a bar.")] = False,
    as_json: options.Json = False,
    config: options.Config = None,  # read before parsing, see files.py
    verbose: options.Verbose = False,
) -> int:
    """Compare strategies: time and bytes to an accuracy, over seeds. Finished cells are not run again."""
    if ablate and chosen is not None:
        raise UsageError("--ablate and --strategies contradict each other", mend="Give one of them")
    options.check_directory(data_dir)
    logs.configure(verbose=verbose, quiet=True)
    plan, name = _plan(
        preset=preset,
        ablate=ablate,
        workload=workload,
        fleet=fleet,
        link=link,
        chosen=chosen,
        only=only,
        seeds=seeds,
        targets=targets,
        data=data,
        dirichlet=dirichlet,
        long=long,
        patience=patience,
        virtual=virtual,
    )
    folder = out or Path("bench") / name
    if preset is None and workload is None:
        sys.stderr.write("neither a preset nor a workload is named: this is --preset quick, digits\n")

    from rich.console import Console

    from hermes_iot.reporting.bench_view import Progress
    from hermes_iot.runtime.bench.run import run

    progress = Progress(Console(stderr=True), plain=plain)
    try:
        with progress:
            done = run(plan, out=folder, data_dir=data_dir, jobs=jobs or os.cpu_count() or 1, observe=progress.on_event)
    except (KeyboardInterrupt, Terminated):
        kept = (
            f"{progress.kept} of {progress.cells} cells are kept in {folder}" if progress.cells else "nothing was begun"
        )
        sys.stderr.write(f"stopped; {kept}, the same command goes on\n")
        raise
    failed = any(one["failed"] for one in done.results["comparisons"])
    _show(done, folder, ok=not failed, command=_command(context), as_json=as_json)
    return HermesError.exit_code if failed else 0


def _show(done: Done, folder: Path, *, ok: bool, command: str, as_json: bool) -> None:
    """Write report, table and plots, and say it."""
    from rich.console import Console

    from hermes_iot.reporting.bench_plots import write_pictures
    from hermes_iot.reporting.bench_report import csv_of, report
    from hermes_iot.reporting.bench_view import render
    from hermes_iot.runtime.bench.run import SCHEMA
    from hermes_iot.storage.atomic import write_atomic

    results = {"schema": SCHEMA, "ok": ok, "command": command, **done.results}
    pictures: dict[str, list[str]] = {}
    files, notes = [], set[str]()
    for one in done.pictures:
        paths, note = write_pictures(one, folder)
        pictures[one["name"]] = [path.name for path in paths if path.suffix == ".png"]
        files += paths
        notes |= {note} if note else set()
    texts = {
        "results.json": json.dumps(results, indent=1) + "\n",
        "results.csv": csv_of(results),
        "report.md": report(results, pictures=pictures, command=command),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    if as_json:
        sys.stdout.write(json.dumps(results) + "\n")
    else:
        render(results, Console(), written=[folder / name for name in texts] + files, notes=sorted(notes))


def _plan(
    *,
    preset: str | None,
    ablate: bool,
    workload: str | None,
    chosen: str | None,
    only: bool,
    seeds: str | None,
    **others: Any,
) -> tuple[tuple[Comparison, ...], str]:
    """What to run, and a name for it. `others` are options of `_setting`, None where nobody gave them.

    Raises:
        UsageError: a word, name or number that cannot be used.
    """
    from hermes_iot.runtime.bench.presets import PRESETS, Part
    from hermes_iot.runtime.bench.run import Comparison

    if preset is not None and preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", mend=f"Use {' or '.join(PRESETS)}")
    parts = PRESETS[preset] if preset else (Part(workload="digits-mlp"),)
    if workload is not None:
        parts = _on(parts, [word.strip() for word in workload.split(",") if word.strip()])
    given = {name: value for name, value in others.items() if value is not None}
    plan: dict[str, Comparison] = {}
    for part in parts:
        known = {name: getattr(part, name) for name in ("fleet", "link", "dirichlet", "targets", "patience")}
        one = Comparison(
            setting=_setting(part.workload, ablate=ablate, **{**_UNSAID, **known, **given}),
            rows=_rows(part.strategies if chosen is None else chosen, ablate=ablate, only=only or part.only),
            seeds=_seeds(part.seeds if seeds is None else seeds),
        )
        plan.setdefault(one.setting.name, one)  # where an option makes parts equal the first of them counts
    name = preset or (next(iter(plan)) if len(plan) == 1 else f"{len(plan)}-workloads")
    return (*plan.values(),), f"{name}-ablation" if ablate else name


def _on(parts: tuple[Part, ...], workloads: list[str]) -> tuple[Part, ...]:
    """A preset's parts on these workloads, else all of them put on one that it has not; targets are then not theirs."""
    if not workloads:
        raise UsageError("--workload names nothing", mend="Use e.g. mnist-mlp")
    chosen: list[Part] = []
    for word in workloads:
        own = [part for part in parts if part.workload == word]
        chosen += own or [replace(part, workload=word, targets=None) for part in parts]
    return tuple(chosen)


def _rows(text: str, *, ablate: bool, only: bool) -> tuple[Row, ...]:
    from hermes_iot.runtime.bench.rows import ABLATIONS, PLUS, completed, row_of, rows_of

    if ablate:
        return (*(() if only else (row_of("bsp"),)), row_of(PLUS), *ABLATIONS)
    rows = rows_of(text)
    return rows if only else completed(rows)


def _setting(
    name: str,
    *,
    fleet: str,
    link: str,
    ablate: bool,
    targets: str | None,
    data: str | None,
    dirichlet: float | None,
    long: bool,
    patience: int,
    virtual: str | None,
) -> Setting:
    from hermes_iot.reporting.units import parse_duration
    from hermes_iot.runtime.bench.cells import Setting
    from hermes_iot.runtime.bench.presets import PATIENCE
    from hermes_iot.runtime.bench.workloads import workload_of
    from hermes_iot.runtime.simulation.profiles import fleet_of, link_of

    one = workload_of(name)
    if data is not None:
        if data not in get_args(DataMode):
            raise UsageError(f"--data {data!r} cannot be used", mend=f"Use {' or '.join(get_args(DataMode))}")
        if dirichlet is not None and data != "local":
            raise UsageError(
                f"--dirichlet and --data {data} contradict each other", why="skewed rows are the boards' own"
            )
        one = replace(one, data_mode=cast("DataMode", data))
    if targets is not None:
        one = replace(one, targets=_targets(targets))
    return Setting(
        workload=one,
        fleet=fleet_of(fleet),
        fleet_name=fleet,
        link=link_of(link),
        link_name=link,
        dirichlet=dirichlet,
        patience=patience or PATIENCE,
        await_patience=patience > 0 and not ablate,
        long=long,
        virtual_s=parse_duration(virtual) if virtual is not None else None,
    )


def _targets(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(word) for word in text.split(",") if word.strip()}))
    except ValueError as error:
        raise UsageError(f"--targets {text!r} is not understood", mend="Write e.g. 0.97,0.98") from error


def _seeds(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if _SEED.fullmatch(word) is None or int(word) > INTEGER_MAX:
            why = f"{word[:_SHOWN_CHARS]!r} is no whole number from 0 to {INTEGER_MAX}"
            raise UsageError(f"--seeds {text[:_SHOWN_CHARS]!r} is not understood", why=why, mend="Write e.g. 0,1,2")
    if not words:
        raise UsageError("--seeds names nothing", mend="Write e.g. 0,1,2")
    if len(words) > _SEEDS_MAX:
        raise UsageError(f"{len(words)} seeds are too many", why=f"at most {_SEEDS_MAX}")
    return tuple(dict.fromkeys(int(word) for word in words))


def _command(context: typer.Context) -> str:
    """How it was called, as far as it decides results."""
    words = ["hermes-iot", "bench"]
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if option.name not in _SHOWS and value is not None and value is not False and value != option.default:
            words += [max(option.opts, key=len), *([] if value is True else [str(value)])]
    return shlex.join(words)
