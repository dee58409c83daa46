"""Comparisons that are run again and again, by name: each a few parts with rows, boards and seeds of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: What is compared where nobody says what.
STRATEGIES: Final = "bsp,hermes,hermes-plus,single,single averaged,bsp-tuned"
SEEDS: Final = "0,1,2"
FLEET: Final = "azure12"
LINK: Final = "wifi20"
PATIENCE: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Values of the options of the same names, where none are given; two parts differ in more than rows and seeds.

    Attributes:
        targets: None = the workload's.
        only: the rows are these and no more.
    """

    workload: str
    strategies: str = STRATEGIES
    seeds: str = SEEDS
    fleet: str = FLEET
    link: str = LINK
    dirichlet: float | None = None
    targets: str | None = None
    patience: int = PATIENCE
    only: bool = False


_PAPER: Final = (
    "bsp,ebsp,asp,ssp,selsync,fedavg,fedasync,fedbuff,hermes,hermes-plus,hermes-plus no gate,hermes-plus norm,"
    "hermes-plus coin,hermes-plus T*=4 no gate,hermes-plus T*=1 no gate,hermes-plus lean,single,single averaged,bsp-tuned,"
    # hermes-plus takes longer steps than the task says. The same steps without the rest, and the rest without them:
    "bsp[learning-rate=0.15],hermes-plus - longer steps"
)
_CNN: Final = "bsp,ebsp,hermes,hermes-plus,hermes-plus no gate,single,single averaged,bsp-tuned"
_FLEETS: Final = "bsp,hermes,hermes-plus,hermes-plus no gate,single,single averaged,bsp-tuned"
_GATES: Final = "bsp,hermes-plus no gate,hermes-plus paired,hermes-plus strict,hermes-plus norm,hermes-plus coin"

PRESETS: Final[Mapping[str, tuple[Part, ...]]] = {
    # Against the paper's figures and against honest baselines. Which strategies there are and what the parts of
    # hermes-plus do is answered by the MLP. The CNN, of which a mini-batch takes five times as long, answers whether
    # another model changes the order, and needs the best of each kind for it: no stale or staged baselines, one gate.
    # Both take minutes to their target and would take several times as long to the end by the paper's rule, which
    # compares nothing: nobody waits for it there. Of AlexNet one seed shows the order.
    "paper": (
        Part(workload="mnist-mlp", strategies=_PAPER),
        Part(workload="mnist-cnn", strategies=_CNN, patience=0),
        Part(workload="cifar-alexnet", patience=0, seeds="0"),
    ),
    # Where a fleet pays and where not: how unequal the boards are, whose the rows are, how thin the link is. BSP takes
    # 20 virtual minutes to 97 % with one board 30 times slower and 12 on skewed rows (README), so there it is 97 %.
    "fleets": (
        Part(workload="mnist-mlp", strategies=_FLEETS, patience=0, fleet="equal12"),
        Part(workload="mnist-mlp", strategies=_FLEETS, patience=0, fleet="extreme12", targets="0.97"),
        Part(workload="mnist-mlp", strategies=_FLEETS, patience=0, fleet="mild12"),
        Part(workload="mnist-mlp", strategies=_FLEETS, patience=0, dirichlet=0.3, targets="0.97"),
        Part(workload="mnist-mlp", strategies=f"{_FLEETS},hermes-plus lean", patience=0, link="slow1"),
    ),
    # What a gate of hermes-plus is worth, on rows that are everybody's and on skewed rows of one's own.
    "gates": (
        Part(workload="mnist-mlp", strategies=_GATES, patience=0, only=True),
        Part(workload="mnist-mlp", strategies=_GATES, patience=0, only=True, dirichlet=0.3, targets="0.97"),
    ),
    # Under a minute and a half on two cores.
    "quick": (Part(workload="digits-mlp"),),
}
