"""``hermes-iot status``: one look at a fleet through its retained topics, whether or not a coordinator is there."""

from __future__ import annotations

import json
import queue
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hermes_iot.cli import logs, options
from hermes_iot.cli.connect import BrokerOptions
from hermes_iot.errors import Incompatible, OtherVersion, ProtocolError, TimedOut
from hermes_iot.protocol.topics import Topics

if TYPE_CHECKING:
    from hermes_iot.protocol.messages import Allocation, CoordinatorStatus, DeviceState, DeviceStatus, RunManifest
    from hermes_iot.transport.base import Transport

#: Retained messages come in one burst; if none came for so long, the burst is over. Live ones never end.
_SILENCE_S = 0.3
_UPGRADE = "Run the same hermes-iot everywhere"


@dataclass(slots=True)
class Row:
    """What the topics say of one device."""

    status: DeviceStatus | None = None
    state: DeviceState | None = None
    allocation: Allocation | None = None


@dataclass(slots=True)
class Seen:
    """What the topics say of a fleet. `dropped` counts messages that could not be read, `versions` are those of them."""

    coordinator: CoordinatorStatus | None = None
    manifest: RunManifest | None = None
    devices: dict[str, Row] = field(default_factory=dict)
    dropped: int = 0
    versions: set[int] = field(default_factory=set)

    @property
    def empty(self) -> bool:
        """Nothing could be read."""
        return self.coordinator is None and self.manifest is None and not self.devices


def status(
    *,
    broker: options.Broker,
    fleet: options.Fleet,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the first answer.")] = 5.0,
    as_json: options.Json = False,
    prefix: options.Prefix = "hermes",
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    password_file: options.PasswordFile = None,
    config: options.Config = None,  # read before parsing, see files.py
    verbose: options.Verbose = False,
) -> int:
    """Show what a fleet is doing."""
    topics = Topics(fleet, prefix=prefix)
    access = BrokerOptions.of(
        broker, ca_file=ca_file, cert_file=cert_file, key_file=key_file, password_file=password_file
    )
    logs.configure(verbose=verbose, quiet=True)
    import secrets

    seen = look(topics, access.connector()(f"view-{secrets.token_hex(8)}", None), timeout_s=timeout)
    if seen.empty and seen.versions:
        raise Incompatible(f"fleet {fleet!r} at {access.address} {_versions(seen)}", mend=_UPGRADE)
    if seen.empty:
        raise TimedOut(
            f"nothing is known of fleet {fleet!r} at {access.address}",
            why=f"no retained message came within {timeout:g} s",
            mend="Check --fleet and --prefix, or start a coordinator",
        )
    if as_json:
        sys.stdout.write(json.dumps(envelope(fleet, seen)) + "\n")
    else:
        _print(fleet, seen)
    return 0


def look(topics: Topics, transport: Transport, *, timeout_s: float) -> Seen:
    """Read the retained topics of a fleet.

    Raises:
        BrokerError: the broker cannot be reached.
    """
    from hermes_iot.protocol.messages import Allocation, CoordinatorStatus, DeviceState, DeviceStatus, RunManifest
    from hermes_iot.protocol.wire import Wire
    from hermes_iot.transport.base import Delivery

    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    wire, seen = Wire(topics), Seen()
    transport.subscribe(topics.of_viewer())
    try:
        transport.start(events.put, timeout_s=timeout_s)
        until = time.monotonic() + timeout_s
        while (left_s := until - time.monotonic()) > 0:
            try:
                event = events.get(timeout=left_s)
            except queue.Empty:
                break
            if not isinstance(event, Delivery):
                continue
            if event.retain:
                until = time.monotonic() + min(_SILENCE_S, timeout_s)
            try:
                received = wire.incoming(event.topic, event.payload, now=time.monotonic())
            except ProtocolError as error:
                seen.dropped += 1
                if isinstance(error, OtherVersion) and error.version is not None:
                    seen.versions.add(error.version)
                continue
            if received is None:
                continue
            row = seen.devices.setdefault(received.device, Row()) if received.device else Row()
            match received.message:
                case CoordinatorStatus() as message:
                    seen.coordinator = message
                case RunManifest() as message:
                    seen.manifest = message
                case DeviceStatus() as message:
                    row.status = message
                case DeviceState() as message:
                    row.state = message
                case Allocation() as message:
                    row.allocation = message
    finally:
        transport.close()
    return seen


def envelope(fleet: str, seen: Seen) -> dict[str, Any]:
    """The one document of ``--json``."""
    from hermes_iot.protocol.schema import to_mapping

    def mapping(message: object | None) -> dict[str, Any] | None:
        return None if message is None else to_mapping(message)

    return {
        "schema": "hermes-iot/status/1",
        "ok": True,
        "fleet": fleet,
        "coordinator": mapping(seen.coordinator),
        "run": mapping(seen.manifest),
        "devices": {
            name: {"status": mapping(row.status), "state": mapping(row.state), "allocation": mapping(row.allocation)}
            for name, row in sorted(seen.devices.items())
        },
        "dropped": seen.dropped,
        "other_versions": sorted(seen.versions),
    }


def _print(fleet: str, seen: Seen) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hermes_iot.reporting.terminal import clean

    console = Console()
    leader, manifest = seen.coordinator, seen.manifest
    if manifest is not None:
        reason = f" ({clean(manifest.reason)})" if manifest.reason else ""
        console.print(
            Text(
                f"fleet {fleet}: run {manifest.run} {manifest.state}{reason}, "
                f"task {clean(manifest.task.name)}, strategy {clean(manifest.strategy.name)}"
            )
        )
    if leader is not None:
        accuracy = f", validation accuracy {leader.accuracy:.4f}" if leader.accuracy is not None else ""
        waits = f", taking nothing in ({clean(leader.reason)})" if leader.reason else ""
        console.print(
            Text(
                "coordinator offline"  # a last will knows no numbers
                if leader.state == "offline"
                else f"coordinator online{waits}: model version {leader.model_version}, "
                f"{leader.updates_applied} updates applied{accuracy}"
            )
        )
    table = Table(box=None, pad_edge=False)
    for heading in ("device", "state", "rows", "batch", "s/iter", "iterations", "published", "z", "model"):
        table.add_column(heading, justify="left" if heading in {"device", "state"} else "right", no_wrap=True)
    for name, row in sorted(seen.devices.items()):
        table.add_row(*(Text(clean(cell)) for cell in (name, *_cells(row))))
    console.print(table)
    if seen.dropped:
        console.print(f"{seen.dropped} messages could not be read")
    if seen.versions:
        console.print(Text(f"fleet {fleet} {_versions(seen)}. {_UPGRADE}"))


def _versions(seen: Seen) -> str:
    from hermes_iot.protocol.messages import VERSION

    others = " and ".join(map(str, sorted(seen.versions)))
    return f"speaks protocol version {others}, this hermes-iot version {VERSION}"


def _cells(row: Row) -> list[str]:
    state = row.state
    life = row.status.state if row.status is not None else "unknown"
    if state is None:
        return [life, "", "", "", "", "", "", ""]
    doing = f"{life} {state.phase}" if life == "online" else life
    return [
        doing,
        str(state.samples),
        str(state.batch),
        f"{state.iteration_s:.3g}" if state.iteration_s else "",
        str(state.iterations),
        str(state.published),
        f"{state.z:+.2f}" if state.z is not None else "",
        str(state.model_version),
    ]
