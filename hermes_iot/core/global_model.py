"""The fleet's model: its vector, its version, its score, and the bytes it travels as.

It is encoded once per version, however many devices are answered with it. Two kinds of strategy need to know what a
device holds, which is what came out of the codec: one whose updates are displacements from it (`base`), and one whose
answers are differences from it (`answer`). Both go by digest and never by version: a coordinator that came back from an
older checkpoint gives the same numbers to other models. An answer as a difference leaves out nothing for good: what its
codec cuts off is part of the next one.

What is known of devices is bounded in bytes (`views`) and lives no longer than this process. A device whose vector is
not known (any more) is answered with the whole model, in the codec of the regime. The differences made of one version
are kept for others that hold the same, within a bound of their own: repetitions of one device must not pile them up.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np

from hermes_iot.algorithms.compression import pack, unpack
from hermes_iot.algorithms.split import split_of
from hermes_iot.algorithms.strategies.base import Regime
from hermes_iot.algorithms.trees import is_finite, sha256
from hermes_iot.core.views import View, Views
from hermes_iot.domain import Codec, DeviceId, Params, Score
from hermes_iot.protocol.messages import Model, RunManifest

#: Whole models that somebody may still hold.
BASES_MAX: Final = 64

#: Vectors that devices are known to hold, whole models included, take at most this much, or two of them where those are
#: larger; the one used longest ago gives way.
VIEWS_BYTES_MAX: Final = 512 * 1024 * 1024

#: Differences of the present version, each with the vector it leads to, take at most this much, or one where that is
#: larger; the oldest is made again when it is wanted again.
DIFFERENCES_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A body, and what a device holds once it has it."""

    codec: Codec
    body: bytes
    view: View | None

    @property
    def cost(self) -> int:
        """Bytes it takes."""
        return len(self.body) + (self.view.vector.nbytes if self.view is not None else 0)


class GlobalModel:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        version: grows by one with every change.
        score: of the served model on the held-out rows; None before the first measurement.
        split: which entries travel in fp16 whatever the codec.
    """

    def __init__(self, manifest: RunManifest, vector: Params, regime: Regime) -> None:
        self.vector = vector
        self.version = 0
        self.score: Score | None = None
        self.split = split_of(manifest.model.tensors, manifest.fine)
        self._run = manifest.run
        self._sha256 = manifest.model.sha256
        self._codec_down = manifest.codec_down
        self._codec: Codec = regime.codec_whole if regime.delta_down else manifest.codec_down
        self._regime = regime
        self._views = Views(bytes_max=VIEWS_BYTES_MAX, wholes_max=BASES_MAX)
        self._whole: Encoded | None = None
        self._differences: OrderedDict[str, Encoded] = OrderedDict()
        self._differences_bytes = 0

    @property
    def wholes(self) -> int:
        """How many whole models are kept for whoever may still hold them."""
        return self._views.wholes

    @property
    def bytes_held(self) -> dict[str, tuple[int, int]]:
        """Bytes kept of what devices hold and of what was made for them, by name, and how many at most."""
        vector_bytes = self.vector.nbytes
        return {
            "bytes of views": (self._views.bytes_held, self._views.bytes_most(vector_bytes)),
            # No body is longer than the vector it is of, but for what a codec writes beside the entries.
            "bytes of differences": (self._differences_bytes, max(DIFFERENCES_BYTES_MAX, 3 * vector_bytes)),
        }

    def advance(self, vector: Params, score: Score | None) -> None:
        """The next version; without a score the newest one measured stays."""
        self.restore(self.version + 1, vector, score or self.score)

    def restore(self, version: int, vector: Params, score: Score | None) -> None:
        """This vector under this version."""
        self.version, self.vector, self.score = version, vector, score
        self._whole = None
        self._differences.clear()
        self._differences_bytes = 0

    def base(self, device: DeviceId, digest: str) -> Params | None:
        """The vector of shape (P,) that a device holds by the digest it names; None when it is not known (any more)."""
        view = self._views.held(device, digest) if self._regime.needs_base else None
        return view.vector if view is not None else None

    def whole(self, session: int = 0, seq: int = 0) -> Model:
        """The keyframe, or the whole model as an answer."""
        return self._message(self._packed(), session=session, seq=seq)

    def answer(self, device: DeviceId, base: str, *, session: int = 0, seq: int = 0, iterations: int = 0) -> Model:
        """The answer to the update (session, seq) of a device that holds the vector of digest `base`, "" = unknown.

        Where answers are differences, what the device holds from now on is remembered: an answer that gets lost shows
        in the `base` of its next update.
        """
        view = self._views.held(device, base) if self._regime.delta_down else None
        encoded = self._difference(view) if view is not None else None
        known = base if encoded is not None else ""
        encoded = encoded or self._packed()
        if encoded.view is not None and self._regime.delta_down:
            self._views.remember(device, encoded.view)
        return self._message(encoded, session=session, seq=seq, base=known, iterations=iterations)

    def _message(self, encoded: Encoded, *, session: int, seq: int, base: str = "", iterations: int = 0) -> Model:
        return Model(
            run=self._run,
            version=self.version,
            session=session,
            seq=seq,
            base=base,
            iterations=iterations,
            model=self._sha256,
            codec=encoded.codec,
            parameters=self.vector.size,
            body=encoded.body,
        )

    def _difference(self, view: View) -> Encoded | None:
        """The difference from a view; made once for all that hold the same. None where it leads out of float32."""
        if view.sha256 in self._differences:
            return self._differences[view.sha256]
        with np.errstate(over="ignore", invalid="ignore"):
            apart = self.vector - view.vector
            if not is_finite(apart):
                return None
            body = pack(apart, self._codec_down, self.split)
            vector = view.vector + unpack(body, self._codec_down, self.vector.size, self.split)
        if not is_finite(vector):
            return None
        made = Encoded(codec=self._codec_down, body=body, view=View(vector=vector, sha256=sha256(vector)))
        self._differences[view.sha256] = made
        self._differences_bytes += made.cost
        while len(self._differences) > 1 and self._differences_bytes > DIFFERENCES_BYTES_MAX:
            _, oldest = self._differences.popitem(last=False)
            self._differences_bytes -= oldest.cost
        return made

    def _packed(self) -> Encoded:
        if self._whole is None:
            body, view = pack(self.vector, self._codec, self.split), None
            if self._regime.needs_base or self._regime.delta_down:
                vector = unpack(body, self._codec, self.vector.size, self.split)
                view = View(vector=vector, sha256=sha256(vector))
                self._views.publish(view)
            self._whole = Encoded(codec=self._codec, body=body, view=view)
        return self._whole
