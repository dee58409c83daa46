"""A run's name and manifest, composed from the person's settings, the task's proposals and the model at hand."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hermes_iot import __version__
from hermes_iot.algorithms.compression import CODINGS
from hermes_iot.algorithms.split import fine_for
from hermes_iot.algorithms.strategies.base import Regime
from hermes_iot.config import RunConfig
from hermes_iot.domain import Codec, RunId, Sizing
from hermes_iot.errors import UsageError
from hermes_iot.protocol.messages import DataInfo, ModelInfo, RunManifest, StrategyInfo
from hermes_iot.runtime.trainers import Bench

_EPOCHS: Final = 5
_LEARNING_RATE: Final = 0.1
_TASK_CHARACTERS_MAX: Final = 30


def new_run_id(task: str) -> str:
    """``<task>-<date>-<time>-<random>``; a task's own name may be in any script, a run's only in what topics take."""
    word = re.sub(r"[^A-Za-z0-9_]+", "-", Path(task).stem).strip("-")[:_TASK_CHARACTERS_MAX] or "run"
    return f"{word}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def manifest_of(run: str, config: RunConfig, bench: Bench, strategy: StrategyInfo, regime: Regime) -> RunManifest:
    """What the devices are told: the person's choices, else the strategy's, else the task's.

    Raises:
        UsageError: as `codecs_of`, also for a codec that only some devices shall use.
    """
    signature = bench.trainer.signature
    tensors = tuple((spec.name, spec.shape) for spec in signature.tensors)
    codecs = codecs_of(config.codec, config.codec_down, regime)
    for pattern, codec in config.codec_for:
        _codec(codec, f"--codec-for {pattern}=", displacement=regime.displaces)
    sampling = config.sampling or regime.sampling
    if config.sampling is None and sampling == "fresh" and config.data_mode == "local":
        sampling = "kept"
    return RunManifest(
        run=RunId(run),
        state="running",
        seed=config.seed,
        task=bench.task,
        strategy=strategy,
        model=ModelInfo(sha256=signature.sha256, parameters=signature.parameters, tensors=tensors),
        data=DataInfo(
            mode=config.data_mode,
            sampling=sampling,
            gate_split=config.gate_split or ("fresh" if sampling == "fresh" else "fixed"),
            rows=bench.rows,
            validation_fraction=config.validation_fraction,
            sha256=bench.data_sha256,
        ),
        epochs=config.epochs or regime.epochs or bench.defaults.epochs or _EPOCHS,
        learning_rate=config.learning_rate
        or (bench.defaults.learning_rate or _LEARNING_RATE) * regime.learning_rate_scale,
        codec=codecs[0],
        codec_down=codecs[1],
        fine=config.fine or fine_for(tensors),
        chunk_bytes=config.chunk_bytes,
        telemetry=config.telemetry,
        software=__version__,
    )


def codecs_of(codec: Codec | None, codec_down: Codec | None, regime: Regime) -> tuple[Codec, Codec]:
    """Of updates and of answers, from those a person may have named.

    Raises:
        UsageError: the strategy sends whole models that way, and the codec keeps too little of one.
    """
    up = _codec(codec or regime.codec_up, "--codec", displacement=regime.displaces)
    return up, _codec(codec_down or codec or regime.codec_down, "--codec-down", displacement=regime.delta_down)


def _codec(codec: Codec, option: str, *, displacement: bool) -> Codec:
    if CODINGS[codec].partial and not displacement:
        raise UsageError(
            f"{option if option.endswith('=') else option + ' '}{codec} cannot be used with this strategy",
            why="it sends whole models that way, and that codec keeps too little of one",
            mend="Use fp16, bf16, int8 or int4",
        )
    return codec


def first_size(config: RunConfig, bench: Bench, regime: Regime, otherwise: Sizing) -> Sizing:
    """Size of a device that was not measured yet. A walk begins with rows for a few of its first iterations.

    Raises:
        UsageError: a person named more rows than there are.
    """
    if config.samples is not None and 0 < bench.rows < config.samples:
        raise UsageError(
            f"--samples {config.samples} is more than there is",
            why=f"task {config.task} has {bench.rows:,} rows to train on",
            mend=f"Give at most {bench.rows}",
        )
    batch = config.batch or regime.batch or bench.defaults.batch or otherwise.batch
    if regime.steps:
        return Sizing(samples=config.samples or regime.samples or regime.steps * batch, batch=batch, steps=regime.steps)
    samples = config.samples or regime.samples or bench.defaults.samples or otherwise.samples
    return Sizing(samples=samples, batch=batch)
