"""A line that can be made bad: a TCP relay between a client and its broker, in a thread of its own.

Delay, narrow bandwidth, tiny segments, silence, changed bytes and resets, while connections live. What a kernel with
netem would do to packets is done to the byte stream here, so it needs no rights and works on every machine; loss of
packets it cannot make, because TCP would mend it. Silence is the one fault that loses bytes: they vanish, nothing is
closed, the end of the stream is not passed on either, as behind a router that forgot the connection. A connection
that lost bytes is reset when the line is well again, for it could never go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

Direction = Literal["up", "down"]  # from the client, to the client

#: A read; small enough that a narrow line does not take more than it can carry in a moment.
_READ_BYTES = 4096
_PIECES_MAX = 4096  # under way on a line with a delay
_PATIENCE_S = 10.0
_RESET = struct.pack("ii", 1, 0)  # linger for no time: closing sends RST


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How good the line is.

    Attributes:
        delay_s: each byte arrives so much later.
        bytes_per_s: in each direction, shared by all connections; None for as fast as it goes.
        slice_bytes: the largest segment.
        silent: directions in which bytes vanish. With one of them a new connection is taken and not passed on.
        refuses: new connections are closed at once.
    """

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    slice_bytes: int = 65_536
    silent: frozenset[Direction] = frozenset()
    refuses: bool = False


@dataclass(slots=True, eq=False)
class _Pair:
    """The two ends of one connection; `torn` once bytes of it are missing."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter | None = None
    torn: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def reset(self) -> None:
        self.over.set()
        for end in (self.client, self.broker):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.transport.abort()


class Proxy:
    """Relays 127.0.0.1:`port` to 127.0.0.1:`target_port`. Every method may be called from any thread.

    Attributes:
        carried: bytes that arrived, by direction.
        connections: how many there were.
        silent_s_max: the longest pause between two arrivals, by direction.
    """

    def __init__(self, target_port: int, *, line: Line | None = None) -> None:
        self.port = 0
        self.carried: Counter[str] = Counter()
        self.connections = 0
        self.silent_s_max: dict[str, float] = {"up": 0.0, "down": 0.0}
        self._arrived_at: dict[str, float] = {}
        self._target_port = target_port
        self._line = line or Line()
        self._free_at: dict[str, float] = {"up": 0.0, "down": 0.0}
        self._alterations: dict[str, list[Callable[[bytes], bytes]]] = {"up": [], "down": []}
        self._pairs: set[_Pair] = set()
        self._arrived = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        assert self._ready.wait(_PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"mqtt://127.0.0.1:{self.port}"

    def change(self, **changes: Any) -> None:
        """Another line from now on (`Line`); what is under way arrives as it would have."""
        self._do(lambda: self._become(replace(self._line, **changes)))

    def silence(self, *directions: Direction) -> None:
        """Swallow everything; without directions both."""
        self.change(silent=frozenset(directions or ("up", "down")))

    def heal(self) -> None:
        """A line without faults."""
        self._do(lambda: self._become(Line()))

    def cut(self) -> None:
        """Reset all connections, and let no new one through until `mend` or `heal`."""

        def act() -> None:
            self._become(replace(self._line, refuses=True))
            self._reset_all()

        self._do(act)

    def mend(self) -> None:
        """Let connections through again."""
        self.change(refuses=False)

    def reset(self) -> None:
        """Reset all connections; new ones get through."""
        self._do(self._reset_all)

    def alter(self, direction: Direction, change: Callable[[bytes], bytes], *, pieces: int = 1) -> None:
        """Let `change` have the next pieces that pass."""
        self._do(lambda: self._alterations[direction].extend([change] * pieces))

    def wait(self, direction: Direction, count: int, timeout_s: float = 2 * _PATIENCE_S) -> None:
        """Until so many bytes have arrived in all."""
        with self._arrived:
            came = self._arrived.wait_for(lambda: self.carried[direction] >= count, timeout_s)
        assert came, f"{self.carried[direction]} of {count} bytes went {direction}"

    def wait_for_connections(self, count: int, timeout_s: float = 2 * _PATIENCE_S) -> None:
        """Until so many were taken in all."""
        with self._arrived:
            came = self._arrived.wait_for(lambda: self.connections >= count, timeout_s)
        assert came, f"{self.connections} of {count} connections were made"

    def close(self) -> None:
        """Reset everything and end."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(_PATIENCE_S)
            assert not self._thread.is_alive()

    def _do(self, act: Callable[[], object]) -> None:
        done = threading.Event()

        def acting() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(acting)
        assert done.wait(_PATIENCE_S)

    # --- the loop's side ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        # A line's own buffer is small: what it cannot carry yet stays with the sender.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * _READ_BYTES)
        server = await asyncio.start_server(self._connect, sock=listener, limit=_READ_BYTES)
        self.port = listener.getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        self._reset_all()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    def _become(self, line: Line) -> None:
        before, self._line = self._line.silent, line
        if before and not line.silent:
            for pair in tuple(self._pairs):
                if pair.torn:
                    pair.reset()

    def _reset_all(self) -> None:
        for pair in tuple(self._pairs):
            pair.reset()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(pair.over.wait())]
        try:
            if self._line.refuses:
                pair.reset()
                return
            with self._arrived:
                self.connections += 1
                self._arrived.notify_all()
            self._pairs.add(pair)
            if self._line.silent:
                pair.torn = True
                await pair.over.wait()
                return
            theirs, pair.broker = await asyncio.open_connection("127.0.0.1", self._target_port, limit=_READ_BYTES)
            for end in (writer, pair.broker):
                end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            up = asyncio.create_task(self._relay("up", reader, pair.broker, pair))
            down = asyncio.create_task(self._relay("down", theirs, writer, pair))
            tasks += [up, down, asyncio.create_task(asyncio.wait((up, down)))]
            await asyncio.wait((tasks[0], tasks[-1]), return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pair.reset()
        finally:
            self._pairs.discard(pair)
            for task in tasks:
                task.cancel()
            for end in (writer, pair.broker):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()

    async def _relay(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair
    ) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_MAX if self._line.delay_s else 1)
        feeding = asyncio.create_task(self._read(reader, pieces))
        try:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if direction in self._line.silent:
                    pair.torn = True
                    if not data:
                        return  # the end is not passed on: the other side finds out by itself
                    continue
                if not data:
                    writer.close()
                    return
                if self._alterations[direction]:
                    data = self._alterations[direction].pop(0)(data)
                await self._carry(direction, data, writer)
        except OSError:
            pair.reset()
        finally:
            feeding.cancel()

    async def _read(self, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"."
        while data:
            try:
                data = await reader.read(_READ_BYTES)
            except OSError:
                data = b""
            await pieces.put((time.monotonic() + self._line.delay_s, data))

    async def _carry(self, direction: Direction, data: bytes, writer: asyncio.StreamWriter) -> None:
        start = 0
        while start < len(data):
            piece = data[start : start + self._line.slice_bytes]
            start += len(piece)
            if self._line.bytes_per_s is not None:
                begins = max(self._free_at[direction], time.monotonic())
                self._free_at[direction] = begins + len(piece) / self._line.bytes_per_s
                await asyncio.sleep(self._free_at[direction] - time.monotonic())
            writer.write(piece)
            await writer.drain()
            with self._arrived:
                now = time.monotonic()
                pause_s = now - self._arrived_at.get(direction, now)
                self.silent_s_max[direction] = max(self.silent_s_max[direction], pause_s)
                self._arrived_at[direction] = now
                self.carried[direction] += len(piece)
                self._arrived.notify_all()


def flipped(chance: Any) -> Callable[[bytes], bytes]:
    """An alteration: one bit, drawn by `chance` (a `random.Random`), is another."""

    def change(data: bytes) -> bytes:
        at = chance.randrange(8 * len(data))
        altered = bytearray(data)
        altered[at // 8] ^= 1 << at % 8
        return bytes(altered)

    return change


def twice(data: bytes) -> bytes:
    """An alteration: the piece comes again."""
    return data + data
