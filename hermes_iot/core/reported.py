"""What a device says of its work: state, update and metrics, each a pure function of what it knows.

Nothing is decided here. A person who wonders where a number in `mosquitto_sub` comes from finds it on this page: all
of it is read off the learner, the allocation and the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_iot.core.effects import Record, StoreMemory
from hermes_iot.core.learner import Learner, Outgoing
from hermes_iot.domain import DeviceId, Trained
from hermes_iot.protocol.messages import Allocation, DeviceState, Metrics, Phase, RunManifest, Update


@dataclass(slots=True, kw_only=True)
class Traffic:
    """Mutable, owned by one `Device`: messages dropped, payload bytes handed over and received."""

    dropped: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


def state_of(
    *,
    run: str,
    phase: Phase,
    memory: StoreMemory,
    learner: Learner | None,
    allocation: Allocation | None,
    shard: str,
    traffic: Traffic,
) -> DeviceState:
    """The reported state: what is in force, and this session's counters.

    Without an allocation in force its version is that of the newest one obeyed before, so that the coordinator, should
    it have lost that one, numbers the next above it.
    """
    return DeviceState(
        run=run,
        session=memory.session,
        seq=memory.seq,
        phase=phase,
        allocation_version=allocation.version if allocation is not None else memory.allocation_version,
        model_version=learner.base_version if learner is not None else 0,
        iterations=learner.iterations if learner is not None else 0,
        published=learner.published if learner is not None else 0,
        samples=allocation.samples if allocation is not None else 0,
        batch=allocation.batch if allocation is not None else 0,
        mini_batches=learner.mini_batches if learner is not None else 0,
        iteration_s=learner.iteration_s if learner is not None else 0.0,
        loss=learner.loss if learner is not None else None,
        z=learner.decision.z if learner is not None else None,
        threshold=learner.decision.threshold if learner is not None else None,
        gate=learner.decision.why if learner is not None else "",
        shard=shard,
        diverged=learner.diverged if learner is not None else 0,
        dropped=traffic.dropped,
        bytes_up=traffic.bytes_up,
        bytes_down=traffic.bytes_down,
        batch_s=learner.batch_s if learner is not None else 0.0,
    )


def update_of(
    manifest: RunManifest,
    memory: StoreMemory,
    *,
    device: DeviceId,
    outgoing: Outgoing,
    base_version: int,
    base_sha256: str,
    batch: int,
    result: Trained,
    seconds: float,
) -> Update:
    """One update, named by the session and seq in `memory`; `result` is the newest of the iterations it stands for."""
    return Update(
        run=manifest.run,
        session=memory.session,
        seq=memory.seq,
        base_version=base_version,
        model=manifest.model.sha256,
        codec=outgoing.codec,
        parameters=manifest.model.parameters,
        loss=result.loss,
        samples=result.samples,
        batch=batch,
        mini_batches=result.mini_batches,
        train_s=seconds,
        iterations=outgoing.iterations,
        steps=outgoing.steps,
        base=base_sha256,
        device=device,
        body=outgoing.body,
    )


def metrics_of(
    manifest: RunManifest, session: int, learner: Learner, *, batch: int, result: Trained, seconds: float
) -> Metrics:
    """One local iteration."""
    return Metrics(
        run=manifest.run,
        session=session,
        iteration=learner.iterations,
        seconds=seconds,
        samples=result.samples,
        batch=batch,
        mini_batches=result.mini_batches,
        loss=learner.loss,
        z=learner.decision.z,
        threshold=learner.decision.threshold,
        published=learner.decision.push,
        norm=learner.moved,
    )


def iteration_record(learner: Learner, *, batch: int, result: Trained, seconds: float) -> Record:
    """The same for programs at the device, with the gate's word."""
    decision = learner.decision
    fields = {
        "iteration": learner.iterations,
        "seconds": seconds,
        "samples": result.samples,
        "batch": batch,
        "loss": learner.loss,
        "z": decision.z,
        "threshold": decision.threshold,
        "gate": decision.why,
        "published": decision.push,
        "norm": learner.moved,
    }
    return Record(event="iteration", fields=fields)
