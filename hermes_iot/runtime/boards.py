"""The demo's fleet: devices of different emulated speed on one machine, as processes or, without a broker, threads.

Every process is ended by its own id. A device that ends by itself while the run goes on is noticed at once and ends
the demo with its last words instead of leaving it to wait.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermes_iot.errors import (
    AccessDenied,
    BrokerError,
    HermesError,
    IdConflict,
    Incompatible,
    StorageError,
    TimedOut,
    UsageError,
)
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.device import DeviceRunner
from hermes_iot.storage.atomic import make_directory

LEAVE_S = 10.0
_LAST_WORDS_BYTES = 2000
#: A device's exit code is the demo's.
_KINDS: Final = {
    kind.exit_code: kind
    for kind in (UsageError, BrokerError, TimedOut, AccessDenied, Incompatible, IdConflict, StorageError)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One device to emulate. `rows` is START:STOP in local mode, else None."""

    device: str
    slowdown: float
    rows: str | None = None


class Boards:
    """Launches, watches and ends the devices of one demo.

    Attributes:
        failure: why a device ended that should not have; None while all is well.
    """

    def __init__(self, directory: Path) -> None:
        self.failure: HermesError | None = None
        self._directory = directory
        self._scratch = tempfile.TemporaryDirectory(prefix="hermes-boards-")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runners: dict[str, DeviceRunner] = {}
        self._threads: list[threading.Thread] = []
        self._ending = threading.Event()
        self._stop: Callable[[], None] | None = None

    def state_dir(self, board: Board) -> Path:
        """Where a board's state is kept while the demo runs."""
        return Path(self._scratch.name) / board.device

    def launch(self, boards: Sequence[Board], arguments: Sequence[str]) -> None:
        """Start one process per board; what they say goes to ``logs/<device>.log`` of the run's directory."""
        logs = self._directory / "logs"
        make_directory(logs)
        # One thread per device: a board's model must not fight its neighbours for cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for board in boards:
            words = [sys.executable, "-m", "hermes_iot", "device", "--id", board.device, "--once", *arguments]
            words += ["--slowdown", str(board.slowdown), "--state-dir", str(self.state_dir(board))]
            words += ["--rows", board.rows] if board.rows is not None else []
            with (logs / f"{board.device}.log").open("wb") as log:
                self._processes[board.device] = subprocess.Popen(  # noqa: S603 - our own interpreter and package
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
                )
            self._watch(board.device, self._wait_for_process)

    def launch_threads(self, runners: Sequence[DeviceRunner]) -> None:
        """Run devices as threads of this process."""
        for runner in runners:
            self._runners[runner.config.device] = runner
            self._watch(runner.config.device, self._run_here)

    def belong_to(self, runner: CoordinatorRunner) -> None:
        """From now on a device's failure stops this coordinator."""
        self._stop = runner.stop
        if self.failure is not None:
            runner.stop()

    def end(self) -> None:
        """End whatever still runs, politely and then not, and remove the boards' state."""
        self._ending.set()
        for runner in self._runners.values():
            runner.stop("demo ended")
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for thread in self._threads:
            thread.join(LEAVE_S)
        self._scratch.cleanup()

    def _watch(self, device: str, wait: Callable[[str], None]) -> None:
        thread = threading.Thread(target=wait, args=(device,), name=f"board-{device}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wait_for_process(self, device: str) -> None:
        code = self._processes[device].wait()
        if code and not self._ending.is_set():
            log = self._directory / "logs" / f"{device}.log"
            said = log.read_bytes()[-_LAST_WORDS_BYTES:].decode(errors="replace").strip().splitlines()
            self._failed(device, said[-1] if said else f"exit code {code}", f"See {log}", code)

    def _run_here(self, device: str) -> None:
        try:
            self._runners[device].run()
        except Exception as error:  # noqa: BLE001 - the demo ends with its words, whatever they are
            if not self._ending.is_set():
                code = error.exit_code if isinstance(error, HermesError) else HermesError.exit_code
                self._failed(device, str(error) or type(error).__name__, "", code)

    def _failed(self, device: str, why: str, mend: str, code: int) -> None:
        kind = _KINDS.get(code, HermesError)
        self.failure = kind(f"device {device} ended before the run did", why=why, mend=mend)
        if self._stop is not None:
            self._stop()
