"""Where the broker is: `mqtt://[user@]host[:port]` or `mqtts://...`, and the files that make TLS.

The command line parses addresses before anything heavy is loaded, so there is no paho and no ssl here. A password in
the address is refused, not quietly accepted: a command line is readable by every user of the machine and stays in
the shell's history. For the same reason an error shows nothing of what stands before an `@`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from hermes_iot.errors import UsageError

PORT = 1883
TLS_PORT = 8883

_PORT_MAX = 65_535
_HOST_CHARACTERS_MAX = 253
_SCHEMES = {"mqtt": False, "mqtts": True}
_SHOWN_CHARACTERS_MAX = 100
_EXAMPLE = "Write it like mqtt://192.168.1.10:1883 or mqtts://device-1@broker.example.org"
_HOST_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_USERNAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """A broker to connect to.

    Attributes:
        host: a name or an IP address; an IPv6 address without its brackets.
        port: 1 to 65,535.
        tls: whether the connection is encrypted (`mqtts`).
        username: who we are, where the broker asks; never a password.
    """

    host: str
    port: int
    tls: bool = False
    username: str | None = None

    def __post_init__(self) -> None:
        if not _is_host(self.host):
            raise _wrong(self.host, why="that is no host name and no IP address")
        if not 1 <= self.port <= _PORT_MAX:
            raise _wrong(f"{self.host}:{self.port}", why=f"a port is a number from 1 to {_PORT_MAX}")
        if self.username is not None and not _USERNAME.fullmatch(self.username):
            raise _wrong(f"…@{self.host}", why="the user name is empty or has control characters in it")

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """Read an address as a person writes it.

        Raises:
            UsageError: malformed, or with a password in it.
        """
        scheme, separator, rest = text.partition("://")
        if not separator:
            raise _wrong(text, why="it has no scheme")
        if scheme.lower() not in _SCHEMES:
            raise _wrong(text, why="the scheme must be mqtt or mqtts")
        tls = _SCHEMES[scheme.lower()]
        user, at, place = rest.rpartition("@")
        if ":" in user:
            raise UsageError(
                f"broker address {_shown(text)} holds a password",
                why="other users of this machine can read command lines",
                mend="Leave it out and set HERMES_PASSWORD or give a password file",
            )
        if any(character in place for character in "/?#"):
            raise _wrong(text, why="nothing may follow host and port")
        host, port = _host_and_port(text, place)
        return cls(
            host=host,
            port=(TLS_PORT if tls else PORT) if port is None else port,
            tls=tls,
            username=unquote(user) if at else None,
        )

    @property
    def url(self) -> str:
        """The address as `parse` reads it, port included."""
        user = "" if self.username is None else f"{quote(self.username, safe='')}@"
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{user}{host}:{self.port}"

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Files for TLS; the private key has no pass phrase (a board starts without a person).

    Attributes:
        ca_file: whom to trust instead of the system's authorities.
        cert_file: our certificate, where the broker asks for one.
        key_file: its private key.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            missing = "key" if self.key_file is None else "certificate"
            raise UsageError("a certificate and its private key belong together", why=f"the {missing} is missing")


def _host_and_port(text: str, place: str) -> tuple[str, int | None]:
    """Split what stands after the user name; the port is None where it was left out."""
    if place.startswith("["):
        inside, bracket, after = place[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise _wrong(text, why="an IPv6 address stands in brackets, like [fd00::1]:1883")
        host, colon, port = unquote(inside), after[:1], after[1:]
        if ":" not in host:
            raise _wrong(text, why="brackets are for IPv6 addresses")
    else:
        host, colon, port = place.partition(":")
        if ":" in port:
            raise _wrong(text, why="an IPv6 address stands in brackets, like [fd00::1]:1883")
    if not host:
        raise _wrong(text, why="the host is missing")
    if not _is_host(host):
        raise _wrong(text, why="that is no host name and no IP address")
    if not colon:
        return host, None
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= _PORT_MAX):
        raise _wrong(text, why=f"a port is a number from 1 to {_PORT_MAX}")
    return host, int(port)


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return host.isprintable() and host.isascii() and " " not in host
    labels = host.removesuffix(".").split(".")
    return len(host) <= _HOST_CHARACTERS_MAX and all(_HOST_LABEL.fullmatch(label) for label in labels)


def _wrong(text: str, *, why: str) -> UsageError:
    return UsageError(f"broker address {_shown(text)} is not understood", why=why, mend=_EXAMPLE)


def _shown(text: str) -> str:
    """The address for an error message, without anything that could be a secret, and not endless."""
    before, at, after = text.rpartition("@")
    scheme = next((f"{name}://" for name in _SCHEMES if before.startswith(f"{name}://")), "")
    shown = f"{scheme}…@{after}" if at else text
    return repr(shown if len(shown) <= _SHOWN_CHARACTERS_MAX else f"{shown[:_SHOWN_CHARACTERS_MAX]}…")
