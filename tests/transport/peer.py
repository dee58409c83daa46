"""The other end of an MQTT 5 connection, told byte by byte what to say: for what no real broker does on demand."""

import contextlib
import socket
import threading

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 14


def packet(kind, body=b"", flags=0):
    length, left = b"", len(body)
    while True:
        left, seven = left >> 7, left & 0x7F
        length += bytes([seven | (0x80 if left else 0)])
        if not left:
            return bytes([kind << 4 | flags]) + length + body


def connack(code=0, *, session_present=False, receive_max=None, packet_bytes_max=None):
    properties = b""
    if receive_max is not None:
        properties += b"\x21" + receive_max.to_bytes(2, "big")
    if packet_bytes_max is not None:
        properties += b"\x27" + packet_bytes_max.to_bytes(4, "big")
    return packet(CONNACK, bytes([session_present, code, len(properties)]) + properties)


def message(topic, payload, *, packet_id=None):
    """A PUBLISH, with QoS 1 where it has a packet id."""
    mid = b"" if packet_id is None else packet_id.to_bytes(2, "big")
    return packet(PUBLISH, len(topic).to_bytes(2, "big") + topic + mid + b"\0" + payload, flags=2 if mid else 0)


class Line:
    """One accepted connection."""

    def __init__(self, sock):
        self._sock = sock

    def send(self, data):
        self._sock.sendall(data)

    def read(self):
        """The next packet as (kind, flags, body); None at the end of the connection."""
        head = self._exactly(1)
        if head is None:
            return None
        length, shift = 0, 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return head[0] >> 4, head[0] & 0x0F, self._exactly(length)

    def expect(self, kind):
        """Read, and insist."""
        read = self.read()
        assert read is not None, f"the client hung up instead of sending packet {kind}"
        assert read[0] == kind, f"packet {read[0]} instead of {kind}"
        return read[1], read[2]

    def publish(self):
        """Read a QoS-1 PUBLISH: (packet id, is a repetition, payload); PINGREQ in between is passed over."""
        flags, body = self.expect(PUBLISH)
        assert flags & 0b0110 == 0b0010
        after = 2 + int.from_bytes(body[:2], "big")
        properties = body[after + 2]
        return body[after : after + 2], bool(flags & 0b1000), body[after + 3 + properties :]

    def accept(self, **options):
        """Read CONNECT and let the client in."""
        _, body = self.expect(CONNECT)
        self.send(connack(**options))
        return body

    def wait_for_end(self):
        """Read until the client goes."""
        with contextlib.suppress(ConnectionError):
            while self.read() is not None:
                pass

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            more = self._sock.recv(count - len(data))
            if not more:
                return None
            data += more
        return data


class ScriptedBroker:
    """Plays one script per connection, in order; an assertion that fails in a script fails the test at the end."""

    def __init__(self, *scripts):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.port = self._listener.getsockname()[1]
        self._scripts = scripts
        self._errors = []
        self._thread = threading.Thread(target=self._run, name="scripted-broker")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._listener.close() if kind else None
        self._thread.join(30)
        self._listener.close()
        assert not self._thread.is_alive()
        if kind is None and self._errors:
            raise self._errors[0]

    def _run(self):
        try:
            for script in self._scripts:
                sock, _ = self._listener.accept()
                with sock:
                    sock.settimeout(20)
                    script(Line(sock))
        except Exception as error:  # noqa: BLE001 - handed to the test's thread
            self._errors.append(error)
