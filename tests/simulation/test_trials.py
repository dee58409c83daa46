"""Fleets of the field's own runners to which everything happens: what holds, and that what would not is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_iot.algorithms.strategies.base import BaseStrategy
from hermes_iot.core import aggregator, snapshot
from hermes_iot.core.global_model import GlobalModel
from hermes_iot.core.outbox import Outbox
from hermes_iot.core.tally import Tally
from hermes_iot.core.views import Views
from hermes_iot.errors import UsageError
from hermes_iot.runtime.coordinator import CoordinatorRunner
from hermes_iot.runtime.link import Link
from hermes_iot.runtime.run_dir import RunDir
from hermes_iot.runtime.simulation import trial
from hermes_iot.runtime.simulation.fake_disk import FakeDisk
from hermes_iot.runtime.simulation.faults import FAULTS, chosen
from hermes_iot.runtime.simulation.trial import Ask, Trial, attempt
from hermes_iot.runtime.simulation.trials import Totals, attempts, quietly, replay

ALL = tuple(FAULTS)
#: None of these tampers with more than one thing, so it shows soon or not at all.
SEEDS = range(12)


#: Each strategy twice; as many seeds more in those of single faults, which begin behind them.
WHOLE = range(2 * len(trial.STRATEGIES))


@pytest.mark.parametrize("seed", WHOLE)
def test_everything_holds(seed):
    found = quietly(Ask(seed=seed, faults=ALL))
    assert found.held, f"{found.invariant}: {found.what} {found.trace}\n{replay(found, ALL)}"
    assert found.applied > 0
    assert found.checks > 500


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_holds_for_five_hundred_seeds():
    totals = Totals(faults=ALL)
    for found in attempts([Ask(seed=seed, faults=ALL) for seed in range(500)], jobs=2):
        totals.add(found)
    assert not totals.violated, [(one.invariant, one.what, replay(one, ALL)) for one in totals.violated]
    assert all(totals.injected[name] > 0 for name in FAULTS)


def test_processes_die_at_changes_of_their_disks_and_at_messages_and_leave_torn_journals():
    totals = Totals(faults=ALL)
    for seed in range(24):
        totals.add(quietly(Ask(seed=seed, faults=ALL)))
    told = totals.document()
    assert min(told["deaths"].values()) >= 20
    assert told["deaths"]["disk"] >= told["deaths"]["message"] / 2, "a process does as much with its disk as it says"
    assert told["torn_tails"] >= 2


@pytest.mark.parametrize(("place", "name"), [*enumerate(FAULTS)])
def test_each_fault_alone_comes_and_is_survived(place, name):
    found = quietly(Ask(seed=WHOLE.stop + place, faults=(name,)))  # so the strategies take turns here, too
    assert found.held, (found.invariant, found.what)
    assert found.injected[name] > 0
    assert set(found.injected) == {name}


def test_one_seed_is_one_history_in_whatever_process():
    asks = [Ask(seed=seed, faults=ALL) for seed in (3, 8)]
    here = {found.seed: found for found in attempts(asks, jobs=1)}
    there = {found.seed: found for found in attempts(asks, jobs=2)}
    assert here == there
    assert here[3].log_sha256 != here[8].log_sha256


def test_strategies_take_turns_unless_one_is_named():
    assert [trial.strategy_of(Ask(seed=seed, faults=ALL)) for seed in range(3)] == ["hermes-plus", "hermes", "bsp"]
    assert trial.strategy_of(Ask(seed=0, faults=ALL, strategy="asp")) == "asp"


def test_leaving_a_fault_out_moves_nothing_of_the_others():
    few, fewer = (Trial(Ask(seed=5, faults=names))._faults.active for names in (ALL, chosen("clock,foreign")))
    assert {name: few.get(name, fewer[name]) for name in fewer} == fewer


def test_an_unknown_fault_is_named_with_the_nearest_that_exists():
    with pytest.raises(UsageError, match=r"there is no fault 'dublicate'.*Did you mean 'duplicate'") as refused:
        chosen("clock,dublicate")
    assert refused.value.exit_code == 2
    with pytest.raises(UsageError, match="names nothing"):
        chosen(" , ")


# --- what is broken is found ------------------------------------------------------------------------------------------


def caught(invariant, faults, *, strategy=None, seeds=SEEDS):
    """Some seed finds it; what it found."""
    for seed in seeds:
        found = quietly(Ask(seed=seed, faults=chosen(faults), strategy=strategy))
        if not found.held:
            assert found.invariant == invariant, (found.what, found.trace)
            assert found.event
            again = replay(found, chosen(faults), strategy=strategy)
            assert again.startswith(f"hermes-iot simulate --faults {faults} --seeds {seed}:{seed + 1}")
            assert quietly(Ask(seed=seed, faults=chosen(faults), strategy=strategy)) == found, "the command replays it"
            return found
    raise AssertionError(f"{len(seeds)} seeds found nothing")


def test_updates_that_are_not_deduplicated_are_caught(monkeypatch):
    judge = aggregator.judge
    monkeypatch.setattr(
        aggregator,
        "judge",
        lambda update, standing, merge: judge(update, replace(standing, handled=(0, 0), session=0), merge),
    )
    assert "a second time" in caught("I1", "duplicate", strategy="hermes").what


def test_a_journal_that_is_told_of_before_it_is_synced_is_caught(monkeypatch):
    monkeypatch.setattr(RunDir, "sync", lambda _self: None)
    monkeypatch.setattr(RunDir, "unsynced", False)
    caught("I2", "coordinator-crash", strategy="asp")


def test_a_journal_whose_sync_does_nothing_is_caught(monkeypatch):
    monkeypatch.setattr(FakeDisk, "sync_data", lambda _self, _descriptor: None)
    found = caught("liveness", "lost-write", strategy="asp")
    assert "no coordinator (" in found.what
    assert "the next segment begins at" in found.what, "it says why the coordinator cannot come back"


def test_a_torn_tail_that_is_not_cut_off_is_caught(monkeypatch):
    monkeypatch.setattr(FakeDisk, "truncate", lambda _self, _descriptor, _length: None)
    found = caught("liveness", "torn-write", strategy="asp", seeds=range(40))
    assert "is not what was written" in found.what


def test_a_journal_whose_name_is_believed_before_it_is_safe_is_caught(monkeypatch):
    monkeypatch.setattr("hermes_iot.storage.journal.atomic.sync_directory", lambda _directory: None)
    found = caught("liveness", "lost-write,coordinator-crash", strategy="asp")
    assert "it ends before record" in found.what, "a whole segment is gone"


def test_a_coordinator_that_does_not_do_again_what_it_wrote_down_is_caught(monkeypatch):
    monkeypatch.setattr(
        "hermes_iot.core.coordinator.snapshot.resume",
        lambda restored, *parts, resume=snapshot.resume: resume(replace(restored, entries=()), *parts),
    )
    caught("I2", "coordinator-crash", strategy="asp")


def test_updates_of_another_run_that_are_taken_are_caught(monkeypatch):
    judge = aggregator.judge

    def believing(update, standing, merge):
        return judge(replace(update, run=standing.manifest.run), standing, merge)

    monkeypatch.setattr(aggregator, "judge", believing)
    assert "is of run 'another'" in caught("I3", "foreign", strategy="asp").what


def test_allocations_that_are_told_before_they_are_written_down_are_caught(monkeypatch):
    def forgetting(runner):
        runner._unsaved = []

    monkeypatch.setattr(CoordinatorRunner, "_record_unsaved", forgetting)
    caught("I4", "coordinator-crash", strategy="hermes")


def test_versions_that_are_left_out_are_caught(monkeypatch):
    def leaping(model, vector, score):
        model.restore(model.version + 2, vector, score)

    monkeypatch.setattr(GlobalModel, "advance", leaping)
    assert "version 0 is followed by 2" in caught("I6", "clock", strategy="asp", seeds=range(1)).what


def test_updates_that_are_not_counted_are_caught(monkeypatch):
    count = Tally.count

    def careless(tally, outcome, reason=""):
        if outcome != "duplicate":
            count(tally, outcome, reason)

    monkeypatch.setattr(Tally, "count", careless)
    caught("I7", "duplicate", strategy="asp")


def test_models_that_are_kept_for_ever_are_caught(monkeypatch):
    monkeypatch.setattr("hermes_iot.core.coordinator.BASES_MAX", 4)  # and the model keeps to its own bound still
    assert "the coordinator keeps 5 whole models" in caught("I8", "clock", strategy="hermes-plus").what


def test_views_that_are_kept_for_ever_are_caught(monkeypatch):
    monkeypatch.setattr("hermes_iot.core.global_model.VIEWS_BYTES_MAX", 10_000)
    monkeypatch.setattr(Views, "_make_room", lambda _views, _newest: None)
    assert "bytes of views, at most 10000" in caught("I8", "clock", strategy="hermes-plus").what


def test_bytes_in_line_beyond_their_bound_are_caught(monkeypatch):
    monkeypatch.setattr(Link, "bounded", {"bytes in line": (2, 1)})
    assert "keeps 2 bytes in line, at most 1" in caught("I8", "clock").what


def test_a_device_that_does_not_ask_again_is_caught(monkeypatch):
    put = Outbox.put

    def once(outbox, update, *, now):
        put(outbox, update, now=now)
        outbox.retry.stop()

    monkeypatch.setattr(Outbox, "put", once)
    assert "pi-" in caught("liveness", "queue-full,disconnect", strategy="bsp", seeds=SEEDS[8:]).what


def test_what_the_software_raises_on_the_way_is_caught_with_its_place(monkeypatch):
    def broken(_self, *_arguments):
        raise KeyError("nobody expected this")

    monkeypatch.setattr(BaseStrategy, "changed", broken)
    found = caught("no bug", "clock", strategy="asp", seeds=range(1))
    assert "nobody expected this" in found.trace


def test_a_machine_that_spins_is_caught(monkeypatch):
    monkeypatch.setattr(CoordinatorRunner, "next_deadline", lambda self: self._clock())
    assert attempt(Ask(seed=1, faults=("clock",))).invariant == "progress"
