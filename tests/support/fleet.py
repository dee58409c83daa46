"""A whole fleet in one thread: coordinator and devices in lockstep over any transport, with the toy trainer.

Every device in turn runs one iteration and waits until what it caused has come back, so the order of everything is
given by the script alone and two runs over different brokers can be compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hermes_iot.config import RunConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol.messages import TaskInfo
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
from hermes_iot.runtime.trainers import Bench
from hermes_iot.runtime.worker import InlineWorker
from hermes_iot.training.tasks import TaskDefaults
from hermes_iot.training.toy import ToyTrainer
from hermes_iot.transport.base import Transport, Will

Connect = Callable[[str, Will | None], Transport]

TOY = TaskInfo(name="toy", source_sha256="0" * 64)


def toy_bench(config: RunConfig) -> Bench:
    trainer = ToyTrainer(seed=config.seed)
    return Bench(
        trainer=trainer,
        task=TOY,
        defaults=TaskDefaults(samples=120, batch=16, epochs=2, learning_rate=0.1),
        data_sha256="0" * 64,
        rows=trainer.train_rows,
        shard_of=None,
    )


def toy_config(**changes: object) -> RunConfig:
    return replace(RunConfig(task="toy", seed=3, rules=StopRules(max_pushes=12)), **changes)


def toy_coordinator(
    connect: Connect, run_dir: Path, *, fleet: str = "lab", config: RunConfig | None = None, **options: object
) -> CoordinatorRunner:
    config = config or toy_config()
    options.setdefault("settings", CoordinatorSettings(linger_s=2.0))
    return CoordinatorRunner(
        config, fleet=fleet, run_dir=run_dir, bench=toy_bench(config), connect=connect, **options
    )


def toy_device(
    connect: Connect, state_dir: Path, name: str, *, fleet: str = "lab", inline: bool = True, **options: object
) -> DeviceRunner:
    settings = DeviceSettings(once=True, state_interval_s=0.05, retry_s=1.0)
    extra = {"worker_of": InlineWorker} if inline else {}
    return DeviceRunner(
        DeviceConfig(fleet=fleet, device=name, state_dir=state_dir / name, settings=settings),
        connect=connect,
        trainer_of=lambda manifest, shards: ToyTrainer(seed=manifest.seed, shards=shards),
        **extra,
        **options,
    )
