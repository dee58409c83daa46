"""What devices were sent lately in more than one part, for those who ask for a part again.

Only messages are kept, not their encoded form: the answers of one version share their body, so a fleet of ten thousand
costs one model. Bounded in bytes and in number, what was sent longest ago goes first; whoever asks for a part of what
is not here any more is sent the whole anew. An answer replaces the one before it: a device awaits only the newest.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from hermes_iot.domain import DeviceId
from hermes_iot.protocol.messages import Model, Shard

#: Bodies kept, together. Two fp16 models of 25 million parameters.
SHIPPED_BYTES_MAX: Final = 128 * 1024 * 1024
SHIPPED_MAX: Final = 20_000


class Shipped:
    """Mutable, owned by the `Coordinator`."""

    def __init__(self, *, bytes_max: int = SHIPPED_BYTES_MAX, messages_max: int = SHIPPED_MAX) -> None:
        self._bytes_max = bytes_max
        self._messages_max = messages_max
        self._kept: OrderedDict[tuple[DeviceId, str], Model | Shard] = OrderedDict()
        self._answers: dict[DeviceId, str] = {}
        self._holders: Counter[int] = Counter()  # of a body, by its identity: it lives as long as a message that has it
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, device: DeviceId, transfer: str, message: Model | Shard) -> None:
        """A device was sent this under this id."""
        if isinstance(message, Model):
            before = self._answers.get(device)
            if before is not None:
                self._drop(device, before)
            self._answers[device] = transfer
        self._drop(device, transfer)
        self._kept[device, transfer] = message
        body = message.body
        self.bytes_held += len(body) if not self._holders[id(body)] else 0
        self._holders[id(body)] += 1
        while self.bytes_held > self._bytes_max or len(self._kept) > self._messages_max:
            self._drop(*next(iter(self._kept)))

    def find(self, device: DeviceId, transfer: str) -> Model | Shard | None:
        """What it was sent under this id; None when it is not kept (any more)."""
        return self._kept.get((device, transfer))

    def _drop(self, device: DeviceId, transfer: str) -> None:
        message = self._kept.pop((device, transfer), None)
        if message is None:
            return
        if self._answers.get(device) == transfer and isinstance(message, Model):
            del self._answers[device]
        body = message.body
        self._holders[id(body)] -= 1
        if not self._holders[id(body)]:
            del self._holders[id(body)]
            self.bytes_held -= len(body)
