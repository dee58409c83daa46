"""Text that is safe to put on somebody's terminal.

Reasons and host names come from devices, and a device may be anybody's: control characters could move the cursor or
recolour the screen, direction marks could reorder a line, square brackets would be rich's markup. So every string goes
through `clean` and into a `rich.text.Text`, which knows no markup. Terminals that do not speak UTF-8 exist (serial
consoles, old locales); `Printable` gives them ASCII instead of a UnicodeEncodeError at the end of a long run.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

CHARS_MAX: Final = 160

#: A whole terminal sequence; without its first character the rest would be harmless, and rubbish to read.
_ESCAPE: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

#: One cell for one cell, so that nothing moves.
_ASCII: Final = str.maketrans({"…": "~", "→": ">"})


def clean(text: object, chars_max: int = CHARS_MAX) -> str:
    """One line without control, format, private or unassigned characters, at most `chars_max` long."""
    words = " ".join(_ESCAPE.sub("", str(text)[: 4 * chars_max]).split())
    kept = "".join(one for one in words if unicodedata.category(one)[0] != "C")
    return kept if len(kept) <= chars_max else f"{kept[: chars_max - 1]}…"


def shorten(name: str, width: int) -> str:
    """At most `width` characters, cut in the middle: names of a fleet differ at their ends."""
    if len(name) <= width:
        return name
    if width <= 1:
        return "…"[:width]
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


def shortened(names: Sequence[str], width: int) -> list[str]:
    """`shorten` for names that stand beside each other: those that would look alike end with a number of their own."""
    short = [shorten(name, width) for name in names]
    alike = {one for one, count in Counter(short).items() if count > 1}
    counts: Counter[str] = Counter()
    for place, (name, one) in enumerate(zip(names, short, strict=True)):
        if one in alike and one != name:
            counts[one] += 1
            mark = f"#{counts[one]}"
            short[place] = shorten(name, width - len(mark)) + mark
    return short


def labelled(pairs: Iterable[tuple[str, str]]) -> Text:
    """``run x   fleet y``: labels dim, values bold, on one line that is cut rather than wrapped."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for label, value in pairs:
        if value:
            line.append("   " if line else "")
            line.append(f"{label} ", style="dim")
            line.append(value, style="bold")
    return line


class Wrapped:
    """`labelled`, in as many lines as it takes; a label stays with its value."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = [pair for pair in pairs if pair[1]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line: list[tuple[str, str]] = []
        for pair in self._pairs:
            if line and cell_len(labelled([*line, pair]).plain) > options.max_width:
                yield labelled(line)
                line = []
            line.append(pair)
        yield labelled(line)


class Printable:
    """Anything rich can render, without blanks at line ends, in ASCII where the console cannot encode more."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in Segment.split_lines(console.render(self._renderable, options)):
            for segment in _without_blanks(line):
                plain = options.ascii_only and not segment.control
                yield Segment(_ascii(segment.text), segment.style) if plain else segment
            yield Segment.line()


def _without_blanks(line: list[Segment]) -> list[Segment]:
    """Rich fills lines up to the width; copied text and files are better without."""
    while line and not line[-1].control:
        last = line.pop()
        if kept := last.text.rstrip(" "):
            return [*line, Segment(kept, last.style)]
    return line


def _ascii(text: str) -> str:
    return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
