"""How far something has come: a bar on a terminal, else lines."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn


class BarOrLines:
    """Shows a bar while it is entered; whoever derives from it moves the bar, or writes lines where there is none.

    Args:
        console: where; stderr, as stdout is for what came of it.
        columns: of the bar.
        plain: lines even on a terminal.
        total: where the bar ends, None while that is not known.
        auto_refresh: draw it now and then, not only when told.
    """

    def __init__(
        self,
        console: Console,
        *columns: ProgressColumn,
        plain: bool,
        total: float | None = None,
        auto_refresh: bool = True,
    ) -> None:
        self._console = console
        self._bar: Progress | None = None
        if console.is_terminal and not plain:
            self._bar = Progress(*columns, console=console, transient=True, auto_refresh=auto_refresh)
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
