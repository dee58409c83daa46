"""A TCP relay in front of a broker whose line can be cut and mended. One thread, ended by `close`."""

import selectors
import socket
import struct
import threading

_RESET = struct.pack("ii", 1, 0)  # linger for no time: closing sends RST, as a dead link's router would


class Wire:
    """Relays connections to 127.0.0.1:`target_port` from `port`."""

    def __init__(self, target_port):
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ours, self._theirs = socket.socketpair()
        self._peers = {}
        self._cut = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"wire-{self.port}")
        self._thread.start()

    def cut(self):
        """Reset all connections; new ones are closed at once."""
        self._tell(b"c")

    def mend(self):
        """Let connections through again."""
        self._tell(b"m")

    def close(self):
        self._tell(b"q")
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._ours.close()

    def _tell(self, command):
        self._done.clear()
        self._ours.send(command)
        assert self._done.wait(10)

    def _run(self):
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            selector.register(self._listener, selectors.EVENT_READ, self._accept)
            selector.register(self._theirs, selectors.EVENT_READ, self._obey)
            self._running = True
            while self._running:
                for key, _ in selector.select():
                    if key.fileobj.fileno() >= 0:
                        key.data(key.fileobj)
            self._hang_up()
            self._listener.close()
        self._done.set()
        self._theirs.close()

    def _accept(self, listener):
        client, _ = listener.accept()
        if self._cut:
            client.close()
            return
        try:
            broker = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        for end, other in ((client, broker), (broker, client)):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(True)
            self._peers[end] = other
            self._selector.register(end, selectors.EVENT_READ, self._relay)

    def _relay(self, end):
        other = self._peers[end]
        try:
            data = end.recv(65_536)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(end)
            self._drop(other)

    def _obey(self, control):
        command = control.recv(1)
        if command == b"q":
            self._running = False
            return
        self._cut = command == b"c"
        if self._cut:
            self._hang_up()
        self._done.set()

    def _hang_up(self):
        for end in tuple(self._peers):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._drop(end)

    def _drop(self, end):
        if self._peers.pop(end, None) is not None:
            self._selector.unregister(end)
            end.close()
