"""What every baseline must keep: constants are checked, nothing is changed in place, nobody waits for ever."""

from __future__ import annotations

import importlib
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.algorithms.strategies import STRATEGIES
from hermes_iot.algorithms.strategies.base import StateDump, Strategy
from hermes_iot.errors import UsageError
from tests.support.baselines import START, Devices, Lead, contribution, stored, trained, unmeasured, vector

BASELINES = ("bsp", "bsp-tuned", "asp", "ssp", "ebsp", "selsync", "fedavg", "fedasync", "fedbuff", "single")
#: Those that answer a sender at once, and those that make it wait for others.
AT_ONCE = ("asp", "fedasync", "fedbuff")
BARRIERS = ("bsp", "bsp-tuned", "ebsp", "selsync")


def module(name):
    return importlib.import_module(STRATEGIES[name])


def build(name, **constants) -> Strategy:
    return module(name).build_strategy(module(name).Config(**constants))


@pytest.mark.parametrize("name", BASELINES)
def test_it_is_found_by_name_and_says_its_regime(name):
    regime = build(name).regime
    assert (regime.codec_up, regime.codec_down) == ("fp32", "fp32")
    assert regime.waits is (name not in AT_ONCE)
    assert regime.displaces is (name in {"asp", "ssp", "fedbuff"})
    assert (regime.sampling == "walk") is (regime.steps > 0) is (name in {"bsp-tuned", "single"})


#: A number out of range for every constant there is; the complete list, so that a new one must be thought of.
REFUSED = {
    ("bsp", "steps"): (-1, 10**7, 1.5, True, "1"),
    ("bsp-tuned", "steps"): (0, 10**7),
    ("asp", "scale"): (0, -1, float("nan"), 1e4),
    ("ssp", "scale"): (0, float("inf")),
    ("ssp", "bound"): (-1, 0.5, None),
    ("ebsp", "lookahead"): (0, 10**5, 2.0),
    ("selsync", "delta"): (-0.1, float("nan"), None),
    ("selsync", "smoothing"): (0, 1.1),
    ("selsync", "max_age"): (0, 1.0),
    ("fedavg", "fraction"): (0, 1.01, float("nan")),
    ("fedavg", "seed"): (-1, 2**63, 0.5),
    ("fedasync", "alpha"): (0, 1.1),
    ("fedasync", "exponent"): (-1, float("nan")),
    ("fedbuff", "buffer"): (0, 1.0),
    ("fedbuff", "rate"): (0, float("inf")),
    ("single", "steps"): (0, 1.0),
    ("single", "first_steps"): (0, None),
    ("single", "average"): (-0.1, 1.1),
}


def test_every_constant_has_a_refusal():
    assert set(REFUSED) == {(name, one.name) for name in BASELINES for one in fields(module(name).Config)}


@pytest.mark.parametrize(
    ("name", "constant", "value"), [(*key, one) for key, values in REFUSED.items() for one in values]
)
def test_an_impossible_constant_is_refused_by_its_name(name, constant, value):
    with pytest.raises(UsageError, match=constant):
        module(name).Config(**{constant: value})


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in {"ebsp", "selsync"}])
def test_a_device_pushes_after_every_iteration(name):
    strategy = build(name)
    state = strategy.adopted(strategy.device_start(START), START, iterations=0)
    for _ in range(2):
        state, decision = strategy.observe(state, trained(2, 4), START)
        state, sent = strategy.contribution(state, base=START, params=vector(2, 4))
        assert (decision.push, decision.why) == (True, "every")
        assert sent.tolist() == ([1, 3] if strategy.regime.displaces else [2, 4])


@pytest.mark.parametrize("name", BASELINES)
def test_one_device_trains_like_any_fleet(name):
    fleet = Lead(build(name), "a")
    for _ in range(5):
        assert fleet.push("a", 2, 4).reply_to == ("a",)
    assert not np.array_equal(fleet.model, START)


@pytest.mark.parametrize("name", BASELINES)
def test_nothing_is_changed_in_place(name):
    """Neither vectors nor states: what was kept of an earlier moment must still answer as it did then."""
    strategy = build(name)
    fleet = Devices("abc")
    state, model, history = strategy.coordinator_start(START), START, []
    for at, device in enumerate("abcabcab"):
        pushed = contribution(device, at, 8 - at, seconds=1.0 + at)
        history.append((state, model, pushed, model.copy(), pushed.vector.copy()))
        state, merged = strategy.merge(state, model, pushed, fleet, unmeasured)
        history[-1] += (merged,)
        model = model if merged.model is None else merged.model
    for state, model, pushed, model_then, sent_then, merged_then in history:
        assert np.array_equal(model, model_then)
        assert np.array_equal(pushed.vector, sent_then)
        _, merged = strategy.merge(state, model, pushed, fleet, unmeasured)
        assert (merged.reply_to, merged.summon, merged.iterations) == (
            merged_then.reply_to,
            merged_then.summon,
            merged_then.iterations,
        )
        assert (merged.model is None) == (merged_then.model is None)
        assert merged.model is None or merged.model.tobytes() == merged_then.model.tobytes()


@pytest.mark.parametrize("cut", range(8))
@pytest.mark.parametrize("name", BASELINES)
def test_a_state_that_was_kept_goes_on_as_if_nothing_had_been(name, cut):
    """What was acknowledged is in it: nobody would send it again."""
    whole, kept = Lead(build(name), "abc"), Lead(build(name), "abc")
    for at, device in enumerate("abcabcabbcca"):
        if at == cut:
            kept.state = kept.strategy.load(stored(kept.strategy.dump(kept.state)))
        one, other = whole.push(device, at, 8 - at), kept.push(device, at, 8 - at)
        assert (one.reply_to, one.summon, one.iterations) == (other.reply_to, other.summon, other.iterations)
        assert whole.model.tobytes() == kept.model.tobytes()


@pytest.mark.parametrize("name", ["bsp", "bsp-tuned", "ssp", "fedavg", "single"])
def test_a_dump_of_something_else_is_no_state(name):
    with pytest.raises(KeyError):
        build(name).load(StateDump())


# --- nobody waits for ever --------------------------------------------------------------------------------------------

#: A letter of what happens, the device it happens to, and for one that joins: whether it is still the same process.
events = st.lists(st.tuples(st.sampled_from("pppplj"), st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=40)


class Play:
    """A fleet that does what it is told, and who of it waits for an answer or was asked to push."""

    def __init__(self, name):
        self.lead = Lead(build(name), "ab")
        self.waiting = set()
        self.summoned = set()

    def push(self, device):
        if device in self.lead.fleet and device not in self.waiting:
            self.waiting.add(device)
            self.summoned.discard(device)
            self.heard(self.lead.push(device, 0.5, 0.25, seconds=1.0 + ord(device) % 3))

    def leave(self, device):
        if device in self.lead.fleet:
            self.summoned.discard(device)
            self.heard(self.lead.now([one for one in self.lead.fleet if one != device]))

    def join(self, device, *, same):
        if device not in self.lead.fleet:
            if not same:
                self.waiting.discard(device)
            self.heard(self.lead.now([*self.lead.fleet, device]))

    def heard(self, merged):
        assert len(set(merged.reply_to)) == len(merged.reply_to)
        assert not set(merged.summon) - set(self.lead.fleet)
        assert not set(merged.iterations) - set(merged.reply_to)
        assert 0.0 <= merged.weight <= 1.0
        self.waiting -= set(merged.reply_to)
        self.summoned |= set(merged.summon)

    @property
    def free(self):
        """Who is there and has something to do."""
        return [device for device in self.lead.fleet if device not in self.waiting]


def played(name, happenings):
    play = Play(name)
    for what, device, same in happenings:
        if what == "p":
            play.push(device)
        elif what == "l":
            play.leave(device)
        else:
            play.join(device, same=same)
        yield play


@pytest.mark.parametrize("name", BASELINES)
@settings(derandomize=True, deadline=None, max_examples=80)
@given(happenings=events)
def test_whatever_happens_somebody_who_is_there_can_go_on(name, happenings):
    for play in played(name, happenings):
        assert play.free or not play.lead.fleet


@pytest.mark.parametrize("name", [*BARRIERS, "ssp"])
@settings(derandomize=True, deadline=None, max_examples=80)
@given(happenings=events)
def test_who_waits_is_answered_once_everybody_there_has_pushed(name, happenings):
    *_, play = played(name, happenings)
    waiting = play.waiting & set(play.lead.fleet)
    answered = set()
    # In ssp the slowest may have many iterations to make up.
    for _ in range(len(happenings) + 1):
        before = set(play.waiting)
        for device in list(play.free):
            play.push(device)
            answered |= before - play.waiting
    assert waiting <= answered


@settings(derandomize=True, deadline=None, max_examples=80)
@given(happenings=events)
def test_at_a_selsync_barrier_everybody_awaited_was_summoned(happenings):
    for play in played("selsync", happenings):
        held = play.lead.state.entries
        if held:
            assert {device for device in play.lead.fleet if device not in held} <= play.summoned


@pytest.mark.parametrize("name", AT_ONCE)
@settings(derandomize=True, deadline=None, max_examples=50)
@given(happenings=events)
def test_who_waits_for_nobody_is_answered_at_once(name, happenings):
    for play in played(name, happenings):
        assert not play.waiting


@settings(derandomize=True, deadline=None, max_examples=60)
@given(happenings=events)
def test_in_fedavg_everybody_who_stays_is_drawn_some_day(happenings):
    *_, play = played("fedavg", happenings)
    waiting = play.waiting & set(play.lead.fleet)
    for _ in range(60):
        before = set(play.waiting)
        for device in list(play.free):
            play.push(device)
            waiting -= before - play.waiting
    assert not waiting
