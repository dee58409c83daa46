"""How fast a coordinator takes updates in, against a bare paho subscriber on the same Mosquitto, in one run.

Every row is a process of its own; a connection that costs next to nothing (`flood`) publishes prepared updates as fast
as the broker takes them, while the receiver works. With ``--filled`` the receiver is stopped until the broker has them
all, so that nobody but it and the broker works: the sink then is limited by nothing but itself.

The clock runs from the receiver's first packet to the end of its last update; for a coordinator that is: received,
checked against its hash, unpacked, decoded, known not to be a duplicate, written to the journal and synced,
acknowledged to the broker, and merged as hermes-plus merges. Answers and acks to devices are made up but not sent, rows
held out cost nothing. `against` is updates per second over those of the tuned paho of the same round, which receives
the fp16 updates, whatever the row's own codec is. `cpu` is the receiver's own, all its threads.

Rows take turns, a round each; shown are medians over the rounds, and the range. Ratios of a machine that does other
things as well are worth what their range says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from benchmarks import endurance, flood, receivers
from benchmarks.receivers import Case, Kind, Measured
from hermes_iot.algorithms.compression import CODINGS
from hermes_iot.domain import Codec
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime.broker import MosquittoBroker

SPAWN: Final = multiprocessing.get_context("spawn")
PARAMETERS: Final = (110_000, 1_000_000)
#: Rows in the order of a round; those whose codec there is not are left out.
ROWS: Final[Sequence[tuple[Kind, Codec | str]]] = (
    ("shipped", "fp16"),
    ("tuned", "fp16"),
    ("ingest", "fp16"),
    ("unjournalled", "fp16"),
    ("ingest", "int8"),
    ("ingest", "int4"),
    ("ingest", "deadzone"),
    ("ingest", "topk5"),
    ("ingest", "topk1"),
    ("answering", "deadzone"),
)
WORDS: Final = {
    "shipped": "bare paho as shipped",
    "tuned": "bare paho, allocator tuned",
    "ingest": "coordinator",
    "unjournalled": "coordinator, no journal",
    "answering": "coordinator that answers",
}
#: What is asked for: updates per second against the tuned paho's.
BARS: Final = {"fp16": 0.85, "int8": 1.1, "topk1": 4.0}
TUNED_BAR: Final = 1.6
JOURNAL_BAR: Final = 0.15
#: Bytes of one row's updates, and how many updates those may be.
ROW_BYTES: Final = 60_000_000
UPDATES: Final = (40, 1500)
ANSWER_S: Final = 300.0
SETTINGS: Final = ("max_queued_messages 0", "max_queued_bytes 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians over the rounds, and the range: updates per second, against the tuned paho, processor time per update."""

    kind: Kind
    codec: str
    parameters: int
    per_s: float
    per_s_range: tuple[float, float]
    against: float
    against_range: tuple[float, float]
    cpu_us: float
    rss_mib: float


def measured(case: Case, broker: MosquittoBroker, name: str, directory: Path, *, filled: bool) -> Measured:
    """One row of one round. `name` is the fleet's, never used before on this broker; `filled`: see the module."""
    topics, bare = Topics(name), case.kind in receivers.BARE
    port = broker.address.port
    with flood.Flood(port) as publisher, receiver(case, port, name, directory) as (process, child):
        run, model = ("run", "0" * 64) if bare else said(child)
        order = flood.Order(
            run=run,
            model=model,
            parameters=case.parameters,
            codec=case.codec,
            updates=case.updates,
            chunk_bytes=case.chunk_bytes,
        )
        packets = publisher.packets(flood.updates(topics, order))
        if bare:
            child.send(len(packets))
        else:
            publisher.publish(publisher.packets(flood.births(topics), retain=True))
        said(child)
        with stopped(process) if filled else nullcontext():
            publisher.publish(packets)
        found: Measured = said(child)
        return found


@contextmanager
def stopped(process: BaseProcess) -> Iterator[None]:
    """A process that does nothing in the block."""
    os.kill(process.pid or 0, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid or 0, signal.SIGCONT)


@contextmanager
def receiver(case: Case, port: int, name: str, directory: Path) -> Iterator[tuple[BaseProcess, Connection]]:
    """A receiving process and what it says, ended afterwards."""
    ours, theirs = SPAWN.Pipe()
    if case.kind in receivers.BARE:
        process = SPAWN.Process(target=receivers.sink, args=(case, port, name, theirs))
    else:
        process = SPAWN.Process(target=receivers.coordinator, args=(case, port, name, directory / name, theirs))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def said(child: Connection) -> Any:
    """The receiver's next word.

    Raises:
        TimeoutError: it says nothing.
        EOFError: it ended.
    """
    if not child.poll(ANSWER_S):
        raise TimeoutError(f"the receiver has said nothing for {ANSWER_S:g} s")
    return child.recv()


def rounds(parameters: int, count: int, chunk_bytes: int, directory: Path, *, filled: bool = False) -> list[Row]:
    """All rows of one size. What a row has written is removed with it: file pages that were never used are dear."""
    cases = [
        Case(
            kind=kind,
            parameters=parameters,
            codec=codec,
            updates=updates_of(codec, parameters),
            chunk_bytes=chunk_bytes,
        )
        for kind, codec in ROWS
        if codec in CODINGS
    ]
    found: dict[Case, list[Measured]] = {case: [] for case in cases}
    for number in range(count):
        for at, case in enumerate(cases):
            name = f"bench-{parameters}-{number}-{at}"
            with MosquittoBroker(settings=SETTINGS) as broker:
                found[case].append(measured(case, broker, name, directory, filled=filled))
            shutil.rmtree(directory / name, ignore_errors=True)
    tuned = next(found[case] for case in cases if case.kind == "tuned")
    tuned_per_s = [one.updates / one.wall_s for one in tuned]
    return [row(case, found[case], tuned_per_s) for case in cases]


def updates_of(codec: str, parameters: int) -> int:
    """How many updates make a row long enough, and no longer."""
    least, most = UPDATES
    return min(most, max(least, ROW_BYTES // CODINGS[codec].body_bytes(parameters)))


def row(case: Case, found: Sequence[Measured], tuned_per_s: Sequence[float]) -> Row:
    """Medians."""
    per_s = [one.updates / one.wall_s for one in found]
    against = [mine / theirs for mine, theirs in zip(per_s, tuned_per_s, strict=True)]
    return Row(
        kind=case.kind,
        codec=case.codec,
        parameters=case.parameters,
        per_s=statistics.median(per_s),
        per_s_range=(min(per_s), max(per_s)),
        against=statistics.median(against),
        against_range=(min(against), max(against)),
        cpu_us=statistics.median(one.cpu_s / one.updates * 1e6 for one in found),
        rss_mib=max(one.rss_mib for one in found),
    )


def verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was asked for, and what was found."""
    found = []
    by = {(one.kind, one.codec): one for one in rows}
    shipped, tuned = by["shipped", "fp16"], by["tuned", "fp16"]
    found.append(verdict("allocator tuned / as shipped", tuned.per_s / shipped.per_s, least=TUNED_BAR))
    for codec, least in BARS.items():
        if ("ingest", codec) in by:
            found.append(verdict(f"coordinator {codec} / tuned paho", by["ingest", codec].against, least=least))
    without, full = by["unjournalled", "fp16"], by["ingest", "fp16"]
    found.append(verdict("journal's part of an fp16 update's time", 1 - full.per_s / without.per_s, most=JOURNAL_BAR))
    found.append({"what": "the same of its processor time", "found": 1 - without.cpu_us / full.cpu_us})
    return [{"parameters": shipped.parameters, **one} for one in found]


def verdict(what: str, found: float, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """One line."""
    met = (least is None or found >= least) and (most is None or found <= most)
    return {"what": what, "found": found, "least": least, "most": most, "met": met}


def lines_of(document: dict[str, Any]) -> Iterator[str]:
    """The document as a table."""
    parameters = 0
    for one in document["rows"]:
        if one["parameters"] != parameters:
            parameters = one["parameters"]
            yield f"{parameters:,} parameters, one update in packets of at most {document['chunk_bytes']:,} bytes"
        low, high = one["per_s_range"]
        least, most = one["against_range"]
        yield (
            f"  {WORDS[one['kind']]:27} {one['codec']:9} {one['per_s']:7,.0f}/s [{low:,.0f}-{high:,.0f}]"
            f"  against {one['against']:5.2f}x [{least:.2f}-{most:.2f}]  cpu {one['cpu_us']:6,.0f} us"
            f"  {one['rss_mib']:4.0f} MiB"
        )
    for one in document["verdicts"]:
        size = f"{one['parameters']:,} parameters: " if "parameters" in one else ""
        bar = (
            f"at least {one['least']:g}"
            if one.get("least") is not None
            else f"at most {one['most']:g}"
            if one.get("most") is not None
            else ""
        )
        met = {True: "met", False: "MISSED", None: ""}[one.get("met")]
        yield f"{size + one['what']:66} {one['found']:7.3f}  {bar:14} {met}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of every row [default: 5]")
    parser.add_argument("--parameters", type=int, nargs="+", default=PARAMETERS, metavar="P", help="sizes of the model")
    parser.add_argument(
        "--chunk-bytes", type=int, default=2**22, metavar="N", help="longest packet [default: an update is one]"
    )
    parser.add_argument(
        "--endurance", type=int, default=200_000, metavar="N", help="updates while memory is watched, 0 = none"
    )
    parser.add_argument("--filled", action="store_true", help="fill the broker first, then let the receiver begin")
    parser.add_argument("--dir", type=Path, help="where journals are written [default: the system's temporary place]")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here as well")
    given = parser.parse_args()
    rows: list[Row] = []
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="hermes-ingest-") as name:
        for parameters in given.parameters:
            these = rounds(parameters, given.rounds, given.chunk_bytes, Path(name), filled=given.filled)
            rows += these
            found += verdicts(these)
        grown = endurance.journal_growth(Path(name) / "growth")
        found.append(verdict("one event appended and synced at 100,000 / at 10", grown, most=1.5))
        if given.endurance:
            slope = endurance.memory_slope(given.endurance, Path(name) / "memory")
            found.append(verdict(f"MiB of memory per 10,000 of {given.endurance:,} updates", slope, most=0.5))
    document = {
        "chunk_bytes": given.chunk_bytes,
        "rounds": given.rounds,
        "rows": [asdict(one) for one in rows],
        "verdicts": found,
    }
    text = json.dumps(document)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")
    sys.stdout.write((text if given.json else "\n".join(lines_of(document))) + "\n")


if __name__ == "__main__":
    main()
