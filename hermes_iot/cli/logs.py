"""Where log lines go: stderr, one event one line of key=value."""

from __future__ import annotations

import logging


class OneLine(logging.Formatter):
    """Names, hosts and reasons come from the wire: nothing in them may move a cursor or begin a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, with a space for whatever is not printable."""
        return "".join(one if one.isprintable() else " " for one in super().formatMessage(record))


def configure(*, verbose: bool, quiet: bool = False) -> None:
    """INFO for a device in a terminal, DEBUG with --verbose, WARNING where a live view shows what happens."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
