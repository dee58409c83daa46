"""Put the slices of a message together again, and ask for those that do not come.

Slices may come in any order, twice, or mixed with another transfer's; out comes the original or nothing.

What is half received is reserved in full, its bookkeeping included, before the first byte is kept. Refusing whoever
comes too late, rather than keeping a bit of everybody's, lets the early ones finish when more comes than fits. But a
claim costs its sender one byte, so claims must not be able to lock others out. What is guaranteed:

- never more than ``transfers_bytes_max`` together, never more than half of it for one sender;
- a sender's own oldest transfer gives way to its newest;
- where room is short, transfers with more bytes still to come give way to one with fewer. An empty claim holds
  nobody up, and the transfer nearest to its end is never lost to somebody else's;
- a transfer that has not grown for ``transfer_deadline_s``, or that is slower than ``transfer_bytes_per_s_min`` on the
  whole, is dropped: who sends one slice a minute cannot hold memory for a week.

Two senders that really send hundreds of megabytes and stop short can still fill the rest; the deadline ends it.

Memory is reserved as one buffer and slices are written into it: the pages of what has not come are never touched, and
the whole is there without a copy once the last slice is.

**Asking again.** Broker and TCP keep the order of one sender's slices, so when the last one is here and others are not,
they will not come by themselves; neither will they when none comes for a good while longer than they took so far. Then
there is a `Gap`: whoever owns this asks for exactly these parts, ever more patiently, and after ``resumes_max`` times
without any growth no more. A repeated slice means that the sender has begun again and wants to know what is lacking.
A message that was complete is never asked for: the network repeats slices on its own account, and one of those must not
bring the whole again. One that has given way may be either, what was sent before the present one or what is sent now and
was pushed out by something late. It comes back when the present one has grown no more for a while.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import mmap
from collections import OrderedDict
from dataclasses import dataclass, field

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.chunks import pack_parts, place
from hermes_iot.protocol.limits import SLOW_LINK_BYTES_PER_S, TRANSFER_BYTES, TRANSFER_PART_BYTES, Limits
from hermes_iot.protocol.messages import Chunk

#: How many pauses as long as the longest so far a sender may make before its slices are taken for lost.
_PATIENCE = 2

#: From this length on a message half received has pages of its own.
_PAGES_FROM_BYTES = 256 * 1024

#: Entries of the queue of deadlines that may be out of date before it is made anew.
_STALE_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What is missing of one transfer.

    Attributes:
        sender: as it was given.
        id: of the transfer.
        parts: how many it has.
        missing: bitmap of those that are not here.
        missing_bytes: what they weigh together.
        patient_until: when this is asked for again if nothing comes; infinite when no more.
    """

    sender: str
    id: bytes
    parts: int
    missing: bytes
    missing_bytes: int
    patient_until: float


@dataclass(slots=True)
class _Transfer:
    sender: str
    id: bytes
    parts: int
    total: int
    opened_at: float
    content: memoryview = field(repr=False)
    here: bytearray = field(repr=False)
    pace_s: float
    held: int = 0
    held_parts: int = 0
    grown_at: float = 0.0
    deadline: float = 0.0
    ask_at: float = math.inf
    asked: int = 0
    resumable: bool = False

    @property
    def cost(self) -> int:
        """Bytes reserved for it."""
        return _cost(self.parts, self.total)

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return self.total - self.held

    @property
    def due(self) -> float:
        """When something is to be done about it."""
        return min(self.deadline, self.ask_at)


class Reassembler:
    """Half-received messages of all senders. `now` must never run backwards.

    Attributes:
        displaced: transfers that have given way to others.
        expired: transfers dropped at their deadline.
        asked: gaps given out.
        repeated: slices of messages that were over, ignored because another of the same sender was under way.
        grew: where the slice added last was a new one of a message that is still not whole, when its sender will be
            taken for stuck; else None.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._transfers: dict[tuple[str, bytes], _Transfer] = {}
        # Per sender in order of opening: the oldest gives way to the newest.
        self._by_sender: dict[str, dict[bytes, _Transfer]] = {}
        self._over: OrderedDict[tuple[str, bytes], bool] = OrderedDict()  # and whether they were complete
        # Entries may be too early, never too late: growth only puts things off, and what hastens them adds another.
        self._due: list[tuple[float, int, tuple[str, bytes]]] = []
        self._entries = 0
        self._reserved_bytes = 0
        self.displaced = 0
        self.expired = 0
        self.asked = 0
        self.repeated = 0
        self.grew: float | None = None

    @property
    def open_transfers(self) -> int:
        """How many messages are half received."""
        return len(self._transfers)

    @property
    def reserved_bytes(self) -> int:
        """Memory kept for them."""
        return self._reserved_bytes

    def add(
        self, sender: str, chunk: Chunk, *, now: float, resumable: bool = False, most: int | None = None
    ) -> bytes | memoryview | None:
        """Take one slice; the whole message once its last slice is in, else None.

        Args:
            sender: whose it is; transfers of two senders never mix.
            chunk: the slice.
            now: seconds.
            resumable: whether missing slices may be asked for.
            most: transfers this sender may have half-sent; None = ``transfers_per_device_max``.

        Raises:
            ProtocolError: ``parts`` (wrong length for its place, or contradicts an earlier slice), ``memory`` (no
                room for the whole), ``checksum`` (the whole does not hash to its id).
        """
        self.grew = None
        where = place(chunk.part, chunk.parts, chunk.total)
        if chunk.part >= chunk.parts or len(chunk.body) != where.stop - where.start:
            raise ProtocolError(
                "parts", f"{len(chunk.body)} bytes in part {chunk.part} of {chunk.parts}, {chunk.total} in all"
            )
        if chunk.parts == 1:
            return _verified(chunk.id, chunk.body)
        transfer = self._transfers.get((sender, chunk.id))
        if transfer is None:
            most = most or self._limits.transfers_per_device_max
            if self._is_repetition(sender, chunk.id, now, most):
                self.repeated += 1  # by the network; what is under way must not give way to it
                return None
            transfer = self._open(sender, chunk, now, most)
            transfer.resumable = resumable and not self._over.get((sender, chunk.id), False)
        if (transfer.parts, transfer.total) != (chunk.parts, chunk.total):
            raise ProtocolError("parts", f"part {chunk.part} contradicts the transfer it claims to belong to")
        if transfer.here[chunk.part]:
            self._hurry(transfer, now)
        else:
            self._grow(transfer, chunk, where, now)
        if transfer.held_parts < transfer.parts:
            return None
        self._close(transfer)
        whole = _verified(chunk.id, transfer.content)
        self._finish(transfer, complete=True)
        return whole

    def expire(self, *, now: float) -> int:
        """Drop transfers whose deadline has passed; how many."""
        late = [transfer for transfer in self._overdue(now) if transfer.deadline <= now]
        for transfer in late:
            self._close(transfer)
        self.expired += len(late)
        return len(late)

    def gaps(self, *, now: float) -> list[Gap]:
        """What is to be asked for now, each once until it is due again."""
        found = []
        for transfer in self._overdue(now):
            if transfer.ask_at > now:
                continue
            transfer.asked += 1
            self.asked += 1
            patience_s = self._patience_s(transfer) * 2**transfer.asked
            self._ask(transfer, now + patience_s if transfer.asked < self._limits.resumes_max else math.inf)
            missing = pack_parts((part for part in range(transfer.parts) if not transfer.here[part]), transfer.parts)
            found.append(
                Gap(
                    sender=transfer.sender,
                    id=transfer.id,
                    parts=transfer.parts,
                    missing=missing,
                    missing_bytes=transfer.missing,
                    patient_until=transfer.ask_at,
                )
            )
        return found

    def hasten(self, *, now: float) -> None:
        """The way to the senders is open again: ask soon for what was lost with the connection."""
        for transfer in self._transfers.values():
            self._hurry(transfer, now)

    def arriving(self) -> dict[str, float]:
        """The senders of messages that may still come by being asked for, and until when each is waited for."""
        found: dict[str, float] = {}
        for transfer in self._transfers.values():
            if transfer.ask_at < math.inf:
                found[transfer.sender] = max(transfer.ask_at, found.get(transfer.sender, transfer.ask_at))
        return found

    def next_deadline(self, *, asking: bool = True) -> float | None:
        """When `expire` or, with `asking`, `gaps` next has something to do."""
        if not self._due:  # nothing is half received, as nearly always
            return None
        if not asking:
            return min((transfer.deadline for transfer in self._transfers.values()), default=None)
        self._tidy()
        return self._due[0][0] if self._due else None

    # --- transfers ------------------------------------------------------------------------------------------------

    def _open(self, sender: str, chunk: Chunk, now: float, most: int) -> _Transfer:
        mine = list(self._by_sender.get(sender, {}).values())
        cost, share = _cost(chunk.parts, chunk.total), self._limits.transfers_bytes_max // 2
        if cost > share:
            raise ProtocolError("memory", f"{chunk.total} bytes in {chunk.parts} parts; a sender may hold {share}")
        reserved = sum(other.cost for other in mine)
        while mine and (len(mine) >= most or reserved + cost > share):
            reserved -= mine[0].cost
            self._finish(mine[0], complete=False)
            self._displace(mine.pop(0))
        for other in self._emptier(cost, missing=chunk.total - len(chunk.body)):
            self._displace(other)
        transfer = _Transfer(
            sender,
            chunk.id,
            chunk.parts,
            chunk.total,
            opened_at=now,
            content=_buffer(chunk.total),
            here=bytearray(chunk.parts),
            pace_s=len(chunk.body) / SLOW_LINK_BYTES_PER_S,
        )
        self._transfers[sender, chunk.id] = transfer
        self._by_sender.setdefault(sender, {})[chunk.id] = transfer
        self._reserved_bytes += cost
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

    def _grow(self, transfer: _Transfer, chunk: Chunk, where: slice, now: float) -> None:
        transfer.content[where] = chunk.body
        transfer.here[chunk.part] = 1
        pause_s = now - transfer.grown_at
        if transfer.held_parts:
            transfer.pace_s = pause_s if transfer.held_parts == 1 else max(transfer.pace_s, pause_s)
        transfer.held += len(chunk.body)
        transfer.held_parts += 1
        transfer.grown_at, transfer.asked = now, 0
        limits = self._limits
        slowest_s = transfer.held / limits.transfer_bytes_per_s_min
        transfer.deadline = limits.transfer_deadline_s + min(now, transfer.opened_at + slowest_s)
        ordered = transfer.here[-1]  # whatever was sent before the last one is not on its way any more
        self._ask(transfer, now + (limits.resume_after_s if ordered else self._patience_s(transfer)))
        self.grew = transfer.ask_at if transfer.resumable else now + self._patience_s(transfer)

    def _patience_s(self, transfer: _Transfer) -> float:
        return self._limits.resume_after_s + _PATIENCE * transfer.pace_s

    def _ask(self, transfer: _Transfer, at: float) -> None:
        transfer.ask_at = at if transfer.resumable else math.inf
        self._enter(transfer)

    def _hurry(self, transfer: _Transfer, now: float) -> None:
        soon = now + self._limits.resume_after_s
        if transfer.resumable and soon < transfer.ask_at and transfer.asked < self._limits.resumes_max:
            self._ask(transfer, soon)

    def _displace(self, transfer: _Transfer) -> None:
        self._close(transfer)
        self.displaced += 1

    def _close(self, transfer: _Transfer) -> None:
        key = (transfer.sender, transfer.id)
        del self._transfers[key]
        mine = self._by_sender[transfer.sender]
        del mine[transfer.id]
        if not mine:
            del self._by_sender[transfer.sender]
        self._reserved_bytes -= transfer.cost

    def _is_repetition(self, sender: str, transfer_id: bytes, now: float, most: int) -> bool:
        """Whether a slice of no transfer that is here is one of the past, and would cost one that is under way."""
        complete, mine = self._over.get((sender, transfer_id)), self._by_sender.get(sender, {})
        if complete is None or len(mine) < most or any(self._over.get((sender, other), False) for other in mine):
            return False
        paying = next(iter(mine.values()))
        return complete or now < paying.grown_at + self._patience_s(paying)

    def _finish(self, transfer: _Transfer, *, complete: bool) -> None:
        """It is over, for good or until it comes again, and remembered as such for as long as there is room."""
        key = (transfer.sender, transfer.id)
        self._over[key] = complete or self._over.get(key, False)
        self._over.move_to_end(key)
        while len(self._over) > self._limits.transfers_remembered_max:
            self._over.popitem(last=False)

    # --- time -----------------------------------------------------------------------------------------------------

    def _enter(self, transfer: _Transfer) -> None:
        self._entries += 1
        heapq.heappush(self._due, (transfer.due, self._entries, (transfer.sender, transfer.id)))
        if len(self._due) > _STALE_MAX + 2 * len(self._transfers):
            self._due = [(one.due, number, key) for number, (key, one) in enumerate(self._transfers.items())]
            self._entries = len(self._due)
            heapq.heapify(self._due)

    def _tidy(self) -> None:
        """The first entry is true: what it names is there, and due then."""
        while self._due:
            at, _, key = self._due[0]
            transfer = self._transfers.get(key)
            if transfer is not None and transfer.due == at:
                return
            heapq.heappop(self._due)

    def _overdue(self, now: float) -> list[_Transfer]:
        if not self._due:
            return []
        found: dict[tuple[str, bytes], _Transfer] = {}
        self._tidy()
        while self._due and self._due[0][0] <= now:
            _, _, key = heapq.heappop(self._due)
            found[key] = self._transfers[key]
            self._tidy()
        for transfer in found.values():
            self._enter(transfer)
        return list(found.values())


def _buffer(length: int) -> memoryview:
    """So many writable bytes, in pages of their own where there are many: not touched before they are written."""
    if length < _PAGES_FROM_BYTES:
        return memoryview(bytearray(length))
    return memoryview(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def _cost(parts: int, total: int) -> int:
    return total + parts * TRANSFER_PART_BYTES + TRANSFER_BYTES


def _verified(digest: bytes, whole: bytes | memoryview) -> bytes | memoryview:
    if hashlib.sha256(whole).digest() != digest:
        raise ProtocolError("checksum", f"{len(whole)} bytes do not hash to the id of their transfer")
    return whole
