"""A coordinator that dies while devices wait for others: after its restart every one of them gets its answer."""

from dataclasses import replace

import pytest

from hermes_iot.algorithms.strategies import bsp, selsync, ssp
from hermes_iot.core.effects import Journal
from hermes_iot.protocol.messages import Command, Model, Request
from tests.core.hand import Desk, birth, death, sent, state, update
from tests.core.test_coordinator_machine import restored_from
from tests.core.test_patience import SETTINGS, STRATEGIES, fleet, joined

SSP = ssp.build_strategy(ssp.Config(bound=0))
BSP = bsp.build_strategy(bsp.Config())


def answers(effects):
    return sorted((one.device, one.message.seq) for one in effects if isinstance(getattr(one, "message", None), Model))


def waiting(made):
    """Devices whose update was taken, and whose answer waits for others."""
    owed = {name for name, member in made.leader.machine.members.items() if member.owed}
    outboxes = {name: node.machine.part.outbox for name, node in made.devices.items()}
    return {name: outboxes[name].awaiting for name in owed if outboxes[name].update is None}


def answered(made, marks):
    return all(made.devices[name].machine.part.outbox.awaiting != mark for name, mark in marks.items())


@pytest.mark.parametrize("away_s", [0.0, 40.0])
@pytest.mark.parametrize("checkpoint_s", [0.0, 2.0])
@pytest.mark.parametrize("name", STRATEGIES)
def test_whoever_waits_for_others_is_answered_after_a_restart(name, checkpoint_s, away_s):
    made = fleet(STRATEGIES[name], settings=replace(SETTINGS, checkpoint_interval_s=checkpoint_s))
    joined(made)
    for _ in range(3):
        made.run(3.0)
        made.run_until(lambda: len(waiting(made)) > 0, within=30.0)
        marks = waiting(made)
        made.leader.crash()
        made.run(away_s)
        made.lead()
        if name != "single":  # there all but one wait for good
            made.run_until(lambda marks=marks: answered(made, marks), within=20.0)
        version = made.leader.machine.version
        made.run_until(lambda version=version: made.leader.machine.version > version + 3, within=20.0)


@pytest.mark.parametrize("asks_first", [True, False])
def test_who_waited_at_a_bound_goes_on_waiting_whoever_comes_back_first(asks_first):
    one = Desk(SSP).up()
    for name in ("a", "b"):
        one.hear(birth(), name)
    assert not sent(one.hear(update(), "a"), Model)
    one = Desk(SSP, restored=restored_from(one, one.machine.stop(now=one.now))).up()
    request = Request(run="run-a", session=1, want="model")
    effects = [] if asks_first else one.hear(birth(), "b")
    effects += one.hear(birth(), "a") + one.hear(request, "a")
    assert not sent(effects, Model)
    one.hear(birth(), "b")
    assert answers(one.hear(update(1), "b")) == [("a", 1), ("b", 1)]
    assert answers(one.hear(update(2), "a")) == []
    assert answers(one.hear(update(2), "b")) == [("a", 2), ("b", 2)]


def test_a_barrier_knows_after_a_restart_who_was_there():
    """Updates that waited for a leader come before anybody is born again: each would else be a fleet of one."""
    one = Desk(BSP).up()
    for name in ("a", "b", "c"):
        one.hear(birth(), name)
    one.hear(death(), "c")
    one = Desk(BSP, restored=restored_from(one, one.machine.stop(now=one.now))).up()
    assert answers(one.hear(update(value=1.0), "a")) == []
    assert answers(one.hear(update(value=5.0), "b")) == [("a", 1), ("b", 1)]
    assert one.machine.model[0] == 3.0
    # Who did not come back is waited for no longer than anybody else.
    one.hear(update(2), "a")
    assert ("a", 2) in answers(one.hear(death(), "b"))


def killed(one, effects):
    """As it comes back from its first checkpoint and its journal, every birth and update in it said before."""
    entries = [entry for effect in effects if isinstance(effect, Journal) for entry in effect.entries]
    return replace(restored_from(one, effects), entries=entries)


@pytest.mark.parametrize("reborn", ["a", "b"])
def test_who_was_born_after_the_checkpoint_goes_on_waiting_too(reborn):
    one = Desk(BSP)
    effects = one.machine.connected(now=one.now)
    for name in ("a", "b"):
        effects += one.hear(birth(session=3), name)
    effects += one.hear(update(session=3, value=5.0), "a")
    one = Desk(BSP, restored=killed(one, effects)).up()
    one.hear(birth(session=3), reborn)
    assert answers(one.hear(Request(run="run-a", session=3, want="model"), "a")) == []
    assert answers(one.hear(update(session=3, value=1.0), "b")) == [("a", 1), ("b", 1)]
    assert one.machine.model[0] == 3.0


def test_whoever_was_summoned_is_summoned_again():
    strategy = selsync.build_strategy(selsync.Config(max_age=None))
    one = Desk(strategy)
    effects = one.machine.connected(now=one.now)
    for name in ("a", "b", "c"):
        effects += one.hear(birth(), name)
    effects += one.hear(update(), "a")
    assert {effect.device for effect in effects if isinstance(getattr(effect, "message", None), Command)} == {"b", "c"}
    effects += one.hear(update(), "b")
    for restored in (killed(one, effects), restored_from(one, one.machine.stop(now=one.now))):
        again = Desk(strategy, restored=restored)
        said = again.machine.connected(now=again.now)
        assert [effect.device for effect in said if isinstance(getattr(effect, "message", None), Command)] == ["c"]


def test_one_that_does_not_come_back_is_excused_as_soon_as_before():
    """Its pace is known: nobody waits for it as for one that was never measured."""
    one = Desk(BSP, measure_patience_s=300.0)
    effects = one.machine.connected(now=one.now)
    for name in ("a", "b"):
        effects += one.hear(birth(), name)
        effects += one.hear(state(allocation_version=1, samples=40, batch=8, iteration_s=1.0, batch_s=0.1), name)
    effects += one.machine.stop(now=one.now)
    again = Desk(BSP, restored=restored_from(one, effects), measure_patience_s=300.0).up()
    again.hear(birth(), "a")
    assert answers(again.hear(update(), "a")) == []
    assert ("a", 1) in answers(again.wait(60.0))
