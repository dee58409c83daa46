"""Draws a comparison; with `figure` the only home of matplotlib, and with the same manners.

A line's colour is Okabe and Ito's; where there are more lines than colours, dashes tell them apart, and every line is
named at its end in the legend's order of the table. SVGs keep their text as text and bear no date: equal results are
equal files.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, PercentFormatter

from hermes_iot.reporting.bench_plots import Line, time_shares
from hermes_iot.reporting.terminal import clean, shortened
from hermes_iot.reporting.units import format_bytes, format_seconds, format_share

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: Final = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
_GREY: Final = "#999999"
_DOING: Final[Mapping[str, Mapping[str, Any]]] = {
    "train": {"facecolor": "#0072B2"},
    "wait": {"facecolor": "#F6D9A8", "hatch": "////", "edgecolor": "#C98A1B"},
    "off": {"facecolor": "#DDDDDD"},
}
#: Numbers of a unit that are round for a clock.
_TIME_TICKS: Final[Sequence[tuple[str, float, Sequence[float]]]] = (
    ("s", 1.0, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)),
    ("min", 60.0, (1, 2, 5, 10, 20, 30)),
    ("h", 3600.0, (1, 2, 5, 12)),
    ("d", 86400.0, (1, 2, 5, 10, 30)),
)
_BYTE_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_DPI: Final = 120
_LABEL_MAX: Final = 40
_LINE_CHARS: Final = 110
#: The lower edge of the picture lies so many times as far below 100 % as the lowest target, or as the best where no row
#: came near that.
_DEPTH: Final = 6.0


def accuracy(lines: Sequence[Line], *, targets: Sequence[float], across: str) -> dict[str, bytes]:
    """Accuracy over ``time`` or ``bytes`` as PNG and SVG; of one line at least."""
    with _style():
        figure = _figure(10.0, 5.4)
        axes = figure.add_subplot(title=f"Test accuracy over {'virtual time' if across == 'time' else 'payload bytes'}")
        best = max(value for line in lines for value in line.most)
        bottom = max(0.0, 1 - _DEPTH * (1 - min(targets[0], best)))
        top = best + max(0.05 * (best - bottom), 0.002)
        names = shortened([clean(line.label, 400) for line in lines], _LABEL_MAX)
        for number, line in enumerate(lines):
            colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
            axes.plot(
                line.x,
                line.median,
                color=colour,
                linestyle=dashes,
                linewidth=1.8,
                label=names[number],
                zorder=3 - number / (1 + len(lines)),  # variants of a row, which come after it, do not hide it
            )
            axes.fill_between(line.x, line.least, line.most, color=colour, alpha=0.12, linewidth=0)
        _scales(axes, lines, bottom=bottom, top=top, across=across)
        for target in targets:
            if target > top:  # words above the axes would leave no room for them
                continue
            axes.axhline(target, color=_GREY, linewidth=1.0, linestyle="--", zorder=0)
            axes.annotate(
                f"{target * 100:g} %",
                (0.004, target),
                xycoords=("axes fraction", "data"),
                fontsize=8,
                color="#555555",
                va="bottom",
            )
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        return _images(figure)


def gantt(
    strategies: Mapping[str, Mapping[str, Sequence[Sequence[Any]]]], *, until_s: float, left_out: Sequence[str]
) -> dict[str, bytes]:
    """What every board did from the beginning of a run, strategies one below the other, as PNG and SVG.

    Args:
        strategies: label -> board -> [start, end, doing].
        until_s: later than this nothing is shown; the axis ends sooner where everything did.
        left_out: labels that are not shown, and named.
    """
    with _style():
        ends_s = {label: _end_s(boards) for label, boards in strategies.items()}
        heights = [0.75 + 0.17 * len(boards) for boards in strategies.values()]
        figure = _figure(10.0, sum(heights) + 0.8 + 0.2 * _missing(left_out).count("\n"))
        grid = figure.add_gridspec(len(strategies), 1, height_ratios=heights)
        names = shortened([clean(label, 400) for label in strategies], _LABEL_MAX)
        for number, (label, boards) in enumerate(strategies.items()):
            axes = figure.add_subplot(grid[number, 0])
            _lanes(axes, boards)
            share = format_share(time_shares(boards)["train"])
            words = f", ended at {format_seconds(ends_s[label])}" if ends_s[label] < until_s else ""
            axes.set_title(f"{names[number]}: boards train {share} of the time{words}", fontsize=11, loc="left")
            axes.set_xlim(0, max(ends_s.values()) or until_s)
            if number == len(strategies) - 1:
                axes.set_xlabel("virtual time since the run began (s), first seed of each row" + _missing(left_out))
        named = {"train": "training", "wait": "waiting: for rows, an answer or the others", "off": "off"}
        handles = [Patch(label=named[doing], **look) for doing, look in _DOING.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return _images(figure)


def _end_s(boards: Mapping[str, Sequence[Sequence[Any]]]) -> float:
    return max((float(stretches[-1][1]) for stretches in boards.values() if stretches), default=0.0)


def _missing(labels: Sequence[str]) -> str:
    """Below the axis, in as many lines as they take."""
    lines = textwrap.wrap(", ".join(clean(label, _LABEL_MAX) for label in labels), _LINE_CHARS)
    return "\nnot shown: " + "\n".join(lines) if lines else ""


def _lanes(axes: Axes, boards: Mapping[str, Sequence[Sequence[Any]]]) -> None:
    for lane, stretches in enumerate(boards.values()):
        for doing, look in _DOING.items():
            spans = [(start, end - start) for start, end, what in stretches if what == doing]
            if spans:
                axes.broken_barh(spans, (lane - 0.38, 0.76), linewidth=0, **look)
    axes.set_yticks(range(len(boards)), [clean(name, _LABEL_MAX) for name in boards], fontsize=8)
    axes.set_ylim(len(boards) - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _scales(axes: Axes, lines: Sequence[Line], *, bottom: float, top: float, across: str) -> None:
    seen = [x for line in lines for x, value in zip(line.x, line.most, strict=True) if value >= bottom]
    axes.set_xscale("log")
    if seen:
        axes.set_xlim(min(seen) * 0.95, max(*seen, min(seen) * 1.5) * 1.05)
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=""))
    several = max(line.seeds for line in lines) > 1
    axes.set_ylabel(f"test accuracy (%){', median and range of seeds' if several else ''}")
    ticks = ticks_of(*axes.get_xlim(), across=across)
    if len(ticks) > 1:
        axes.xaxis.set_major_locator(FixedLocator([*ticks]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: ticks.get(value, "")))
    else:  # a span too short for round numbers: whatever the locator finds
        form = format_seconds if across == "time" else format_bytes
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: form(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("virtual time, logarithmic" if across == "time" else "payload over all links, logarithmic")
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def ticks_of(least: float, most: float, *, across: str) -> dict[float, str]:
    """Round numbers within a span of a logarithmic axis, and what is written there: ``30 s``, ``2 min``; ``500 kB``."""
    if across == "bytes":
        decades = [(10.0**power, _BYTE_UNITS[power // 3]) for power in range(3 * len(_BYTE_UNITS))]
        marks = {
            factor * step: f"{factor * step / 1000 ** (power // 3):g} {unit}"
            for power, (step, unit) in enumerate(decades)
            for factor in (1, 2, 5)
        }
    else:
        marks = {number * unit_s: f"{number:g} {unit}" for unit, unit_s, numbers in _TIME_TICKS for number in numbers}
    return {value: words for value, words in marks.items() if least <= value <= most}


def _figure(width_in: float, height_in: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _style() -> Any:
    """Defaults, and what makes an SVG the same each time; for as long as is drawn."""
    return mpl.style.context(
        ["default", {"svg.hashsalt": "hermes-iot", "svg.fonttype": "none", "hatch.linewidth": 0.5}]
    )


def _images(figure: Figure) -> dict[str, bytes]:
    images = {}
    for ending, metadata in (("png", {}), ("svg", {"Date": None})):
        image = io.BytesIO()
        figure.savefig(image, format=ending, facecolor="white", metadata=metadata)
        images[ending] = image.getvalue()
    return images
