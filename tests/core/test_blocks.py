"""Blocks of rows: disjoint, moved as little as possible."""

from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.core.blocks import Blocks


def test_a_device_is_given_the_lowest_free_blocks_nearest_to_its_rows():
    blocks = Blocks(100, 10)
    assert blocks.hold("a", 30) == [0, 1, 2]
    assert blocks.hold("b", 26) == [3, 4, 5]  # 2.6 blocks
    assert blocks.ranges([3, 4, 5]) == ((30, 60),)


def test_a_change_moves_only_the_difference():
    blocks = Blocks(100, 10)
    blocks.hold("a", 40)
    blocks.hold("b", 60)
    assert blocks.hold("a", 20) == [0, 1]
    assert blocks.hold("b", 80) == [2, 3, 4, 5, 6, 7, 8, 9]


def test_the_last_block_may_be_shorter():
    blocks = Blocks(25, 10)
    assert blocks.ranges(blocks.hold("a", 25)) == ((0, 25),)
    assert blocks.within(((20, 25),)) == [2]


def test_a_newcomer_borrows_a_block_while_none_is_free_and_gets_its_own_later():
    blocks = Blocks(20, 10)
    assert blocks.hold("a", 20) == [0, 1]
    assert blocks.hold("b", 10) == [0]
    blocks.hold("a", 10)
    assert blocks.hold("b", 10) == [1]


def test_who_is_gone_gives_everything_back_once():
    blocks = Blocks(20, 10)
    blocks.hold("a", 20)
    assert blocks.release("a")
    assert not blocks.release("a")
    assert blocks.hold("b", 20) == [0, 1]


def test_what_an_earlier_process_gave_is_taken_over():
    blocks = Blocks(50, 10)
    blocks.restore({"a": (((10, 30),), 20), "b": (((30, 40),), 10)})
    assert blocks.hold("a", 20) == [1, 2]
    assert blocks.hold("b", 20) == [0, 3]


def test_a_block_that_was_borrowed_goes_to_whoever_has_least_of_what_it_wants():
    """Not to whoever joined first: `a` has two of four without it, `b` none of two."""
    blocks = Blocks(40, 10)
    blocks.restore({"a": (((0, 30),), 40), "b": (((0, 10),), 20)})
    assert not blocks.whole("a", ((0, 30),))
    assert blocks.whole("b", ((0, 10),))
    assert blocks.hold("b", 10) == [0]
    assert blocks.hold("a", 30) == [1, 2, 3]


def test_borrowed_blocks_are_shared_out_one_by_one():
    blocks = Blocks(60, 10)
    everything = ((0, 60),)
    blocks.restore({"a": (everything, 40), "b": (everything, 20)})
    # Before each: 0 of 4 and 0 of 2 (who joined first), 1/4 and 0/2, 1/4 and 1/2, 2/4 and 1/2, 3/4 and 1/2, 3/4 and 2/2.
    assert blocks.hold("a", 40) == [0, 2, 3, 5]
    assert blocks.hold("b", 20) == [1, 4]


def test_ranges_of_a_larger_set_are_cut_off():
    blocks = Blocks(20, 10)
    blocks.restore({"a": (((10, 90),), 80)})
    assert blocks.hold("b", 20) == [0]
    assert blocks.hold("a", 20) == [1]


@given(
    moves=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 120)), max_size=40),
    rows=st.integers(1, 100),
    block=st.integers(1, 40),
)
def test_owned_blocks_never_overlap_and_none_gets_lost(moves, rows, block):
    blocks, held = Blocks(rows, block), {}
    for device, wanted in moves:
        if wanted == 0:
            blocks.release(device)
            held.pop(device, None)
            continue
        own = blocks.hold(device, wanted)
        assert own
        borrowed = len(own) == 1 and any(own[0] in others for name, others in held.items() if name != device)
        held[device] = [] if borrowed else own
        owned = [one for others in held.values() for one in others]
        assert len(owned) == len(set(owned))
    owned = {one for others in held.values() for one in others}
    blocks.hold("new", rows)
    for device in held:
        blocks.release(device)
    assert set(blocks.hold("new", rows)) == set(range(blocks.count))
    assert owned <= set(range(blocks.count))
