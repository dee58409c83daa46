"""Cut one message into slices a broker takes, and say which slices are missing.

One MQTT message larger than the broker's limit makes a client reconnect and resend for ever, so nothing larger than
a chunk is ever handed to the transport. A transfer is known by the SHA-256 of its whole content, so whoever has the
message can cut it again and send just the slices that somebody asks for (`reassembly` puts them together).

Slices are even: where slice 3 of 7 begins and ends follows from the length of the whole, so each one is checked
alone and slices of one byte cannot keep a large transfer alive.

What is missing travels as a bitmap of one bit for each slice, part 0 in the highest bit of the first byte: 2 KiB for the
most parts there can be. It comes from a peer and makes us send, so it is read strictly: of the very length, at least
one bit, none beyond the last part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import Chunk


def parts_for(total: int, *, chunk_bytes: int) -> int:
    """Into how many slices of at most `chunk_bytes` body bytes `total` bytes are split; at least one."""
    return max(1, -(-total // chunk_bytes))


def place(part: int, parts: int, total: int) -> slice:
    """Where a slice lies in the whole."""
    return slice(part * total // parts, (part + 1) * total // parts)


@dataclass(frozen=True, slots=True)
class Cut:
    """One encoded message in pieces as they were made, and where it is cut. A large body is never copied whole.

    Attributes:
        pieces: the encoded message, in order.
        parts: how many slices.
        total: length of the whole in bytes.
        id: SHA-256 of the whole.
    """

    pieces: tuple[bytes, ...]
    parts: int
    total: int
    id: bytes

    @classmethod
    def of(cls, pieces: Iterable[bytes], *, parts: int) -> Cut:
        """Into so many slices; one must not be empty."""
        held, digest = tuple(pieces), hashlib.sha256()
        for piece in held:
            digest.update(piece)
        return cls(held, parts, sum(map(len, held)), digest.digest())

    @property
    def slice_bytes(self) -> int:
        """Length of the longest slice."""
        return -(-self.total // self.parts)

    def chunk(self, part: int) -> Chunk:
        """One slice."""
        where, found, at = place(part, self.parts, self.total), [], 0
        for piece in self.pieces:
            found.append(memoryview(piece)[max(0, where.start - at) : max(0, where.stop - at)])
            at += len(piece)
        return Chunk(id=self.id, part=part, parts=self.parts, total=self.total, body=b"".join(found))


def split(whole: bytes, *, chunk_bytes: int, parts: int | None = None) -> Iterator[Chunk]:
    """Even slices of at most `chunk_bytes` body bytes, in order; `parts` asks for more of them than needed."""
    cut = Cut.of((whole,), parts=max(parts or 0, parts_for(len(whole), chunk_bytes=chunk_bytes)))
    return (cut.chunk(part) for part in range(cut.parts))


def pack_parts(missing: Iterable[int], parts: int) -> bytes:
    """The bitmap of the missing ones among so many parts."""
    bitmap = bytearray(-(-parts // 8))
    for part in missing:
        bitmap[part // 8] |= 0x80 >> part % 8
    return bytes(bitmap)


def unpack_parts(bitmap: bytes, parts: int) -> tuple[int, ...]:
    """The missing parts, in order.

    Raises:
        ProtocolError: ``bitmap``: another length than so many parts have, none missing, or a part that there is not.
    """
    if len(bitmap) != -(-parts // 8):
        raise ProtocolError("bitmap", f"{len(bitmap)} bytes for {parts} parts")
    missing = tuple(part for part in range(8 * len(bitmap)) if bitmap[part // 8] & 0x80 >> part % 8)
    if not missing or missing[-1] >= parts:
        raise ProtocolError("bitmap", f"of {parts} parts it asks for {missing[-1] if missing else 'none'}")
    return missing
