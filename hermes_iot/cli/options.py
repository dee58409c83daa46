"""Options that several commands share, and how their words are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hermes_iot.errors import UsageError

Broker = Annotated[
    str, typer.Option("--broker", metavar="URL", envvar="HERMES_BROKER", help="mqtt://host[:port] or mqtts://…")
]
Fleet = Annotated[str, typer.Option("--fleet", envvar="HERMES_FLEET", help="Name of the fleet.")]
Prefix = Annotated[str, typer.Option("--prefix", envvar="HERMES_PREFIX", help="First word of every topic.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="TOML file with defaults. [default: HERMES_CONFIG, else hermes.toml if there]"
    ),
]
CaFile = Annotated[Path | None, typer.Option("--ca-file", envvar="HERMES_CA_FILE", help="Authority to trust.")]
CertFile = Annotated[Path | None, typer.Option("--cert-file", envvar="HERMES_CERT_FILE", help="Our certificate.")]
KeyFile = Annotated[Path | None, typer.Option("--key-file", envvar="HERMES_KEY_FILE", help="Its private key.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file", envvar="HERMES_PASSWORD_FILE", help="File holding the password (or set HERMES_PASSWORD)."
    ),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="HERMES_DATA_DIR", help="Where the task's files are.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def row_range(text: str) -> slice:
    """Rows as ``START:STOP``, half-open.

    Raises:
        UsageError: anything else.
    """
    start, colon, stop = text.partition(":")
    if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise UsageError(f"rows {text!r} are not understood", mend="Use START:STOP, for example 0:2000")
    return slice(int(start), int(stop))


def check_directory(path: Path | None) -> None:
    """A data directory that a person named must be there.

    Raises:
        UsageError: it is not.
    """
    if path is not None and not path.is_dir():
        raise UsageError(f"there is no directory {path}", mend="Check --data-dir or HERMES_DATA_DIR")
