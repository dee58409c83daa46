"""A Mosquitto of our own, for demos on one machine and for tests: started, watched and ended by us.

It listens on loopback only and lets anybody in; a broker in the field is set up by the files in `broker/`. Limits are
stated rather than left to the version at hand: Mosquitto drops silently once a client's queue is full, and from 2.1 on
it has a packet limit that 2.0 does not have.

Mosquitto started by root drops to the user `mosquitto` before it opens any file but its configuration. Measured with
2.0.11: in a directory that only root may enter, an access list ends it with code 13, and a persistence file is silently
not written. So as root we name the user, give it our directory, and refuse a persistence directory it cannot reach.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from hermes_iot.errors import BrokerError, UsageError
from hermes_iot.transport.address import BrokerAddress

_HOST = "127.0.0.1"
_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # often missing from the PATH of a user
_START_S = 10.0
_STOP_S = 5.0
_BETWEEN_TRIES_S = 0.01
_PORT_TRIES = 5
_PORT_MAX = 65_535
_CONFIGURATION = "mosquitto.conf"
_LOG = "mosquitto.log"


def find_mosquitto() -> Path:
    """Where the mosquitto binary is.

    Raises:
        UsageError: not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_DIRECTORIES])
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise UsageError(
            "mosquitto is not installed",
            why=f"it is neither on PATH nor in {', '.join(_DIRECTORIES)}",
            mend="Install it: apt-get install mosquitto (Debian, Ubuntu, Raspberry Pi OS) or brew install mosquitto (macOS)",
        )
    return Path(found)


class MosquittoBroker:
    """A Mosquitto process on a loopback port, from `with` to its end.

    Args:
        port: where to listen; a free one when None.
        persistence_dir: where retained messages and sessions survive a restart; nowhere when None.
        packet_bytes_max: Maximum Packet Size for clients; None for no limit.
        settings: further lines of configuration; they come last and win.
        files: name -> content of files beside the configuration; settings refer to them by name alone.
        tls: whether the settings make the listener a TLS one (then `address` says so).

    Raises:
        UsageError: no such port.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        persistence_dir: Path | None = None,
        packet_bytes_max: int | None = None,
        settings: tuple[str, ...] = (),
        files: Mapping[str, str] | None = None,
        tls: bool = False,
    ) -> None:
        if port is not None and not 1 <= port <= _PORT_MAX:
            raise UsageError(f"port {port} cannot be used", why=f"a port is a number from 1 to {_PORT_MAX}")
        self._wanted_port = port
        self._port = port
        self._persistence_dir = None if persistence_dir is None else persistence_dir.absolute()
        self._packet_bytes_max = packet_bytes_max
        self._settings = settings
        self._files = dict(files or {})
        self._tls = tls
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> BrokerAddress:
        """Where clients find it."""
        if self._port is None:
            raise RuntimeError("the broker has no port before it was started")
        return BrokerAddress(host=_HOST, port=self._port, tls=self._tls)

    @property
    def url(self) -> str:
        """The address as text."""
        return self.address.url

    @property
    def pid(self) -> int | None:
        """Its process id; None when it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def log(self) -> str:
        """What it wrote so far, over all starts."""
        if self._directory is None:
            return ""
        return (self._directory / _LOG).read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it accepts connections. Nothing while it runs.

        Raises:
            UsageError: not installed, or the persistence directory cannot be used.
            BrokerError: the port is taken, or Mosquitto did not start.
        """
        if self._process is not None and self._process.poll() is None:
            return
        binary = find_mosquitto()
        try:
            if self._directory is None:
                self._directory = self._prepare_directory()
            for left in reversed(range(_PORT_TRIES)):
                self._port = self._free_port() if self._port is None else self._port
                try:
                    self._launch(binary, self._directory, self._port)
                except BrokerError as error:
                    # A free port may be gone by now: take another, unless this one was asked for.
                    if left == 0 or self._wanted_port is not None or "in use" not in str(error):
                        raise
                    self._port = None
                else:
                    return
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """End it as a service manager would (SIGTERM: it saves what it persists); SIGKILL if it does not obey."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
            self.kill()

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop it, if it runs, and start it on the same port with the same configuration."""
        self.stop()
        self._wanted_port = self._port
        self.start()

    def close(self) -> None:
        """Stop it and remove its directory (not the persistence directory)."""
        self.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None

    def _prepare_directory(self) -> Path:
        directory = Path(tempfile.mkdtemp(prefix="hermes-mosquitto-"))
        for name, content in self._files.items():
            (directory / name).write_text(content)
        (directory / _LOG).touch()
        account = _account()
        if account is not None:
            for path in (directory, *directory.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
        return directory

    def _launch(self, binary: Path, directory: Path, port: int) -> None:
        _check_port(port)
        (directory / _CONFIGURATION).write_text(self._configuration(port))
        with (directory / _LOG).open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the binary was looked up, the arguments are ours
                [binary, "-c", directory / _CONFIGURATION],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for us; we end the broker after our clients
            )
        deadline = time.monotonic() + _START_S
        while not _accepts(port):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_BETWEEN_TRIES_S)
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                why = _complaint(self.log) or "it gave no reason"
                raise BrokerError("mosquitto did not start", why=why, mend=f"Check its settings and port {port}")

    def _configuration(self, port: int) -> str:
        account = _account()
        lines = [
            f"listener {port} {_HOST}",
            "protocol mqtt",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            "max_inflight_messages 20",
            "max_queued_messages 10000",
            "max_queued_bytes 268435456",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "log_type information",
            "connection_messages false",
        ]
        if account is not None:
            lines.append(f"user {account.pw_name}")
        if self._packet_bytes_max is not None:
            lines.append(f"max_packet_size {self._packet_bytes_max}")
        if self._persistence_dir is None:
            lines.append("persistence false")
        else:
            _make_reachable(self._persistence_dir, account)
            lines += ["persistence true", f"persistence_location {self._persistence_dir}/", "autosave_interval 60"]
        return "\n".join([*lines, *self._settings, ""])

    @staticmethod
    def _free_port() -> int:
        with socket.create_server((_HOST, 0)) as probe:
            port: int = probe.getsockname()[1]
            return port


def _account() -> pwd.struct_passwd | None:
    """Whom mosquitto becomes when root starts it; None when it stays who we are."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("mosquitto")
    except KeyError:
        return pwd.getpwnam("nobody")


def _make_reachable(directory: Path, account: pwd.struct_passwd | None) -> None:
    """Create the directory, and as root hand it to the broker's user.

    Raises:
        UsageError: that user may not enter a directory above it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if account is not None:
            os.chown(directory, account.pw_uid, account.pw_gid)
    except OSError as error:
        raise UsageError(f"directory {directory} cannot be used", why=error.strerror or str(error)) from error
    if account is None:
        return
    for parent in directory.parents:
        status = parent.stat()
        if status.st_uid != account.pw_uid and not status.st_mode & stat.S_IXOTH:
            raise UsageError(
                f"directory {directory} cannot be used",
                why=f"mosquitto runs as user {account.pw_name}, who may not enter {parent}",
                mend="Choose another directory, or do not start it as root",
            )


def _check_port(port: int) -> None:
    """Tell a port that is taken from a start that failed; else a stranger's broker would be taken for ours."""
    try:
        socket.create_server((_HOST, port)).close()
    except OSError as error:
        raise BrokerError(
            f"port {port} cannot be used",
            why=error.strerror or str(error),
            mend="Choose another port, or stop the program that listens there",
        ) from error


def _complaint(log: str) -> str:
    """The errors at the end of a log, without their time stamps: Mosquitto names the setting, then its line."""
    lines = [line.partition(": ")[2].rstrip(".") for line in log.splitlines()[-2:] if "Error" in line]
    return "; ".join(lines)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=_START_S).close()
    except ConnectionRefusedError:
        return False
    return True
