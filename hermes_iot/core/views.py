"""Vectors that devices are known to hold, within a bound on their bytes.

A model of 25 million parameters is 100 MB, so what a coordinator remembers of a fleet is counted in bytes and not in
models. A vector that several devices hold is kept once, under its digest. The one used longest ago gives way: whoever
held it is answered with the whole model, which costs bytes on the wire and nothing else. Two stay whatever the bound: the
newest whole model, which everybody may be about to fetch, and the vector that was told of last.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from hermes_iot.domain import DeviceId, Params


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A vector that a device holds, shape (P,), under its digest."""

    vector: Params
    sha256: str


class Views:
    """Mutable, owned by a `GlobalModel`.

    Args:
        bytes_max: of all vectors together.
        wholes_max: whole models that somebody may still hold.

    Attributes:
        bytes_held: of all vectors together: no more than `bytes_max`, or than two of them.
    """

    def __init__(self, *, bytes_max: int, wholes_max: int) -> None:
        self.bytes_held = 0
        self._bytes_max = bytes_max
        self._wholes_max = wholes_max
        self._kept: OrderedDict[str, View] = OrderedDict()  # the one used longest ago first
        self._wholes: OrderedDict[str, None] = OrderedDict()  # the first one published first
        self._newest_whole = ""
        self._of: dict[DeviceId, str] = {}  # a digest may stay when its vector had to go
        self._holders: Counter[str] = Counter()

    @property
    def wholes(self) -> int:
        """How many whole models are kept for whoever may still hold them."""
        return len(self._wholes)

    def bytes_most(self, vector_bytes: int) -> int:
        """What `bytes_held` never exceeds, where a vector has so many bytes."""
        return max(self._bytes_max, 2 * vector_bytes)

    def held(self, device: DeviceId, digest: str) -> View | None:
        """What a device holds, if the digest it names is that of its own view or of a whole model."""
        if digest not in self._kept or (self._of.get(device) != digest and digest not in self._wholes):
            return None
        self._kept.move_to_end(digest)
        return self._kept[digest]

    def remember(self, device: DeviceId, view: View) -> None:
        """A device holds this from now on, and what it held before no longer."""
        before = self._of.get(device)
        if before != view.sha256:
            self._of[device] = view.sha256
            self._holders[view.sha256] += 1
        self._keep(view)
        if before is not None and before != view.sha256:
            self._let_go(before)
        self._make_room(view.sha256)

    def publish(self, whole: View) -> None:
        """A whole model that any device may hold from now on."""
        self._newest_whole = digest = whole.sha256
        if digest not in self._wholes:
            self._wholes[digest] = None
            self._holders[digest] += 1
        self._keep(whole)
        while len(self._wholes) > self._wholes_max:
            oldest, _ = self._wholes.popitem(last=False)
            self._let_go(oldest)
        self._make_room(digest)

    def _keep(self, view: View) -> None:
        if view.sha256 not in self._kept:
            self._kept[view.sha256] = view
            self.bytes_held += view.vector.nbytes
        self._kept.move_to_end(view.sha256)

    def _let_go(self, digest: str) -> None:
        """One holder less; nobody needs what has none."""
        self._holders[digest] -= 1
        if not self._holders[digest]:
            del self._holders[digest]
            self._forget(digest)

    def _make_room(self, newest: str) -> None:
        stays = {newest, self._newest_whole}
        while self.bytes_held > self._bytes_max:
            oldest = next((digest for digest in self._kept if digest not in stays), None)
            if oldest is None:
                return
            self._forget(oldest)
            if oldest in self._wholes:
                del self._wholes[oldest]
                self._let_go(oldest)

    def _forget(self, digest: str) -> None:
        view = self._kept.pop(digest, None)
        if view is not None:
            self.bytes_held -= view.vector.nbytes
