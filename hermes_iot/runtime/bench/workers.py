"""Processes that do one piece of work after the other, so that a machine with several cores does several cells at once.

Not `concurrent.futures`: there the death of one process (a board's worth of memory too much) fails whatever waits, and
an interrupt leaves the others computing for minutes. Here each process has a pipe of its own, so we know whose work
died with it, start another one, and end them all when we are told to stop.

Processes are spawned, not forked (torch and its threads do not survive a fork), with one thread for every numerical
library: sums in one order are bit-identical, whatever the number of jobs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, TypeVar

from hermes_iot.errors import HermesError

T = TypeVar("T")
R = TypeVar("R")

_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Failure(str):
    """Why a piece of work came to nothing, in a line."""

    __slots__ = ()


def each(
    pieces: Sequence[T], work: Callable[[T], R], *, jobs: int, started: Callable[[T], None] = lambda _piece: None
) -> Iterator[tuple[T, R | Failure]]:
    """Do `work` on every piece, as they become ready.

    Args:
        pieces: begun in this order.
        work: a module's function: a process finds it by its name.
        jobs: processes, at least 1.
        started: told of a piece that is begun.
    """
    waiting = list(reversed(pieces))
    busy: dict[Connection, tuple[BaseProcess, T]] = {}
    idle: list[tuple[BaseProcess, Connection]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                process, pipe = idle.pop() if idle else _process(work)
                piece = waiting.pop()
                pipe.send(piece)
                busy[pipe] = (process, piece)
                started(piece)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)  # noqa: S101 - nothing else was waited for
                process, piece = busy.pop(ready)
                try:
                    result = ready.recv()
                except (EOFError, OSError):
                    process.join()
                    ready.close()
                    yield piece, Failure(f"its process ended with exit code {process.exitcode}")
                else:
                    idle.append((process, ready))
                    yield piece, result
    finally:
        for process in [process for process, _ in (*busy.values(), *idle)]:
            process.terminate()
            process.join()


def _process(work: Callable[[T], R]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, work), daemon=True)
    with _single_threaded():
        process.start()
    there.close()  # else its end would never show
    return process, here


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """The process's life: until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            piece = pipe.recv()
            try:
                result = work(piece)
            except HermesError as error:
                result = Failure(error)
            except Exception as error:  # noqa: BLE001 - one piece fails, the others go on
                traceback.print_exc()
                result = Failure(f"{type(error).__name__}: {error}")
            pipe.send(result)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
