"""The run in numbers, as a pure function of what the coordinator counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hermes_iot.algorithms.compression import CODINGS
from hermes_iot.core.global_model import GlobalModel
from hermes_iot.core.member import Member
from hermes_iot.core.tally import Tally
from hermes_iot.domain import Score


def summary_of(
    members: Iterable[Member], tally: Tally, model: GlobalModel, *, test: Score, wall_s: float
) -> dict[str, Any]:
    """JSON-able. `test` is the final model's score on the test rows.

    `bytes_up` and `bytes_down` are the sums of what devices report of their own links; `bytes_by_kind` is counted at the
    coordinator, where a keyframe that every device reads is one message.
    """
    ordered = sorted(members, key=lambda member: member.index)
    totals = [member.totals() for member in ordered]
    iterations = sum(one.iterations for one in totals)
    return {
        "accuracy": test.accuracy,
        "loss": test.loss,
        "validation_accuracy": model.score.accuracy if model.score is not None else None,
        "model_version": model.version,
        "devices": [member.summary() for member in ordered],
        "iterations": iterations,
        "updates_published": sum(one.published for one in totals),
        "updates_received": tally.received,
        "updates_applied": tally.applied,
        "updates_duplicate": tally.duplicate,
        "updates_stale": tally.stale,
        "updates_rejected": tally.rejected,
        "reasons": dict(tally.reasons),
        "bytes_up": sum(one.bytes_up for one in totals),
        "bytes_down": sum(one.bytes_down for one in totals),
        # The same iterations under BSP: each would have sent one model and fetched one, in half precision.
        "bytes_bsp": iterations * 2 * CODINGS["fp16"].body_bytes(model.vector.size),
        "bytes_by_kind": {"up": dict(tally.up), "down": dict(tally.down)},
        "wall_s": wall_s,
    }
