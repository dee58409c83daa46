"""Every bound on what a peer may make us hold or do, by name. Exceeding one is a `ProtocolError` with the reason named here.

The numbers are ours; where a broker dictates one it is said. A bound is checked before the memory it protects is
taken: a chunk's claimed total before the first byte is kept, a zstd frame's declared size before it is inflated, a
vector's length before numpy allocates.

The bounds here are for who knows nothing yet: they take the largest model there may be. Whoever knows the run knows how long
a body of its model can be, and takes no more (`Limits.with_bodies_of`): a packet of 8 kB must not cost the coordinator of a
small model the memory of a large one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: AWS IoT Core takes 128 KiB, the smallest of the brokers we name; 120,000 bytes pass every one of them.
CHUNK_BYTES_DEFAULT: Final = 120_000

#: Room left in a broker's maximum packet for the MQTT header, the topic and the chunk header.
PACKET_OVERHEAD_BYTES: Final = 4096

#: What the bookkeeping of one half-received message costs beside its bytes, and of each of its parts (CPython, measured).
TRANSFER_BYTES: Final = 1536
TRANSFER_PART_BYTES: Final = 1

#: A tensor message's fields beside its body, those included that a later minor version may add.
TENSOR_FIELDS_BYTES_MAX: Final = 4096

#: The slowest link that a sender's first slices are waited for by: 64 kbit/s.
SLOW_LINK_BYTES_PER_S: Final = 8_000

#: Numbers that cross JSON stay exact in every language (IEEE double).
INTEGER_MAX: Final = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds for one process.

    Attributes:
        json_bytes_max: one JSON message (reason ``size``); a manifest of a 1,000-tensor model is about 60 KB.
        message_bytes_max: one tensor message, reassembled (reason ``size``).
        inflated_bytes_max: one body after zstd (reason ``inflate``).
        parts_max: chunks of one message (reason ``parts``).
        transfers_per_device_max: half-received messages of one kind kept for one receiver; the oldest gives way (counted
            by `Reassembler.displaced`). Of a device's updates it is one: newer replaces older.
        transfers_bytes_max: bytes of all half-received messages together, bookkeeping included; one sender may hold
            half of it (reason ``memory``). The default takes two messages of the largest size in the most parts.
        transfer_deadline_s: a half-received message that grows no more is dropped after this (counted by
            `Reassembler.expired`).
        transfer_bytes_per_s_min: and one that is slower than this on the whole, likewise. Half of a 64 kbit/s link.
        resume_after_s: what is missing is asked for so long after the last sign that no more comes by itself.
        resumes_max: asked so often for one transfer that does not grow.
        transfers_remembered_max: messages that are over, kept in mind so that a repeated slice is not taken for news.
        devices_max: devices a coordinator will know (reason ``devices``).
    """

    json_bytes_max: int = 256 * 1024
    message_bytes_max: int = 256 * 1024 * 1024
    inflated_bytes_max: int = 256 * 1024 * 1024
    parts_max: int = 16_384
    transfers_per_device_max: int = 4
    transfers_bytes_max: int = 528 * 1024 * 1024
    transfer_deadline_s: float = 120.0
    transfer_bytes_per_s_min: float = 4_000.0
    resume_after_s: float = 2.0
    resumes_max: int = 5
    transfers_remembered_max: int = 4_096
    devices_max: int = 100_000

    def with_bodies_of(self, body_bytes_max: int) -> Limits:
        """These, for messages whose body is known never to be longer; none of them grows by it."""
        return replace(
            self,
            message_bytes_max=min(self.message_bytes_max, body_bytes_max + TENSOR_FIELDS_BYTES_MAX),
            inflated_bytes_max=min(self.inflated_bytes_max, body_bytes_max),
        )
