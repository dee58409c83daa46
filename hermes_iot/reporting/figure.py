"""Draws a `Course`; with `bench_figure` the only home of matplotlib.

Objects only, no pyplot: that keeps figures in a global register, picks a screen backend, and is not for threads. The
style is set for the time of drawing, so that a person's matplotlibrc neither breaks nor changes the picture. Colours
are Okabe and Ito's, which stay apart for colour-blind eyes; what they tell is told by the mark's shape as well.
"""

from __future__ import annotations

import io
import math
from typing import Any, Final

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hermes_iot.reporting.plots import Course, Lane
from hermes_iot.reporting.terminal import clean

BLUE, GREEN, VERMILION, ORANGE, GREY = "#0072B2", "#009E73", "#D55E00", "#E69F00", "#999999"
LANES_MAX: Final = 60
_WIDTH_IN, _DPI = 10.0, 120
_TOP_IN, _LANE_IN, _LANES_MIN_IN = 4.3, 0.19, 1.5
_MARKED_POINTS_MAX: Final = 60
_DENSE_LANES: Final = 25
_DENSE_UPDATES: Final = 120
#: Room right of the last point.
_MARGIN: Final = 1.02


def draw(course: Course, *, title: str = "") -> bytes:
    """The picture as PNG bytes: 1200 pixels wide, taller with more devices."""
    with matplotlib.style.context("default"):
        lanes = _shown(course)
        lanes_in = max(_LANES_MIN_IN, _LANE_IN * len(lanes) + 0.5)
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(_WIDTH_IN, _TOP_IN + lanes_in), dpi=_DPI, layout=layout)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=[_TOP_IN, lanes_in + 0.9])
        over_time = figure.add_subplot(grid[0, 0], title="Validation quality over time")
        over_bytes = figure.add_subplot(grid[0, 1], title="... and over bytes sent", sharey=over_time)
        _over_time(over_time, course)
        _over_bytes(over_bytes, course)
        _timeline(figure.add_subplot(grid[1, :]), course, lanes)
        figure.legend(handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        if title or course.reason:
            words = " - ".join(one for one in (clean(title, 70), clean(course.reason, 50)) if one)
            figure.suptitle(words, fontsize=12, fontweight="bold", parse_math=False)
        image = io.BytesIO()
        figure.savefig(image, format="png", facecolor="white")
        return image.getvalue()


def _over_time(axes: Axes, course: Course) -> None:
    _time_axis(axes, course)
    scale, _unit = _time_unit(course.end_s)
    _quality(axes, course, [one / scale for one in course.seconds])
    # Marks along the lower edge: lines through the picture would bury it in a large fleet.
    times = sorted({second / scale for lane in course.lanes.values() for second in lane.resized_s})
    if times:  # an empty line off the data's scale makes the layout collapse
        edge = axes.get_xaxis_transform()
        axes.plot(times, [0.0] * len(times), "D", color=ORANGE, markersize=5, clip_on=False, transform=edge, zorder=3)


def _over_bytes(axes: Axes, course: Course) -> None:
    scale, unit = _size_unit(max(course.payload_bytes, default=0))
    across = [one / scale for one in course.payload_bytes]
    _quality(axes, course, across)
    axes.set_xlim(0, max(across, default=0) * _MARGIN or 1.0)
    axes.set_xlabel(f"payload up + down since the run began ({unit})")
    axes.set_ylabel("")


def _quality(axes: Axes, course: Course, across: list[float]) -> None:
    """Accuracy where the task has one, else loss."""
    has_accuracy = any(math.isfinite(one) for one in course.accuracy)
    values = course.accuracy if has_accuracy else course.loss
    axes.title.set_fontsize(11)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if not across:
        axes.text(0.5, 0.5, "no update was applied", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_ylabel("validation accuracy (%)")
        axes.set_yticks([])
        return
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(across) <= _MARKED_POINTS_MAX else {}
    axes.plot(across, values, drawstyle="steps-post", color=BLUE, linewidth=1.6, **marker)
    axes.set_ylabel("validation accuracy (%)" if has_accuracy else "validation loss")
    if has_accuracy:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=""))


def _shown(course: Course) -> list[tuple[str, Lane]]:
    """All devices, or the `LANES_MAX` with the most to show, in the order they joined."""
    ranked = sorted(course.lanes, key=lambda name: len(course.lanes[name].applied_s), reverse=True)
    kept = set(ranked[:LANES_MAX])
    return [(name, lane) for name, lane in course.lanes.items() if name in kept]


def _timeline(axes: Axes, course: Course, lanes: list[tuple[str, Lane]]) -> None:
    scale, _unit = _time_unit(course.end_s)
    if not lanes:
        axes.text(0.5, 0.5, "no device joined", transform=axes.transAxes, ha="center", va="center", color=GREY)
    size = 6 if len(lanes) > _DENSE_LANES else 10
    dense = any(len(lane.applied_s) > _DENSE_UPDATES for _name, lane in lanes)
    stroke = 0.5 if dense else 1.2
    for number, (_name, lane) in enumerate(lanes):
        for begin, end in lane.presence:
            stop = course.end_s if math.isnan(end) else end
            axes.plot([begin / scale, stop / scale], [number, number], color=GREY, linewidth=0.8, zorder=1)
        _marks(axes, lane.applied_s, number, scale, marker="|", color=BLUE, markersize=size, markeredgewidth=stroke)
        _marks(axes, lane.dropped_s, number, scale, marker="x", color=VERMILION, markersize=size * 0.6)
        _marks(axes, lane.resized_s, number, scale, marker="D", color=ORANGE, markersize=size * 0.5)
    axes.set_yticks(range(len(lanes)), [name for name, _lane in lanes], fontsize=8 if len(lanes) > _DENSE_LANES else 9)
    axes.set_ylim(max(len(lanes), 1) - 0.4, -0.6)
    _time_axis(axes, course)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
    left_out = len(course.lanes) - len(lanes)
    axes.set_title(
        f"Updates by device ({left_out} devices with fewer updates are not shown)" if left_out else "Updates by device",
        fontsize=11,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _marks(axes: Axes, times_s: list[float], number: int, scale: float, **look: Any) -> None:
    if times_s:
        axes.plot([one / scale for one in times_s], [number] * len(times_s), linestyle="none", zorder=2, **look)


def _legend() -> list[Line2D]:
    def mark(label: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, **look)

    return [
        mark("update applied", linestyle="none", marker="|", color=BLUE, markersize=10, markeredgewidth=1.5),
        mark("update not applied", linestyle="none", marker="x", color=VERMILION, markersize=6),
        mark("allocation changed", linestyle="none", marker="D", color=ORANGE, markersize=5),
        mark("online", color=GREY, linewidth=0.8),
    ]


def _time_axis(axes: Axes, course: Course) -> None:
    scale, unit = _time_unit(course.end_s)
    axes.set_xlim(0, course.end_s / scale * _MARGIN or 1.0)
    axes.set_xlabel(f"time since the run began ({unit})")


def _size_unit(most: float) -> tuple[float, str]:
    if most < 1e6:  # noqa: PLR2004 - a megabyte
        return 1e3, "kB"
    return (1e6, "MB") if most < 1e9 else (1e9, "GB")  # noqa: PLR2004 - a gigabyte


def _time_unit(end_s: float) -> tuple[float, str]:
    if end_s < 600:  # noqa: PLR2004 - ten minutes
        return 1.0, "s"
    return (60.0, "min") if end_s < 4 * 3_600 else (3_600.0, "h")
