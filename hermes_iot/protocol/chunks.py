"""Split one message into slices a broker takes, and put slices together again.

One MQTT message larger than the broker's limit makes a client reconnect and resend for ever, so nothing larger than
a chunk is ever handed to the transport. A transfer is known by the SHA-256 of its whole content: slices may come in
any order, twice, or mixed with another transfer's. A lost slice costs the whole transfer: the sender repeats it
because no ack or answer came.

Slices are even: where slice 3 of 7 begins and ends follows from the length of the whole, so each one is checked
alone and slices of one byte cannot keep a large transfer alive.

What is half received is reserved in full, its bookkeeping included, before the first byte is kept. Refusing whoever
comes too late, rather than keeping a bit of everybody's, lets the early ones finish when more comes than fits. But a
claim costs its sender one byte, so claims must not be able to lock others out. What is guaranteed:

- never more than ``transfers_bytes_max`` together, never more than half of it for one sender;
- a sender's own oldest transfer gives way to its newest;
- where room is short, transfers with more bytes still to come give way to one with fewer. An empty claim holds
  nobody up, and the transfer nearest to its end is never lost to somebody else's;
- a transfer that has not grown for ``transfer_deadline_s`` is dropped.

Two senders that really send hundreds of megabytes and stop short can still fill the rest; the deadline ends it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.limits import TRANSFER_BYTES, TRANSFER_PART_BYTES, Limits
from hermes_iot.protocol.messages import Chunk


def parts_for(total: int, *, chunk_bytes: int) -> int:
    """Into how many slices of at most `chunk_bytes` body bytes `total` bytes are split; at least one."""
    return max(1, -(-total // chunk_bytes))


def split(whole: bytes, *, chunk_bytes: int, parts: int | None = None) -> Iterator[Chunk]:
    """Even slices of at most `chunk_bytes` body bytes, in order; `parts` asks for more of them than needed."""
    digest = hashlib.sha256(whole).digest()
    parts = max(parts or 0, parts_for(len(whole), chunk_bytes=chunk_bytes))
    for part in range(parts):
        body = whole[_slice(part, parts, len(whole))]
        yield Chunk(id=digest, part=part, parts=parts, total=len(whole), body=body)


@dataclass(slots=True)
class _Transfer:
    sender: str
    id: bytes
    parts: int
    total: int
    deadline: float = 0.0
    bodies: dict[int, bytes] = field(default_factory=dict)
    held: int = 0

    @property
    def cost(self) -> int:
        """Bytes reserved for it."""
        return self.total + self.parts * TRANSFER_PART_BYTES + TRANSFER_BYTES

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return self.total - self.held


class Reassembler:
    """Half-received messages of all senders. `now` must never run backwards."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Each growth moves a transfer to the end, so the first one is the next to expire.
        self._transfers: OrderedDict[tuple[str, bytes], _Transfer] = OrderedDict()
        # Per sender in order of opening: the oldest gives way to the newest.
        self._by_sender: dict[str, dict[bytes, _Transfer]] = {}
        self._reserved_bytes = 0
        self._displaced = 0

    @property
    def open_transfers(self) -> int:
        """How many messages are half received."""
        return len(self._transfers)

    @property
    def displaced(self) -> int:
        """How many transfers have given way to others so far."""
        return self._displaced

    def add(self, sender: str, chunk: Chunk, *, now: float) -> bytes | None:
        """Take one slice; the whole message once its last slice is in, else None.

        Raises:
            ProtocolError: ``parts`` (wrong length for its place, or contradicts an earlier slice), ``memory`` (no
                room for the whole), ``checksum`` (the whole does not hash to its id).
        """
        place = _slice(chunk.part, chunk.parts, chunk.total)
        if chunk.part >= chunk.parts or len(chunk.body) != place.stop - place.start:
            raise ProtocolError(
                "parts", f"{len(chunk.body)} bytes in part {chunk.part} of {chunk.parts}, {chunk.total} in all"
            )
        if chunk.parts == 1:
            return _verified(chunk.id, chunk.body)
        transfer = self._transfers.get((sender, chunk.id)) or self._open(sender, chunk)
        if (transfer.parts, transfer.total) != (chunk.parts, chunk.total):
            raise ProtocolError("parts", f"part {chunk.part} contradicts the transfer it claims to belong to")
        if chunk.part not in transfer.bodies:
            self._grow(transfer, chunk, now)
        if len(transfer.bodies) < transfer.parts:
            return None
        self._close(transfer)
        return _verified(chunk.id, b"".join(transfer.bodies[part] for part in range(transfer.parts)))

    def expire(self, *, now: float) -> int:
        """Drop transfers whose deadline has passed; how many."""
        late = 0
        while self._transfers and (first := next(iter(self._transfers.values()))).deadline <= now:
            self._close(first)
            late += 1
        return late

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do."""
        if not self._transfers:
            return None
        return next(iter(self._transfers.values())).deadline

    def _open(self, sender: str, chunk: Chunk) -> _Transfer:
        transfer = _Transfer(sender, chunk.id, chunk.parts, chunk.total)
        share = self._limits.transfers_bytes_max // 2
        if transfer.cost > share:
            raise ProtocolError("memory", f"{chunk.total} bytes in {chunk.parts} parts; a sender may hold {share}")
        mine = list(self._by_sender.get(sender, {}).values())
        reserved = sum(other.cost for other in mine)
        while mine and (len(mine) >= self._limits.transfers_per_device_max or reserved + transfer.cost > share):
            reserved -= mine[0].cost
            self._displace(mine.pop(0))
        for other in self._emptier(transfer.cost, missing=chunk.total - len(chunk.body)):
            self._displace(other)
        self._transfers[sender, chunk.id] = transfer
        self._by_sender.setdefault(sender, {})[chunk.id] = transfer
        self._reserved_bytes += transfer.cost
        return transfer

    def _emptier(self, cost: int, *, missing: int) -> list[_Transfer]:
        """Transfers that must give way for `cost` bytes, all with more than `missing` bytes to come."""
        shortage = self._reserved_bytes + cost - self._limits.transfers_bytes_max
        if shortage <= 0:
            return []
        chosen = []
        emptier = (transfer for transfer in self._transfers.values() if transfer.missing > missing)
        for transfer in sorted(emptier, key=lambda transfer: transfer.missing, reverse=True):
            chosen.append(transfer)
            shortage -= transfer.cost
            if shortage <= 0:
                return chosen
        raise ProtocolError("memory", f"{self._reserved_bytes} bytes are half received, no room for {cost}")

    def _grow(self, transfer: _Transfer, chunk: Chunk, now: float) -> None:
        transfer.bodies[chunk.part] = chunk.body
        transfer.held += len(chunk.body)
        transfer.deadline = now + self._limits.transfer_deadline_s
        self._transfers.move_to_end((transfer.sender, transfer.id))

    def _displace(self, transfer: _Transfer) -> None:
        self._close(transfer)
        self._displaced += 1

    def _close(self, transfer: _Transfer) -> None:
        del self._transfers[transfer.sender, transfer.id]
        mine = self._by_sender[transfer.sender]
        del mine[transfer.id]
        if not mine:
            del self._by_sender[transfer.sender]
        self._reserved_bytes -= transfer.cost


def _slice(part: int, parts: int, total: int) -> slice:
    return slice(part * total // parts, (part + 1) * total // parts)


def _verified(digest: bytes, whole: bytes) -> bytes:
    if hashlib.sha256(whole).digest() != digest:
        raise ProtocolError("checksum", f"{len(whole)} bytes do not hash to the id of their transfer")
    return whole
