"""The exception tree. Each class says whose fault it is and which exit code the command line gives it.

::

    HermesError                 1   a bug of ours when nothing narrower fits
    ├── UsageError              2   the person's: an option, a configuration file, a task, a data set
    │   └── DataUnavailable     2   a data set is neither at hand nor to be had
    ├── BrokerError             3   the world's: broker away, TLS, credentials
    ├── TimedOut                4   the world's: nothing came in the time allowed
    ├── AccessDenied            5   the broker's ACL refused a topic
    ├── Incompatible            6   the other side's protocol, run or model is not ours
    ├── IdConflict              7   somebody else lives under this id
    ├── StorageError            8   a local file is damaged, locked, or the disk is full
    └── ProtocolError           -   the peer's: one message is dropped and counted, nobody stops
        └── OtherVersion        -   the same, of another version of the protocol

A message has up to three parts: what happened, why, and what mends it. They end up on one line.
"""

from __future__ import annotations

from typing import ClassVar


class HermesError(Exception):
    """Root of everything hermes-iot raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", mend: str = "") -> None:
        super().__init__(what, why, mend)
        self.what = what
        self.why = why
        self.mend = mend

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}" if self.why else self.what
        if self.mend:
            text = f"{text}. {self.mend}"
        return " ".join(text.split())


class UsageError(HermesError):
    """An option, configuration key, task or file the person gave cannot be used."""

    exit_code = 2


class DataUnavailable(UsageError):
    """A data set is not in any known place and could not be downloaded."""


class BrokerError(HermesError):
    """The broker cannot be reached or refuses us (TLS, credentials, protocol)."""

    exit_code = 3


class TimedOut(HermesError):
    """Something expected did not arrive within its limit."""

    exit_code = 4


class AccessDenied(HermesError):
    """The broker's access list refuses a topic we need."""

    exit_code = 5


class Incompatible(HermesError):
    """Protocol version, run, task or model differ between the two sides."""

    exit_code = 6


class IdConflict(HermesError):
    """Another live process uses the same device id, or already leads the fleet."""

    exit_code = 7


class StorageError(HermesError):
    """A local file is damaged, locked by another process, or cannot be written."""

    exit_code = 8


class ProtocolError(HermesError):
    """A peer's message breaks the rules; it is dropped and counted under `reason`.

    Args:
        reason: a short stable word for the counter, e.g. ``"size"`` or ``"schema"``.
        what: the sentence for the log.
    """

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class OtherVersion(ProtocolError):
    """A message of a protocol version that is not ours.

    Args:
        what: the sentence for the log.
        version: that it states; None where it states no number.
    """

    def __init__(self, what: str, *, version: int | None) -> None:
        super().__init__("version", what)
        self.version = version
