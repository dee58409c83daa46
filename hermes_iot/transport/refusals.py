"""Why a connection did not come about, in one line a person can act on.

Pure functions from an OSError or a CONNACK reason code (MQTT 5.0, 3.2.2.2) to a BrokerError; no paho here.
"""

from __future__ import annotations

import socket
import ssl

from hermes_iot.errors import BrokerError
from hermes_iot.transport.address import BrokerAddress

UNSUPPORTED_PROTOCOL = 0x84
BAD_CREDENTIALS = 0x86
NOT_AUTHORIZED = 0x87
_BAD_CLIENT_ID = 0x85
_UNAVAILABLE = (0x88, 0x89, 0x97, 0x9F)
_BANNED = 0x8A

#: What OpenSSL says when the bytes on the line are no TLS.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER", "PACKET_LENGTH_TOO_LONG")

_CHECK_ADDRESS = "Check that the broker runs there, and host and port"
_CHECK_CREDENTIALS = "Check the user name, and the password in HERMES_PASSWORD or the password file"


def unreachable(address: BrokerAddress, error: OSError, *, timeout_s: float) -> BrokerError:
    """No connection, or no TLS on it."""
    if isinstance(error, ssl.SSLError):  # first: a failed certificate is also a ValueError, a cut handshake an EOF
        return _bad_tls(address, error)
    if isinstance(error, socket.gaierror):
        return BrokerError(
            f"broker {address} cannot be found",
            why=f"the host name {address.host} is unknown",
            mend="Check its spelling, or use the IP address",
        )
    if isinstance(error, ConnectionRefusedError):
        return BrokerError(
            f"broker {address} refused the connection",
            why=f"nothing listens on port {address.port}",
            mend=_CHECK_ADDRESS,
        )
    if isinstance(error, TimeoutError):
        return no_answer(address, timeout_s=timeout_s)
    if address.tls and isinstance(error, ConnectionResetError):
        return _bad_tls(address, error)
    return BrokerError(f"broker {address} cannot be reached", why=error.strerror or str(error), mend=_CHECK_ADDRESS)


def no_answer(address: BrokerAddress, *, timeout_s: float) -> BrokerError:
    """Silence."""
    return BrokerError(
        f"broker {address} did not answer within {timeout_s:g} s",
        why="a firewall, a wrong address, or a port that does not speak MQTT",
        mend=_CHECK_ADDRESS,
    )


def hung_up(address: BrokerAddress, *, why: str) -> BrokerError:
    """The other side closed the connection before it said a word of MQTT; `why` is what the socket told, if it did."""
    if "CERTIFICATE_REQUIRED" in why:
        return BrokerError(
            f"broker {address} wants a client certificate",
            why=why,
            mend="Give the certificate and key made for this device",
        )
    # Mosquitto 2.0.11 sends no alert where it misses a certificate: after the handshake it just closes.
    doubt = (
        "whether it accepts our client certificate, or wants one"
        if address.tls
        else "whether it wants mqtts:// instead"
    )
    return BrokerError(
        f"broker {address} closed the connection before answering",
        why=why,
        mend=f"Check that the port speaks MQTT 5, and {doubt}",
    )


def refused(address: BrokerAddress, *, code: int, name: str, client_id: str) -> BrokerError:
    """The broker answered CONNECT with a reason code of 0x80 or more; `name` is that code's name."""
    if code == UNSUPPORTED_PROTOCOL:
        return BrokerError(
            f"broker {address} does not speak MQTT 5",
            why=name,
            mend="Use Mosquitto 1.6 or newer, or another MQTT 5 broker",
        )
    if code in (BAD_CREDENTIALS, NOT_AUTHORIZED):
        return BrokerError(f"broker {address} does not let {client_id} in", why=name, mend=_CHECK_CREDENTIALS)
    if code == _BAD_CLIENT_ID:
        return BrokerError(
            f"broker {address} does not accept the client id {client_id}", why=name, mend="Choose another device id"
        )
    if code in _UNAVAILABLE:
        return BrokerError(f"broker {address} is overloaded or shutting down", why=name, mend="Try again later")
    mend = "Ask the broker's administrator" if code == _BANNED else "Look into the broker's log"
    return BrokerError(f"broker {address} refused the connection", why=name, mend=mend)


def _bad_tls(address: BrokerAddress, error: OSError) -> BrokerError:
    what = f"broker {address} failed the TLS handshake"
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message
        if "not yet valid" in why:
            return BrokerError(what, why=why, mend="Set this machine's clock: boards without one start in 1970")
        if "mismatch" in why:
            return BrokerError(what, why=why, mend="Use the host name the broker's certificate was made for")
        if "expired" in why:
            return BrokerError(what, why=why, mend="Renew the broker's certificate, or set this machine's clock")
        return BrokerError(what, why=why, mend="Give the CA file that signed the broker's certificate")
    text = str(error)
    if isinstance(error, (ssl.SSLEOFError, ConnectionResetError)) or any(sign in text for sign in _NOT_TLS):
        return BrokerError(what, why="the port does not speak TLS", mend="Use mqtt:// or the broker's TLS port")
    return BrokerError(what, why=text, mend="Check that the port speaks TLS, the CA file, and our certificate and key")
