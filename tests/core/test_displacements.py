"""A device that pushes displacements, and a coordinator that answers by differences: nothing twice, nothing lost."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from hermes_iot.algorithms.compression import unpack
from hermes_iot.algorithms.strategies.base import BaseStrategy, Decision, Regime
from hermes_iot.algorithms.trees import sha256
from hermes_iot.core.global_model import GlobalModel
from hermes_iot.core.learner import Learner
from hermes_iot.core.views import View
from hermes_iot.domain import DeviceId, Score, Trained
from hermes_iot.protocol.messages import ModelInfo
from tests.core.hand import LAYOUT, ME, allocation, manifest, vector

DISPLACING = Regime(displaces=True, delta_down=True, codec_up="int4", codec_down="int4")


@dataclass(frozen=True)
class Pushes(BaseStrategy):
    """Displacements, whenever `when` says so."""

    regime: Regime = DISPLACING
    when: bool = True
    seen: list = field(default_factory=list)

    def device_start(self, _initial):
        return 0

    def observe(self, state, _trained, origin):
        self.seen.append(origin.copy())
        return state + 1, Decision(push=self.when, why="test")

    def contribution(self, _state, *, base, params):
        return 0, params - base


def learner(strategy=None, **changes):
    return Learner(manifest(codec="int8", codec_down="int4", **changes), strategy or Pushes(), ME)


def iterate(one, *values, hold=False):
    params = np.array(values, dtype=np.float32)
    return one.take(Trained(params=params, loss=0.5, samples=4, mini_batches=2), 1.0, hold=hold)


def ended(loss, *, began):
    return Trained(params=vector(1.0), loss=loss, samples=4, mini_batches=2, began=began)


def sent(one):
    return unpack(one.outgoing.body, "int8", 4)


def test_a_push_sends_the_way_from_the_model_received():
    one = learner()
    one.adopt(1, vector(1.0))
    iterate(one, 3, 1, 1, -1)
    assert np.allclose(sent(one), [2, 0, 0, -2])
    assert (one.outgoing.iterations, one.outgoing.steps) == (1, 2)


def test_going_on_alone_the_next_push_begins_where_the_last_one_ended():
    one = learner()
    one.adopt(1, vector(0.0))
    iterate(one, 2, 0, 0, 0)
    iterate(one, 2, 3, 0, 0)
    assert np.allclose(sent(one), [0, 3, 0, 0], atol=0.03)


def test_what_the_codec_cuts_off_is_part_of_the_next_push():
    one = learner()
    one.adopt(1, vector(0.0))
    iterate(one, 127, 0.4, 0, 0)  # scale 1: 0.4 becomes 0
    assert np.array_equal(sent(one), [127, 0, 0, 0])
    one.adopt(2, vector(0.0))
    iterate(one, 0, 0.4, 0, 0)
    assert np.allclose(sent(one), [0, 0.8, 0, 0], atol=0.01)


def test_what_was_learnt_while_the_answer_came_is_kept_on_top_of_it():
    one = learner()
    one.adopt(1, vector(0.0))
    iterate(one, 2, 0, 0, 0)  # pushed
    one.adopt_later(2, vector(10.0))
    iterate(one, 2, 5, 0, 0)  # 5 more, from the local model
    job = one.job(allocation(), "", 1)
    assert np.array_equal(job.start, [10, 15, 10, 10])
    assert np.allclose(sent(one), [0, 5, 0, 0], atol=0.05)


def test_with_an_earlier_update_under_way_a_displacement_waits():
    one = learner()
    one.adopt(1, vector(0.0))
    assert iterate(one, 1, 0, 0, 0, hold=True).why == "held"
    assert one.outgoing is None
    assert iterate(one, 3, 0, 0, 0).push
    assert np.allclose(sent(one), [3, 0, 0, 0])
    assert (one.outgoing.iterations, one.outgoing.steps) == (2, 4)


def test_who_is_summoned_pushes_whatever_its_strategy_decides_and_once():
    one = learner(Pushes(when=False))
    one.adopt(1, vector(0.0))
    assert not iterate(one, 1, 0, 0, 0).push
    one.summoned = True
    assert iterate(one, 2, 0, 0, 0).why == "summoned"
    assert np.allclose(sent(one), [2, 0, 0, 0])
    assert not iterate(one, 3, 0, 0, 0).push


FINE = {
    "model": ModelInfo(sha256=LAYOUT, parameters=4, tensors=(("w", (1, 3)), ("running_var", (1,)))),
    "fine": "vectors",
}


def test_a_tensor_that_is_spared_the_codec_travels_in_fp16_both_ways():
    # in int4, with scale 1, both small entries would be 0
    told = manifest(codec="int4", codec_down="int4", **FINE)
    device, coordinator = Learner(told, Pushes(), ME), GlobalModel(told, vector(0.0), DISPLACING)
    device.adopt(1, vector(0.0))
    iterate(device, 7, 0.25, 0, 0.25)
    pushed = unpack(device.outgoing.body, "int4", 4, coordinator.split)
    assert pushed.tolist() == [7, 0, 0, 0.25]
    held = unpack(coordinator.answer(ME, "").body, "fp16", 4, device.split)
    coordinator.advance(pushed + np.float32([0, 0.25, 0, 0]), scored())
    answer = coordinator.answer(ME, sha256(held))
    assert unpack(answer.body, "int4", 4, device.split).tolist() == [7, 0, 0, 0.25]
    assert len(answer.body) == 4 + 2 + 2


def test_divergence_forgets_what_the_codec_cut_off_and_begins_at_the_model_received():
    one = learner()
    one.adopt(1, vector(0.0))
    iterate(one, 127, 0.4, 0, 0)
    one.take(Trained(params=vector(1.0), loss=float("nan"), samples=4, mini_batches=2), 1.0)
    assert np.array_equal(one.job(allocation(), "", 1).start, vector(0.0))
    iterate(one, 0, 0.4, 0, 0)
    assert np.allclose(sent(one), [0, 0.4, 0, 0], atol=0.01)


def test_a_loss_that_explodes_is_a_divergence_before_it_is_infinite():
    one = learner()
    one.adopt(1, vector(0.0))
    ends = [one.take(ended(loss, began=2.5), 1.0).why for loss in (24.9, 249.1, 2.4e7)]
    assert ends == ["test", "diverged", "diverged"]
    assert one.job(allocation(), "", 1).learning_rate == 0.5 / 4


def test_an_explosion_in_the_last_steps_shows_at_the_beginning_of_the_next_iteration():
    one = learner(Pushes(when=False))
    one.adopt(1, vector(0.0))
    ends = [one.take(ended(loss, began=began), 1.0).why for began, loss in ((2.3, 2.3), (1e6, 1.1e6))]
    assert ends == ["test", "diverged"]
    assert np.array_equal(one.job(allocation(), "", 1).start, vector(0.0))


def test_parameters_that_leap_are_a_divergence_whatever_the_loss_was_before():
    one = learner()
    one.adopt(1, vector(2.0))  # its length is 4
    leap = Trained(params=vector(203.0), loss=0.5, samples=4, mini_batches=2, began=0.6)  # 402 away
    assert one.take(leap, 1.0).why == "diverged"
    step = Trained(params=vector(202.0), loss=0.5, samples=4, mini_batches=2, began=0.6)  # 400 away, and lenience
    assert one.take(step, 1.0).why == "test"


@pytest.mark.parametrize(
    ("began", "loss", "most"), [(0.001, 0.02, 1), (0.001, 5.0, 9), (0.0, 0.01, 0), (-0.5, 0.01, 0), (-10.0, -0.1, 0)]
)
def test_no_loss_is_refused_for_ever(began, loss, most):
    """Who joins a trained fleet may begin with an easy mini-batch; and a loss may be zero, or negative."""
    one = learner()
    one.adopt(1, vector(0.0))
    ends = [one.take(ended(loss, began=began), 1.0).why for _ in range(most + 3)]
    assert ends == ["diverged"] * most + ["test"] * 3


def test_where_no_first_loss_is_known_nothing_is_held_against_it():
    one = learner()
    one.adopt(1, vector(0.0))
    assert one.take(ended(1e30, began=None), 1.0).why == "test"


def test_a_walk_comes_to_its_learning_rate_over_the_first_mini_batches():
    one = Learner(
        manifest(codec="int8", data={"sampling": "walk"}),
        Pushes(regime=replace(DISPLACING, warmup_steps=30)),
        ME,
    )
    one.adopt(1, vector(0.0))
    rates = []
    for _ in range(4):
        rates.append(one.job(allocation(steps=12), "", 1).learning_rate)
        one.take(Trained(params=vector(1.0), loss=0.5, samples=48, mini_batches=12), 1.0)
        one.recount()  # as a new session does
    assert rates == pytest.approx([0.5 * part for part in (6 / 30, 18 / 30, 1, 1)])


def test_divergence_while_an_answer_comes_counts_and_the_answer_is_taken():
    one = learner()
    one.adopt(1, vector(0.0))
    iterate(one, 2, 0, 0, 0)
    one.adopt_later(2, vector(10.0))
    decision = one.take(Trained(params=vector(1.0), loss=float("nan"), samples=4, mini_batches=2), 1.0)
    assert (decision.why, one.diverged) == ("diverged", 1)
    job = one.job(allocation(), "", 1)
    assert np.array_equal(job.start, vector(10.0))
    assert job.learning_rate == 0.25


def test_a_displacement_that_overflows_with_what_was_cut_off_before_is_a_divergence():
    one = Learner(manifest(codec="fp16", codec_down="int4"), Pushes(), ME)
    one.adopt(1, vector(0.0))
    one.take(Trained(params=vector(3.4e38), loss=0.5, samples=4, mini_batches=2), 1.0)
    one.adopt(2, vector(0.0))
    decision = one.take(Trained(params=vector(3.4e38), loss=0.5, samples=4, mini_batches=2), 1.0)
    assert (decision.push, decision.why, one.outgoing) == (False, "diverged", None)


def test_the_first_iterations_time_is_no_measurement_and_sizes_do_not_mix():
    one = learner()
    one.adopt(1, vector(0.0))
    iterate(one, 1, 0, 0, 0)
    assert (one.iteration_s, one.batch_s) == (0.0, 0.0)
    iterate(one, 2, 0, 0, 0)
    assert (one.iteration_s, one.batch_s) == (1.0, 0.5)
    one.reallocated(allocation(steps=7))
    assert (one.iteration_s, one.batch_s) == (0.0, 0.5)


def test_a_walk_goes_on_where_the_last_iteration_ended():
    one = learner(data={"sampling": "walk"})
    one.adopt(1, vector(0.0))
    jobs = [one.job(allocation(steps=2, batch=2), "", 1)]
    iterate(one, 1, 0, 0, 0)
    jobs.append(one.job(allocation(steps=2, batch=2), "", 1))
    assert [(job.steps, job.walked) for job in jobs] == [(2, 0), (2, 4)]


# --- answers by differences -----------------------------------------------------------------------------------------


def model(regime=DISPLACING, start=0.0):
    return GlobalModel(manifest(codec="int4", codec_down="int4"), vector(start), regime)


def scored():
    return Score(loss=1.0, accuracy=None)


def test_a_device_whose_vector_is_known_is_sent_the_difference():
    one = model(start=1.0)
    whole = one.answer(ME, "", session=1, seq=1)
    assert (whole.base, whole.codec) == ("", "fp16")
    held = unpack(whole.body, "fp16", 4)
    one.advance(np.array([1, 1, 8, 1], dtype=np.float32), scored())
    answer = one.answer(ME, sha256(held), session=1, seq=2)
    assert (answer.base, answer.codec, answer.version) == (sha256(held), "int4", 1)
    assert np.allclose(unpack(answer.body, "int4", 4), [0, 0, 7, 0])


def test_what_an_answers_codec_cut_off_comes_with_the_next():
    one = model()
    held = unpack(one.answer(ME, "").body, "fp16", 4)
    for target in ([7, 0.4, 0, 0], [7, 0.4, 0, 0]):
        one.advance(np.array(target, dtype=np.float32), scored())
        answer = one.answer(ME, sha256(held))
        held = held + unpack(answer.body, "int4", 4)
    assert np.allclose(held, [7, 0.4, 0, 0], atol=0.03)


def test_who_starts_from_the_keyframe_is_answered_by_a_difference_from_it():
    one = model(start=3.0)
    keyframe = unpack(one.whole().body, "fp16", 4)
    one.advance(vector(4.0), scored())
    assert one.answer(DeviceId("new"), sha256(keyframe)).base == sha256(keyframe)


@pytest.mark.parametrize("base", ["", "0" * 64])
def test_who_holds_what_is_not_known_is_sent_the_whole(base):
    one = model()
    one.answer(ME, "")
    one.advance(vector(1.0), scored())
    assert one.answer(ME, base).base == ""


def test_devices_that_hold_the_same_share_one_encoding():
    one = model()
    base = sha256(unpack(one.whole().body, "fp16", 4))
    one.advance(vector(1.0), scored())
    first, second = (one.answer(DeviceId(name), base) for name in "ab")
    assert first.body is second.body


def test_a_fleet_larger_than_the_memory_for_it_falls_back_to_whole_models(monkeypatch):
    monkeypatch.setattr("hermes_iot.core.global_model.VIEWS_BYTES_MAX", 3 * 16)  # the newest whole, and two more
    one = model()
    base = sha256(unpack(one.whole().body, "fp16", 4))
    bases = {}
    for name in "abc":
        one.advance(vector(float(ord(name))), scored())
        answer = one.answer(DeviceId(name), base)
        bases[name] = sha256(vector(0.0) + unpack(answer.body, "int4", 4))
    one.advance(vector(1.0), scored())
    assert [bool(one.answer(DeviceId(name), bases[name]).base) for name in "cba"] == [True, True, False]


def test_a_difference_that_leads_out_of_float32_is_answered_by_the_whole():
    one = model(start=0.0)
    one.advance(vector(-3e38), scored())
    held = unpack(one.answer(ME, "").body, "fp16", 4)
    one._views.remember(ME, View(vector=vector(-3e38), sha256=sha256(vector(-3e38))))
    one.advance(vector(3e38), scored())
    assert one.answer(ME, sha256(vector(-3e38))).base == ""
    assert np.isfinite(held).all()


def test_without_differences_everybody_is_sent_the_whole():
    one = model(replace(DISPLACING, delta_down=False))
    held = unpack(one.answer(ME, "").body, "int4", 4)
    one.advance(vector(1.0), scored())
    answer = one.answer(ME, sha256(held))
    assert (answer.base, answer.codec) == ("", "int4")
