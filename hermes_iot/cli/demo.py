"""``hermes-iot demo``: a broker, a coordinator and four devices of different speed, on this machine, now."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hermes_iot.cli import logs, options, run_options
from hermes_iot.cli.connect import BrokerOptions
from hermes_iot.errors import HermesError, UsageError

if TYPE_CHECKING:
    from hermes_iot.runtime.boards import Board
    from hermes_iot.runtime.coordinator import CoordinatorRunner
    from hermes_iot.transport.base import Transport, Will

#: Emulated speeds of the boards: three alike and one straggler. All idle for part of the time, as four boards that
#: computed all the time would only measure how this machine shares its cores among them.
SLOWDOWNS = (2.0, 2.4, 3.0, 12.0)


def demo(
    context: typer.Context,
    *,
    broker: Annotated[
        str | None,
        typer.Option("--broker", metavar="URL", help="A running broker. [default: a Mosquitto of our own, or none]"),
    ] = None,
    task: run_options.Task = "digits",
    strategy: run_options.Strategy = "hermes-plus",
    devices: Annotated[int, typer.Option("--devices", min=1, max=64, help="How many boards to emulate.")] = 4,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="The run's files. [default: runs/demo-<time>]")
    ] = None,
    target_accuracy: run_options.Target = None,
    patience: run_options.Patience = None,
    max_wall: Annotated[
        str | None, typer.Option("--max-wall", help="Stop after this time. [default: 30s for digits, else 120s]")
    ] = None,
    max_bytes: run_options.MaxBytes = None,
    max_pushes: run_options.MaxPushes = None,
    seed: run_options.Seed = 0,
    data: run_options.Data = "indexed",
    sampling: run_options.SamplingOption = None,
    gate_split: run_options.GateSplitOption = None,
    samples: run_options.Samples = None,
    batch: run_options.Batch = None,
    epochs: run_options.Epochs = None,
    learning_rate: run_options.Rate = None,
    validation: run_options.Validation = 0.1,
    codec: run_options.CodecOption = None,
    codec_down: run_options.CodecDownOption = None,
    codec_for: run_options.CodecForOption = None,
    fine: run_options.FineOption = None,
    telemetry: run_options.TelemetryOption = "off",
    constants: run_options.Constants = None,
    data_dir: options.DataDir = None,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="No broker process: devices are threads.")] = False,
    plain: run_options.Plain = False,
    as_json: options.Json = False,
    config: options.Config = None,  # read before parsing, see files.py
    verbose: options.Verbose = False,
) -> int:
    """See a fleet train: four emulated boards on real handwritten digits, in under a minute."""
    if in_memory and broker is not None:
        raise UsageError("--in-memory and --broker contradict each other", mend="Give one of them")
    access = BrokerOptions.of(broker) if broker is not None else None
    settings = run_options.run_config(context, max_wall=max_wall or ("30s" if task == "digits" else "120s"))
    logs.configure(verbose=verbose, quiet=True)

    from hermes_iot.algorithms.strategies import STRATEGIES
    from hermes_iot.cli.lead import lead
    from hermes_iot.core.device import DeviceSettings
    from hermes_iot.runtime.boards import Boards
    from hermes_iot.runtime.coordinator import CoordinatorRunner
    from hermes_iot.runtime.device import DeviceConfig, DeviceRunner
    from hermes_iot.runtime.trainers import for_coordinator, for_device
    from hermes_iot.training.tasks import task_names

    directory = run_dir or Path("runs") / f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    fleet = f"demo-{secrets.token_hex(3)}"
    boards = Boards(directory)
    own = [strategy] if strategy not in STRATEGIES else []
    arguments = [
        *(["--fleet", fleet]),
        *(["--task", task] if task not in task_names() else []),
        *(["--strategy", *own] if own else []),
        *(["--data-dir", str(data_dir)] if data_dir is not None else []),
        *(["--verbose"] if verbose else []),
    ]
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(_place(access, in_memory=in_memory))
        stack.callback(boards.end)
        say = sys.stderr if as_json else sys.stdout
        say.write(f"broker: {place.described}\n")
        say.flush()
        if place.url is not None and data != "local":
            # Before our own loading: their imports then overlap with ours.
            boards.launch(_boards(devices), [*arguments, "--broker", place.url])
        bench = for_coordinator(settings, data_dir=data_dir)

        def runner_of(on_record: Callable[[str, Mapping[str, Any]], None]) -> CoordinatorRunner:
            return CoordinatorRunner(
                settings, fleet=fleet, run_dir=directory, bench=bench, connect=place.connect, on_record=on_record
            )

        def beside(runner: CoordinatorRunner) -> None:
            boards.belong_to(runner)
            emulated = _boards(devices, rows=bench.trainer.train_rows if data == "local" else 0)
            if place.url is None:
                trainers = [
                    for_device(
                        task=task if task not in task_names() else None,
                        data_dir=data_dir,
                        rows=options.row_range(board.rows) if board.rows is not None else None,
                    )
                    for board in emulated
                ]
                boards.launch_threads(
                    [
                        DeviceRunner(
                            DeviceConfig(
                                fleet=fleet,
                                device=board.device,
                                state_dir=boards.state_dir(board),
                                slowdown=board.slowdown,
                                strategy=own[0] if own else None,
                                settings=DeviceSettings(once=True),
                            ),
                            connect=place.connect,
                            trainer_of=trainer_of,
                        )
                        for board, trainer_of in zip(emulated, trainers, strict=True)
                    ]
                )
            elif data == "local":
                boards.launch(emulated, [*arguments, "--broker", place.url])

        code = lead(
            runner_of,
            broker=place.described,
            run_dir=directory,
            kind="demo",
            as_json=as_json,
            plain=plain,
            beside=beside,
        )
    if boards.failure is not None:
        raise boards.failure
    return code


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the demo's messages go; `url` is None in memory."""

    described: str
    url: str | None
    connect: Callable[[str, Will | None], Transport]


@contextlib.contextmanager
def _place(access: BrokerOptions | None, *, in_memory: bool) -> Iterator[_Place]:
    """The broker that was named, else a Mosquitto of our own, else memory."""
    from hermes_iot.runtime.broker import MosquittoBroker, find_mosquitto

    if access is not None:
        url = str(access.address)
        yield _Place(described=url, url=url, connect=access.connector())
        return
    missing = ""
    if not in_memory:
        try:
            find_mosquitto()
        except HermesError as error:
            missing = f" ({error})"
        else:
            with MosquittoBroker() as broker:
                options_here = BrokerOptions.of(broker.url)
                yield _Place(described=f"Mosquitto on {broker.url}", url=broker.url, connect=options_here.connector())
            return
    from hermes_iot.transport.memory import MemoryBroker, MemoryTransport

    memory = MemoryBroker(clock=time.monotonic)
    yield _Place(
        described=f"in memory, devices are threads of this process{missing}",
        url=None,
        connect=lambda client_id, will: MemoryTransport(memory, client_id=client_id, will=will),
    )


def _boards(count: int, *, rows: int = 0) -> list[Board]:
    """The demo's boards; in local mode each owns an equal part of the rows."""
    from hermes_iot.runtime.boards import Board

    share = rows // count
    return [
        Board(
            device=f"pi-{number + 1:02}",
            slowdown=SLOWDOWNS[number % len(SLOWDOWNS)],
            rows=f"{number * share}:{(number + 1) * share}" if rows else None,
        )
        for number in range(count)
    ]
