"""Synchronisation strategies by name: one file and one line each. A module offers `Config` and `build_strategy`."""

from __future__ import annotations

from typing import Final

#: Name to module, imported when asked for.
STRATEGIES: Final = {
    "hermes": "hermes_iot.algorithms.strategies.hermes",
    "hermes-plus": "hermes_iot.algorithms.strategies.hermes_plus",
    "bsp": "hermes_iot.algorithms.strategies.bsp",
    "bsp-tuned": "hermes_iot.algorithms.strategies.bsp_tuned",
    "asp": "hermes_iot.algorithms.strategies.asp",
    "ssp": "hermes_iot.algorithms.strategies.ssp",
    "ebsp": "hermes_iot.algorithms.strategies.ebsp",
    "selsync": "hermes_iot.algorithms.strategies.selsync",
    "fedavg": "hermes_iot.algorithms.strategies.fedavg",
    "fedasync": "hermes_iot.algorithms.strategies.fedasync",
    "fedbuff": "hermes_iot.algorithms.strategies.fedbuff",
    "single": "hermes_iot.algorithms.strategies.single",
}
