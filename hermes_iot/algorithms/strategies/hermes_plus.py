"""`hermes-plus`: beyond the paper, the default. Short equal-time iterations, shares by speed, nobody waits, few bytes.

- **Steps**: every device trains for about `target_s` seconds, H_i = T*/K_i mini-batches of its own endless walk over
  its rows. K_i, seconds per mini-batch, is smoothed (DyLU: dynamic local updates, Liu et al. 2024, arXiv 2401.09135).
- **Rows**: disjoint, in proportion to speed, so that in a given time every row is seen about equally often.
- **Gate**: `paired_gate`: a push when it would lower the loss on unused rows, forced after `gate.max_age` iterations.
- **Mixing**: `mixing`: displacements at the weight of the device's share, delayed Nesterov momentum, a served average.
- **Bytes**: a bit and a half per entry both ways (`deadzone`); what the codec cuts off is carried over (error feedback),
  and an answer is the difference from what the device holds.

Related: FedBuff (Nguyen et al. 2022, arXiv 2106.06639), FedAsync (Xie et al. 2019, arXiv 1903.03934), DiLoCo (Douillard
et al. 2023, arXiv 2311.08105). Each part can be switched off by a constant, which is what ``bench --ablate`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from hermes_iot.algorithms import mixing, paired_gate
from hermes_iot.algorithms.checks import require_number, require_option, require_whole
from hermes_iot.algorithms.compression import CODINGS
from hermes_iot.algorithms.mixing import Mixing
from hermes_iot.algorithms.paired_gate import PairedGateConfig, PairedGateState
from hermes_iot.algorithms.shares import SharesConfig, SharesState, share_out
from hermes_iot.algorithms.speed import Report
from hermes_iot.algorithms.strategies.base import (
    NOTHING,
    BaseStrategy,
    Contribution,
    Decision,
    Fleet,
    Merged,
    PairedTest,
    Regime,
    ScoreOf,
    StateDump,
    Work,
)
from hermes_iot.algorithms.trees import is_finite, norm
from hermes_iot.domain import Codec, DeviceId, Params, Sizing, Trained
from hermes_iot.errors import ProtocolError, UsageError

Weights = Literal["speed", "uniform"]

_WAITING: Final = "waiting."


@dataclass(frozen=True, slots=True, kw_only=True)
class HermesPlusConfig:
    """Constants.

    Attributes:
        gate: when a device pushes.
        shares: iteration length and rows of every device.
        momentum: mu.
        rate: eta.
        ema_rate: rho of the served average, per fleet round; 1 serves the model itself.
        learning_rate_scale: devices take so much longer steps than the task says (where no person says otherwise): the
            mixing averages most of their noise away.
        warmup_steps: a device comes to its learning rate over so many mini-batches (gradual warm-up: Goyal et al. 2017,
            arXiv 1706.02677): a new model may be too steep for longer steps. 0 = at once.
        codec_up, codec_down: of updates and answers.
        codec_whole: of the model for a device that holds none, or one we do not know.
        delta_down: answers are differences from what the device holds.
        weights: a push counts by its device's share of the fleet's speed, or everybody's alike.
        barrier: wait for everybody before anything is merged (for comparison).
        overlap: go on training while an answer is on its way.
        lag_per_device: what was made from a model older by more versions than this times the fleet's size is stale.
    """

    gate: PairedGateConfig = field(default_factory=PairedGateConfig)
    shares: SharesConfig = field(default_factory=SharesConfig)
    momentum: float = 0.5
    rate: float = 1.0
    ema_rate: float = 0.2
    learning_rate_scale: float = 1.5
    warmup_steps: int = 30
    codec_up: Codec = "deadzone"
    codec_down: Codec = "deadzone"
    codec_whole: Codec = "int8"
    delta_down: bool = True
    weights: Weights = "speed"
    barrier: bool = False
    overlap: bool = False
    lag_per_device: int = 10

    def __post_init__(self) -> None:
        require_number(self, "momentum", 0, 0.999)
        require_number(self, "rate", 1e-6, 10)
        require_number(self, "ema_rate", 1e-6, 1)
        require_number(self, "learning_rate_scale", 1e-3, 1e3)
        require_whole(self, "warmup_steps", 0, 2**31)
        require_option(self, "codec_up", Codec)
        require_option(self, "codec_down", Codec)
        require_option(self, "codec_whole", Codec)
        require_option(self, "weights", Weights)
        require_whole(self, "lag_per_device", 1, 2**31)
        for name in ("delta_down", "barrier", "overlap"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"hermes-plus {name} {getattr(self, name)!r:.60} cannot be used", why="true or false")
        whole = self.codec_whole if self.delta_down else self.codec_down
        if CODINGS[whole].partial:
            raise UsageError(
                f"a whole model cannot be sent as {whole}",
                why="that codec leaves entries out, which only a difference can do without",
                mend="Use fp16, int8 or int4 for whole models",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorHalf:
    """The outer optimizer's memory, who has which share, and, with a barrier, what waits to be merged."""

    mixing: Mixing
    shares: SharesState = field(default_factory=SharesState)
    waiting: Mapping[DeviceId, Contribution] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HermesPlus(BaseStrategy[PairedGateState, CoordinatorHalf]):
    """See the module. States: `PairedGateState` and `CoordinatorHalf`."""

    config: HermesPlusConfig

    @property
    def regime(self) -> Regime:
        """A walk, displacements, differences."""
        config = self.config
        return Regime(
            sampling="walk",
            codec_up=config.codec_up,
            codec_down=config.codec_down,
            steps=config.shares.probe_steps,
            displaces=True,
            delta_down=config.delta_down,
            codec_whole=config.codec_whole,
            waits=config.barrier,
            overlaps=config.overlap,
            learning_rate_scale=config.learning_rate_scale,
            warmup_steps=config.warmup_steps,
            lag_per_device=config.lag_per_device,
            sizes_early=True,
        )

    # the device's half

    def device_start(self, initial: Params) -> PairedGateState:  # noqa: ARG002
        """Nothing seen yet."""
        return paired_gate.start(self.config.gate)

    def test(self, state: PairedGateState, work: Work) -> PairedTest | None:  # noqa: ARG002
        """The model received against that model with the update at about the weight the merge will give it.

        A device knows its part of the rows, which is its weight but where, for comparison, `weights` or
        `shares.rows` says otherwise: there the gate tests at another weight than the merge's.
        """
        gate = self.config.gate
        rows = paired_gate.test_rows(work.steps * work.batch, gate)
        if not rows:
            return None
        weight = max(gate.weight_min, self.config.rate * (1 + self.config.momentum) * work.share)
        return PairedTest(rows=rows, weight=weight, strict=gate.kind == "strict")

    def observe(self, state: PairedGateState, trained: Trained, origin: Params) -> tuple[PairedGateState, Decision]:
        """The gate."""
        length = norm(trained.params - origin) if self.config.gate.kind == "norm" else None
        state, verdict = paired_gate.observe(state, self.config.gate, loss=trained.loss, gain=trained.gain, norm=length)
        return state, Decision(push=verdict.fire, why=verdict.reason, z=verdict.z, threshold=verdict.threshold)

    def contribution(self, state: PairedGateState, *, base: Params, params: Params) -> tuple[PairedGateState, Params]:
        """How far the device has moved since it last received or pushed."""
        with np.errstate(over="ignore", invalid="ignore"):
            moved = params - base
        length = norm(moved) if self.config.gate.kind == "norm" and is_finite(moved) else None
        return paired_gate.pushed(state, norm=length), moved

    # the coordinator's half

    def coordinator_start(self, initial: Params) -> CoordinatorHalf:
        """Nothing merged yet."""
        return CoordinatorHalf(mixing=mixing.start(initial))

    def merge(
        self,
        state: CoordinatorHalf,
        model: Params,
        contribution: Contribution,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[CoordinatorHalf, Merged]:
        """Move the model by the displacement at its device's share.

        Raises:
            ProtocolError: ``finite`` when a sum overflows.
        """
        if self.config.barrier:
            waiting = {**state.waiting, contribution.device: contribution}
            return self._close(replace(state, waiting=waiting), model, fleet)
        state, model, weight = self._mixed(state, model, contribution, fleet)
        return state, Merged(model=model, weight=weight, reply_to=(contribution.device,))

    def changed(
        self,
        state: CoordinatorHalf,
        model: Params,
        fleet: Fleet,
        score: ScoreOf,  # noqa: ARG002
    ) -> tuple[CoordinatorHalf, Merged]:
        """With a barrier, somebody awaited may be gone."""
        return self._close(state, model, fleet) if state.waiting else (state, NOTHING)

    def resize(
        self, state: CoordinatorHalf, reports: Mapping[DeviceId, Report], fleet: Fleet
    ) -> tuple[CoordinatorHalf, Mapping[DeviceId, Sizing]]:
        """Everybody by its speed."""
        rounds = state.mixing.rounds
        shares, sizes = share_out(state.shares, reports, self.config.shares, fleet=fleet, rounds=rounds)
        return replace(state, shares=shares), sizes

    def served(self, state: CoordinatorHalf, model: Params) -> Params:
        """The average."""
        return state.mixing.average if self.config.ema_rate < 1 else model

    def dump(self, state: CoordinatorHalf) -> StateDump:
        """All of it."""
        one = state.mixing
        scalars = {
            "gathered_share": one.gathered_share,
            "merges": one.merges,
            "rounds": one.rounds,
            "shares": state.shares.dump(),
            "waiting": {device: [held.steps, held.planned, held.lag] for device, held in state.waiting.items()},
        }
        arrays = {"velocity": one.velocity, "gathered": one.gathered, "average": one.average}
        arrays |= {f"{_WAITING}{device}": held.vector for device, held in state.waiting.items()}
        return StateDump(scalars=scalars, arrays=arrays)

    def load(self, dump: StateDump) -> CoordinatorHalf:
        """The inverse of `dump`."""
        one = Mixing(
            velocity=dump.arrays["velocity"],
            gathered=dump.arrays["gathered"],
            gathered_share=float(dump.scalars["gathered_share"]),
            average=dump.arrays["average"],
            merges=int(dump.scalars["merges"]),
            rounds=int(dump.scalars["rounds"]),
        )
        waiting = {
            DeviceId(device): Contribution(
                device=DeviceId(device),
                vector=dump.arrays[f"{_WAITING}{device}"],
                base=None,
                lag=int(lag),
                samples=0,
                iterations=1,
                steps=int(steps),
                planned=int(planned),
            )
            for device, (steps, planned, lag) in dict(dump.scalars["waiting"]).items()
        }
        return CoordinatorHalf(mixing=one, shares=SharesState.load(dump.scalars["shares"]), waiting=waiting)

    def _mixed(
        self, state: CoordinatorHalf, model: Params, contribution: Contribution, fleet: Fleet
    ) -> tuple[CoordinatorHalf, Params, float]:
        alike = 1 / max(1, len(fleet))
        share = alike if self.config.weights == "uniform" else state.shares.shares.get(contribution.device, alike)
        one, model = mixing.mix(
            state.mixing,
            model,
            contribution.vector,
            share=share,
            elapsed=mixing.elapsed(contribution.steps, contribution.planned),
            momentum=self.config.momentum,
            rate=self.config.rate,
            ema_rate=self.config.ema_rate,
        )
        if not mixing.is_sound(state.mixing, one):
            raise ProtocolError("finite", f"the update of {contribution.device} leads out of float32")
        return CoordinatorHalf(mixing=one, shares=state.shares, waiting=state.waiting), model, share

    def _close(self, state: CoordinatorHalf, model: Params, fleet: Fleet) -> tuple[CoordinatorHalf, Merged]:
        """Merge everybody's once everybody who is there has contributed."""
        if any(device not in state.waiting for device in fleet):
            return state, NOTHING
        weights = 0.0
        for contribution in state.waiting.values():
            state, model, weight = self._mixed(state, model, contribution, fleet)
            weights += weight
        reply_to = tuple(state.waiting)
        return replace(state, waiting={}), Merged(model=model, weight=min(1.0, weights), reply_to=reply_to)


def build_strategy(config: HermesPlusConfig) -> HermesPlus:
    """The strategy of these constants."""
    return HermesPlus(config)


Config = HermesPlusConfig
