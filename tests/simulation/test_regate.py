"""Another gate on recorded losses: arithmetic, and that the same gate gives the same answers."""

import pytest

from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.config import RunConfig
from hermes_iot.core.stopping import StopRules
from hermes_iot.runtime.simulation.regate import gate_of, regate
from tests.simulation.fleets import toy_run
from tests.support.fleet import toy_config


def told(losses, *, published=(), session=1, device="pi", first=1):
    return [
        {"device": device, "session": session, "iteration": number, "loss": loss, "published": number in published}
        for number, loss in enumerate(losses, first)
    ]


@pytest.fixture(scope="module")
def iterations():
    """Every iteration of a simulated fleet, as the coordinator recorded it."""
    records = []
    config = toy_config(telemetry="full", rules=StopRules())
    toy_run(config=config, observe=lambda event, fields: records.append(fields) if event == "iteration" else None)
    return records


def test_the_same_gate_publishes_what_was_published(iterations):
    found = regate(iterations, GateConfig())
    assert found["published"] == found["would_publish"] == found["both"] > 20
    assert found["recorded"] == len(iterations) > found["published"]
    assert found["missing"] == 0


def test_a_stricter_gate_publishes_fewer_and_says_which(iterations):
    strict = regate(iterations, GateConfig(alpha=-2.5, beta=0.0))
    assert 0 < strict["would_publish"] < strict["published"]
    named = sum(len(row["iterations"]) for row in strict["devices"])
    assert named == strict["would_publish"]
    assert strict["both"] <= strict["would_publish"]


def test_losses_by_hand():
    """A window of 1, 1, 1, 0: mean 3/4, sigma sqrt(3)/4, z = -sqrt 3; the same again after the window was cleared."""
    records = told([1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0], published={4})
    found = regate(records, GateConfig(alpha=-1.7, beta=0.0, max_age=None))
    assert found["devices"][0]["iterations"] == [[1, 4], [1, 8]]
    assert (found["published"], found["would_publish"], found["both"]) == (1, 2, 1)
    assert found["forced"] == 0
    assert regate(records, GateConfig(alpha=-1.7, beta=0.0, max_age=2))["forced"] == 4  # a window of 1, 1 or 1, 0
    assert regate(records, GateConfig(alpha=-1.74, beta=0.0, max_age=None))["would_publish"] == 0


def test_a_session_begins_with_a_fresh_gate():
    records = told([1.0, 1.0], session=1) + told([1.0, 0.0], session=2)
    # One window of all four would have fired at the last: z = -sqrt 3. Two losses reach -1 at the most.
    assert regate(records, GateConfig(alpha=-1.3, max_age=None))["would_publish"] == 0
    assert regate(records, GateConfig(alpha=-1.0, max_age=None))["devices"][0]["iterations"] == [[2, 2]]


def test_lost_telemetry_is_counted_and_a_loss_that_was_not_finite_fires_nothing():
    records = told([1.0, None], first=1) + told([0.0], first=5)
    found = regate(records, GateConfig(max_age=3))
    assert (found["recorded"], found["missing"]) == (3, 2)
    # The window was emptied; three iterations without a push force one.
    assert found["devices"][0]["iterations"] == [[1, 5]]


@pytest.mark.parametrize(
    ("recorded", "asked", "answered"),
    [
        ({"telemetry": "full"}, {"constants": {"gate": {"alpha": -1.0}}}, True),
        ({"telemetry": "sampled"}, {}, False),
        ({"telemetry": "off"}, {}, False),
        ({"telemetry": "full"}, {"strategy": "hermes-plus"}, False),
        ({"telemetry": "full", "strategy": "hermes-plus"}, {}, False),
        ({"telemetry": "full", "sampling": "walk"}, {}, False),
        ({"telemetry": "full", "strategy": "asp", "sampling": "fresh"}, {}, True),
    ],
)
def test_the_question_is_answered_where_every_loss_was_heard(recorded, asked, answered):
    paper = {"task": "toy", "strategy": "hermes"}
    gate = gate_of(RunConfig(**{**paper, **recorded}), RunConfig(**{**paper, **asked}))
    assert (gate is not None) == answered
    if "constants" in asked:
        assert gate == GateConfig(alpha=-1.0)
