"""What a person sees while a run goes on: a live table on a terminal, plain lines everywhere else.

Nothing here has a thread of its own. Records drive the display, at most `REFRESH_INTERVAL_S` apart; devices report
about once a second, so it never stands still for long. Whatever goes wrong with the screen (an ssh session that
died), the run is worth more: the view falls silent and training goes on.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from hermes_iot.reporting.device_table import device_table
from hermes_iot.reporting.overview import Overview, Row
from hermes_iot.reporting.terminal import Printable, clean, labelled, shorten
from hermes_iot.reporting.units import format_bytes, format_count, format_loss, format_seconds, format_share

REFRESH_INTERVAL_S: Final = 0.25
PROGRESS_INTERVAL_S: Final = 2.0
#: Which devices are shown, where not all fit, is chosen anew only so often: a table that jumps cannot be read.
CHOICE_INTERVAL_S: Final = 3.0
#: What happened to a device is worth a line of the table for so long.
NEWS_S: Final = 10.0
#: Lines of the screen that are not devices: titles, table head, the line of those left out, counters, news, cursor.
_LINES_AROUND: Final = 12
_ROWS_MIN: Final = 3


class LiveView:
    """A context manager; feed it every record of a run.

    Args:
        console: where to draw.
        plain: lines instead of a table, even on a terminal.
        clock: seconds that never run backwards.
    """

    def __init__(self, console: Console, *, plain: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.overview = Overview()
        self._console = console
        self._clock = clock
        self._lock = threading.Lock()
        self._plain = plain or not console.is_terminal or console.is_dumb_terminal
        self._title: dict[str, str] = {}
        self._news = ""
        self._shown: list[str] = []
        self._chosen_at = self._drawn_at = self._progress_at = clock()
        self._live = None if self._plain else Live(_Screen(self), console=console, auto_refresh=False)
        self._silent = False

    def __enter__(self) -> Self:
        if self._live is not None:
            self._safely(self._live.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is None:
            return
        # After a good end the summary says all of it again, and better; otherwise the last state is what is left.
        self._live.transient = error is None and bool(self.overview.reason)
        with self._lock:
            self._safely(self._live.stop)

    def title(self, **names: str) -> None:
        """What is running: run, fleet, task, strategy, broker; shown in this order of lines."""
        with self._lock:
            self._title.update({name: clean(value) for name, value in names.items()})
            if self._plain:
                self._say("  ".join(f"{name} {value}" for name, value in self._title.items()))
            else:
                self._draw(self._clock())

    def on_record(self, event: str, fields: Mapping[str, Any]) -> None:
        """One record of the coordinator."""
        with self._lock:
            news = self.overview.take(event, fields)
            now = self._clock()
            if self._plain:
                self._tell(news, now)
                return
            self._news = f"{format_seconds(self.overview.elapsed_s)}  {news}" if news else self._news
            if event == "finished" or now - self._drawn_at >= REFRESH_INTERVAL_S:
                self._draw(now)

    # --- a terminal -----------------------------------------------------------------------------------------------

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        if self._live is not None:
            self._safely(self._live.refresh)

    def lines(self, options: ConsoleOptions) -> list[Text]:
        """Everything but the table, above and below it; called by the renderer."""
        seen, title = self.overview, self._title
        width = options.max_width
        names = {name: shorten(value, max(16, width // 3)) for name, value in title.items() if name != "run"}
        return [
            labelled([("run", title.get("run", "")), ("fleet", names.get("fleet", ""))]),
            labelled([(name, names.get(name, "")) for name in ("task", "strategy", "broker")]),
            labelled(
                [
                    ("elapsed", format_seconds(seen.elapsed_s)),
                    ("model version", str(seen.version)),
                    ("devices online", f"{seen.online} of {len(seen.rows)}"),
                ]
            ),
            labelled(_quality(seen)),
            Text(),
            labelled(
                [
                    ("iterations", format_count(seen.iterations)),
                    ("published", f"{format_count(seen.published)}{_of(seen.published, seen.iterations)}"),
                    ("applied", format_count(seen.applied)),
                    ("bytes up", format_bytes(seen.bytes_up)),
                    ("down", format_bytes(seen.bytes_down)),
                ]
            ),
            Text(_refusals(seen) or self._news, style="yellow" if _refusals(seen) else "dim", no_wrap=True),
        ]

    def chosen(self, room: int) -> list[Row]:
        """The devices to show in `room` lines, in the order they joined: the newest changes, then the slowest."""
        rows = self.overview.rows
        if len(rows) <= room:
            return list(rows.values())
        now = self._clock()
        if len(self._shown) != room or now - self._chosen_at >= CHOICE_INTERVAL_S:
            self._chosen_at = now
            newest = self.overview.elapsed_s - NEWS_S
            rank = lambda row: (max(newest, row.noted_s), row.online, row.iteration_s)  # noqa: E731 - used once
            self._shown = [row.device for row in heapq.nlargest(room, rows.values(), key=rank)]
        shown = set(self._shown)
        return [row for name, row in rows.items() if name in shown]

    # --- lines ----------------------------------------------------------------------------------------------------

    def _tell(self, news: str, now: float) -> None:
        if news:
            self._say(news)
        if not self.overview.reason and now - self._progress_at >= PROGRESS_INTERVAL_S:
            self._progress_at = now
            self._say(_progress_line(self.overview))

    def _say(self, line: str) -> None:
        text = Text(f"{format_seconds(self.overview.elapsed_s):>7}  {line}")
        self._safely(lambda: self._console.print(Printable(text), soft_wrap=True))

    def _safely(self, draw: Callable[[], None]) -> None:
        if self._silent:
            return
        try:
            draw()
        except OSError:
            self._silent = True


class _Screen:
    """What `Live` draws; asks the view at every refresh, so that it follows a terminal that is resized."""

    def __init__(self, view: LiveView) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._view.lines(options)
        room = max(_ROWS_MIN, options.max_height - _LINES_AROUND)
        rows = self._view.chosen(room)
        left_out = len(self._view.overview.rows) - len(rows)
        more = f"… and {left_out} more (shown: the newest changes, then the slowest)" if left_out else ""
        table = device_table(rows, options.max_width)
        yield Printable(Group(*lines[:5], table, Text(more, style="dim", no_wrap=True), *lines[5:]))


def _quality(seen: Overview) -> list[tuple[str, str]]:
    if seen.version == 0:
        return [("validation", "no update yet")]
    pairs = []
    if seen.accuracy is not None:
        pairs.append(
            ("validation accuracy", f"{format_share(seen.accuracy)} (best {format_share(seen.best_accuracy)})")
        )
    return [*pairs, ("loss", f"{format_loss(seen.loss)} (best {format_loss(seen.best_loss)})")]


def _of(part: int, whole: int) -> str:
    return f" ({format_share(part / whole)})" if whole else ""


def _refusals(seen: Overview) -> str:
    counts = [f"{count} {outcome}" for outcome, count in sorted(seen.dropped.items())]
    counts += [f"{count} refused as {reason}" for reason, count in sorted(seen.refused.items())]
    return f"not applied: {', '.join(counts)}" if counts else ""


def _progress_line(seen: Overview) -> str:
    accuracy = f"accuracy {format_share(seen.accuracy)}, " if seen.accuracy is not None else ""
    quality = f"{accuracy}loss {format_loss(seen.loss)}" if seen.version else "no update yet"
    return (
        f"model {seen.version}: {quality}; {seen.online} online; {seen.published} of {seen.iterations} iterations"
        f" published; up {format_bytes(seen.bytes_up)}, down {format_bytes(seen.bytes_down)}"
    )
