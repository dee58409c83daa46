"""What is remembered of a fleet is counted in bytes: vectors that are shared cost once, and what is lost costs a keyframe."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.algorithms.compression import unpack
from hermes_iot.algorithms.strategies.base import Regime
from hermes_iot.algorithms.trees import sha256
from hermes_iot.core.global_model import GlobalModel
from hermes_iot.core.views import View, Views
from hermes_iot.domain import DeviceId, Score
from tests.core.hand import ME, manifest, vector

ANOTHER = DeviceId("another")
#: Of one of the vectors here: four float32.
VECTOR_BYTES = 16


def view(value):
    held = vector(float(value))
    return View(vector=held, sha256=sha256(held))


def views(vectors, wholes_max=64):
    return Views(bytes_max=vectors * VECTOR_BYTES, wholes_max=wholes_max)


def holds(kept, device, value):
    return kept.held(device, view(value).sha256) is not None


def test_a_vector_that_many_hold_costs_once():
    kept = views(2)
    for name in range(1000):
        kept.remember(DeviceId(f"d{name}"), view(7))
    assert kept.bytes_held == VECTOR_BYTES
    assert all(holds(kept, DeviceId(f"d{name}"), 7) for name in range(1000))


def test_a_device_is_not_taken_to_hold_what_another_does_but_a_whole_model_anybody_may():
    kept = views(4)
    kept.remember(ANOTHER, view(1))
    kept.publish(view(2))
    assert (holds(kept, ANOTHER, 1), holds(kept, ME, 1)) == (True, False)
    assert (holds(kept, ANOTHER, 2), holds(kept, ME, 2)) == (True, True)


def test_what_nobody_holds_any_more_is_let_go():
    kept = views(4)
    kept.remember(ME, view(1))
    kept.remember(ANOTHER, view(1))
    kept.remember(ME, view(2))
    assert kept.bytes_held == 2 * VECTOR_BYTES
    kept.remember(ANOTHER, view(2))
    assert kept.bytes_held == VECTOR_BYTES
    assert not holds(kept, ANOTHER, 1)


def test_the_vector_used_longest_ago_gives_way_and_use_keeps_another():
    kept = views(3)
    for value, name in enumerate("abc"):
        kept.remember(DeviceId(name), view(value))
    assert holds(kept, DeviceId("a"), 0)
    kept.remember(DeviceId("d"), view(3))
    assert [holds(kept, DeviceId(name), value) for value, name in enumerate("abcd")] == [True, False, True, True]


def test_the_newest_whole_model_stays_however_many_devices_hold_something_else():
    kept = views(3)
    kept.publish(view(100))
    for value in range(20):
        kept.remember(DeviceId(f"d{value}"), view(value))
        assert holds(kept, ME, 100)
    kept.publish(view(101))
    for value in range(20, 40):
        kept.remember(DeviceId(f"d{value}"), view(value))
    assert (holds(kept, ME, 100), holds(kept, ME, 101)) == (False, True)


def test_a_whole_model_published_once_more_is_the_newest():
    kept = views(2)
    for value in (1, 2, 1):
        kept.publish(view(value))
    kept.remember(ME, view(3))
    assert (holds(kept, ANOTHER, 1), holds(kept, ANOTHER, 2)) == (True, False)


def test_whole_models_are_no_more_than_so_many():
    kept = views(100, wholes_max=4)
    for value in range(10):
        kept.publish(view(value))
        assert kept.wholes == min(value + 1, 4)
    assert [holds(kept, ME, value) for value in range(10)] == [False] * 6 + [True] * 4


def test_two_vectors_are_held_where_not_even_one_has_room():
    kept = Views(bytes_max=1, wholes_max=64)
    kept.publish(view(1))
    kept.remember(ME, view(2))
    assert holds(kept, ANOTHER, 1)
    assert holds(kept, ME, 2)
    kept.remember(ANOTHER, view(3))
    assert kept.bytes_held == 2 * VECTOR_BYTES == kept.bytes_most(VECTOR_BYTES)


def test_who_holds_again_what_had_given_way_is_known_again():
    kept = views(2)
    kept.remember(ME, view(1))
    for value in (2, 3):
        kept.remember(ANOTHER, view(value))
        kept.publish(view(10 + value))
    assert not holds(kept, ME, 1)
    kept.remember(ME, view(1))
    assert holds(kept, ME, 1)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["publish", "a", "b", "c"]), st.integers(0, 5)), max_size=60), st.integers(0, 6)
)
def test_whatever_is_told_and_held_the_bytes_are_those_of_the_vectors_kept(told, room):
    kept = views(room, wholes_max=3)
    for who, value in told:
        if who == "publish":
            kept.publish(view(value))
        else:
            kept.remember(DeviceId(who), view(value))
        assert holds(kept, DeviceId(who), value)
        distinct = [one for one in range(6) if any(holds(kept, DeviceId(name), one) for name in ("a", "b", "c", ""))]
        assert kept.bytes_held == VECTOR_BYTES * len(distinct) <= kept.bytes_most(VECTOR_BYTES)


# --- the model that keeps them ----------------------------------------------------------------------------------------


def model(parameters=4, codec_down="int4"):
    about = manifest(codec=codec_down, codec_down=codec_down)
    regime = Regime(displaces=True, delta_down=True, codec_up=codec_down, codec_down=codec_down)
    return GlobalModel(about, np.zeros(parameters, dtype=np.float32), regime)


def scored():
    return Score(loss=1.0, accuracy=0.5)


def within(one):
    return all(held <= most for held, most in one.bytes_held.values())


@pytest.fixture
def small(monkeypatch):
    """Room for ten vectors of a thousand parameters, and for two of their differences."""
    monkeypatch.setattr("hermes_iot.core.global_model.VIEWS_BYTES_MAX", 40_000)
    monkeypatch.setattr("hermes_iot.core.global_model.DIFFERENCES_BYTES_MAX", 12_000)


@pytest.mark.usefixtures("small")
def test_a_keyframe_at_every_version_holds_no_more_bytes_than_it_may():
    one, bases = model(1000), []
    for version in range(30):
        bases.append(sha256(unpack(one.whole().body, "fp16", 1000)))
        assert within(one)
        one.advance(np.full(1000, version + 1, dtype=np.float32), scored())
    assert one.bytes_held["bytes of views"] == (40_000, 40_000)
    assert one.wholes == 10
    known = [bool(one.answer(DeviceId(f"d{n}"), base).base) for n, base in reversed(list(enumerate(bases)))]
    assert known[0], "the newest whole model"
    assert not any(known[10:]), "and who started from one that had to go is sent the whole"
    assert within(one)


@pytest.mark.usefixtures("small")
def test_repetitions_of_one_device_do_not_pile_differences_up():
    one = model(1000)
    chance = np.random.default_rng(5)
    one.answer(ME, "")
    held = unpack(one.answer(ME, "").body, "fp16", 1000)
    one.advance(chance.normal(0, 1, 1000).astype(np.float32), scored())
    for step in range(12):
        answer = one.answer(ME, sha256(held), session=1, seq=1)
        assert answer.base == sha256(held), f"step {step} is not answered by a difference"
        held = held + unpack(answer.body, "int4", 1000)
        assert within(one)
    assert len(one._differences) == 2


@pytest.mark.usefixtures("small")
def test_a_difference_that_gave_way_is_made_again_bit_for_bit():
    one = model(1000)
    chance = np.random.default_rng(6)
    keyframes = []
    for _ in range(4):
        keyframes.append(sha256(unpack(one.whole().body, "fp16", 1000)))
        one.advance(chance.normal(0, 1, 1000).astype(np.float32), scored())
    first = [one.answer(DeviceId(f"a{n}"), base).body for n, base in enumerate(keyframes)]
    again = [one.answer(DeviceId(f"b{n}"), base).body for n, base in enumerate(keyframes)]
    assert first == again
    assert len(one._differences) == 2
