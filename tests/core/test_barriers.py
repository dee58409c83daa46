"""Devices that wait for others: answered once, when it is time, and never left waiting for one that is gone."""

from dataclasses import dataclass

import pytest

from hermes_iot.algorithms.strategies.base import BaseStrategy, Decision, Merged, Regime, StateDump
from hermes_iot.algorithms.strategies.bsp import Config, build_strategy
from hermes_iot.core.effects import Train
from hermes_iot.protocol.messages import Ack, Command, Model, Request, Response, Update
from tests.core.hand import Board, Desk, birth, death, model, of, offline, online, sent, state, update

BSP = build_strategy(Config())


def desk(*names):
    one = Desk(BSP).up()
    for name in names:
        one.hear(birth(), name)
    return one


def answered(effects):
    return sorted((one.device, one.message.seq) for one in effects if isinstance(getattr(one, "message", None), Model))


def test_everybody_is_answered_when_the_last_one_has_pushed():
    one = desk("a", "b", "c")
    assert answered(one.hear(update(value=1.0), "a")) == []
    assert answered(one.hear(update(value=2.0), "b")) == []
    assert answered(one.hear(update(value=6.0), "c")) == [("a", 1), ("b", 1), ("c", 1)]
    assert one.machine.model[0] == pytest.approx(3.0)
    assert one.machine.version == 1


def test_a_repeated_update_is_acked_and_not_answered_before_its_time():
    one = desk("a", "b")
    one.hear(update(), "a")
    effects = one.hear(update(), "a")
    assert (answered(effects), [ack.outcome for ack in sent(effects, Ack)]) == ([], ["duplicate"])
    assert answered(one.hear(update(), "b")) == [("a", 1), ("b", 1)]
    assert answered(one.hear(update(), "a")) == [("a", 1)]  # its answer was lost: now it may be said again


def test_who_waits_and_asks_for_a_model_goes_on_waiting():
    one = desk("a", "b")
    one.hear(update(), "a")
    request = Request(run="run-a", session=1, want="model")
    assert answered(one.hear(request, "a")) == []
    assert answered(one.hear(request, "b")) == [("b", 0)]


def test_who_restarts_while_it_waits_is_answered_when_it_asks():
    one = desk("a", "b")
    one.hear(update(), "a")
    one.hear(birth(session=2), "a")
    assert answered(one.hear(Request(run="run-a", session=2, want="model"), "a")) == [("a", 0)]


def test_a_line_that_breaks_and_comes_back_makes_nobody_impatient():
    one = desk("a", "b", "c")
    one.hear(update(), "a")
    one.hear(death(), "a")
    one.hear(birth(), "a")  # the same life: it still waits
    assert answered(one.hear(Request(run="run-a", session=1, want="model"), "a")) == []
    one.hear(update(), "b")
    assert answered(one.hear(update(), "c")) == [("a", 1), ("b", 1), ("c", 1)]


def test_one_that_leaves_is_awaited_no_longer():
    one = desk("a", "b")
    one.hear(update(), "a")
    assert answered(one.hear(death(), "b")) == [("a", 1)]


def test_one_that_is_paused_is_awaited_no_longer():
    one = desk("a", "b")
    one.hear(update(), "a")
    assert answered(one.hear(state(phase="paused"), "b")) == [("a", 1)]


def test_a_device_waits_for_a_barrier_whether_or_not_somebody_leads():
    one = Board(BSP, alone_after_s=15.0).at_work()
    one.trained()
    assert not of(one.wait(3600.0), Train)
    assert not of(one.tell(offline()), Train)
    assert one.wait(3600.0) == []
    assert [made.seq for made in sent(one.tell(online(session="c2")), Update)] == [1]
    assert of(one.tell(model(version=1, session=1, seq=1)), Train)


def test_an_update_made_while_nobody_leads_is_kept_and_the_newest_is_sent_when_somebody_does():
    one = Board(alone_after_s=15.0).at_work()
    one.tell(offline())
    effects = [effect for _ in range(5) for effect in one.trained()]
    assert len(of(effects, Train)) == 5
    assert sent([*effects, *one.wait(3600.0)], Update) == []
    assert [made.seq for made in sent(one.tell(online(session="c2")), Update)] == [5]


@dataclass(frozen=True)
class Summons(BaseStrategy):
    """Never pushes of itself; the first update summons everybody else, for one iteration each."""

    @property
    def regime(self):
        return Regime(codec_up="fp32", codec_down="fp32")

    def device_start(self, _initial):
        return ()

    def observe(self, state, _trained, _origin):
        return state, Decision(push=False, why="no")

    def contribution(self, state, *, base, params):
        del base
        return state, params

    def coordinator_start(self, _initial):
        return ()

    def merge(self, state, _model, contribution, fleet, _score):
        others = tuple(device for device in fleet if device != contribution.device)
        mine = (contribution.device,)
        return state, Merged(model=contribution.vector, reply_to=mine, iterations={mine[0]: 3}, summon=others)

    def dump(self, _state):
        return StateDump()


def test_a_strategy_may_summon_devices_and_say_how_long_to_go_on():
    one = Desk(Summons()).up()
    for name in ("a", "b"):
        one.hear(birth(), name)
    effects = one.hear(update(), "a")
    assert [
        (each.device, each.message.name) for each in effects if isinstance(getattr(each, "message", None), Command)
    ] == [("b", "push")]
    (answer,) = sent(effects, Model)
    assert answer.iterations == 3


def commands(effects):
    return [(each.device, each.message.id) for each in effects if isinstance(getattr(each, "message", None), Command)]


def test_a_summons_is_repeated_under_its_name_with_a_growing_pause_until_the_device_has_pushed():
    one = Desk(Summons(), retry_s=5.0, retry_max_s=20.0, measure_patience_s=1000.0).up()
    for name in ("a", "b"):
        one.hear(birth(), name)
    (first,) = commands(one.hear(update(), "a"))
    asked = []
    for _ in range(80):
        begun = one.now
        asked += [(begun - 50.0, each) for each in commands(one.wait(1.0))]
    assert [each for _, each in asked] == [first] * 5
    # Looked for every 2 s: due 5 s after it was said, then after 10, 20 and no more than 20 s.
    assert [at for at, _ in asked] == [5.0, 15.0, 35.0, 55.0, 75.0]
    one.hear(Response(id=first[1], status="ok"), "b")  # saying yes is not pushing
    assert commands(one.wait(25.0)) == [first]
    one.hear(update(), "b")
    assert [each for each in commands(one.wait(100.0)) if each[0] == "b"] == []


def test_a_summons_gives_a_device_the_time_of_its_iteration_and_ends_when_it_is_gone():
    one = Desk(Summons(), retry_s=5.0).up()
    for name in ("a", "b"):
        one.hear(birth(), name)
    one.hear(state(batch_s=6.4, samples=100, batch=16), "b")  # 40 s an iteration
    assert len(commands(one.hear(update(), "a"))) == 1
    assert commands(one.wait(44.0)) == []
    assert len(commands(one.wait(4.0))) == 1
    one.hear(death(), "b")
    assert commands(one.wait(60.0)) == []


def test_summonses_of_two_coordinators_have_different_names():
    names = set()
    for session in ("c1", "c2"):
        one = Desk(Summons(), session=session).up()
        for name in ("a", "b"):
            one.hear(birth(), name)
        names |= {name for _, name in commands(one.hear(update(), "a"))}
    assert len(names) == 2


def test_a_summons_that_comes_twice_is_followed_once():
    one = Board(Summons()).at_work()
    for _ in range(2):
        assert len(sent(one.command("push"), Response)) == 1
    assert len(sent(one.trained(), type(update()))) == 1
    one.tell(model(version=1, session=1, seq=1))
    one.command("push")  # said again before the update had arrived
    assert not sent(one.trained(), type(update()))
    one.tell(Command(id="another", name="push"))
    assert len(sent(one.trained(), type(update()))) == 1


def test_a_summons_that_came_while_an_answer_was_awaited_is_followed_when_it_is_repeated():
    one = Board(Summons(), alone_after_s=1000.0).at_work()
    one.command("push")
    one.trained()
    one.tell(Command(id="another", name="push"))
    one.tell(model(version=1, session=1, seq=1))
    assert not sent(one.trained(), type(update()))
    one.tell(Command(id="another", name="push"))
    assert len(sent(one.trained(), type(update()))) == 1


def test_a_summoned_device_pushes_at_the_end_of_its_iteration_and_says_yes():
    one = Board(Summons()).at_work()
    assert not sent(one.trained(), type(update()))
    (answer,) = sent(one.command("push"), Response)
    assert answer.status == "ok"
    assert len(sent(one.trained(), type(update()))) == 1
