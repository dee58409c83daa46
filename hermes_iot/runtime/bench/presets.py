"""Comparisons that are run again and again, by name: each a few parts with rows and seeds of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: What is compared where nobody says what.
STRATEGIES: Final = "bsp,hermes,hermes-plus,single,bsp-tuned"
SEEDS: Final = "0,1,2"
FLEET: Final = "azure12"
LINK: Final = "wifi20"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Values of the options of the same names."""

    workload: str
    strategies: str = STRATEGIES
    seeds: str = SEEDS


_PAPER: Final = (
    "bsp,ebsp,asp,ssp,selsync,hermes,hermes-plus,hermes-plus no gate,hermes-plus norm,hermes-plus coin,"
    "hermes-plus T*=4 no gate,hermes-plus lean,single,bsp-tuned"
)

PRESETS: Final[Mapping[str, tuple[Part, ...]]] = {
    # Against the paper's figures and against honest baselines. A mini-batch of AlexNet takes a hundred times as long as
    # one of the MLP, so there are fewer rows and one seed; and of CIFAR-10 as much as is at hand.
    "paper": (
        Part(workload="mnist-mlp", strategies=_PAPER),
        Part(workload="mnist-cnn", strategies=_PAPER),
        Part(workload="cifar-alexnet", seeds="0"),
    ),
    # Under a minute and a half on two cores.
    "quick": (Part(workload="digits-mlp"),),
}
