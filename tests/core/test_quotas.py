"""What a small message brings is rationed for each device: a flood stays one device's affair, an honest fleet feels nothing."""

import pytest

from hermes_iot.core.shelf import PIECES_UNDER_WAY
from hermes_iot.domain import Sizing
from hermes_iot.protocol.messages import Ack, Allocation, Model, Request, Shard, Update
from tests.core.hand import ME, Board, Desk, ack, birth, manifest, recorded, rows_as_bytes, sent, update

BURST = 6


def desk(**changes):
    one = Desk(**changes).up()
    one.hear(birth())
    one.hear(birth(), "another")
    return one


def refused(seq=1):
    return update(seq, model="0" * 64)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", ["refused", "repeated", "always a newer one"])
def test_a_flood_of_updates_that_come_to_nothing_brings_a_few_models_and_an_ack_each(hostile):
    one = desk()
    one.hear(update(1))
    said = []
    for number in range(100):
        said += one.hear(refused(number + 2) if hostile == "always a newer one" else refused(2))
        if hostile == "repeated":
            said += one.hear(update(1))
    assert len(sent(said, Model)) == BURST
    assert len(sent(said, Ack)) == (200 if hostile == "repeated" else 100)


def test_who_is_refused_once_is_answered_even_while_another_floods():
    one = desk()
    for _ in range(100):
        one.hear(refused(), "another")
    [answer] = sent(one.hear(refused()), Model)
    assert (answer.session, answer.seq) == (1, 1)


def test_after_a_while_the_flood_may_have_one_more():
    one = desk()
    for _ in range(100):
        one.hear(refused())
    one.wait(2.0)
    assert len(sent([effect for _ in range(10) for effect in one.hear(refused())], Model)) == 1


def test_updates_that_are_applied_are_answered_however_many_come():
    one = desk()
    said = [effect for seq in range(1, 51) for effect in one.hear(update(seq))]
    assert len(sent(said, Model)) == 50


def test_requests_and_refusals_are_one_quota():
    one = desk()
    ask = Request(run="run-a", session=1, want="model")
    said = [effect for _ in range(10) for effect in (*one.hear(refused()), *one.hear(ask))]
    assert len(sent(said, Model)) == BURST


def test_a_device_that_goes_without_its_answer_asks_and_is_not_stuck():
    one, board = desk(), Board(alone_after_s=1e6).at_work()
    [said] = sent(board.trained(), Update)
    for _ in range(100):  # it has used up what it may have, or somebody has in its name
        one.hear(refused())
    effects = one.hear(said)
    assert [sent(effects, Model), len(sent(effects, Ack))] == [[], 1]
    board.tell(ack(said.session, said.seq))
    assert board.machine.phase == "pushed"
    [request] = sent(board.wait(5.5), Request)
    assert request.want == "model"
    one.wait(5.5)
    [answer] = sent(one.hear(request), Model)
    board.tell(answer)
    assert board.machine.phase == "training"


# --- shards -----------------------------------------------------------------------------------------------------------


def shipping(**changes):
    about = manifest(data={"mode": "shipped", **changes})
    one = Desk(about=about, shard_of=rows_as_bytes, first=Sizing(samples=40, batch=8)).up()
    [allocation] = sent(one.hear(birth()), Allocation)
    return one, allocation


def wants(*names):
    single, many = (names[0], ()) if len(names) == 1 else ("", names)
    return Request(run="run-a", session=1, want="shard", sha256=single, shards=many)


def test_a_flood_of_requests_for_one_shard_brings_it_a_few_times():
    encoded = []

    def encodes(ranges):
        encoded.append(ranges)
        return rows_as_bytes(ranges)

    one, allocation = shipping()
    one.machine._assigner.allotment._shard_of = encodes
    said = [effect for _ in range(200) for effect in one.hear(wants(allocation.shard))]
    assert [len(sent(said, Shard)), len(recorded(said, "refused"))] == [3, 197]
    assert len(encoded) == 1, "and as long as somebody has it, it is not made anew"
    one.wait(5.0)
    assert len(sent([*one.hear(wants(allocation.shard)), *one.hear(wants(allocation.shard))], Shard)) == 1
    assert len(sent(one.hear(wants(allocation.next_shard)), Shard)) == 1, "another shard is another matter"


def test_a_walk_of_many_pieces_comes_as_quickly_as_it_is_asked_for():
    about = manifest(data={"mode": "shipped", "sampling": "walk", "rows": 2000})
    one = Desk(about=about, shard_of=rows_as_bytes, first=Sizing(samples=1500, batch=8)).up()
    [allocation] = sent(one.hear(birth()), Allocation)
    assert len(allocation.shards) > 100
    came = []
    for start in range(0, len(allocation.shards), 8):
        came += [piece.sha256 for piece in sent(one.hear(wants(*allocation.shards[start : start + 8])), Shard)]
    assert came == list(allocation.shards)


def test_one_request_brings_no_more_pieces_than_a_device_has_under_way():
    about = manifest(data={"mode": "shipped", "sampling": "walk", "rows": 2000})
    one = Desk(about=about, shard_of=rows_as_bytes, first=Sizing(samples=1500, batch=8)).up()
    [allocation] = sent(one.hear(birth()), Allocation)
    assert len(sent(one.hear(wants(*allocation.shards)), Shard)) == PIECES_UNDER_WAY


def test_one_name_said_many_times_is_one_shard():
    one, allocation = shipping()
    assert len(sent(one.hear(wants(*[allocation.shard] * 50, allocation.next_shard)), Shard)) == 2


def test_devices_that_are_given_the_same_rows_are_sent_the_same_message():
    one, allocation = shipping(rows=40)
    [other] = sent(one.hear(birth(), "another"), Allocation)
    assert other.shard == allocation.shard, "there are no more rows than one shard has"
    [mine] = sent(one.hear(wants(allocation.shard)), Shard)
    [its] = sent(one.hear(wants(other.shard), "another"), Shard)
    assert mine is its


def test_a_flood_of_requests_for_what_is_not_ones_own_brings_a_few_allocations():
    one, _ = shipping()
    said = [effect for _ in range(100) for effect in one.hear(wants("ab" * 32))]
    assert [len(sent(said, Allocation)), sent(said, Shard)] == [BURST, []]


def test_a_device_that_lost_its_shard_again_and_again_still_gets_it():
    one, allocation = shipping()
    pauses = [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]  # as `Retry` makes them
    for pause in pauses:
        assert sent(one.hear(wants(allocation.shard)), Shard), "each time it asks"
        one.wait(pause)


def test_quotas_are_kept_for_the_shards_that_are_named_and_no_others():
    one, allocation = shipping()
    for name in (allocation.shard, allocation.next_shard, *(f"{n:02}" * 32 for n in range(50))):
        one.hear(wants(name))
    assert set(one.machine.members[ME].shards) == {allocation.shard, allocation.next_shard}
