"""bf16: bytes by hand, rounding and clamping."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hermes_iot.algorithms.bfloat import BF16_MAX
from hermes_iot.algorithms.compression import pack, unpack

repeatable = settings(derandomize=True, deadline=None)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = hnp.arrays(np.float32, st.integers(0, 30), elements=finite32)
MAX = float(np.finfo(np.float32).max)


def vector(*values):
    return np.array(values, dtype=np.float32)


def there_and_back(sent, codec):
    return unpack(pack(sent, codec), codec, sent.size)


def test_the_bytes_are_frozen():
    assert pack(vector(1.0, -2.0, 0.1, -0.0, 1e6), "bf16").hex(" ", 2) == "803f 00c0 cd3d 0080 7449"


def test_bf16_rounds_halves_to_even():
    # between 1 and 2 the steps are 2**-7; a little more than a half goes up
    sent = vector(1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, np.nextafter(np.float32(1 + 2**-8), np.float32(2)))
    assert there_and_back(sent, "bf16").tolist() == [1.0, 1 + 2 * 2**-7, -1.0, 1 + 2**-7]


def test_bf16_clamps_what_rounding_would_make_infinite():
    assert float(BF16_MAX) == 255 * 2.0**120
    assert there_and_back(vector(MAX, -MAX), "bf16").tolist() == [float(BF16_MAX), -float(BF16_MAX)]


def test_bf16_says_numbers_too_small_to_be_normal():
    assert there_and_back(vector(2.0**-133, -(2.0**-130), 2.0**-149), "bf16").tolist() == [2.0**-133, -(2.0**-130), 0.0]


@repeatable
@given(sent=vectors)
def test_bf16_is_within_half_a_step_of_what_was_sent(sent):
    received = there_and_back(sent, "bf16").astype(np.float64)
    clamped = np.clip(sent.astype(np.float64), -float(BF16_MAX), float(BF16_MAX))
    # 8 significant bits; below 2**-126 the steps are 2**-133
    assert np.all(np.abs(received - clamped) <= np.maximum(np.abs(clamped) * 2.0**-8, 2.0**-134))


def test_a_vector_with_gaps_in_its_memory_is_encoded_like_any_other():
    wide = np.random.default_rng(4).standard_normal(600).astype(np.float32)
    assert pack(wide[::2], "bf16") == pack(wide[::2].copy(), "bf16")
