"""What the coordinator tells programs (metrics.jsonl, the live view, plots): one function per kind of line."""

from __future__ import annotations

from hermes_iot.core.effects import Record
from hermes_iot.core.global_model import GlobalModel
from hermes_iot.core.intake import Verdict
from hermes_iot.core.member import Member
from hermes_iot.core.tally import Tally
from hermes_iot.domain import DeviceId
from hermes_iot.protocol.messages import Allocation, DeviceState, DeviceStatus, Metrics, Update


def joined(status: DeviceStatus, device: DeviceId) -> Record:
    """A device came online."""
    return Record(event="joined", fields={"device": device, "session": status.session, "slowdown": status.slowdown})


def left(status: DeviceStatus, device: DeviceId) -> Record:
    """It is gone."""
    return Record(event="left", fields={"device": device, "reason": status.reason or "connection lost"})


def excused(device: DeviceId, reason: str) -> Record:
    """Nobody waits for a device any more, see `patience`."""
    return Record(event="excused", fields={"device": device, "reason": reason})


def readmitted(device: DeviceId) -> Record:
    """It is waited for again."""
    return Record(event="readmitted", fields={"device": device})


def refused(device: DeviceId, channel: str, reason: str) -> Record:
    """A message that could not be used."""
    return Record(event="refused", fields={"device": device, "channel": channel, "reason": reason})


def allocated(allocation: Allocation) -> Record:
    """A device was given its size."""
    fields = {
        "device": allocation.device,
        "version": allocation.version,
        "samples": allocation.samples,
        "batch": allocation.batch,
        "reason": allocation.reason,
    }
    return Record(event="allocation", fields=fields)


def iterated(device: DeviceId, metrics: Metrics) -> Record:
    """One local iteration, where the run asks for telemetry."""
    fields = {
        "device": device,
        "session": metrics.session,
        "iteration": metrics.iteration,
        "seconds": metrics.seconds,
        "samples": metrics.samples,
        "batch": metrics.batch,
        "mini_batches": metrics.mini_batches,
        "loss": metrics.loss,
        "z": metrics.z,
        "threshold": metrics.threshold,
        "published": metrics.published,
        "norm": metrics.norm,
    }
    return Record(event="iteration", fields=fields)


def reported(member: Member, state: DeviceState) -> Record:
    """A device said what it does; counters are those of all its sessions."""
    earlier, counted = member.earlier, member.counted
    fields = {
        "device": member.device,
        "phase": state.phase,
        "iterations": earlier.iterations + counted.iterations,
        "published": earlier.published + counted.published,
        "samples": state.samples,
        "batch": state.batch,
        "iteration_s": state.iteration_s,
        "batch_s": state.batch_s,
        "loss": state.loss,
        "z": state.z,
        "threshold": state.threshold,
        "gate": state.gate,
        "online": member.online,
    }
    return Record(event="state", fields=fields)


def merged(device: DeviceId, update: Update, verdict: Verdict, model: GlobalModel, tally: Tally) -> Record:
    """An update was applied; seconds and mini-batches are those of the newest iteration it stands for."""
    fields = {
        "device": device,
        "version": model.version,
        "session": update.session,
        "seq": update.seq,
        "lag": verdict.lag,
        "iterations": update.iterations,
        "seconds": update.train_s,
        "mini_batches": update.mini_batches,
        "weight": verdict.merged.weight if verdict.merged is not None else 0.0,
        "loss_claimed": update.loss,
        "loss": model.score.loss if model.score is not None else None,
        "accuracy": model.score.accuracy if model.score is not None else None,
        "applied": tally.applied,
        "bytes_up": sum(tally.up.values()),
        "bytes_down": sum(tally.down.values()),
    }
    return Record(event="merge", fields=fields)


def dropped(device: DeviceId, update: Update, verdict: Verdict) -> Record:
    """An update was not applied."""
    fields = {
        "device": device,
        "session": update.session,
        "seq": update.seq,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
    }
    return Record(event="dropped", fields=fields)
