"""The bad line of the fault tests does what it is told, to the bytes and to the second."""

import contextlib
import random
import socket
import threading
import time

import pytest

from tests.support.proxy import Proxy, flipped, twice

PATIENCE_S = 10.0


class Echo:
    """A server that sends back what it hears; `heard` is everything, `ended` how many clients hung up or were reset."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.heard = b""
        self.ended = threading.Semaphore(0)
        self._lines = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                self._lines.append((line, thread := threading.Thread(target=self._serve, args=(line,), daemon=True)))
                thread.start()

    def _serve(self, line):
        with contextlib.suppress(OSError):
            while data := line.recv(65_536):
                self.heard += data
                line.sendall(data)
        self.ended.release()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE_S)
        for line, thread in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)
            line.close()


@pytest.fixture
def echo():
    one = Echo()
    yield one
    one.close()


@pytest.fixture
def proxy(echo):
    with Proxy(echo.port) as one:
        yield one


@pytest.fixture
def dial(proxy):
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S))


def exactly(line, count):
    data = b""
    while len(data) < count:
        data += (more := line.recv(count - len(data)))
        assert more, f"the line ended after {len(data)} of {count} bytes"
    return data


def closed(line):
    """Whether the other side has ended the connection, in whatever way."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bytes_pass_unchanged_both_ways_and_are_counted(proxy, dial):
    data = random.Random(1).randbytes(300_000)
    line = dial()
    sending = threading.Thread(target=line.sendall, args=(data,))
    sending.start()
    assert exactly(line, len(data)) == data
    sending.join(PATIENCE_S)
    proxy.wait("down", len(data))
    assert proxy.carried == {"up": len(data), "down": len(data)}
    assert proxy.connections == 1


def test_slices_change_no_byte(proxy, dial):
    proxy.change(slice_bytes=3)
    data = bytes(range(256)) * 4
    line = dial()
    line.sendall(data)
    assert exactly(line, len(data)) == data


def test_a_delay_counts_for_each_direction(proxy, dial):
    proxy.change(delay_s=0.1)
    line = dial()
    begun = time.monotonic()
    line.sendall(b"there and back")
    exactly(line, 14)
    assert 0.2 <= time.monotonic() - begun < 2.0


def test_a_narrow_line_takes_its_time_and_no_longer(proxy, dial):
    line = dial()
    proxy.change(bytes_per_s=100_000)
    begun = time.monotonic()
    data = bytes(30_000)
    line.sendall(data)
    exactly(line, len(data))
    # The way back begins while the way there goes on, a read later.
    assert 0.3 <= time.monotonic() - begun < 1.0


def test_silence_loses_bytes_closes_nothing_and_ends_with_a_reset(echo, proxy, dial):
    line = dial()
    line.sendall(b"heard")
    exactly(line, 5)
    proxy.silence()
    line.sendall(b"lost")
    line.settimeout(0.1)
    with pytest.raises(TimeoutError):
        line.recv(1)
    assert echo.heard == b"heard"
    line.settimeout(PATIENCE_S)
    proxy.heal()
    assert closed(line)
    assert echo.ended.acquire(timeout=PATIENCE_S)


def test_who_hangs_up_in_silence_is_not_missed_before_the_line_is_well(echo, proxy, dial):
    line = dial()
    line.sendall(b"heard")
    exactly(line, 5)
    proxy.silence()
    line.close()
    assert not echo.ended.acquire(timeout=0.1)
    proxy.heal()
    assert echo.ended.acquire(timeout=PATIENCE_S)


def test_silence_one_way_lets_the_other_way_pass(proxy, dial):
    line = dial()
    line.sendall(b"a")
    exactly(line, 1)
    proxy.silence("down")
    line.sendall(b"b")
    proxy.wait("up", 2)
    line.settimeout(0.1)
    with pytest.raises(TimeoutError):
        line.recv(1)


def test_a_connection_begun_in_silence_is_taken_and_leads_nowhere(echo, proxy, dial):
    proxy.silence()
    line = dial()
    line.sendall(b"hello")
    line.settimeout(0.1)
    with pytest.raises(TimeoutError):
        line.recv(1)
    line.settimeout(PATIENCE_S)
    proxy.heal()
    assert closed(line)
    assert echo.heard == b""


def test_a_line_that_was_idle_in_silence_goes_on(proxy, dial):
    line = dial()
    line.sendall(b"a")
    exactly(line, 1)
    proxy.silence()
    proxy.heal()
    line.sendall(b"b")
    assert exactly(line, 1) == b"b"


def test_a_cut_resets_both_ends_and_refuses_until_it_is_mended(echo, proxy, dial):
    line = dial()
    line.sendall(b"a")
    exactly(line, 1)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        line.recv(1)
    assert echo.ended.acquire(timeout=PATIENCE_S)
    with contextlib.suppress(ConnectionResetError):  # some kernels tell of the reset while they connect
        assert closed(dial())
    proxy.mend()
    again = dial()
    again.sendall(b"b")
    assert exactly(again, 1) == b"b"


def test_alterations_meet_one_piece_each(proxy, dial):
    line = dial()
    proxy.alter("up", flipped(random.Random(3)))
    proxy.alter("down", twice)
    line.sendall(b"\x00")
    first, second = exactly(line, 2)
    assert first == second
    assert first.bit_count() == 1
    line.sendall(b"\x00")
    assert exactly(line, 1) == b"\x00"


def test_a_server_that_is_away_is_a_hang_up():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with Proxy(port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S) as line:
        assert closed(line)


def test_nothing_is_left_behind(echo):
    before = set(threading.enumerate())
    proxy = Proxy(echo.port)
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S) as line:
        line.sendall(b"a")
        exactly(line, 1)
        proxy.close()
        assert closed(line)
    proxy.close()
    assert {thread.name for thread in set(threading.enumerate()) - before if thread.name == "proxy"} == set()
