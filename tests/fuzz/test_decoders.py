"""Whatever bytes a decoder meets, only our own errors come out of it, and memory stays in proportion to the input."""

import tracemalloc
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import CORPUS, DECODERS

steady = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

#: What a decoder may take whatever its input: tables, paths, an error's words.
OVERHEAD_BYTES = 512 * 1024


def met(decoder, data):
    """Whether it was read; an error that is none of its own is raised."""
    try:
        decoder.decode(data)
    except decoder.refuses as error:
        line = str(error)
        assert "\n" not in line, "an error is one line"
        assert len(line) < 2000, "an error does not carry its input into the log"
        return False
    return True


def peak(decoder, data):
    tracemalloc.start()
    try:
        met(decoder, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", DECODERS)
def test_fuzz_what_is_good_is_read(name):
    decoder = DECODERS[name]
    good = decoder.seeds()
    assert good
    assert all(met(decoder, data) for data in good)


@pytest.mark.parametrize("name", DECODERS)
def test_fuzz_the_corpus_is_read_or_refused(name):
    files = sorted((CORPUS / name).iterdir())
    assert len(files) > len(DECODERS[name].seeds())
    for path in files:
        met(DECODERS[name], path.read_bytes())


def test_fuzz_the_corpus_is_small_and_of_these_decoders():
    assert {path.name for path in CORPUS.iterdir()} == set(DECODERS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*.bin")) < 256 * 1024


@pytest.mark.parametrize("examples", [60, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DECODERS)
def test_fuzz_bent_bytes_are_read_or_refused(name, examples):
    decoder = DECODERS[name]
    good = decoder.seeds()

    @settings(steady, max_examples=examples)
    @given(st.sampled_from(good), st.integers(0, 2**32 - 1), st.integers(1, 3))
    def fuzz(data, seed, times):
        chance = Random(seed)
        for _ in range(times):
            data = decoder.bend(data, chance)
        met(decoder, data)

    fuzz()


@pytest.mark.parametrize("name", DECODERS)
def test_fuzz_any_bytes_are_read_or_refused(name):
    decoder = DECODERS[name]

    @settings(steady, max_examples=40)
    @given(st.binary(max_size=300))
    def fuzz(data):
        met(decoder, data)

    fuzz()


@pytest.mark.parametrize("name", DECODERS)
def test_fuzz_memory_is_in_proportion_to_what_came(name):
    decoder = DECODERS[name]
    good = decoder.seeds()[0]
    hostile = [
        good + b"\xff" * 200_000,
        good * (200_000 // len(good) + 1),
        b"[" * 100_000,
        b'{"a":' * 30_000,
        b"[0," * 60_000,
        b"[[],{}," * 20_000,
        good[: len(good) // 2] + b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 4 + good[len(good) // 2 :],
        b"\xff" * 8 + good,
    ]
    for data in hostile:
        peak(decoder, data)  # what is loaded at its first use is no cost of the input
        taken = peak(decoder, data)
        assert taken < decoder.cost * len(data) + OVERHEAD_BYTES, f"{taken} bytes for {len(data)}: {data[:20]!r}"
