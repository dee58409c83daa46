"""Who is waited for: those who can contribute. A barrier opens without the others, and they come back by their work."""

import pytest

from hermes_iot.algorithms.paired_gate import PairedGateConfig
from hermes_iot.algorithms.shares import SharesConfig
from hermes_iot.algorithms.strategies import bsp, bsp_tuned, ebsp, fedavg, hermes_plus, selsync, single, ssp
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.member import Member
from hermes_iot.core.patience import FAILURES_MAX, excuse_of, fallen_silent, iteration_s, patience_s
from hermes_iot.domain import DeviceId, Score, Sizing
from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.messages import Allocation, Model
from tests.core.hand import Desk, allocation, birth, death, manifest, recorded, sent, state, update
from tests.core.peers import Fleet
from tests.core.peers import manifest as toy_manifest

BSP = bsp.build_strategy(bsp.Config())
PLUS = hermes_plus.build_strategy(hermes_plus.Config(shares=SharesConfig(target_s=4.0, first_s=None, passes_max=None)))


# --- the rule ---------------------------------------------------------------------------------------------------------


def member(**changes):
    return Member(device=DeviceId("d1"), index=0, **changes)


def test_an_iteration_is_predicted_from_the_seconds_of_a_mini_batch():
    assert iteration_s(member(), 2) == 0
    assert iteration_s(member(batch_s=0.5, allocation=allocation(samples=40, batch=10)), 2) == 4.0
    assert iteration_s(member(batch_s=0.5, allocation=allocation(steps=7)), 2) == 3.5
    assert iteration_s(member(iteration_s=9.0, allocation=allocation()), 2) == 9.0


@pytest.mark.parametrize(
    ("batch_s", "pause_s", "pace_s", "patience"),
    [
        (0.0, 0.0, 0.0, 300.0),  # nobody has measured it
        (0.5, 0.0, 0.0, 12.0),  # three iterations of 8 half seconds
        (0.01, 0.0, 0.0, 10.0),
        (0.5, 20.0, 0.0, 60.0),  # models on a thin line: three of its pauses
        (0.5, 3600.0, 0.0, 300.0),  # but not of one that stood still
        (0.5, 0.0, 40.0, 80.0),  # a large fleet reports seldom
        (100.0, 0.0, 0.0, 2400.0),
    ],
)
def test_patience_is_three_iterations_and_never_shorter_than_what_can_be_heard(batch_s, pause_s, pace_s, patience):
    one = member(batch_s=batch_s, pause_s=pause_s, allocation=allocation(samples=40, batch=5))
    assert patience_s(one, epochs=1, pace_s=pace_s, unmeasured_s=300.0) == patience


def test_who_waits_for_others_is_not_silent():
    one, other = member(batch_s=0.01, allocation=allocation()), member(owed=True, batch_s=0.01, allocation=allocation())
    late = {"epochs": 1, "pace_s": 0.0, "unmeasured_s": 300.0}
    assert fallen_silent([one, other], now=10.0, **late) == []
    assert fallen_silent([one, other], now=10.1, **late) == [one]
    one.silent = True
    assert fallen_silent([one, other], now=10.1, **late) == []


def test_an_old_pause_counts_half_at_each_sign_of_work():
    one = member(worked_at=10.0)
    for now, pause_s in ((50.0, 40.0), (52.0, 20.0), (53.0, 10.0), (73.0, 20.0)):
        one.worked(now=now)
        assert one.pause_s == pause_s


def test_divergence_is_counted_in_a_row_whatever_a_report_leaves_out():
    one = member()
    #: iterations, diverged, the newest one's word -> in a row
    for iterations, diverged, gate, failures in [
        (1, 1, "diverged", 1),
        (3, 3, "diverged", 3),
        (3, 3, "diverged", 3),  # said again
        (5, 4, "diverged", 1),  # one of the two ended well; the newest did not
        (6, 4, "age", 0),
    ]:
        one.reported(state(iterations=iterations, diverged=diverged, gate=gate), now=0.0)
        assert one.failures == failures
    one.reported(state(2, iterations=2, diverged=2, gate="diverged"), now=0.0)  # another life begins to count anew
    assert one.failures == 2


@pytest.mark.parametrize("count", ["failures", "refusals"])
def test_one_failure_less_is_no_excuse(count):
    one = member(**{count: FAILURES_MAX - 1})
    assert not excuse_of(one)
    setattr(one, count, FAILURES_MAX)
    assert excuse_of(one)
    one.contributed()
    assert not excuse_of(one)


# --- the coordinator --------------------------------------------------------------------------------------------------


def desk(*names, strategy=BSP, **options):
    one = Desk(strategy, **options).up()
    for name in names:
        one.hear(birth(), name)
    return one


def answered(effects):
    return sorted((one.device, one.message.seq) for one in effects if isinstance(getattr(one, "message", None), Model))


def diverging(iterations):
    return state(iterations=iterations, diverged=iterations, gate="diverged", batch_s=0.1, samples=256, batch=16)


def test_who_diverges_again_and_again_is_not_waited_for_until_it_contributes():
    one = desk("a", "b")
    assert answered(one.hear(update(value=1.0), "a")) == []
    assert answered(one.hear(diverging(2), "b")) == []
    effects = one.hear(diverging(3), "b")
    assert answered(effects) == [("a", 1)]
    assert recorded(effects, "excused") == [{"device": "b", "reason": "its iterations diverge"}]
    assert [row["excused"] for row in one.machine.summary(Score(loss=1.0, accuracy=None))["devices"]] == [
        "",
        "its iterations diverge",
    ]
    assert answered(one.hear(update(2, value=1.0), "a")) == [("a", 2)]
    effects = one.hear(update(1, value=5.0), "b")
    assert recorded(effects, "readmitted") == [{"device": "b"}]
    assert answered(one.hear(update(3, value=1.0), "a")) == [("a", 3), ("b", 1)]
    assert one.machine.model[0] == pytest.approx(3.0)
    assert answered(one.hear(update(4, value=1.0), "a")) == []  # and it is waited for again


def test_whose_updates_are_refused_is_not_waited_for_until_one_is_taken():
    one = desk("a", "b")
    one.hear(update(), "a")
    for seq in (1, 2):
        assert answered(one.hear(update(seq, parameters=5), "b")) == [("b", seq)]
    assert answered(one.hear(update(3, parameters=5), "b")) == [("a", 1), ("b", 3)]
    one.hear(update(4), "b")
    assert answered(one.hear(update(2), "a")) == [("a", 2), ("b", 4)]
    assert answered(one.hear(update(3), "a")) == []


def test_who_is_silent_for_three_iterations_is_not_waited_for():
    one = desk("a", "b")
    for name in "ab":
        one.hear(state(batch_s=1.28, samples=100, batch=16), name)  # 8 s an iteration
    one.hear(update(), "a")
    assert answered(one.wait(23.0)) == []
    effects = one.wait(4.0)
    assert answered(effects) == [("a", 1)]
    assert recorded(effects, "excused") == [{"device": "b", "reason": "it gives no sign of work"}]
    one.hear(state(iterations=2, batch_s=1.28, samples=100, batch=16), "b")
    assert answered(one.hear(update(2), "a")) == []


def test_words_are_no_sign_of_work():
    """It is there, and asks and asks: a board that cannot train what it was allotted, or dies at every try."""
    one = desk("a", "b", measure_patience_s=60.0)
    one.hear(update(), "a")
    effects = []
    for session in range(2, 12):
        effects += one.wait(7.0)
        one.hear(birth(session), "b")
        one.hear(state(session, phase="waiting", iterations=0), "b")
    assert answered(effects) == [("a", 1)]


def test_who_comes_back_after_having_been_gone_is_given_its_time():
    one = desk("a", "b", measure_patience_s=60.0)
    one.hear(update(), "a")
    one.wait(70.0)
    one.hear(death(), "b")
    one.hear(birth(2), "b")
    one.hear(update(2), "a")
    assert answered(one.wait(50.0)) == []
    assert answered(one.wait(20.0)) == [("a", 2)]


def test_a_newcomers_first_word_is_no_long_pause():
    one = desk(now=5000.0)
    one.hear(state(iterations=7), "a")
    assert one.machine.members[DeviceId("a")].pause_s == 0.0


def test_while_the_coordinator_is_cut_off_nobody_is_silent():
    one = desk("a", "b", measure_patience_s=60.0)
    one.hear(update(), "a")
    one.machine.disconnected()
    one.wait(1000.0)
    one.machine.connected(now=one.now)
    assert answered(one.wait(50.0)) == []


def test_who_has_pushed_and_waits_for_a_straggler_stays():
    one = desk("a", "b")
    one.hear(state(batch_s=0.01, samples=256, batch=16), "a")
    one.hear(update(), "a")
    one.wait(250.0)
    assert not one.machine.members[DeviceId("a")].excused
    assert answered(one.hear(update(), "b")) == [("a", 1), ("b", 1)]


# --- its rows ---------------------------------------------------------------------------------------------------------


def works(one, *names, session=1):
    """An iteration more, at the size it was given."""
    effects = []
    for name in names:
        known = one.machine.members[DeviceId(name)]
        size = {"samples": known.allocation.samples, "batch": known.allocation.batch, "iteration_s": 0.2}
        done = {"allocation_version": known.allocation.version, "iterations": known.counted.iterations + 1}
        effects += one.hear(state(session, batch_s=0.01, **size, **done), name)
    return effects


def rows_of(one, name):
    ranges = one.machine.members[DeviceId(name)].allocation.rows
    return {row for start, stop in ranges for row in range(start, stop)}


def shared_out(one):
    """Every row is somebody's, and nobody else's."""
    return not rows_of(one, "a") & rows_of(one, "b") and rows_of(one, "a") | rows_of(one, "b") == set(range(1000))


@pytest.mark.parametrize("session", [1, 2])
@pytest.mark.parametrize("strategy", [PLUS, bsp_tuned.build_strategy(bsp_tuned.Config(steps=20))])
def test_rows_of_a_silent_device_are_trained_by_others_until_it_comes_back(strategy, session):
    """It comes back by an iteration (the same session), or by another birth."""
    about = manifest(data={"sampling": "walk", "rows": 1000})
    one = desk("a", "b", strategy=strategy, about=about, first=Sizing(samples=50, batch=5, steps=10))
    for _ in range(4):
        works(one, "a", "b")
        one.wait(3.0)
    assert shared_out(one)
    before = one.machine.members[DeviceId("b")].allocation.version

    for _ in range(11):
        works(one, "a")
        one.wait(4.0)
    assert rows_of(one, "a") == set(range(1000))
    assert one.machine.members[DeviceId("b")].allocation.version == before

    if session == 2:
        one.hear(death(), "b")
    effects = one.hear(birth(2), "b") if session == 2 else works(one, "b")
    again = next(each for each in sent(effects, Allocation) if each.device == "b")
    assert (again.version, bool(again.rows)) == (before + 1, True)
    for _ in range(4):
        one.wait(3.0)
        works(one, "a")
        works(one, "b", session=session)
    assert shared_out(one)


# --- whole fleets -----------------------------------------------------------------------------------------------------

STRATEGIES = {
    "bsp": BSP,
    "bsp-tuned": bsp_tuned.build_strategy(bsp_tuned.Config(steps=5)),
    "ebsp": ebsp.build_strategy(ebsp.Config(lookahead=3)),
    "selsync": selsync.build_strategy(selsync.Config(max_age=4)),
    "fedavg": fedavg.build_strategy(fedavg.Config(fraction=0.7)),
    "ssp": ssp.build_strategy(ssp.Config(bound=1)),
    "single": single.build_strategy(single.Config(steps=20)),
    "hermes-plus with a barrier": hermes_plus.build_strategy(
        hermes_plus.Config(barrier=True, gate=PairedGateConfig(max_age=4))
    ),
}
SETTINGS = CoordinatorSettings(
    first=Sizing(samples=48, batch=8), checkpoint_interval_s=2.0, keyframe_interval_s=1.0, measure_patience_s=30.0
)


def fleet(strategy, settings=SETTINGS):
    about = toy_manifest(sampling=strategy.regime.sampling, codec="fp32", codec_down="fp32")
    made = Fleet(about, strategy=strategy, settings=settings, latency_s=0.003)
    made.lead()
    return made


def joined(made):
    return [made.join(name, speed=speed) for name, speed in (("d0", 0.02), ("d1", 0.03), ("d2", 0.05))]


def versions(made, seconds):
    before = made.leader.machine.version
    made.run(seconds)
    return made.leader.machine.version - before


def untrainable(_job):
    raise ProtocolError("rows", "there are no such rows here")


@pytest.mark.parametrize("fault", ["diverges", "cannot train", "stands still"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_board_that_cannot_contribute_holds_nobody_up_and_is_let_in_again(name, fault):
    made = fleet(STRATEGIES[name])
    *_, odd = joined(made)
    if fault == "diverges":
        odd.diverge = 10**9
    elif fault == "cannot train":
        odd.train = untrainable
    else:
        submit, odd.submit = odd.submit, lambda kind, *rest: submit(kind, *rest) if kind == "prepare" else None
    made.run_until(lambda: made.events("excused"), within=60.0)
    assert versions(made, 10.0) > 5
    assert [one["device"] for one in made.events("excused")] == ["d2"]
    assert made.applied("d2") == 0

    if fault == "diverges":
        odd.diverge = 0
    elif fault == "cannot train":
        del odd.train
    else:
        del odd.submit
        odd.crash()
        odd.start()
    made.run_until(lambda: made.applied("d2") > 0, within=90.0)
    assert not made.leader.machine.members[DeviceId("d2")].excused
    assert versions(made, 10.0) > 5


@pytest.mark.parametrize("name", STRATEGIES)
def test_in_a_calm_fleet_nobody_is_excused(name):
    made = fleet(STRATEGIES[name])
    joined(made)
    assert versions(made, SETTINGS.measure_patience_s + 10.0) > 20
    assert made.events("excused") == []
