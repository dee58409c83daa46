"""The fleet's model: its vector, its version, its score, and the bytes it travels as.

It is encoded once per version, however many devices are answered with it. Strategies whose updates are displacements
need the vector a device started from; what a device holds is what came out of the codec, so that is what is kept, for
so many versions as `BASES_MAX` says and no longer than this process lives.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from hermes_iot.algorithms.compression import pack, unpack
from hermes_iot.domain import Params, Score
from hermes_iot.protocol.messages import Model, RunManifest

BASES_MAX: Final = 64


class GlobalModel:
    """Mutable, owned by the `Coordinator`.

    Attributes:
        version: grows by one with every change.
        score: on the held-out rows; None before the first measurement.
    """

    def __init__(self, manifest: RunManifest, vector: Params, *, keeps_bases: bool) -> None:
        self.vector = vector
        self.version = 0
        self.score: Score | None = None
        self._run = manifest.run
        self._sha256 = manifest.model.sha256
        self._codec = manifest.codec
        self._keeps_bases = keeps_bases
        self._bases: OrderedDict[int, Params] = OrderedDict()
        self._body: bytes | None = None

    def advance(self, vector: Params, score: Score) -> None:
        """The next version."""
        self.restore(self.version + 1, vector, score)

    def restore(self, version: int, vector: Params, score: Score) -> None:
        """This vector under this version."""
        self.version, self.vector, self.score = version, vector, score
        self._body = None

    def base(self, version: int) -> Params | None:
        """What a device holds that was sent this version; None when that is not known (any more)."""
        return self._bases.get(version)

    def message(self, session: int = 0, seq: int = 0) -> Model:
        """The answer to the update (session, seq); by default the keyframe, or the answer to a request."""
        return Model(
            run=self._run,
            version=self.version,
            session=session,
            seq=seq,
            model=self._sha256,
            codec=self._codec,
            parameters=self.vector.size,
            body=self._packed(),
        )

    def _packed(self) -> bytes:
        if self._body is None:
            self._body = pack(self.vector, self._codec)
            if self._keeps_bases:
                self._bases[self.version] = unpack(self._body, self._codec, self.vector.size)
                while len(self._bases) > BASES_MAX:
                    self._bases.popitem(last=False)
        return self._body
