"""What a board was doing when, for a chart: stretches of training, waiting and being off.

A long run has more stretches than a chart has pixels. Beyond a limit the shortest ones are joined to the stretch before
them, and from then on nothing shorter is noted: what is left is the picture at a coarser grain.
"""

from __future__ import annotations

from typing import Any, Final, Literal

Doing = Literal["train", "wait", "off"]

STRETCHES_MAX: Final = 2_000


class Timeline:
    """Mutable, one for a board.

    Args:
        now: when it begins, with the board off.
        most: how many stretches are kept.
    """

    __slots__ = ("_closed", "_doing", "_grain_s", "_most", "_since", "train_s")

    def __init__(self, *, now: float = 0.0, most: int = STRETCHES_MAX) -> None:
        self.train_s = 0.0
        self._closed: list[tuple[float, float, Doing]] = []
        self._doing: Doing = "off"
        self._since = now
        self._most = most
        self._grain_s = 0.0

    def enter(self, doing: Doing, *, now: float) -> None:
        """From now on it does this."""
        if doing == self._doing:
            return
        if self._doing == "train":
            self.train_s += now - self._since
        self._close(self._since, now, self._doing)
        self._doing, self._since = doing, now

    def settle(self, *, now: float) -> None:
        """The end: what was begun is counted up to now."""
        if self._doing == "train":
            self.enter("wait", now=now)

    def stretches(self, *, now: float) -> list[tuple[float, float, Doing]]:
        """(start, end, doing), seconds, without gaps, the last one up to now."""
        last = [(self._since, now, self._doing)] if now > self._since else []
        return [*self._closed, *last]

    def document(self, *, now: float) -> list[list[Any]]:
        """The same, JSON-able, in milliseconds' precision."""
        return [[round(start, 3), round(end, 3), doing] for start, end, doing in self.stretches(now=now)]

    def _close(self, start: float, end: float, doing: Doing) -> None:
        if end <= start:
            return
        _join(self._closed, (start, end, doing), self._grain_s)
        if len(self._closed) > self._most:
            span_s = end - self._closed[0][0]
            self._grain_s = max(2 * self._grain_s, span_s / self._most)
            kept: list[tuple[float, float, Doing]] = []
            for stretch in self._closed:
                _join(kept, stretch, self._grain_s)
            self._closed = kept


def _join(kept: list[tuple[float, float, Doing]], stretch: tuple[float, float, Doing], grain_s: float) -> None:
    """Append, or stretch the one before where this one is too short or of the same kind."""
    start, end, doing = stretch
    if kept and (kept[-1][2] == doing or end - start < grain_s):
        kept[-1] = (kept[-1][0], end, kept[-1][2])
    else:
        kept.append((start, end, doing))
