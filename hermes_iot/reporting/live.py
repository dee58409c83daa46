"""What a person sees while a run goes on: a live table on a terminal, plain lines everywhere else.

Nothing here has a thread of its own. Records drive the display, at most `REFRESH_INTERVAL_S` apart; devices report
about once a second, so it never stands still for long. A terminal that is gone (an ssh session that died) makes the
view fall silent and training goes on; a closed pipe ends the process as it ends others, and the run can be resumed.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group
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
_NAME_MAX: Final = 24


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
        self._shown: set[str] = set()
        self._chosen_at = self._drawn_at = self._progress_at = clock()
        self._live = None if self._plain else Live(console=console, auto_refresh=False)
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
            self._draw(self._clock())
            self._safely(self._live.stop)

    def title(self, **names: str) -> None:
        """What is running: run, fleet, task, strategy, broker; shown in this order of lines."""
        with self._lock:
            self._title.update({name: clean(value) for name, value in names.items()})
            if self._plain:
                self._say("  ".join(f"{name} {value}" for name, value in self._title.items()))
            else:
                self._draw(self._clock())

    def resumed(self, *, run: str, version: int) -> None:
        """The run is not a new one; after `title`."""
        with self._lock:
            self.overview.version = version
            self._news = f"resumed run {clean(run)} at model version {version}"
            if self._plain:
                self._say(self._news)
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
            self._news = f"{self.overview.elapsed_s:.1f} s  {news}" if news else self._news
            if event == "finished" or now - self._drawn_at >= REFRESH_INTERVAL_S:
                self._draw(now)

    # --- a terminal -----------------------------------------------------------------------------------------------

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        if self._live is not None:
            live, frame = self._live, self.frame(self._console.width, self._console.height)
            self._safely(lambda: live.update(frame, refresh=True))

    def frame(self, width: int, height: int) -> Printable:
        """The screen as it is now; a value, so that whoever prints beside it may redraw it from another thread."""
        rows = self._chosen(max(_ROWS_MIN, height - _LINES_AROUND))
        left_out = len(self.overview.rows) - len(rows)
        more = f"… and {left_out} more (shown: the newest changes, then the slowest)" if left_out else ""
        news = Text(self._news, style="dim", no_wrap=True, overflow="ellipsis")
        head, foot = _head(self.overview, self._title, width), _foot(self.overview)
        return Printable(
            Group(*head, "", device_table(rows, width), Text(more, style="dim", no_wrap=True), *foot, news)
        )

    def _chosen(self, room: int) -> list[Row]:
        """The devices to show in `room` lines, in the order they joined: the newest changes, then the slowest."""
        rows = self.overview.rows
        if len(rows) <= room:
            return list(rows.values())
        now = self._clock()
        if len(self._shown) != room or now - self._chosen_at >= CHOICE_INTERVAL_S:
            self._chosen_at = now
            since = self.overview.elapsed_s - NEWS_S
            best = heapq.nlargest(
                room, rows.values(), key=lambda row: (max(since, row.noted_s), row.online, row.iteration_s)
            )
            self._shown = {row.device for row in best}
        return [row for name, row in rows.items() if name in self._shown]

    # --- lines ----------------------------------------------------------------------------------------------------

    def _tell(self, news: str, now: float) -> None:
        if news:
            self._say(news)
        if not self.overview.reason and now - self._progress_at >= PROGRESS_INTERVAL_S:
            self._progress_at = now
            self._say(_progress_line(self.overview))

    def _say(self, line: str) -> None:
        text = Text(f"{self.overview.elapsed_s:8.1f} s  {line}")
        self._safely(lambda: self._console.print(Printable(text), soft_wrap=True))

    def _safely(self, draw: Callable[[], None]) -> None:
        if self._silent:
            return
        try:
            draw()
        except OSError:
            self._silent = True


def _head(seen: Overview, title: Mapping[str, str], width: int) -> list[Text]:
    what = [(name, shorten(title.get(name, ""), _NAME_MAX)) for name in ("task", "strategy")]
    room = width - len(labelled([*what, ("broker", "x")])) + 1
    return [
        labelled([(name, title.get(name, "")) for name in ("run", "fleet")]),
        labelled([*what, ("broker", shorten(title.get("broker", ""), max(room, _NAME_MAX)))]),
        labelled(
            [
                ("elapsed", format_seconds(seen.elapsed_s)),
                ("model version", str(seen.version)),
                ("devices online", f"{seen.online} of {len(seen.rows)}"),
            ]
        ),
        labelled(_quality(seen)),
    ]


def _foot(seen: Overview) -> list[Text]:
    return [
        labelled(
            [
                ("iterations reported", format_count(seen.iterations)),
                ("published of these", format_share(seen.share)),
                ("updates applied", f"{format_count(seen.applied)}{_refusals(seen)}"),
            ]
        ),
        labelled(
            [("payload at the coordinator: up", format_bytes(seen.bytes_up)), ("down", format_bytes(seen.bytes_down))]
        ),
    ]


def _quality(seen: Overview) -> list[tuple[str, str]]:
    if not seen.merged:
        return [("validation", "no update yet")]
    pairs = []
    if seen.accuracy is not None:
        pairs.append(
            ("validation accuracy", f"{format_share(seen.accuracy)} (best {format_share(seen.best_accuracy)})")
        )
    return [*pairs, ("loss", f"{format_loss(seen.loss)} (best {format_loss(seen.best_loss)})")]


def _refusals(seen: Overview) -> str:
    counts = [f"{count} {outcome}" for outcome, count in sorted(seen.dropped.items())]
    counts += [f"{count} refused as {reason}" for reason, count in sorted(seen.refused.items())]
    return f" (not: {', '.join(counts)})" if counts else ""


def _progress_line(seen: Overview) -> str:
    accuracy = f"accuracy {format_share(seen.accuracy)}, " if seen.accuracy is not None else ""
    quality = f"{accuracy}loss {format_loss(seen.loss)}" if seen.merged else "no update yet"
    # Two counts, not a part of each other: a device's report is older than its newest updates.
    return (
        f"model {seen.version}: {quality}; {seen.online} online; {seen.iterations} iterations reported,"
        f" {seen.applied} updates applied; up {format_bytes(seen.bytes_up)}, down {format_bytes(seen.bytes_down)}"
    )
