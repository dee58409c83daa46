"""A comparison as people and spreadsheets read it: report.md, results.csv, and what is printed at its end.

Everything here is made from the results' own numbers, and so are the sentences: no row is praised that the table beside
it does not show ahead. A target that was not reached with every seed says so wherever its numbers stand.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hermes_iot.reporting.bench_overview import overview
from hermes_iot.reporting.bench_words import markdown, megabytes, percent, speedup, times
from hermes_iot.reporting.gates import FORCED, OPEN_LOOP, loss_of, shares_of
from hermes_iot.reporting.units import NOTHING, format_factor, format_number_of, format_seconds, format_share

REFERENCE: Final = "bsp"
ALONE: Final = "single"
WHOLE: Final = "hermes-plus"
TUNED: Final = "bsp-tuned"

#: Why its figures compare nothing.
FLATTERS: Final = (
    "Not comparable: for BSP one aggregation is a whole round of the slowest board, for Hermes it is a single push, so N"
    " of them pass many times sooner, and at another accuracy."
)
_COLUMNS: Final = (
    "strategy",
    "time, median [least - most]",
    "reached",
    "x BSP",
    "model MB",
    "of BSP's",
    "data MB",
    "control MB",
    "pushes",
    "iterations per push",
    "samples",
    "accuracy at the end",
)
_CSV: Final = (
    "comparison",
    "workload",
    "fleet",
    "link",
    "dirichlet",
    "strategy",
    "seed",
    "target",
    "reached",
    "t_s",
    "bytes_model",
    "bytes_data",
    "bytes_control",
    "pushes",
    "iterations",
    "iterations_per_push",
    "samples",
    "accuracy",
    "end",
    "end_t_s",
    "end_accuracy",
    "best_accuracy",
)


def csv_of(results: Mapping[str, Any]) -> str:
    """One line per cell and target."""
    text = io.StringIO()
    lines = csv.DictWriter(text, _CSV, lineterminator="\n")
    lines.writeheader()
    for one in results["comparisons"]:
        setup = one["setup"]
        for cell in one["cells"]:
            about = {
                "comparison": one["name"],
                "workload": setup["workload"],
                "fleet": setup["fleet"]["name"],
                "link": setup["link"]["name"],
                "dirichlet": setup["dirichlet"],
                "strategy": cell["label"],
                "seed": cell["seed"],
                "end": cell["end"]["kind"],
                "end_t_s": cell["at_end"]["t_s"],
                "end_accuracy": cell["at_end"]["accuracy"],
                "best_accuracy": cell["best_accuracy"],
            }
            for target in cell["targets"]:
                reached = target["reached"]
                lines.writerow(
                    {**about, "target": target["target"], "reached": int(reached is not None), **(reached or {})}
                )
    return text.getvalue()


def report(results: Mapping[str, Any], *, pictures: Mapping[str, Sequence[str]], command: str) -> str:
    """The whole report, Markdown.

    Args:
        results: of the comparison.
        pictures: for each comparison the names of its PNG files.
        command: that made it.
    """
    lines = [
        "# Comparison of strategies",
        "",
        (
            "Simulated in virtual time with the code that runs on the boards: real training, real encoded bytes, emulated"
            " speeds and links. Times below are virtual seconds; accuracies are those of the test rows, which steer nothing."
        ),
        "",
        f"    {command}",
        "",
        (
            f"hermes-iot {results['software']} (sources {results['source_sha256'][:12]}),"
            f" {', '.join(f'{name} {version}' for name, version in results['versions'].items())}."
        ),
    ]
    if len(results["comparisons"]) > 1:
        lines += ["", "## Overview", "", *overview(results["comparisons"])]
    for one in results["comparisons"]:
        lines += ["", f"## {one['name']}", "", *_setup(one["setup"]), *_failed(one["failed"])]
        for table in one["tables"]:
            lines += ["", f"### To {percent(table['target'])} test accuracy", "", *_table(table["rows"])]
            lines += ["", *(f"- {sentence}" for sentence in findings(table))]
        lines += _gates(one["cells"])
        lines += _stops(one, results["stop_rule"])
        lines += [line for name in pictures.get(one["name"], ()) for line in ("", f"![{name}]({name})")]
    lines += ["", "## How to read it", "", *(f"- {note}" for note in _NOTES)]
    return "\n".join(lines) + "\n"


_NOTES: Final = (
    "A target counts as reached at the first of two consecutive evaluations at or above it.",
    "A seed that did not reach a target counts as infinitely long in the median; it is never left out.",
    "`x BSP` is BSP's median time over the row's. `>` stands where BSP had not reached the target when its cell ended.",
    (
        "Bytes are MQTT payloads over all links, both ways, up to that moment: model (updates and models), data (rows"
        " shipped), control (everything else). Samples are rows trained on, a measure of energy."
    ),
    (
        "`accuracy at the end` is that at which a cell was ended, usually soon after its highest target: not how far the"
        " strategy could go (`--long` runs on to the stop rule)."
    ),
    (
        "`single` is the fastest board alone, with all the data where data are everybody's; `bsp-tuned` is BSP with short"
        " rounds on disjoint data."
    ),
)


def findings(table: Mapping[str, Any]) -> list[str]:
    """What a target's table says, in sentences."""
    rows = {row["label"]: row for row in table["rows"]}
    reference, target = rows.get(REFERENCE), percent(table["target"])
    reached = {label: row for label, row in rows.items() if row["t_s"]["median"] is not None}
    sentences = []
    for label, row in reached.items():
        if label.startswith("hermes") and row["speedup"] is not None and reference is not None and not _is_part(label):
            sentences.append(_against(row, reference, target))
    sentences += _parts(reached)
    for other, what in (
        (ALONE, "one fast board alone with all the data it may have"),
        (TUNED, "BSP set with care for MNIST"),
    ):
        if other in reached:
            ahead = [label for label, row in reached.items() if _median(row) < _median(reached[other])]
            named = f"Sooner than it: {', '.join(ahead)}." if ahead else "No other row is sooner."
            sentences.append(f"`{other}`, {what}, takes {format_seconds(_median(reached[other]))}. {named}")
    for label, row in rows.items():
        if row["reached"] < row["seeds"]:
            sentences.append(
                f"`{label}` reached {target} with {row['reached']} of {row['seeds']} seeds"
                f" (its cells ended by: {', '.join(row['ends'])})."
            )
    return sentences


def cells_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A table's row in the order of its columns."""
    return (
        row["label"],
        times(row["t_s"]),
        f"{row['reached']}/{row['seeds']}",
        speedup(row["speedup"]),
        megabytes(row["bytes_model"]["median"]),
        format_share(row["model_share"]),
        megabytes(row["bytes_data"]["median"]),
        megabytes(row["bytes_control"]["median"]),
        _count(row["pushes"]["median"]),
        _number(row["iterations_per_push"]["median"]),
        _count(row["samples"]["median"]),
        _accuracy(row["final_accuracy"]["median"]),
    )


def _setup(setup: Mapping[str, Any]) -> Iterator[str]:
    fleet, link = setup["fleet"], setup["link"]
    groups = ", ".join(f"{group['count']} x {group['slowness']:g}" for group in fleet["groups"])
    modelled = ": nothing was trained, losses and accuracies are modelled" if setup["modelled"] else ""
    yield f"- task `{setup['task']}`, {setup['train_rows']:,} training rows, data {setup['data']}{modelled}"
    yield (
        f"- fleet `{fleet['name']}`: {fleet['boards']} boards, boards x slowness {groups}; a mini-batch takes"
        f" {format_seconds(fleet['batch_s'])} at slowness 1, noise {fleet['jitter']:g}"
    )
    yield (
        f"- link `{link['name']}`: {link['up_mbit']:g} Mbit/s up, {link['down_mbit']:g} down,"
        f" {format_seconds(link['latency_s'])} one way"
    )
    yield f"- seeds {', '.join(str(seed) for seed in setup['seeds'])}; evaluated every {setup['grid_s']:g} s"
    for row in setup["rows"]:
        codecs = {name: row[name] for name in ("codec", "codec_down") if row[name] is not None}
        changed = {**row["changed"], **codecs}
        if changed:
            yield f"- `{row['label']}` is {row['strategy']} with {_words(changed)}"


def _words(constants: Mapping[str, Any], where: str = "") -> str:
    parts = [
        _words(value, f"{where}{name}.") if isinstance(value, Mapping) else f"{where}{name} = {value}"
        for name, value in constants.items()
    ]
    return ", ".join(parts)


def _failed(failed: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if failed:
        yield ""
        yield f"**{format_number_of(len(failed), 'cell')} failed and missing below:**"
        yield ""
    for one in failed:
        yield f"- {one['label']}, seed {one['seed']}: {one['why']} - `{one['command']}`"


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from markdown(_COLUMNS, [cells_of(row) for row in rows])


def _stops(one: Mapping[str, Any], rule: Mapping[str, Any]) -> Iterator[str]:
    heads = ("strategy", "time, median [least - most]", "reached", "x BSP", "model MB", "of BSP's", "accuracy there")
    yield ""
    yield f"### Stopped by the paper's rule: {one['paper_stop']['patience']} aggregations without a better loss"
    yield ""
    measure_s = one["setup"]["measure_s"]
    often = (
        f" A model is measured at most every {measure_s:g} s here, so N is counted that coarsely." if measure_s else ""
    )
    short = "" if one["setup"]["await_patience"] else " Cells were not run on until it held: many ended before."
    yield f"{FLATTERS}{often}{short}"
    yield ""
    yield from markdown(heads, [_stop_cells(row) for row in one["paper_stop"]["rows"]])
    if any(row["reached"] for row in one["stop_rule"]["rows"]):
        yield ""
        yield (
            f"### Stopped by our rule: no improvement over {rule['improvement'] * 100:g} % in"
            f" {rule['fleet_rounds']} fleet rounds"
        )
        yield ""
        yield "The same work of the whole fleet for every row. Cells that were ended at their target are not in here."
        yield ""
        yield from markdown(heads, [_stop_cells(row) for row in one["stop_rule"]["rows"] if row["reached"]])


def _gates(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What each gate would have sent, of every row that has such gates; seeds together."""
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["gates"] is not None:
            by_label.setdefault(cell["label"], []).append(cell["gates"])
    if not by_label:
        return
    yield ""
    yield "### What each gate would have sent"
    yield ""
    yield (
        "Part of a row's own iterations, all seeds together, until its cells ended; what a gate decides by is not"
        f" recorded where it was not measured. It is {OPEN_LOOP}. In brackets, {FORCED}. {loss_of(next(iter(by_label.values()))[0])}."
    )
    yield ""
    shares = {label: shares_of(several) for label, several in by_label.items()}
    kinds = [*next(iter(shares.values()))]
    rows = [
        (label, f"{sum(one['iterations'] for one in by_label[label]):,}", *(found[kind] for kind in kinds))
        for label, found in shares.items()
    ]
    yield from markdown(("strategy", "iterations", *kinds), rows)


def _stop_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["label"],
        times(row["t_s"]),
        f"{row['reached']}/{row['seeds']}",
        speedup(row["speedup"]),
        megabytes(row["bytes_model"]["median"]),
        format_share(row["model_share"]),
        _accuracy(row["accuracy"]["median"]),
    )


def _against(row: Mapping[str, Any], reference: Mapping[str, Any], target: str) -> str:
    ratio, own = row["speedup"], format_seconds(_median(row))
    seeds = f"median of {row['seeds']} seeds" if row["seeds"] > 1 else "one seed"
    if reference["t_s"]["median"] is None:
        return f"`{row['label']}` takes {own} to {target} ({seeds}); BSP did not come there with most of its seeds."
    theirs = format_seconds(reference["t_s"]["median"])
    much = f"{format_factor(ratio['value'])} sooner" if ratio["value"] > 1 else "no sooner"
    compared = f"`{row['label']}` reaches {target} {much} than BSP: {own} against {theirs} ({seeds})"
    return f"{compared}, with {format_share(row['model_share'])} of its model bytes."


def _is_part(label: str) -> bool:
    """Of an ablation: ``hermes-plus - momentum``, ``hermes-plus + barrier``."""
    return label.startswith((f"{WHOLE} - ", f"{WHOLE} + "))


def _parts(reached: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """hermes-plus with one part off at a time, against the whole: one sentence for all of them."""
    whole = reached.get(WHOLE)
    parts = {label: row for label, row in reached.items() if _is_part(label)}
    if whole is None or not parts:
        return
    said = [
        f"`{label.removeprefix(WHOLE).strip()}` {format_factor(_median(row) / _median(whole))},"
        f" {format_factor(row['bytes_model']['median'] / whole['bytes_model']['median'])}"
        for label, row in parts.items()
    ]
    megabytes_of_whole = megabytes(whole["bytes_model"]["median"])
    yield (
        f"Time and model bytes against the whole `{WHOLE}` ({format_seconds(_median(whole))}, {megabytes_of_whole} MB):"
        f" {'; '.join(said)}."
    )


def _median(row: Mapping[str, Any]) -> float:
    return float(row["t_s"]["median"])


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _accuracy(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 100:.2f} %"
