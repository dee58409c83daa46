"""What becomes of an update, in the order in which it is cheapest to find out; merging is left to the strategy.

Everything here is about one update against the run's present state, and changes nothing. An update that is refused
has a reason, and the reason is a counter: received = applied + duplicate + stale + rejected (reliability.md, I7).

An update of an earlier life of its device is taken like any other where it is newer than all that were handled: it is
the one that the device had not seen acknowledged when it died, sent again under the same id or only now come through.

An update may name a base newer than the model: the coordinator came back from a checkpoint and the device did not
notice. A strategy that merges whole models takes it like any other; one that needs the base does not find it and
refuses, and the answer brings the device back into step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from hermes_iot.algorithms.compression import unpack
from hermes_iot.algorithms.split import Split
from hermes_iot.algorithms.strategies.base import Merged
from hermes_iot.algorithms.trees import is_finite
from hermes_iot.domain import Params
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import Outcome, RunManifest, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of an update.

    Attributes:
        reason: of a refusal, a stable word.
        lag: global versions made since its base.
        merged: what the strategy made of it; None unless applied.
    """

    outcome: Outcome
    reason: str = ""
    lag: int = 0
    merged: Merged | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an update is held against.

    Attributes:
        codecs: that an update may be written in.
        split: which entries of an update travel in fp16 whatever the codec.
        session: the sender's newest.
        handled: (session, seq) of the sender's newest update handled.
        version: of the global model.
        lag_max: an update from a model older by more is stale; None = never.
        closed: the run is over.
    """

    manifest: RunManifest
    codecs: Collection[str]
    split: Split | None
    session: int
    handled: tuple[int, int]
    version: int
    lag_max: int | None
    closed: bool


def judge(update: Update, standing: Standing, merge: Callable[[Params, int], Merged]) -> Verdict:
    """Check an update and hand it to `merge` (its vector and lag), which may refuse it with a `ProtocolError`.

    `merge` is the last step: whatever it changes is changed only for an update that is applied.
    """
    manifest = standing.manifest
    if update.run != manifest.run:
        return Verdict(outcome="rejected", reason="run")
    if update.model != manifest.model.sha256 or update.parameters != manifest.model.parameters:
        return Verdict(outcome="rejected", reason="model_mismatch")
    if update.codec not in standing.codecs:
        return Verdict(outcome="rejected", reason="codec")
    mark = (update.session, update.seq)
    if mark < standing.handled and update.session < standing.session:
        return Verdict(outcome="stale", reason="session")
    if mark <= standing.handled:
        return Verdict(outcome="duplicate")
    if standing.closed:
        return Verdict(outcome="stale", reason="finished")
    lag = max(0, standing.version - update.base_version)
    if standing.lag_max is not None and lag > standing.lag_max:
        return Verdict(outcome="stale", reason="lag", lag=lag)
    try:
        vector = unpack(update.body, update.codec, update.parameters, standing.split)
        return Verdict(outcome="applied", lag=lag, merged=merge(vector, lag))
    except ProtocolError as error:
        return Verdict(outcome="rejected", reason=error.reason, lag=lag)


def checked(merged: Merged) -> Merged:
    """Let no strategy make a model that holds NaN or infinity: it could neither be sent nor be got rid of.

    Raises:
        ProtocolError: ``finite``.
    """
    if merged.model is not None and not is_finite(merged.model):
        raise ProtocolError("finite", "the merged model would hold NaN or infinity")
    return merged
