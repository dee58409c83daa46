"""Everything in the house that reads bytes somebody else may have written, each as a function of bytes alone.

Only errors of ours may come out of one, and only those named here. Files whose framing carries a checksum are read twice:
as they lie on disk, where damage must be found, and with their content bent inside a framing that is right, as another
version or a person's editor would leave it.

`python -m tests.fuzz.decoders` writes the corpus anew: what is good, and a few bent ones of each.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hermes_iot.algorithms.compression import CODINGS, pack, unpack
from hermes_iot.algorithms.trees import is_finite
from hermes_iot.config import RunConfig, toml_value
from hermes_iot.core.coordinator import Restored
from hermes_iot.core.effects import Checkpoint
from hermes_iot.core.effects import Journal as Journalled
from hermes_iot.core.redo import FleetChanged, Found
from hermes_iot.domain import DeviceId
from hermes_iot.errors import HermesError, ProtocolError, StorageError, UsageError
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire
from hermes_iot.reporting.metrics import read_metrics
from hermes_iot.runtime import redo_log
from hermes_iot.runtime.run_dir import RunDir
from hermes_iot.runtime.simulation import recording
from hermes_iot.runtime.simulation.profiles import fleet_of, link_of
from hermes_iot.storage import atomic, checkpoints, device_state, registry
from hermes_iot.storage.journal import Journal
from hermes_iot.training.shards import decode_shard, encode_shard
from tests.core import hand
from tests.fuzz import bending
from tests.protocol.samples import SAMPLES
from tests.protocol.strategies import KINDS

CORPUS = Path(__file__).with_name("corpus")
KIB = 1024
_TOPICS = Topics("lab-1")
_ALL_TOPICS = (
    *(next(iter(Wire(_TOPICS).outgoing(SAMPLES[kind], device="pi-01"))).topic for kind in KINDS),
    _TOPICS.model_part(0),
    _TOPICS.model_part(999_999),
)
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """One of them.

    Attributes:
        decode: raises `refuses` or nothing; asserts what must hold of what it read.
        seeds: good inputs.
        refuses: the errors it may raise.
        bend: how a good input becomes a bad one.
        cost: bytes of memory it may take, for each byte of input.
    """

    decode: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    refuses: tuple[type[HermesError], ...]
    bend: bending.Bend = bending.of_bytes
    cost: int = 8


def _scratch() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="hermes-fuzz-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


_SCRATCH = _scratch()


def _file(name: str, data: bytes) -> Path:
    path = _SCRATCH / name
    path.write_bytes(data)
    return path


def _sealed(kind: str, version: int, payload: bytes) -> bytes:
    """A checked document as `atomic.write_checked` would write it, without its fsyncs."""
    head = f'{{"hermes-iot": "{kind}", "format": {version}, "bytes": {len(payload)}, "sha256": "'
    return head.encode() + atomic._checksum(kind, version, payload).encode() + b'",\n"body":\n' + payload + b"\n}\n"


# --- the wire ---------------------------------------------------------------------------------------------------------


def _wire(data: bytes) -> None:
    if data:
        wire = Wire(_TOPICS, limits=Limits(transfers_bytes_max=64 * KIB))
        received = wire.incoming(_ALL_TOPICS[data[0] % len(_ALL_TOPICS)], data[1:], now=0.0)
        assert received is None or type(received.message) in KINDS


def _wire_seeds() -> list[bytes]:
    seeds = []
    for kind in KINDS:
        [packet] = Wire(_TOPICS).outgoing(SAMPLES[kind], device="pi-01")
        seeds.append(bytes([_ALL_TOPICS.index(packet.topic)]) + packet.payload)
    return seeds


def _coding(data: bytes) -> None:
    """The first byte is the codec, the next two how many parameters there are."""
    if len(data) > 3:
        size = 1 + int.from_bytes(data[1:3], "big")
        vector = unpack(data[3:], tuple(CODINGS)[data[0] % len(CODINGS)], size)
        assert vector.shape == (size,)
        assert is_finite(vector)


def _coding_seeds() -> list[bytes]:
    vector = np.random.default_rng(1).standard_normal(300).astype(np.float32)
    return [bytes([at]) + (299).to_bytes(2, "big") + pack(vector, name) for at, name in enumerate(CODINGS)]


def _shard_seeds() -> list[bytes]:
    chance = np.random.default_rng(1)
    return [
        encode_shard(chance.standard_normal((5, 3)).astype(np.float32), np.arange(5)),
        encode_shard(chance.integers(0, 255, (4, 2, 2)).astype(np.uint8), np.arange(4)),
    ]


# --- what a coordinator keeps -----------------------------------------------------------------------------------------


def _journal(data: bytes) -> None:
    directory = _SCRATCH / "journal"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "journal-000000000000.log").write_bytes(data)
    journal = Journal(directory)
    try:
        assert [index for index, _ in journal.read(0)] == list(range(journal.next_index))
    finally:
        journal.close()


def _journal_seeds() -> list[bytes]:
    directory = _SCRATCH / "journal-seed"
    shutil.rmtree(directory, ignore_errors=True)
    journal = Journal(directory)
    for length in (0, 1, 100, 300):
        journal.append(bytes(range(256))[:length] + b"x" * (length - 256))
    journal.sync()
    journal.close()
    return [(directory / "journal-000000000000.log").read_bytes()]


class _OneRecord:
    def __init__(self, record: bytes) -> None:
        self._record = record

    def read(self, _start: int) -> list[tuple[int, bytes]]:
        return [(0, self._record)]


def _redo(data: bytes) -> None:
    list(redo_log.read(_OneRecord(data), 0))  # type: ignore[arg-type]


def _redo_seeds() -> list[bytes]:
    desk = hand.Desk().up()
    effects = [*desk.hear(hand.birth()), *desk.hear(hand.update()), *desk.hear(hand.state()), *desk.wait(10.0)]
    entries = [entry for one in hand.of(effects, Journalled) for entry in one.entries]
    entries.append(FleetChanged(device=DeviceId("d1"), works=False, found=Found(version=1, elapsed_s=1.0)))
    return [b"".join(redo_log._pieces(entry)) for entry in entries]


def _bend_redo(data: bytes, chance: Random) -> bytes:
    line, mark, rest = data.partition(b"\n")
    return bending.of_json(line, chance) + mark + (bending.of_bytes(rest, chance) if chance.random() < 0.5 else rest)


def _checkpoint(data: bytes) -> None:
    checkpoints.load(_file("checkpoint", data))


def _checkpoint_seeds() -> list[bytes]:
    path = _SCRATCH / "checkpoint-seed"
    arrays = {"model": np.arange(6, dtype=np.float32).reshape(2, 3), "counts": np.arange(3)}
    checkpoints.save(path, arrays, {"run": "r", "journal": 4, "scalars": {"a": 1.5}})
    return [path.read_bytes()]


def _bend_checkpoint(data: bytes, chance: Random) -> bytes:
    """The header of safetensors and our entry in it, both as JSON; sometimes with a checksum that is right."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        entry = json.loads(header["__metadata__"]["hermes-iot"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return bending.of_bytes(data, chance)
    match chance.randrange(4):
        case 0:
            return bending.of_bytes(data, chance)
        case 1:
            header = bending.of_document(header, chance)
        case 2:
            header["__metadata__"]["hermes-iot"] = json.dumps(bending.of_document(entry, chance))
        case _:
            try:
                arrays = checkpoints.tensor_file.load(data)
                body = json.dumps(bending.of_document(json.loads(entry["metadata"]), chance))
            except Exception:  # noqa: BLE001 - bent before; whatever it makes of that is none of ours
                return bending.of_bytes(data, chance)
            seal = checkpoints._checksum(entry["format"], arrays, body)
            header["__metadata__"]["hermes-iot"] = json.dumps(entry | {"metadata": body, "sha256": seal})
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _led() -> Checkpoint:
    desk = hand.Desk(hand.ALWAYS).up()
    for message in (hand.birth(), hand.update(), hand.state(), hand.update(2)):
        desk.hear(message)
    return hand.of(desk.machine._checkpoint(desk.now), Checkpoint)[0]


_LED = _led()


def _scalars(data: bytes) -> None:
    """What a checkpoint says beside its tensors, as the machine takes it up."""
    try:
        scalars = json.loads(data)
    except (ValueError, RecursionError):
        return  # what `checkpoints` hands out is JSON
    if isinstance(scalars, dict):
        restored = Restored(version=_LED.version, arrays=_LED.arrays, scalars=scalars, allocations={})
        hand.Desk(hand.ALWAYS, restored=restored).up()


def _registry(data: bytes) -> None:
    _look(_file("registry.json", _sealed("registry", registry.SCHEMA_VERSION, data)))


def _look(path: Path) -> None:
    with registry.Registry(path, read_only=True) as one:
        one.unfinished("lab")
        for run in one.runs():
            assert isinstance(run["state"], str)
            assert isinstance(one.devices_of(run["run"]), dict)
            for row in one.allocations_of(run["run"]).values():
                assert row["version"] >= 0


def _registry_seeds() -> list[bytes]:
    return [_body(_run().path / "registry.json")]


def _body(path: Path) -> bytes:
    payload = atomic.read_checked(path, kind="registry", version=registry.SCHEMA_VERSION)
    assert payload is not None
    return payload


def _run() -> RunDir:
    """A run's directory with a device in it, closed."""
    path = _SCRATCH / "run-seed"
    shutil.rmtree(path, ignore_errors=True)
    one = RunDir(path)
    one.begin("run-a", fleet="lab", config=RunConfig(task="toy"), created_at="2026-01-01T00:00:00+00:00")
    one.save("run-a", _LED)
    with one.registry.batch():
        one.registry.remember_device("run-a", "d1", session=1, status="online", seq=2, counters={"applied": 1})
        one._remember_allocation("run-a", DeviceId("d1"), hand.allocation())
    one.close()
    return one


def _resumed(data: bytes) -> None:
    """A registry beside a good checkpoint and journal, as a coordinator finds it that goes on."""
    _SEED.registry.close()
    (_SEED.path / "registry.json").write_bytes(_sealed("registry", registry.SCHEMA_VERSION, data))
    (_SEED.path / "registry.json.bak").unlink(missing_ok=True)
    one = RunDir(_SEED.path)
    try:
        run = one.unfinished("lab", RunConfig(task="toy"))
        if run is not None:
            restored = one.restored(run)
            assert restored is not None
            hand.Desk(hand.ALWAYS, restored=restored).up()
    finally:
        one.close()


_SEED = _run()


def _registry_file(data: bytes) -> None:
    _look(_file("registry.json", data))


def _summary_seeds() -> list[bytes]:
    rows = [{"device": "pi-01", "batch_s": 0.01, "mini_batches": 100}]
    known: dict[str, Any] = {"run": "r", "strategy": "hermes", "iterations": 10, "updates_published": 4}
    known |= {"updates_applied": 4, "bytes_up": 10, "bytes_down": 10, "accuracy": 0.5, "loss": None, "wall_s": 10.0}
    return [json.dumps(known | {"reason": "target", "devices": rows}).encode()]


# --- what a device keeps ----------------------------------------------------------------------------------------------


def _device_state(data: bytes) -> None:
    memory = device_state.load_memory(_file("device.json", _sealed("device-state", device_state.FORMAT_VERSION, data)))
    assert memory is not None
    assert memory.session >= 1


def _device_state_seeds() -> list[bytes]:
    memory = device_state.DeviceMemory(session=3, run="run-a", seq=7, allocation_version=2, instance="0f" * 16)
    return [json.dumps(asdict(memory)).encode()]


# --- what people hand us ----------------------------------------------------------------------------------------------


def _metrics(data: bytes) -> None:
    for record in read_metrics(_file("metrics.jsonl", data)):
        assert isinstance(record["event"], str)


def _metrics_seeds() -> list[bytes]:
    fields: dict[str, Any] = {"device": "pi-01", "session": 1, "seconds": 0.5, "mini_batches": 10, "iteration": 1}
    fields |= {"loss": 0.5, "published": True, "batch_s": 0.05, "phase": "training", "reason": "connection lost"}
    events = ("joined", "state", "iteration", "merge", "iteration", "left", "joined", "finished")
    lines = [{"event": event, "elapsed_s": float(at), **fields, "session": at} for at, event in enumerate(events)]
    return [b"\n".join(json.dumps(line).encode() for line in lines) + b"\n"]


def _recording(data: bytes) -> None:
    directory = _SCRATCH / "recorded"
    directory.mkdir(exist_ok=True)
    (directory / "summary.json").write_bytes(_summary_seeds()[0])
    (directory / "registry.json").write_bytes(_RECORDED)
    (directory / "metrics.jsonl").write_bytes(data)
    found = recording.recording_of(directory, read_metrics(directory / "metrics.jsonl"))
    assert found.virtual_s > 0
    assert found.fleet.devices >= 1


_RECORDED = _sealed("registry", registry.SCHEMA_VERSION, _body(_SEED.path / "registry.json"))


def _toml_of(folder: str) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes() for path in sorted((_REPOSITORY / "devices" / folder).glob("*.toml"))[:4]]


def _setting(data: bytes) -> None:
    toml_value(data.decode("utf-8", errors="replace"))


DECODERS: dict[str, Decoder] = {
    "wire": Decoder(decode=_wire, seeds=_wire_seeds, refuses=(ProtocolError,), cost=40),
    "coding": Decoder(decode=_coding, seeds=_coding_seeds, refuses=(ProtocolError,)),
    "shard": Decoder(decode=decode_shard, seeds=_shard_seeds, refuses=(ProtocolError,)),
    "journal": Decoder(decode=_journal, seeds=_journal_seeds, refuses=(StorageError,)),
    "redo": Decoder(decode=_redo, seeds=_redo_seeds, refuses=(StorageError,), bend=_bend_redo, cost=40),
    "checkpoint": Decoder(
        decode=_checkpoint, seeds=_checkpoint_seeds, refuses=(StorageError,), bend=_bend_checkpoint, cost=60
    ),
    "scalars": Decoder(
        decode=_scalars,
        seeds=lambda: [json.dumps(_LED.scalars).encode()],
        refuses=(StorageError,),
        bend=bending.of_json,
        cost=60,
    ),
    "registry": Decoder(
        decode=_registry, seeds=_registry_seeds, refuses=(StorageError,), bend=bending.of_json, cost=80
    ),
    "registry-file": Decoder(decode=_registry_file, seeds=lambda: [_RECORDED], refuses=(StorageError,), cost=80),
    "resumed": Decoder(
        decode=_resumed, seeds=_registry_seeds, refuses=(StorageError, UsageError), bend=bending.of_json, cost=80
    ),
    "device-state": Decoder(
        decode=_device_state, seeds=_device_state_seeds, refuses=(StorageError,), bend=bending.of_json, cost=60
    ),
    "metrics": Decoder(decode=_metrics, seeds=_metrics_seeds, refuses=(), bend=bending.of_lines, cost=60),
    "recording": Decoder(
        decode=_recording, seeds=_metrics_seeds, refuses=(UsageError, StorageError), bend=bending.of_lines, cost=80
    ),
    "summary": Decoder(
        decode=lambda data: recording._summary(_file("summary.json", data)),
        seeds=_summary_seeds,
        refuses=(UsageError,),
        bend=bending.of_json,
        cost=60,
    ),
    "fleet": Decoder(
        decode=lambda data: fleet_of(str(_file("fleet.toml", data))),
        seeds=_toml_of("fleets"),
        refuses=(UsageError,),
        cost=80,
    ),
    "link": Decoder(
        decode=lambda data: link_of(str(_file("link.toml", data))),
        seeds=_toml_of("links"),
        refuses=(UsageError,),
        cost=80,
    ),
    "setting": Decoder(
        decode=_setting,
        seeds=lambda: [b"0.97", b"'text'", b"[1, 2]", b"{a = 1}", b"2026-01-01T00:00:00Z"],
        refuses=(UsageError,),
        cost=80,
    ),
}

#: Bent ones of each kind in the corpus.
BENT = 6


def write_corpus() -> None:
    """Good inputs and a few bent ones; what fuzzing found bears a name that is not a number and stays."""
    for name, decoder in DECODERS.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        chance, good = Random(name), decoder.seeds()
        inputs = good + [decoder.bend(chance.choice(good), chance) for _ in range(BENT)]
        for number, data in enumerate(inputs):
            (folder / f"{number:02}.bin").write_bytes(data)


if __name__ == "__main__":
    write_corpus()
