"""One device's updates in another codec than the run's: named in its allocation, obeyed, and decoded as they say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_iot.algorithms.compression import pack, unpack
from hermes_iot.algorithms.strategies.base import Regime
from hermes_iot.core.effects import StoreMemory
from hermes_iot.core.learner import Learner
from hermes_iot.domain import Sizing
from hermes_iot.protocol.messages import Ack, Allocation, Update
from tests.core.hand import (
    ME,
    Board,
    Desk,
    allocation,
    birth,
    manifest,
    model,
    of,
    online,
    rows_as_bytes,
    sent,
    state,
    update,
    vector,
)
from tests.core.test_displacements import Pushes, iterate

RULES = (("lte-*", "int4"), ("*-1", "int8"))


def pushed(effects):
    (one,) = sent(effects, Update)
    return one


# --- the coordinator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "codec"), [("lte-1", "int4"), ("lte-", "int4"), ("pi-1", "int8"), ("pi-2", ""), ("LTE-2", "")]
)
def test_the_first_pattern_that_fits_a_device_names_its_codec(device, codec):
    desk = Desk(codec_for=RULES).up()
    (told,) = sent(desk.hear(birth(), device), Allocation)
    assert told.codec == codec


def test_the_next_shard_changes_nothing_about_it():
    about = manifest(data={"mode": "shipped"})
    desk = Desk(about=about, shard_of=rows_as_bytes, first=Sizing(samples=40, batch=8), codec_for=RULES).up()
    (first,) = sent(desk.hear(birth(), "lte-1"), Allocation)
    report = state(allocation_version=first.version, shard=first.next_shard)
    (second,) = sent(desk.hear(report, "lte-1"), Allocation)
    assert (second.version, second.codec) == (first.version + 1, "int4")


@pytest.mark.parametrize(
    ("codec", "outcome"), [("fp32", "applied"), ("int8", "applied"), ("int4", "applied"), ("fp16", "rejected")]
)
def test_an_update_may_come_in_the_runs_codec_and_in_those_that_somebody_was_told(codec, outcome):
    desk = Desk(codec_for=RULES).up()
    desk.hear(birth())
    effects = desk.hear(update(codec=codec, body=pack(vector(7.0), codec)))
    assert sent(effects, Ack)[0].outcome == outcome
    assert desk.machine.tally.reasons == ({} if outcome == "applied" else {"codec": 1})


def test_an_update_is_decoded_by_the_codec_it_states():
    desk = Desk(codec_for=RULES).up()
    desk.hear(birth())
    effects = desk.hear(update(codec="int8", body=pack(vector(7.0), "fp32")))
    assert (sent(effects, Ack)[0].outcome, sent(effects, Ack)[0].reason) == ("rejected", "size")


# --- the device -----------------------------------------------------------------------------------------------------


def test_a_device_writes_its_updates_in_the_codec_it_was_told():
    board = Board().at_work()
    board.tell(allocation(2, codec="int8"))
    # the iteration under way was begun under the first allocation
    assert pushed(board.trained(value=7.0)).codec == "fp32"
    board.tell(model(1, session=1, seq=1))
    one = pushed(board.trained(value=7.0))
    assert one.codec == "int8"
    assert unpack(one.body, "int8", 4).tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("codec", ["", "int8"])
def test_what_it_had_not_seen_acked_is_sent_again_after_a_restart_whatever_codec_it_is_in(codec):
    board = Board()
    board.machine.connected(now=board.now)
    board.tell(online())
    board.tell(manifest())
    board.prepare()
    board.tell(allocation(codec=codec))
    board.tell(model(), keyframe=True)
    effects = board.trained(value=7.0)
    (memory,) = of(effects, StoreMemory)
    again = Board(memory=replace(memory, session=memory.session + 1))
    again.machine.connected(now=again.now)
    again.tell(manifest())
    assert pushed(again.tell(online())) == pushed(effects)


@pytest.mark.parametrize(
    ("named", "used"), [("int8", "int8"), ("fp16", "fp16"), ("", "fp32"), ("zip9", "fp32"), ("topk5", "fp32")]
)
def test_a_codec_that_is_unknown_here_or_not_for_whole_models_leaves_the_runs(named, used):
    one = Learner(manifest(), Pushes(regime=Regime()), ME)
    one.adopt(0, vector(0.0))
    one.reallocated(allocation(codec=named))
    iterate(one, 7, 7, 7, 7)
    assert one.outgoing.codec == used
    assert unpack(one.outgoing.body, used, 4).tolist() == [7, 7, 7, 7]


def test_what_one_codec_cut_off_comes_with_the_next_push_in_another():
    one = Learner(manifest(codec="int4", codec_down="int4"), Pushes(), ME)
    one.adopt(0, vector(0.0))
    iterate(one, 7, 0.25, 0, 0)
    assert unpack(one.outgoing.body, "int4", 4).tolist() == [7, 0, 0, 0]
    one.reallocated(allocation(2, codec="fp32"))
    iterate(one, 7, 0.5, 0, 0)
    assert unpack(one.outgoing.body, one.outgoing.codec, 4).tolist() == [0, 0.5, 0, 0]


def test_a_later_allocation_without_one_goes_back_to_the_runs():
    one = Learner(manifest(codec="fp16"), Pushes(), ME)
    one.reallocated(allocation(2, codec="topk1"))
    assert one.codec == "topk1"
    one.reallocated(allocation(3))
    assert one.codec == "fp16"
