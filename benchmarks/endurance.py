"""What grows and must not: the price of one more journal entry, and a coordinator's memory. Both without a network."""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import flood, receivers
from benchmarks.receivers import Case
from hermes_iot.protocol.topics import Topics
from hermes_iot.storage.journal import Journal
from hermes_iot.transport.base import Delivery, Will
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport

FEW: Final = 10
MANY: Final = 100_000
PAIRS: Final = 300
RECORD: Final = bytes(600)
#: A small model: what must not grow is what is kept per update, and that has nothing to do with its length.
PARAMETERS: Final = 500
SAMPLES: Final = 40


def journal_growth(directory: Path) -> float:
    """Time to append and sync one record behind `MANY` over the same behind `FEW`: the median of neighbouring pairs."""
    with contextlib.closing(Journal(directory / "few")) as few, contextlib.closing(Journal(directory / "many")) as many:
        for journal, count in ((few, FEW), (many, MANY)):
            for _ in range(count):
                journal.append(RECORD)
            journal.sync()
        return statistics.median(_appended_s(many) / _appended_s(few) for _ in range(PAIRS))


def _appended_s(journal: Journal) -> float:
    begun = time.perf_counter()
    journal.append(RECORD)
    journal.sync()
    return time.perf_counter() - begun


def memory_slope(updates: int, directory: Path) -> float:
    """MiB per 10,000 updates, by least squares over the last three quarters of a run in this process.

    The coordinator is whole (wire, machine, journal, checkpoints every ten seconds, answers); its broker is in memory.
    """
    broker = MemoryBroker(clock=time.monotonic)

    def connect(client_id: str, will: Will | None) -> Any:
        return MemoryTransport(broker, client_id=client_id, will=will)

    case = Case(kind="answering", parameters=PARAMETERS, codec="int8", updates=updates, chunk_bytes=2**22)
    topics = Topics("endurance")
    runner = receivers.led(case, "endurance", directory, connect, checkpoint_interval_s=10.0)
    seen: list[tuple[int, float]] = []
    try:
        runner.start()
        machine = runner.machine
        for topic, payload in flood.births(topics):
            runner.inbox.deliver(Delivery(topic=topic, payload=payload, retain=True))
        receivers.until(runner, lambda: len(machine.members) >= flood.DEVICES and not len(runner.inbox))
        order = flood.Order(
            run=machine.manifest.run,
            model=machine.manifest.model.sha256,
            parameters=PARAMETERS,
            codec="int8",
            updates=updates,
            chunk_bytes=2**22,
        )
        for number, (topic, payload) in enumerate(flood.updates(topics, order), start=1):
            runner.inbox.deliver(Delivery(topic=topic, payload=payload))
            if number % 100 == 0 or number == updates:
                receivers.until(runner, lambda number=number: machine.tally.received >= number)
            if number % max(1, updates // SAMPLES) == 0:
                seen.append((number, receivers.rss_mib()))
        if machine.tally.applied != updates:
            raise RuntimeError(f"of {updates} updates {machine.tally}")
    finally:
        runner.close()
    counts, mib = np.array(seen[len(seen) // 4 :], dtype=np.float64).T
    return float(np.polyfit(counts, mib, 1)[0] * 10_000)
