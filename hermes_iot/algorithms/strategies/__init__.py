"""Synchronisation strategies by name: one file and one line each. A module offers `Config` and `build_strategy`."""

from __future__ import annotations

from typing import Final

#: Name to module, imported when asked for.
STRATEGIES: Final = {
    "hermes": "hermes_iot.algorithms.strategies.hermes",
}
