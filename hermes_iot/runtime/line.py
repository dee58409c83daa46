"""Messages of many chunks that wait for the broker to take them, one behind the other, within a bound on their bytes.

A body that several messages share is counted once, by identity: an answer to a whole fleet costs one. A line that is full
takes nothing more, and says so. Nothing is lost by that which could not be lost on the way as well: a device asks again
for the shard or the model it lacks until it has it, and finds room when those before it are served. One message is always
taken, however large.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from hermes_iot.protocol.messages import Shard, TensorMessage
from hermes_iot.protocol.wire import Packet

#: Bodies in line, together: the largest message there may be, or two fp16 models of 25 million parameters and more.
LINE_BYTES_MAX: Final = 256 * 1024 * 1024

#: Kind, device, and which of its kind: one takes the place of another.
_Place: TypeAlias = tuple[type[TensorMessage], str, str]


@dataclass(frozen=True, slots=True)
class Stream:
    """A message on its way out, and what is left of it."""

    message: TensorMessage
    device: str
    packets: Iterator[Packet]

    @property
    def place(self) -> _Place:
        """Of a device's updates and answers there is one, of its shards one of each name."""
        which = self.message.sha256 if isinstance(self.message, Shard) else ""
        return type(self.message), self.device, which


class Line:
    """Mutable, owned by a `Link`.

    Attributes:
        bytes_held: of the bodies in line.
        refused: messages that were not taken.
    """

    def __init__(self, *, bytes_max: int = LINE_BYTES_MAX) -> None:
        self.bytes_held = 0
        self.refused = 0
        self._bytes_max = bytes_max
        self._streams: OrderedDict[_Place, Stream] = OrderedDict()
        self._holders: Counter[int] = Counter()  # of a body, by its identity: it lives as long as a message that has it

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def bytes_most(self) -> int:
        """What `bytes_held` never exceeds: the bound, or the one message that is larger."""
        return self._bytes_max if len(self._streams) != 1 else max(self._bytes_max, self.bytes_held)

    @property
    def first(self) -> Stream | None:
        """Whose turn it is; None when nobody waits."""
        return next(iter(self._streams.values()), None)

    def join(self, stream: Stream) -> bool:
        """Behind all others; whether it was taken.

        An update or an answer takes the place of the one before it, which is worth nothing any more. A shard that is in
        line already is not put there again: it is the same.
        """
        place, body = stream.place, stream.message.body
        before = self._streams.get(place)
        if before is not None:
            if isinstance(stream.message, Shard):
                return False
            self._leave(place)
        size = 0 if self._holders[id(body)] else len(body)
        if self._streams and self.bytes_held + size > self._bytes_max:
            self.refused += 1
            return False
        self._streams[place] = stream
        self._holders[id(body)] += 1
        self.bytes_held += size
        return True

    def carries(self, message: TensorMessage, device: str) -> bool:
        """Whether this very message is in line, or this shard."""
        there = self._streams.get(Stream(message, device, iter(())).place)
        return there is not None and (there.message is message or isinstance(message, Shard))

    def clear(self) -> None:
        """Nobody waits any more."""
        self._streams.clear()
        self._holders.clear()
        self.bytes_held = 0

    def pop(self) -> None:
        """The first is served."""
        if self._streams:
            self._leave(next(iter(self._streams)))

    def _leave(self, place: _Place) -> None:
        body = self._streams.pop(place).message.body
        self._holders[id(body)] -= 1
        if not self._holders[id(body)]:
            del self._holders[id(body)]
            self.bytes_held -= len(body)
