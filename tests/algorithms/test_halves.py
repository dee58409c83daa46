"""fp16 and bf16: bytes by hand, rounding and clamping, and torch's cast against numpy's, bit by bit."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms import halves
from hermes_iot.algorithms.compression import pack, unpack
from hermes_iot.algorithms.halves import BF16_MAX, FP16, Fp16Cast
from hermes_iot.config import RunConfig
from hermes_iot.runtime import trainers
from hermes_iot.training.halves import lend

repeatable = settings(derandomize=True, deadline=None)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = hnp.arrays(np.float32, st.integers(0, 30), elements=finite32)
MAX = float(np.finfo(np.float32).max)


@pytest.fixture(params=["numpy", "torch"])
def cast(request):
    """Both ways of casting, the one that was in use put back."""
    before = FP16.narrow, FP16.widen
    plain = Fp16Cast()
    FP16.narrow, FP16.widen = plain.narrow, plain.widen
    if request.param == "torch":
        lend()
    yield request.param
    FP16.narrow, FP16.widen = before


both_casts = pytest.mark.usefixtures("cast")


def vector(*values):
    return np.array(values, dtype=np.float32)


def there_and_back(sent, codec):
    return unpack(pack(sent, codec), codec, sent.size)


@both_casts
def test_the_bytes_are_frozen():
    tiny = vector(1.0, -2.0, 0.1, -0.0, 1e6)
    assert pack(tiny, "fp16").hex(" ", 2) == "003c 00c0 662e 0080 ff7b"
    assert pack(tiny, "bf16").hex(" ", 2) == "803f 00c0 cd3d 0080 7449"


@both_casts
def test_fp16_rounds_halves_to_even():
    # between 1 and 2 the steps are 2**-10
    assert there_and_back(vector(1 + 2**-11, 1 + 3 * 2**-11), "fp16").tolist() == [1.0, 1 + 2 * 2**-10]


def test_bf16_rounds_halves_to_even():
    # between 1 and 2 the steps are 2**-7; a little more than a half goes up
    sent = vector(1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, np.nextafter(np.float32(1 + 2**-8), np.float32(2)))
    assert there_and_back(sent, "bf16").tolist() == [1.0, 1 + 2 * 2**-7, -1.0, 1 + 2**-7]


@both_casts
@pytest.mark.parametrize("large", [65520, 70000, 3e38])
def test_fp16_clamps_what_the_cast_alone_would_make_infinite(large):
    assert there_and_back(vector(large, 1), "fp16").tolist() == [65504.0, 1.0]
    assert there_and_back(vector(-large, 1), "fp16").tolist() == [-65504.0, 1.0]
    assert there_and_back(vector(65519, -65519), "fp16").tolist() == [65504.0, -65504.0]


def test_bf16_clamps_what_rounding_would_make_infinite():
    assert float(BF16_MAX) == 255 * 2.0**120
    assert there_and_back(vector(MAX, -MAX), "bf16").tolist() == [float(BF16_MAX), -float(BF16_MAX)]


def test_bf16_says_numbers_too_small_to_be_normal():
    assert there_and_back(vector(2.0**-133, -(2.0**-130), 2.0**-149), "bf16").tolist() == [2.0**-133, -(2.0**-130), 0.0]


@repeatable
@given(sent=vectors)
def test_fp16_is_within_half_a_step_of_what_was_sent_up_to_its_largest_number(sent):
    received = there_and_back(sent, "fp16")
    clamped = np.clip(sent.astype(np.float64), -65504, 65504)
    # 11 significant bits; below 2**-14 the steps are 2**-24
    assert np.all(np.abs(received - clamped) <= np.maximum(np.abs(clamped) * 2.0**-11, 2.0**-25))


@repeatable
@given(sent=vectors)
def test_bf16_is_within_half_a_step_of_what_was_sent(sent):
    received = there_and_back(sent, "bf16").astype(np.float64)
    clamped = np.clip(sent.astype(np.float64), -float(BF16_MAX), float(BF16_MAX))
    # 8 significant bits; below 2**-126 the steps are 2**-133
    assert np.all(np.abs(received - clamped) <= np.maximum(np.abs(clamped) * 2.0**-8, 2.0**-134))


@both_casts
def test_every_half_is_widened_to_the_same_bits_with_torch_as_without():
    body = np.arange(1 << 16, dtype="<u2").tobytes()
    received = halves.from_fp16(body, 1 << 16)
    wanted = np.frombuffer(body, "<f2").astype(np.float32)
    finite = np.isfinite(wanted)
    assert received[finite].tobytes() == wanted[finite].tobytes()
    assert np.array_equal(received, wanted, equal_nan=True)


@both_casts
def test_floats_around_every_half_and_between_two_are_narrowed_to_the_same_bits_with_torch_as_without():
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (exact[:-1] + exact[1:]) / 2
    points = np.concatenate([exact, between])
    points = np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(1e9))])
    sent = np.concatenate([points, -points, 10.0 ** np.arange(-44, 5, dtype=np.float32)]).astype(np.float32)
    sent = sent[np.abs(sent) <= 65504]
    assert halves.to_fp16(sent) == sent.astype("<f2").tobytes()


@both_casts
def test_a_vector_with_gaps_in_its_memory_is_encoded_like_any_other():
    wide = np.random.default_rng(4).standard_normal(600).astype(np.float32)
    for codec in ("fp16", "bf16"):
        assert pack(wide[::2], codec) == pack(wide[::2].copy(), codec)


def test_a_body_that_cannot_be_written_to_is_decoded_without_a_warning():
    # in a process of its own: torch says it once
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from hermes_iot.training.halves import lend; lend()\n"
        "from hermes_iot.algorithms.compression import unpack\n"
        "vector = unpack(bytes.fromhex('003c00c0'), 'fp16', 2); vector[0] += 1; print(vector.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[2.0, -2.0]\n", "")


def test_a_trainer_of_torch_brings_its_cast(monkeypatch):
    plain = Fp16Cast()
    monkeypatch.setattr(FP16, "narrow", plain.narrow)
    monkeypatch.setattr(FP16, "widen", plain.widen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainers.for_coordinator(RunConfig(task="digits"), data_dir=None)
    assert FP16.narrow is not plain.narrow
    assert FP16.widen is not plain.widen
