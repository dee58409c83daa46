"""Parts of what is printed for a person, alike wherever they stand: headings, indented lines, plain tables."""

from __future__ import annotations

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def heading(words: str) -> RenderableType:
    """A line that names what follows, after an empty one."""
    return Padding(Text(words, style="bold cyan"), (1, 0, 0, 0))


def indented(part: RenderableType) -> RenderableType:
    """Below its heading."""
    return Padding(part, (0, 0, 0, 2))


def note(words: str) -> RenderableType:
    """An indented line that is less important than the others."""
    return indented(Text(words, style="dim"))


def columns(*words: str) -> Table:
    """An empty table: the first column and those without a word hold text, the others numbers.

    Text of a later column is wrapped rather than cut.
    """
    table = Table(box=None, pad_edge=False, show_header=any(words), header_style="dim")
    for number, word in enumerate(words):
        table.add_column(word, justify="right" if number and word else "left", no_wrap=not number or bool(word))
    return table
