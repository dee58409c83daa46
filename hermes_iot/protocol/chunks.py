"""Split one message into slices a broker takes, and put slices together again.

One MQTT message larger than the broker's limit makes a client reconnect and resend for ever, so nothing larger than
a chunk is ever handed to the transport. A transfer is known by the SHA-256 of its whole content: slices may come in
any order, twice, or mixed with another transfer's. What is half received is bounded per sender and in total before
the first byte is kept, and dropped when it stops growing. A lost slice costs the whole transfer: the sender repeats
it because no ack or answer came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Chunk


def split(whole: bytes, *, chunk_bytes: int) -> Iterator[Chunk]:
    """Slices of at most `chunk_bytes` body bytes, in order; at least one."""
    digest = hashlib.sha256(whole).digest()
    parts = max(1, -(-len(whole) // chunk_bytes))
    for part in range(parts):
        body = whole[part * chunk_bytes : (part + 1) * chunk_bytes]
        yield Chunk(id=digest, part=part, parts=parts, total=len(whole), body=body)


@dataclass(slots=True)
class _Transfer:
    parts: int
    total: int
    deadline: float
    bodies: dict[int, bytes] = field(default_factory=dict)
    held: int = 0


class Reassembler:
    """Half-received messages of all senders."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Insertion order is age: the oldest transfer of a sender gives way to its newest.
        self._transfers: dict[tuple[str, bytes], _Transfer] = {}
        self._claimed_bytes = 0

    @property
    def open_transfers(self) -> int:
        """How many messages are half received."""
        return len(self._transfers)

    def add(self, sender: str, chunk: Chunk, *, now: float) -> bytes | None:
        """Take one slice; the whole message once its last slice is in, else None.

        Raises:
            ProtocolError: ``parts`` (contradicts an earlier slice), ``memory`` (too much is half received),
                ``checksum`` (the whole does not hash to its id).
        """
        if chunk.parts == 1:
            return _verified(chunk.id, chunk.body, chunk.total)
        key = (sender, chunk.id)
        transfer = self._transfers.get(key) or self._open(key, chunk, now)
        if (transfer.parts, transfer.total) != (chunk.parts, chunk.total):
            raise ProtocolError("parts", f"part {chunk.part} contradicts the transfer it claims to belong to")
        if chunk.part not in transfer.bodies:
            if transfer.held + len(chunk.body) > transfer.total:
                self._close(key)
                raise ProtocolError("parts", "slices add up to more than the whole")
            transfer.bodies[chunk.part] = chunk.body
            transfer.held += len(chunk.body)
            transfer.deadline = now + self._limits.transfer_deadline_s
        if len(transfer.bodies) < transfer.parts:
            return None
        self._close(key)
        return _verified(chunk.id, b"".join(transfer.bodies[part] for part in range(transfer.parts)), transfer.total)

    def expire(self, *, now: float) -> int:
        """Drop transfers whose deadline has passed; how many."""
        late = [key for key, transfer in self._transfers.items() if transfer.deadline <= now]
        for key in late:
            self._close(key)
        return len(late)

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do."""
        return min((transfer.deadline for transfer in self._transfers.values()), default=None)

    def _open(self, key: tuple[str, bytes], chunk: Chunk, now: float) -> _Transfer:
        mine = [other for other in self._transfers if other[0] == key[0]]
        if len(mine) >= self._limits.transfers_per_device_max:
            self._close(mine[0])
        if self._claimed_bytes + chunk.total > self._limits.transfers_bytes_max:
            raise ProtocolError("memory", f"{self._claimed_bytes} bytes are half received, no room for {chunk.total}")
        transfer = _Transfer(chunk.parts, chunk.total, now + self._limits.transfer_deadline_s)
        self._transfers[key] = transfer
        self._claimed_bytes += chunk.total
        return transfer

    def _close(self, key: tuple[str, bytes]) -> None:
        self._claimed_bytes -= self._transfers.pop(key).total


def _verified(digest: bytes, whole: bytes, total: int) -> bytes:
    if len(whole) != total or hashlib.sha256(whole).digest() != digest:
        raise ProtocolError("checksum", f"{len(whole)} bytes do not hash to the id of their transfer")
    return whole
