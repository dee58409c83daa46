"""What one run of a benchmark is, and under which name its result is kept.

A result is found again by a hash over everything that decides it: the settings with all constants written out, the
boards and the link as numbers (not by the names of their files), the data, the sources of the simulator, the
machines and the algorithms, and the versions of the libraries that compute. What only shows results (``cli``, ``reporting``) may change without a cell being run anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import hermes_iot
from hermes_iot.config import RunConfig
from hermes_iot.domain import Codec, DataMode
from hermes_iot.errors import UsageError
from hermes_iot.runtime import strategies
from hermes_iot.runtime.simulation.benches import COST
from hermes_iot.runtime.simulation.profiles import FleetProfile, LinkProfile

#: Sources that show results and decide none.
_SHOWS: Final = ("cli", "reporting")
_KEY_CHARS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a comparison.

    Attributes:
        label: what it is called.
        strategy, constants: as in `RunConfig`.
        codec, codec_down, learning_rate: instead of the strategy's own; None = these.
    """

    label: str
    strategy: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    codec: Codec | None = None
    codec_down: Codec | None = None
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is learnt, and how closely it is watched.

    Attributes:
        name: of the workload.
        task: as in `RunConfig`.
        targets: test accuracies in (0, 1], rising: time and bytes to each are what a comparison is about.
        data_mode: who holds the rows.
        rounds_max: a cell's end at the latest: so many times the first iteration of the slowest board, which is what a
            round of BSP takes. Generous: BSP must come to the highest target well before.
        grid_s: virtual seconds between two evaluations.
        measure_s: the coordinator measures a model whose score the strategy did not need at most this often; 0 = each.
        plateau_s: see `ends.Plateau`.
        gantt_s: how much of the boards' timelines is kept, from the beginning.
        validation_fraction: as in `RunConfig`: of a large set a small part is enough to steer by.
    """

    name: str
    task: str
    targets: tuple[float, ...]
    data_mode: DataMode = "indexed"
    rounds_max: float = 60.0
    grid_s: float = 1.0
    measure_s: float = 0.0
    plateau_s: float = 0.0
    gantt_s: float = 120.0
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not self.targets or list(self.targets) != sorted(set(self.targets)):
            raise UsageError(f"the targets of {self.name} are {self.targets}", why="at least one, rising")
        for target in self.targets:
            if not 0 < target <= 1:
                raise UsageError(f"target {target:g} is not in (0, 1]", mend="Use 0.97 for 97 %")
        for name in ("rounds_max", "grid_s", "gantt_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}", why="it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all rows of one comparison share.

    Attributes:
        dirichlet: concentration of the classes' spread over the boards; each then keeps rows of its own. None = all
            rows are everybody's.
        fleet, link: the boards and their links; `fleet_name` and `link_name` are how the person named them.
        patience: aggregations without a better loss after which the paper's rule ends a run.
        await_patience: a cell goes on until the paper's rule has held, too.
        long: a cell goes on beyond its targets, to our stop rule.
        virtual_s: its end at the latest, instead of the workload's `rounds_max`.
    """

    workload: Workload
    fleet: FleetProfile
    fleet_name: str
    link: LinkProfile
    link_name: str
    dirichlet: float | None = None
    patience: int = 10
    await_patience: bool = True
    long: bool = False
    virtual_s: float | None = None

    def __post_init__(self) -> None:
        if self.workload.task == COST and (self.dirichlet is not None or self.workload.data_mode != "indexed"):
            mode = "skewed" if self.dirichlet is not None else self.workload.data_mode
            raise UsageError(
                f"workload {self.workload.name!r} has no rows that could be {mode}", mend="Use --data indexed"
            )
        if self.dirichlet is not None and not 0 < self.dirichlet <= 1e6:  # noqa: PLR2004 - as good as equal parts
            raise UsageError(f"--dirichlet {self.dirichlet:g} cannot be used", why="it lies above 0, up to 1e6")
        if self.virtual_s is not None and not self.virtual_s > 0:
            raise UsageError(f"a virtual time of {self.virtual_s:g} s cannot be used", why="it must be above 0")
        if self.patience < 1:
            raise UsageError(f"a patience of {self.patience} aggregations", why="it must be at least 1")

    @property
    def name(self) -> str:
        """``mnist-mlp-azure12-wifi20``, fit for a file."""
        words = [self.workload.name, Path(self.fleet_name).stem, Path(self.link_name).stem]
        return "-".join([*words, *([f"dirichlet{self.dirichlet:g}"] if self.dirichlet is not None else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One simulated run."""

    setting: Setting
    row: Row
    seed: int

    def config(self) -> RunConfig:
        """The run's settings. Rows of one's own are drawn afresh where the strategy draws afresh, as in the paper."""
        workload, local = self.setting.workload, self.setting.dirichlet is not None
        strategy, _ = strategies.resolve(self.row.strategy).build(self.row.constants)
        return RunConfig(
            task=workload.task,
            strategy=self.row.strategy,
            constants=self.row.constants,
            seed=self.seed,
            data_mode="local" if local else workload.data_mode,
            sampling="fresh" if local and strategy.regime.sampling == "fresh" else None,
            validation_fraction=workload.validation_fraction,
            codec=self.row.codec,
            codec_down=self.row.codec_down,
            learning_rate=self.row.learning_rate,
        )

    def document(self) -> dict[str, Any]:
        """Everything that decides the result but code and data, JSON-able. No names that do not matter.

        Raises:
            UsageError: the strategy or a constant of it is not known.
        """
        setting, found = self.setting, strategies.resolve(self.row.strategy)
        info = found.build(self.row.constants)[1]
        workload = {key: value for key, value in asdict(setting.workload).items() if key != "name"}
        return {
            "workload": {**workload, "targets": list(setting.workload.targets)},
            "fleet": {**asdict(setting.fleet), "name": "", "task": ""},
            "link": asdict(setting.link),
            "dirichlet": setting.dirichlet,
            "patience": setting.patience,
            "await_patience": setting.await_patience,
            "long": setting.long,
            "virtual_s": setting.virtual_s,
            "strategy": {"name": info.name, "sha256": info.source_sha256, "constants": dict(info.constants)},
            "codec": self.row.codec,
            "codec_down": self.row.codec_down,
            "learning_rate": self.row.learning_rate,
            "seed": self.seed,
        }

    def key(self, *, data_sha256: str, source: str, versions: Mapping[str, str]) -> str:
        """The name of its result: a hash; equal keys, equal results.

        Args:
            data_sha256: of the task's rows, those it is measured on included.
            source: of our own sources, see `source_sha256`.
            versions: of the libraries that compute, by name: their kernels round differently, and training goes apart.
        """
        about = {"data_sha256": data_sha256, "source": source, "versions": dict(versions)}
        whole = {**self.document(), **about, "software": hermes_iot.__version__}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_CHARS]


@cache
def source_sha256() -> str:
    """Hex digest of the sources that decide results, see the module."""
    root, digest = Path(hermes_iot.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if name.parts[0] not in _SHOWS:
            content = path.read_bytes()
            digest.update(f"{name.as_posix()}:{len(content)};".encode() + content)
    return digest.hexdigest()
