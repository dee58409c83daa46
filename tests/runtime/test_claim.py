"""Two processes under one device id: the younger one leaves, also where the broker does not say what happened."""

import pytest

from hermes_iot.errors import IdConflict
from hermes_iot.protocol.messages import DeviceStatus
from hermes_iot.runtime import claim
from hermes_iot.runtime.claim import Claim

OLD = claim.INCUMBENT_AFTER_S + 1


def birth(instance, session=1, state="online"):
    return DeviceStatus(state=state, session=session, instance=instance, host="attic")


@pytest.fixture
def mine():
    one = Claim("pi-01", "lab", instance="mine")
    one.connected(now=0.0)
    return one


def told(one, now=0.0):
    one.heard(birth("mine"), session=1, now=now)


def test_a_foreign_birth_before_ours_may_be_an_earlier_life_of_this_board(mine):
    mine.heard(birth("theirs"), session=1, now=0.0)
    mine.heard(birth("mine", session=7), session=1, now=0.0)


def test_a_foreign_birth_after_ours_sends_the_younger_one_away(mine):
    told(mine)
    with pytest.raises(
        IdConflict, match=r"'pi-01' is in use in fleet 'lab': another process on host 'attic'"
    ) as caught:
        mine.heard(birth("theirs"), session=1, now=1.0)
    assert caught.value.exit_code == 7


def test_both_hosts_are_named_also_where_only_a_raised_session_proves_the_other():
    one = Claim("pi-01", "lab", instance="mine", host="cellar")
    one.connected(now=0.0)
    one.heard(birth("theirs"), session=1, now=0.0)
    one.reborn(now=1.0)
    with pytest.raises(IdConflict, match="process on host 'attic' connected under it; this one runs on host 'cellar'"):
        one.reborn(now=2.0)


def test_ones_own_earlier_birth_is_not_taken_for_the_others_host(mine):
    mine.heard(birth("mine", session=7), session=9, now=0.0)
    with pytest.raises(IdConflict, match="another process connected under it"):
        mine.disconnected(taken_over=True, now=1.0)


def test_the_same_instance_with_another_session_is_a_copied_card(mine):
    told(mine)
    with pytest.raises(IdConflict):
        mine.heard(birth("mine", session=4), session=1, now=1.0)


def test_F02_an_earlier_life_of_this_board_is_nobody_else_however_late_a_broker_repeats_it(mine):
    mine.heard(birth("mine", session=3), session=3, now=0.0)
    mine.heard(birth("mine", session=2), session=3, now=1.0)


def test_the_incumbent_stays(mine, caplog):
    told(mine)
    mine.heard(birth("theirs"), session=1, now=OLD)
    assert "another process uses device id pi-01" in caplog.text
    assert mine.retake_at is None, "its transport comes back by itself"


def test_a_late_will_is_no_living_process(mine):
    told(mine)
    mine.heard(birth("mine", session=0, state="offline"), session=1, now=0.0)
    mine.heard(birth("theirs", state="offline"), session=1, now=0.0)


def test_a_raised_session_waits_for_its_own_birth_again(mine):
    told(mine)
    mine.reborn(now=0.0)
    mine.heard(birth("mine", session=1), session=5, now=0.0)
    mine.heard(birth("mine", session=5), session=5, now=0.0)
    with pytest.raises(IdConflict):
        mine.heard(birth("theirs"), session=5, now=0.0)


def test_a_broker_that_names_the_take_over_sends_the_younger_one_away(mine):
    with pytest.raises(IdConflict):
        mine.disconnected(taken_over=True, now=1.0)


def test_the_incumbent_takes_its_id_back_after_a_while(mine):
    mine.disconnected(taken_over=True, now=OLD)
    assert mine.retake_at == OLD + claim.RETAKE_AFTER_S


def test_short_connections_never_add_up_to_an_incumbent(mine):
    """Two who push each other out every second would otherwise both become one."""
    for second in range(0, 60, 2):
        mine.connected(now=float(second))
        mine.disconnected(taken_over=False, now=second + 1.0)
    mine.connected(now=60.0)
    told(mine, now=60.0)
    with pytest.raises(IdConflict):
        mine.heard(birth("theirs"), session=1, now=61.0)


def test_an_incumbent_stays_one_over_later_interruptions(mine):
    mine.disconnected(taken_over=False, now=OLD)
    mine.connected(now=1000.0)
    told(mine, now=1000.0)
    mine.heard(birth("theirs"), session=1, now=1001.0)


def test_a_session_raised_twice_proves_a_twin(mine):
    mine.reborn(now=1.0)
    with pytest.raises(IdConflict, match="pi-01"):
        mine.reborn(now=2.0)


def test_an_incumbent_raises_its_session_as_often_as_it_must(mine):
    for second in range(3):
        mine.reborn(now=OLD + second)


def test_a_connection_that_comes_without_the_last_one_having_gone_is_counted_too(mine):
    mine.connected(now=OLD)
    mine.disconnected(taken_over=True, now=OLD)
    assert mine.retake_at is not None
