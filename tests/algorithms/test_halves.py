"""Half precision without a cast, held against numpy's cast; and that faster casts are taken only if they agree."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hermes_iot.algorithms import halves
from hermes_iot.algorithms.compression import pack, unpack

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)
OURS = halves.Casts(to_halves=halves._to_halves, from_halves=halves._from_halves)


@pytest.fixture(autouse=True, params=[0, halves._FEW], ids=["in steps", "a few by numpy"])
def _ours(request, monkeypatch):
    """A few entries are numpy's business, so each case is tried on the steps as well."""
    monkeypatch.setattr(halves, "_FEW", request.param)
    before = list(halves._used)
    assert halves.use(OURS)
    yield
    halves._used[:] = before


def cast(vector):
    """numpy's way, and what infinity would become of clamped."""
    with np.errstate(all="ignore"):
        return np.clip(vector, -halves.FP16_MAX, halves.FP16_MAX).astype(np.float16).view(np.uint16)


def vector(*values):
    return np.array(values, dtype=np.float32)


def test_every_half_is_read_as_numpy_reads_it():
    assert halves.from_halves(EVERY_HALF).tobytes() == EVERY_HALF.view(np.float16).astype(np.float32).tobytes()


def test_every_finite_half_is_written_as_itself():
    finite = EVERY_HALF[np.isfinite(EVERY_HALF.view(np.float16))]
    assert halves.to_halves(halves.from_halves(finite)).tobytes() == finite.tobytes()


def test_hand_computed_halves():
    # 1, -2, the largest, the smallest normal 2^-14, the smallest subnormal 2^-24, a tie to even below it, a half of -0
    given = vector(1, -2, 65504, 2**-14, 2**-24, 2**-25, -0.0)
    assert [f"{one:04x}" for one in halves.to_halves(given)] == ["3c00", "c000", "7bff", "0400", "0001", "0000", "8000"]


def test_ties_go_to_even_among_normal_and_subnormal_halves():
    # 1 + 2^-11 lies between 3c00 and 3c01, 1 + 3*2^-11 between 3c01 and 3c02; 3*2^-25 between 0001 and 0002
    given = vector(1 + 2**-11, 1 + 3 * 2**-11, 3 * 2**-25, -5 * 2**-25)
    assert [f"{one:04x}" for one in halves.to_halves(given)] == ["3c00", "3c02", "0002", "8002"]


def test_rounding_may_carry_into_the_next_power_of_two():
    given = vector(2 - 2**-12, 2**-14 - 2**-25 + 2**-30)
    assert [f"{one:04x}" for one in halves.to_halves(given)] == ["4000", "0400"]


def test_what_is_too_large_becomes_the_largest_half():
    assert halves.to_halves(vector(65519.996, 65520, 3e38, -1e5)).view(np.float16).tolist() == [65504] * 3 + [-65504]


def test_any_finite_float32_is_written_as_numpy_writes_it():
    bits = np.random.default_rng(4).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    numbers = bits.view(np.float32)[np.isfinite(bits.view(np.float32))]
    assert numbers.size > halves._BLOCK
    assert halves.to_halves(numbers).tobytes() == cast(numbers).tobytes()


@pytest.mark.parametrize("size", [0, 1, halves._BLOCK - 1, halves._BLOCK, halves._BLOCK + 1])
def test_a_vector_of_any_length_comes_back_writable(size):
    sent = np.linspace(-1e-4, 1e-4, size, dtype=np.float32)
    received = unpack(pack(sent, "fp16"), "fp16", size)
    assert received.tobytes() == cast(sent).view(np.float16).astype(np.float32).tobytes()
    assert received.flags.writeable
    assert received.flags.owndata


def test_casts_that_round_otherwise_are_not_used():
    def truncated(numbers):
        return np.bitwise_and(halves._to_halves(numbers), np.uint16(0xFFFE))

    assert not halves.use(halves.Casts(to_halves=truncated, from_halves=halves._from_halves))
    flushed = halves.Casts(
        to_halves=halves._to_halves,
        from_halves=lambda bits: np.where(bits & 0x7C00, halves._from_halves(bits), np.float32(0)),
    )
    assert not halves.use(flushed)
    assert halves._used == [OURS]


def test_torch_gives_the_same_bits_and_is_used():
    half_casts = pytest.importorskip("hermes_iot.training.half_casts")
    assert half_casts.use_torch()
    assert halves._used != [OURS]
    sent = np.random.default_rng(5).standard_normal(1000).astype(np.float32) * np.float32(1e-5)
    sent.flags.writeable = False
    body = pack(sent, "fp16")
    assert body == cast(sent).tobytes()
    received = unpack(body, "fp16", 1000)
    assert received.tobytes() == halves._from_halves(cast(sent)).tobytes()
    received[0] = 1  # a vector of one's own
    assert unpack(bytearray(body), "fp16", 1000)[0] != 1


def test_a_vector_with_gaps_in_its_memory_is_encoded_like_any_other():
    wide = np.random.default_rng(4).standard_normal(600).astype(np.float32)
    assert pack(wide[::2], "fp16") == pack(wide[::2].copy(), "fp16")


def test_with_torch_a_body_that_cannot_be_written_to_is_decoded_without_a_warning():
    # in a process of its own: torch says it once
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from hermes_iot.training.half_casts import use_torch; use_torch()\n"
        "from hermes_iot.algorithms.compression import unpack\n"
        "vector = unpack(bytes.fromhex('003c00c0'), 'fp16', 2); vector[0] += 1; print(vector.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[2.0, -2.0]\n", "")
