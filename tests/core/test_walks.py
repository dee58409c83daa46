"""Walks: rows dealt in blocks, shipped piece by piece, dealt anew as speeds and the fleet change."""

import hashlib

import pytest

from hermes_iot.algorithms.partition import rows_of
from hermes_iot.algorithms.shares import SharesConfig
from hermes_iot.algorithms.strategies.hermes_plus import Config, build_strategy
from hermes_iot.core.effects import FindShard, StoreShard, Train
from hermes_iot.core.shelf import PIECES_UNDER_WAY
from hermes_iot.domain import DeviceId, Sizing
from hermes_iot.protocol.messages import Allocation, Request, Shard
from tests.core.hand import ME, Board, Desk, allocation, birth, death, head, manifest, model, of, online, sent, state
from tests.core.test_coordinator_machine import restored_from

PLUS = build_strategy(Config(shares=SharesConfig(target_s=4.0, first_s=None, passes_max=None)))
NAMES = tuple(hashlib.sha256(str(number).encode()).hexdigest() for number in range(30))


def rows_as_bytes(ranges):
    return repr(ranges).encode().ljust(1000 * rows_of(ranges), b".")


def desk(*, shipped=False, **options):
    data = {"sampling": "walk", "rows": 1000, "mode": "shipped" if shipped else "indexed"}
    options.setdefault("first", Sizing(samples=50, batch=5, steps=10))
    shard_of = rows_as_bytes if shipped else None
    return Desk(PLUS, about=manifest(data=data), shard_of=shard_of, **options).up()


def allotted(effects):
    return {one.device: one for one in sent(effects, Allocation)}


def measure(one, batch_s, *names):
    for name in names:
        member = one.machine.members[DeviceId(name)]
        done = {"allocation_version": member.allocation.version, "iterations": member.counted.iterations + 1}
        one.hear(state(phase="training", batch_s=batch_s, **done), name)


def rows(held):
    return [row for one in held for start, stop in one.rows for row in range(start, stop)]


def test_newcomers_are_given_disjoint_rows_and_the_first_steps():
    one = desk()
    held = [allotted(one.hear(birth(), name))[name] for name in "abc"]
    assert [(each.samples, each.batch, each.steps) for each in held] == [(50, 5, 10)] * 3
    assert len(set(rows(held))) == 150


def test_as_soon_as_one_is_measured_it_is_sized_by_its_speed_and_the_others_go_on():
    one = desk()
    for name in "ab":
        one.hear(birth(), name)
    measure(one, 0.01, "a")
    given = allotted(one.wait(2.0))
    assert set(given) == {"a"}
    assert (given["a"].steps, given["a"].share, given["a"].samples) == (400, 0.5, 500)


def test_shares_follow_speeds_and_rows_stay_disjoint_whoever_grows():
    one = desk()
    for name in "ab":
        one.hear(birth(), name)
    measure(one, 0.01, "a")
    one.wait(2.0)
    measure(one, 0.03, "b")
    one.wait(5.0)
    held = [member.allocation for member in one.machine.members.values()]
    assert [each.share for each in held] == pytest.approx([0.75, 0.25], abs=1e-6)
    assert len(rows(held)) == len(set(rows(held))) == 1000


def test_who_leaves_gives_its_rows_to_the_others_and_is_dealt_anew_when_it_comes_back():
    one = desk()
    for name in "ab":
        one.hear(birth(), name)
    measure(one, 0.01, "a", "b")
    one.wait(5.0)
    one.hear(death(), "b")
    one.wait(5.0)
    measure(one, 0.01, "a")
    one.wait(5.0)
    a, b = (one.machine.members[DeviceId(name)] for name in "ab")
    assert a.allocation.samples == 1000
    back = allotted(one.hear(birth(session=2), "b"))["b"]
    assert back.version == b.allocation.version > 2


def test_a_device_that_says_nothing_for_three_iterations_counts_no_more():
    one = desk()
    for name in "ab":
        one.hear(birth(), name)
    measure(one, 0.01, "a", "b")
    one.wait(5.0)
    for _ in range(4):
        one.wait(4.0)
        measure(one, 0.01, "a")
    assert one.machine.members[DeviceId("a")].allocation.share == 1.0


def test_shipped_blocks_are_pieces_of_about_a_chunk_and_sent_as_they_are_asked_for():
    one = desk(shipped=True)
    given = allotted(one.hear(birth()))[ME]
    assert given.samples == 51  # 1000 rows in blocks of 3, so that there are enough to share out
    assert given.rows == ((0, 51),)
    piece = given.shards[3]
    shards = sent(one.hear(Request(run="run-a", session=1, want="shard", shards=(piece,))), Shard)
    assert [shard.sha256 for shard in shards] == [piece]
    assert hashlib.sha256(shards[0].body).hexdigest() == piece


def test_a_device_is_told_how_long_its_longest_piece_is():
    one = desk(shipped=True)
    given = allotted(one.hear(birth()))[ME]
    lengths = []
    for piece in given.shards:
        [shard] = sent(one.hear(Request(run="run-a", session=1, want="shard", sha256=piece)), Shard)
        lengths.append(len(shard.body))
    assert given.shard_bytes == max(lengths) > 0


def test_a_piece_of_somebody_else_is_not_sent():
    one = desk(shipped=True)
    mine, theirs = (allotted(one.hear(birth(), name))[name].shards[0] for name in ("d1", "other"))
    effects = one.hear(Request(run="run-a", session=1, want="shard", shards=(mine, theirs)))
    assert [shard.sha256 for shard in sent(effects, Shard)] == [mine]


def test_a_large_set_is_cut_into_blocks_of_about_a_chunk():
    data = {"sampling": "walk", "rows": 100_000, "mode": "shipped"}
    first = Sizing(samples=50, batch=5, steps=10)
    one = Desk(PLUS, about=manifest(data=data), shard_of=rows_as_bytes, first=first).up()
    given = allotted(one.hear(birth()))[ME]
    assert given.samples == 100  # a row is 1000 bytes, a block 100,000
    assert len(given.shards) == 1


def test_a_claim_of_infinite_speed_sizes_nobody():
    one = desk()
    for name in "ab":
        one.hear(birth(), name)
    measure(one, 5e-324, "a")
    measure(one, 0.01, "b")
    one.wait(5.0)
    assert one.machine.members[DeviceId("a")].allocation.share == 0
    assert one.machine.members[DeviceId("b")].allocation.share > 0


def test_a_newcomer_to_a_settled_fleet_is_made_room_for_and_then_there_is_peace():
    one, names = desk(), [f"d{number:02}" for number in range(12)]
    for name in names:
        one.hear(birth(), name)
    for _ in range(3):
        measure(one, 0.01, *names)
        one.wait(5.0)
    one.hear(birth(), "new")
    for _ in range(4):
        measure(one, 0.01, *names, "new")
        one.wait(5.0)
    held = {name: one.machine.members[DeviceId(name)].allocation for name in (*names, "new")}
    assert min(each.samples for each in held.values()) > 60  # of 77
    assert len(rows(held.values())) == len(set(rows(held.values())))
    measure(one, 0.01, *names, "new")
    assert allotted(one.wait(5.0)) == {}


def test_a_borrowed_piece_is_its_borrowers_after_a_restart_and_its_owner_is_allotted_anew():
    one = desk(first=Sizing(samples=1000, batch=5, steps=10))
    whole = allotted(one.hear(birth(), "a"))["a"]
    lent = allotted(one.hear(birth(), "b"))["b"]
    assert (whole.rows, rows([lent])) == (((0, 1000),), [0])
    again = restored_from(one, one.machine.stop(now=one.now))
    one = desk(first=Sizing(samples=1000, batch=5, steps=10), restored=again)
    assert allotted(one.hear(birth(), "b"))["b"].rows == lent.rows
    anew = allotted(one.hear(birth(), "a"))["a"]
    assert (anew.version, anew.rows) == (2, ((1, 1000),))


# --- the device's side ------------------------------------------------------------------------------------------------


def board():
    one = Board(PLUS)
    one.machine.connected(now=one.now)
    one.tell(online())
    one.tell(manifest(data={"sampling": "walk", "mode": "shipped"}, codec="int4", codec_down="int4"))
    one.prepare()
    one.tell(head())
    one.tell(model(), keyframe=True)
    return one


def look(one, effects):
    """The cache is empty; what the device asks for."""
    asked = []
    for effect in of(effects, FindShard):
        answer = one.machine.shard_found(effect.sha256, found=False, now=one.now)
        asked += [name for request in sent(answer, Request) for name in (request.shards or (request.sha256,))]
    return asked


def bring(one, name):
    """A piece arrives and is stored."""
    (stored,) = of(one.tell(Shard(run="run-a", sha256=name, body=b"rows")), StoreShard)
    return one.machine.shard_found(stored.sha256, found=True, now=one.now)


def wanted(effects):
    return [name for request in sent(effects, Request) for name in (request.shards or (request.sha256,))]


def test_training_begins_with_the_first_piece_and_goes_on_with_those_that_came():
    one = board()
    effects = one.tell(allocation(steps=4, shards=NAMES[:3], rows=((0, 30),)))
    assert not of(effects, Train)
    assert look(one, effects) == list(NAMES[:3])
    (train,) = of(bring(one, NAMES[1]), Train)
    assert train.job.shards == (NAMES[1],)
    bring(one, NAMES[0])
    one.trained()  # the first iteration is always pushed
    (train,) = of(one.tell(model(session=1, seq=1)), Train)
    assert train.job.shards == (NAMES[0], NAMES[1])


def test_only_a_few_pieces_are_asked_for_at_a_time():
    one = board()
    asked = look(one, one.tell(allocation(steps=4, shards=NAMES, rows=((0, 300),))))
    assert len(asked) <= PIECES_UNDER_WAY
    came = 0
    while asked:
        assert len(asked) <= PIECES_UNDER_WAY
        asked = asked[1:] + wanted(bring(one, asked[0]))
        came += 1
    assert came == len(NAMES)


def test_pieces_that_do_not_come_are_asked_for_again():
    one = board()
    asked = look(one, one.tell(allocation(steps=4, shards=NAMES[:2], rows=((0, 20),))))
    assert wanted(one.wait(6.0)) == asked == list(NAMES[:2])


def test_a_piece_that_stays_is_not_asked_for_anew():
    one = board()
    look(one, one.tell(allocation(steps=4, shards=NAMES[:2], rows=((0, 20),))))
    for name in NAMES[:2]:
        bring(one, name)
    effects = one.tell(allocation(version=2, steps=4, shards=NAMES[1:3], rows=((10, 30),)))
    (sought,) = of(effects, FindShard)
    assert sought.sha256 == NAMES[2]
    one.trained()
    (train,) = of(one.tell(model(session=1, seq=1)), Train)
    assert train.job.shards == (NAMES[1],)
