"""The codecs: bytes of an update, what learning loses by them, their speed and the merge's against memory's.

Bytes are those of whole encoded messages, header and zstd included, against four for each parameter. "Any input" is the
worst of several shapes of noise; "real" are the displacements of four devices that train a small net together (MNIST
with ``--data-dir``, else scikit-learn's digits in a net of about as many parameters), with error feedback, every codec on
the same rows. Speed is in parts of memcpy's of the same float32 vector, one thread, best of many: with everything in the
cache, and over a ring of vectors larger than any cache, as updates come from a network. A merge's limit is the time of
twelve bytes a parameter (two vectors read, one written) at memcpy's rate.

Each line with a bar says whether it is reached. Ratios within one run: on a shared machine seconds say little.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, Final, get_args

import numpy as np
from torch import nn

from hermes_iot.algorithms.aggregation import displaced
from hermes_iot.algorithms.compression import CODINGS, pack, pack_with_feedback, unpack
from hermes_iot.algorithms.mixing import mix, start
from hermes_iot.domain import Codec, Params, TrainJob
from hermes_iot.protocol.codec import encode_tensors
from hermes_iot.protocol.messages import Update
from hermes_iot.training import half_casts, tasks
from hermes_iot.training.torch_trainer import TorchTrainer

SIZES: Final = (109_386, 1_000_000)
DEVICES, STEPS, BATCH, RATE = 4, 20, 16, 0.1
#: A ring of vectors that no cache holds.
RING_BYTES: Final = 256 * 1024 * 1024

#: Bars: at most so many bytes of fp32's, for any input and for real displacements.
BYTES_ANY: Final = {"int8": 0.253, "int4": 0.135, "topk10": 0.052, "topk1": 0.006, "sign": 0.032}
BYTES_REAL: Final = {"int8": 0.17, "int4": 0.09}
#: At most so much more loss than fp32, on the mean of the seeds.
LOSS: Final = {"int8": 0.03, "int4": 0.03, "topk10": 0.05}
#: At least so much of memcpy's speed.
ENCODE: Final = {"fp16": 0.5, "int8": 0.03, "topk1": 0.03, "topk5": 0.03, "topk10": 0.03}
DECODE: Final = {"fp16": 0.5, "int8": 0.12}
MERGE: Final = {109_386: 0.5, 1_000_000: 0.8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measurement. `most`: the bar is an upper one."""

    what: str
    case: str
    value: float
    bar: float | None = None
    most: bool = True

    @property
    def reached(self) -> bool | None:
        """None without a bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.most else self.value >= self.bar

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        row = {"what": self.what, "case": self.case, "value": self.value, "bar": self.bar, "reached": self.reached}
        return row | ({} if self.bar is None else {"side": "at most" if self.most else "at least"})

    def text(self) -> str:
        """For a person."""
        bar = "" if self.bar is None else f"{'<=' if self.most else '>='} {self.bar:.1%}"
        said = {None: "", True: "reached", False: "NOT REACHED"}[self.reached]
        return f"  {self.what:34} {self.case:22} {self.value:8.2%}  {bar:10} {said}".rstrip()


# --- bytes ----------------------------------------------------------------------------------------------------------


def inputs(size: int) -> dict[str, Params]:
    """Shapes of noise, none of them kind to a codec."""
    chance = np.random.default_rng(size)
    normal = chance.standard_normal(size)
    made = {
        "normal": normal,
        "uniform": chance.uniform(-1, 1, size),
        "heavy tails": chance.laplace(size=size) ** 3,
        "bits": chance.integers(0, 2**30, size).astype(np.uint32).view(np.float32),
        "clustered": np.concatenate([normal[: size // 2] / 1000, normal[size // 2 :]]),
    }
    return {name: values.astype(np.float32) for name, values in made.items()}


def message_bytes(body: bytes, codec: Codec, size: int) -> int:
    """Of an update as it travels."""
    update = Update(
        run="mnist-20260101-120000-7f3a",
        session=7,
        seq=1234,
        base_version=5678,
        model="1f" * 32,
        codec=codec,
        parameters=size,
        loss=0.123456789,
        samples=320,
        batch=16,
        mini_batches=20,
        train_s=1.23456789,
        iterations=2,
        steps=40,
        base="2e" * 32,
        body=body,
    )
    return len(encode_tensors(update))


def any_input() -> Iterator[Line]:
    """The largest message of each codec."""
    for size in SIZES:
        vectors = inputs(size)
        for codec in get_args(Codec):
            worst = max(message_bytes(pack(one, codec), codec, size) for one in vectors.values())
            yield Line(
                what="bytes, any input", case=f"{codec} {size:,}", value=worst / (4 * size), bar=BYTES_ANY.get(codec)
            )


# --- learning -------------------------------------------------------------------------------------------------------


def wide_digits() -> nn.Module:
    """64-512-128-10, 100,234 parameters: a net of the size of the one for MNIST."""
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10))


def trainer_of(data_dir: Path | None, seed: int) -> TorchTrainer:
    """MNIST where its files are given, else digits."""
    if data_dir is not None:
        task = tasks.resolve("mnist", data_dir=data_dir)
    else:
        task = replace(tasks.resolve("digits"), build_model=wide_digits)
    return TorchTrainer(task, task.load_data(), seed=seed)


def course(trainer: TorchTrainer, codec: Codec, seed: int, rounds: int) -> tuple[list[float], float]:
    """Test losses after each round, and the mean bytes of an update in fp32's.

    A round: every device walks on over its own rows from the common model, what it learnt goes through the codec with
    error feedback, and the mean of what arrives is added.
    """
    model = trainer.initial(seed)
    own = trainer.train_rows // DEVICES
    residuals: list[Params | None] = [None] * DEVICES
    losses, sent = [], 0
    for number in range(rounds):
        arrived = []
        for device in range(DEVICES):
            job = TrainJob(
                start=model,
                samples=own,
                batch=BATCH,
                epochs=1,
                learning_rate=RATE,
                sampling="walk",
                gate_split="fixed",
                rows=((device * own, (device + 1) * own),),
                shard="",
                key=(seed, device, number),
                slice_key=(seed, device),
                steps=STEPS,
                walked=number * STEPS * BATCH,
            )
            learnt = trainer.train(job).params - model
            body, residuals[device] = pack_with_feedback(learnt, residuals[device], codec)
            arrived.append(unpack(body, codec, model.size))
            sent += message_bytes(body, codec, model.size)
        model = displaced(model, arrived, [1 / DEVICES] * DEVICES)
        losses.append(trainer.score(model, "test").loss)
    return losses, sent / (rounds * DEVICES * 4 * model.size)


def learning(data_dir: Path | None, seeds: Iterable[int], rounds: int) -> Iterator[Line]:
    """Bytes of real displacements, and the loss from half-way on against that of fp32 on the same rows."""
    lost: dict[str, list[float]] = {codec: [] for codec in get_args(Codec)}
    sizes: dict[str, list[float]] = {codec: [] for codec in get_args(Codec)}
    for seed in seeds:
        trainer = trainer_of(data_dir, seed)
        reference: list[float] = []
        half = rounds // 2
        for codec in get_args(Codec):  # fp32 is the first
            losses, share = course(trainer, codec, seed, rounds)
            reference = reference or losses
            lost[codec].append(fmean(losses[half:]) / fmean(reference[half:]) - 1)
            sizes[codec].append(share)
    for codec, shares in sizes.items():
        yield Line(what="bytes, real displacements", case=codec, value=fmean(shares), bar=BYTES_REAL.get(codec))
    for codec, more in lost.items():
        yield Line(what="test loss above fp32's, mean", case=codec, value=fmean(more), bar=LOSS.get(codec))
        yield Line(what="test loss above fp32's, worst seed", case=codec, value=max(more))


# --- speed ----------------------------------------------------------------------------------------------------------


def best_s(calls: Iterator[Callable[[], object]], seconds: float, least: int) -> float:
    """Of one call, in seconds: the smallest of those that fit into so many seconds, and at least so many."""
    until, best, made = time.perf_counter() + seconds, float("inf"), 0
    while made < least or time.perf_counter() < until:
        call = next(calls)
        begun = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begun)
        made += 1
    return best


def speeds(size: int, seconds: float, *, ring: int) -> Iterator[Line]:
    """Encoding, decoding and merging a displacement, over so many different vectors in turn."""
    where = "in cache" if ring == 1 else "from memory"
    chance = np.random.default_rng(0)
    vectors = [(chance.standard_normal(size) * 1e-3).astype(np.float32) for _ in range(ring)]
    targets = [np.empty_like(one) for one in vectors]

    def over(call: Callable[[int], object]) -> float:
        return best_s((lambda at=at: call(at) for at in cycle(range(ring))), seconds, 2 * ring)

    memcpy = over(lambda at: np.copyto(targets[at], vectors[at]))
    for codec, coding in CODINGS.items():
        bodies = [coding.encode(one) for one in vectors]
        encode = memcpy / over(lambda at, coding=coding: coding.encode(vectors[at]))
        decode = memcpy / over(lambda at, coding=coding, bodies=bodies: coding.decode(bodies[at], size))
        case = f"{codec} {size:,}"
        yield Line(what=f"encode, {where}", case=case, value=encode, bar=ENCODE.get(codec), most=False)
        yield Line(what=f"decode, {where}", case=case, value=decode, bar=DECODE.get(codec), most=False)
    limit, other = 1.5 * memcpy, vectors[0]
    added = limit / over(lambda at: displaced(targets[at], [vectors[at]], [0.1]))
    state = start(other)
    mixed = limit / over(
        lambda at: mix(state, targets[at], vectors[at], share=0.1, elapsed=1.0, momentum=0.5, rate=1.0, ema_rate=0.2)
    )
    plain = limit / over(lambda at: targets[at] + vectors[at] * np.float32(0.1))
    yield Line(what=f"merge added, {where}", case=f"{size:,}", value=added, bar=MERGE.get(size), most=False)
    yield Line(what=f"merge of hermes-plus, {where}", case=f"{size:,}", value=mixed, bar=MERGE.get(size), most=False)
    yield Line(what=f"w + s*q in float32, {where}", case=f"{size:,}", value=plain)


# --- all ------------------------------------------------------------------------------------------------------------


def measure(data_dir: Path | None, *, seeds: int, rounds: int, seconds: float) -> Iterator[Line]:
    """Everything, line by line."""
    half_casts.use_torch()
    yield from any_input()
    yield from learning(data_dir, range(seeds), rounds)
    for size in SIZES:
        yield from speeds(size, seconds, ring=1)
        yield from speeds(size, seconds, ring=RING_BYTES // (8 * size))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="MNIST's files [default: train on digits]")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="[default: 3]")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of the training [default: 30]")
    parser.add_argument("--seconds", type=float, default=0.2, metavar="S", help="for each speed [default: 0.2]")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    given = parser.parse_args()
    lines = []
    for line in measure(given.data_dir, seeds=given.seeds, rounds=given.rounds, seconds=given.seconds):
        lines.append(line)
        if not given.json:
            sys.stdout.write(line.text() + "\n")
            sys.stdout.flush()
    document = {
        "task": "digits" if given.data_dir is None else "mnist",
        "seeds": given.seeds,
        "rounds": given.rounds,
        "lines": [line.document() for line in lines],
    }
    if given.json:
        sys.stdout.write(json.dumps(document) + "\n")
    if given.out is not None:
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
