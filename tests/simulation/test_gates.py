"""What other gates would have pushed of simulated and of recorded iterations."""

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.simulation import gates as module
from hermes_iot.runtime.simulation.gates import counted, gates_of
from tests.simulation.fleets import toy_run
from tests.support.fleet import toy_config


def plus(kind="paired", **changed):
    values = {"strategy": "hermes-plus", "constants": {"gate": {"kind": kind}}, "rules": StopRules()}
    return toy_config(**{**values, **changed})


@pytest.mark.parametrize("kind", ["paired", "strict", "norm", "coin", "none"])
def test_the_gate_that_ran_would_have_pushed_what_was_pushed(kind):
    outcome = toy_run(config=plus(kind))
    found = outcome.gates
    own = found["would_push"][kind]
    assert found["gate"] == kind
    assert found["iterations"] == outcome.summary["iterations"] > 20
    assert own["pushes"] == own["both"] == found["published"] > 10
    assert found["would_push"]["none"]["pushes"] == found["iterations"]
    assert found["would_push"]["norm"] is not None, "lengths cost little and are always there"
    unasked = {"paired", "strict"} - {kind}
    assert {name for name, count in found["would_push"].items() if count is None} == unasked
    assert found["loss"] == "training"


def test_counting_changes_nothing_of_the_run(monkeypatch):
    counting = toy_run(config=plus())
    monkeypatch.setattr("hermes_iot.runtime.simulation.run.gates_of", lambda _config: None)
    assert toy_run(config=plus()).log_sha256 == counting.log_sha256


def test_a_strategy_without_such_gates_has_no_counts():
    outcome = toy_run(virtual_s=5.0)
    assert outcome.gates is None
    assert "gates" not in outcome.document()


def test_a_long_run_is_counted_from_its_beginning_and_says_what_was_passed_over(monkeypatch):
    monkeypatch.setattr(module, "ITERATIONS_MAX", 10)
    outcome = toy_run(config=plus())
    assert outcome.gates["iterations"] == 10
    assert outcome.gates["passed_over"] == outcome.summary["iterations"] - 10 > 0


@pytest.fixture(scope="module")
def recorded():
    """Every iteration of a simulated fleet as the coordinator wrote it down, in no good order, and the run's counts."""
    records, config = [], plus(telemetry="full")
    outcome = toy_run(
        config=config, observe=lambda event, fields: records.append(fields) if event == "iteration" else None
    )
    return records[::-1], config, outcome.gates


def test_records_tell_the_same_as_the_run_itself(recorded):
    records, config, during = recorded
    after = counted(records, config, config)
    # The last iterations of the boards may have ended without being heard of.
    assert 0 <= during["iterations"] - after["iterations"] <= 4
    assert after["would_push"]["paired"]["pushes"] == after["published"] > 10
    assert after["would_push"]["norm"]["pushes"] == pytest.approx(during["would_push"]["norm"]["pushes"], abs=4)


def test_other_constants_may_be_asked_of_a_recorded_run(recorded):
    records, config, _ = recorded
    eager = counted(records, config, plus(constants={"gate": {"max_age": 1, "coin": 1.0}}))
    assert eager["would_push"]["paired"]["pushes"] == eager["iterations"] > eager["published"]
    assert eager["would_push"]["coin"]["pushes"] == eager["iterations"]


def test_records_of_an_older_version_leave_out_what_they_do_not_tell(recorded):
    records, config, _ = recorded
    old = [{name: value for name, value in record.items() if name != "norm"} for record in records]
    found = counted(old, config, config)["would_push"]
    assert found["norm"] is None
    assert found["paired"]["pushes"] > 10


def test_without_every_iteration_there_is_no_count():
    assert counted([], RunConfig(task="toy", telemetry="sampled"), RunConfig(task="toy")) is None
    assert gates_of(RunConfig(task="toy", strategy="hermes")) is None
