"""A strategy of one's own: push after every k-th iteration, average by rows. Federated averaging without its barrier.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629),
where the new model is the mean of all clients' models, each weighted by its rows. Here nobody waits for a round: of
every device the coordinator remembers how many rows its newest push stands for, and a push moves the global model
towards the device's by that device's share of them all. Once everybody has pushed, the model is exactly the mean that a
round would have given, in whatever order they came; from then on it is a running one. What is given up against
`hermes`: no loss is looked at, so useless pushes are sent and harmful ones merged; the rows are the device's own claim;
and nobody is re-sized, so a slow board stays slow.

A strategy is a module with a dataclass `Config` and a function `build_strategy(config)`; what its methods are asked, and
what `BaseStrategy` answers for it, is said in `hermes_iot/algorithms/strategies/base.py`. They are pure functions over states of your own choice, the device's
here an integer and the coordinator's a mapping. Run it, and set its constant, on the command line::

    hermes-iot demo --strategy examples/custom_strategy.py --set k=3

or by a table of the file's name in hermes.toml, `[custom_strategy]` with `k = 3` below it. By hand, every device gets
the file too, as no code crosses the wire::

    hermes-iot coordinator --broker mqtt://localhost --fleet lab --task digits --strategy examples/custom_strategy.py \
        --max-wall 60s
    hermes-iot device --broker mqtt://localhost --fleet lab --id pi-01 --strategy examples/custom_strategy.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hermes_iot.algorithms.aggregation import blend
from hermes_iot.algorithms.strategies.base import (
    BaseStrategy,
    Contribution,
    Decision,
    Fleet,
    Merged,
    ScoreOf,
    StateDump,
)
from hermes_iot.domain import DeviceId, Params, Trained
from hermes_iot.errors import UsageError

#: Rows that the newest push of every device stands for.
Rows = Mapping[DeviceId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Constants; they travel to the devices in the run's manifest. k: local iterations from one push to the next."""

    k: int = 3

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"k is {self.k}", why="a device pushes after 1 iteration at the earliest")


@dataclass(frozen=True, slots=True)
class EveryKth(BaseStrategy[int, Rows]):
    """See the module. States: iterations since the last push, and `Rows`."""

    config: Config

    # the device's half

    def device_start(self, _initial: Params) -> int:
        """Nothing trained yet."""
        return 0

    def observe(self, state: int, _trained: Trained, _origin: Params) -> tuple[int, Decision]:
        """One more; from the k-th on it is time."""
        age = state + 1
        return age, Decision(push=age >= self.config.k, why="age" if age >= self.config.k else "no")

    def contribution(self, _state: int, *, base: Params, params: Params) -> tuple[int, Params]:
        """The local model as it is. Asked only when something is really sent, so counting begins anew here."""
        del base  # what a displacement would be made from
        return 0, params

    # the coordinator's half

    def coordinator_start(self, _initial: Params) -> Rows:
        """Nobody has pushed."""
        return {}

    def merge(
        self, state: Rows, model: Params, contribution: Contribution, _fleet: Fleet, _score: ScoreOf
    ) -> tuple[Rows, Merged]:
        """Go towards the device's model by its share of the fleet's rows; the first push of all is taken whole."""
        # Both numbers are the device's claim, and a device may claim anything: 0 rows must not divide.
        rows = {**state, contribution.device: max(1, contribution.samples * contribution.iterations)}
        weight = rows[contribution.device] / sum(rows.values())
        merged = blend(model, contribution.vector, weight)
        return rows, Merged(model=merged, weight=weight, reply_to=(contribution.device,))

    def dump(self, state: Rows) -> StateDump:
        """For a checkpoint: a coordinator that is started again goes on from here."""
        return StateDump(scalars={"rows": dict(state)})

    def load(self, dump: StateDump) -> Rows:
        """The inverse of `dump`."""
        return {DeviceId(device): int(rows) for device, rows in dict(dump.scalars["rows"]).items()}


def build_strategy(config: Config) -> EveryKth:
    """The strategy of these constants."""
    return EveryKth(config)
