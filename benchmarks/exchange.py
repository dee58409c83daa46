"""What one exchange of a large model costs in memory: a coordinator and a device, real processes, over a real Mosquitto.

The broker takes packets of 131,072 bytes, so everything travels in chunks. The device fetches the model, trains, pushes
its update, gets its answer and pushes another one made from it. Peak resident memory (VmHWM) of both processes is
compared with that of the same run of a model of 300 parameters, and what is left is printed as multiples of the model in
fp32: how often the model lay in memory at the worst moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hermes_iot.runtime.broker import MosquittoBroker

TASK: Final = Path(__file__).with_name("wide_mlp.py")
ROOT: Final = TASK.parent.parent
PACKET_BYTES_MAX: Final = 131_072
WIDTH: Final = 4987
NARROW: Final = 8
STRATEGIES: Final = ("hermes-plus", "hermes", "bsp")
DEADLINE_S: Final = 300.0
_SAMPLE_S: Final = 0.02
_STOP_S: Final = 15.0


def parameters(width: int) -> int:
    """Of `wide_mlp`."""
    return width * width + 28 * width + 10


@dataclass(slots=True)
class Process:
    """One of ours, and the most memory it ever had resident."""

    name: str
    popen: subprocess.Popen[bytes]
    peak_bytes: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Until it ends: the kernel keeps the highest mark, so only what the last moment added can be missed."""
        status = Path(f"/proc/{self.popen.pid}/status")
        while self.popen.poll() is None:
            with contextlib.suppress(OSError):
                for line in status.read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)
            time.sleep(_SAMPLE_S)
        self.done.set()


@contextlib.contextmanager
def started(name: str, words: list[str], *, width: int, directory: Path) -> Iterator[Process]:
    """Run a command of hermes-iot; ended with the block."""
    environment = {
        **os.environ,
        "HERMES_BENCH_WIDTH": str(width),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with (directory / f"{name}.log").open("wb") as log:
        popen = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-m", "hermes_iot", *words], stdout=log, stderr=log, env=environment, cwd=directory
        )
    process = Process(name, popen)
    watcher = threading.Thread(target=process.watch, daemon=True)
    watcher.start()
    try:
        yield process
    finally:
        if popen.poll() is None:
            popen.terminate()
            try:
                popen.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
        watcher.join()


def exchange(width: int, *, strategy: str, options: tuple[str, ...] = (), pushes: int = 2) -> dict[str, Any]:
    """Train so many pushes; peaks in bytes, what was merged and how long it took.

    Raises:
        RuntimeError: the run did not end well; with what the processes said.
    """
    with (
        tempfile.TemporaryDirectory(prefix="hermes-exchange-") as scratch,
        MosquittoBroker(packet_bytes_max=PACKET_BYTES_MAX) as broker,
    ):
        directory = Path(scratch)
        both = ["--broker", broker.url, "--fleet", "exchange", "--task", str(TASK)]
        lead = ["coordinator", *both, "--run-dir", str(directory / "run"), "--strategy", strategy, "--plain", "--json"]
        lead += ["--max-pushes", str(pushes), "--max-wall", f"{DEADLINE_S:.0f}s", *options]
        follow = ["device", *both, "--id", "board", "--state-dir", str(directory / "board"), "--once"]
        begun = time.monotonic()
        with (
            started("coordinator", lead, width=width, directory=directory) as one,
            started("device", follow, width=width, directory=directory) as other,
        ):
            ended = one.done.wait(DEADLINE_S + _STOP_S) and other.done.wait(_STOP_S)
        wall_s = time.monotonic() - begun
        codes = (one.popen.returncode, other.popen.returncode)
        if not ended or codes != (0, 0):
            said = "\n".join((directory / f"{name}.log").read_text() for name in ("coordinator", "device"))
            raise RuntimeError(f"the exchange ended with {codes}:\n{said}")
        rows = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((directory / "run" / "summary.json").read_text())
        return {
            "strategy": strategy,
            "parameters": parameters(width),
            "coordinator_bytes": one.peak_bytes,
            "device_bytes": other.peak_bytes,
            "wall_s": round(wall_s, 1),
            "merges": [
                {name: row.get(name) for name in ("seq", "version", "lag")} for row in rows if row["event"] == "merge"
            ],
            "summary": summary,
            "broker_log": broker.log,
        }


def multiples(large: dict[str, Any], small: dict[str, Any]) -> dict[str, float]:
    """What the model cost, in models of fp32, on either side."""
    model = 4 * (large["parameters"] - small["parameters"])
    return {side: (large[f"{side}_bytes"] - small[f"{side}_bytes"]) / model for side in ("coordinator", "device")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", action="append", help=f"may be repeated [default: {' '.join(STRATEGIES)}]")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the hidden layers [default: %(default)s]")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    for strategy in given.strategy or STRATEGIES:
        small, large = (exchange(width, strategy=strategy) for width in (NARROW, given.width))
        rows.append(
            {
                **{name: large[name] for name in ("strategy", "parameters", "merges", "wall_s")},
                "peak_mib": {side: large[f"{side}_bytes"] / 2**20 for side in ("coordinator", "device")},
                "without_model_mib": {side: small[f"{side}_bytes"] / 2**20 for side in ("coordinator", "device")},
                "models": multiples(large, small),
            }
        )
    if given.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    size = 4 * parameters(given.width) / 1e6
    lines = [
        f"{parameters(given.width):,} parameters ({size:.0f} MB in fp32), packets of {PACKET_BYTES_MAX:,} bytes at most"
    ]
    lines += [
        f"  {row['strategy']:12} {side:12} peak {row['peak_mib'][side]:7.0f} MiB,"
        f" {row['without_model_mib'][side]:4.0f} without the model: {row['models'][side]:5.2f} models"
        f"  ({len(row['merges'])} pushes, {row['wall_s']:.0f} s)"
        for row in rows
        for side in ("coordinator", "device")
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
