"""A broker whose access list refuses something: one line that names the topic, exit code 5, and nobody waits."""

import pytest

from hermes_iot.errors import AccessDenied
from hermes_iot.runtime.broker import MosquittoBroker
from tests.support.fleet import Records, over_mqtt, running, toy_coordinator, toy_device

pytestmark = pytest.mark.mosquitto


def guarded(*rules):
    return MosquittoBroker(settings=("acl_file acl",), files={"acl": "\n".join([*rules, ""])})


def test_a_coordinator_that_may_not_write_says_which_topic(tmp_path):
    with guarded("topic read hermes/v1/#") as broker:
        coordinator = toy_coordinator(over_mqtt(broker.url), tmp_path / "run")
        with running(coordinator) as one:
            error = one.ended()
    assert isinstance(error, AccessDenied)
    assert error.exit_code == 5
    assert "the broker refuses topic hermes/v1/lab/all/" in str(error)


def test_a_device_that_may_not_send_updates_says_so_and_does_not_disturb_the_others(tmp_path):
    rules = ["topic read hermes/v1/#", "topic write hermes/v1/+/all/#", "topic write hermes/v1/+/down/#"]
    rules += [f"topic write hermes/v1/+/up/pi-01/{channel}" for channel in ("status", "state", "request", "rsp")]
    rules += ["topic write hermes/v1/+/up/pi-02/#"]
    records = Records()
    with guarded(*rules) as broker:
        connect = over_mqtt(broker.url)
        coordinator = toy_coordinator(connect, tmp_path / "run", on_record=records)
        with running(coordinator, toy_device(connect, tmp_path, "pi-01")) as (one, refused):
            error = refused.ended()
            assert isinstance(error, AccessDenied)
            assert "hermes/v1/lab/up/pi-01/update" in str(error)
            records.wait("left", device="pi-01")
            with running(toy_device(connect, tmp_path, "pi-02")):
                assert one.wait()["updates_applied"] == 12


def test_a_fleet_under_the_access_list_of_the_design_needs_no_more_rights_than_that(tmp_path):
    """All of them as one anonymous user, so this is the sum of what a coordinator and devices may do."""
    rules = ["topic readwrite hermes/v1/+/all/#", "topic readwrite hermes/v1/+/down/#", "topic write hermes/v1/+/up/#"]
    rules += [f"topic read hermes/v1/+/up/+/{channel}" for channel in ("status", "state", "update", "request", "rsp")]
    with guarded(*rules) as broker:
        connect = over_mqtt(broker.url)
        coordinator = toy_coordinator(connect, tmp_path / "run")
        with running(coordinator, toy_device(connect, tmp_path, "pi-01")) as (one, device):
            assert one.wait()["updates_applied"] == 12
            device.wait()
