"""What another gate would have published of the iterations a run recorded, without training anything.

With ``--telemetry full`` every iteration's loss is in metrics.jsonl. The paper's gate is a function of the losses
alone, so it can be fed them again with other constants. This is the first-order answer: another choice would have
brought other models, and with them other losses, from the first difference on; the simulation beside it says what then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hermes_iot.algorithms import gate
from hermes_iot.algorithms.gate import GateConfig, GateState
from hermes_iot.algorithms.strategies.hermes import Hermes
from hermes_iot.config import RunConfig
from hermes_iot.runtime import strategies

#: Device, session, number of the iteration in its session.
Key = tuple[str, int, int]


def gate_of(recorded: RunConfig, asked: RunConfig) -> GateConfig | None:
    """The paper's gate of the settings that are asked for; None where there is none, or where its question is unheard.

    It needs every iteration's loss on rows that were not trained on: full telemetry, and no walk, whose loss is that of
    training.
    """
    strategy, _ = strategies.resolve(asked.strategy).build(asked.constants)
    before, _ = strategies.resolve(recorded.strategy).build(recorded.constants)
    walked = (recorded.sampling or before.regime.sampling) == "walk"
    if not isinstance(strategy, Hermes) or recorded.telemetry != "full" or walked:
        return None
    return strategy.config.gate


def regate(records: Sequence[Mapping[str, Any]], config: GateConfig) -> dict[str, Any]:
    """Feed the recorded losses to a gate. A session begins with a fresh one, as a device's process does.

    Args:
        records: ``iteration`` records; a loss of None was not finite.
        config: the gate's constants.

    Returns:
        JSON-able: iterations `recorded` and `missing` (telemetry is QoS 0, some may be lost), how many were
        `published` and `would_publish` (`forced` of these by the age alone), `both` of them, and per device the same with the numbers of the iterations
        that would have been published, as [session, iteration].
    """
    losses: dict[Key, tuple[float, bool]] = {}
    for record in records:
        loss = record.get("loss")
        key = (str(record["device"]), int(record["session"]), int(record["iteration"]))
        losses[key] = (math.nan if loss is None else float(loss), bool(record["published"]))
    fired = _fired(losses, config)
    devices = sorted({device for device, _, _ in losses})
    rows = [_counted(device, [key for key in sorted(losses) if key[0] == device], losses, fired) for device in devices]
    sums = ("recorded", "missing", "published", "would_publish", "forced", "both")
    return {**{name: sum(row[name] for row in rows) for name in sums}, "devices": rows}


def _fired(losses: Mapping[Key, tuple[float, bool]], config: GateConfig) -> dict[Key, bool]:
    """Those that the gate publishes, and whether its age alone decided."""
    states: dict[tuple[str, int], GateState] = {}
    fired = {}
    for key in sorted(losses):
        life = key[:2]
        states[life], verdict = gate.observe(states.get(life, gate.start(config)), losses[key][0], config)
        if verdict.fire:
            fired[key] = verdict.reason == "age"
    return fired


def _counted(
    device: str, keys: Sequence[Key], losses: Mapping[Key, tuple[float, bool]], fired: Mapping[Key, bool]
) -> dict[str, Any]:
    newest: dict[int, int] = {}
    for _, session, iteration in keys:
        newest[session] = max(newest.get(session, 0), iteration)
    pushed = _where(keys, {key for key in keys if losses[key][1]})
    would = _where(keys, {*fired})
    return {
        "device": device,
        "recorded": len(keys),
        "missing": sum(newest.values()) - len(keys),
        "published": len(pushed),
        "would_publish": len(would),
        "forced": sum(fired[key] for key in would),
        "both": len(set(pushed) & set(would)),
        "iterations": [[session, iteration] for _, session, iteration in would],
    }


def _where(keys: Iterable[Key], chosen: set[Key]) -> list[Key]:
    return [key for key in keys if key in chosen]
