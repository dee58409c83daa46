"""Where log lines go: stderr, one event one line of key=value."""

from __future__ import annotations

import logging


def configure(*, verbose: bool, quiet: bool = False) -> None:
    """INFO for a device in a terminal, DEBUG with --verbose, WARNING where a live view shows what happens."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", force=True)
