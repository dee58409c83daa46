"""One look at a fleet through its retained topics."""

import json
import time

import pytest

from hermes_iot.cli import main
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol.topics import Topics
from tests.support.fleet import PATIENCE_S, Records, over_mqtt, running, toy_config, toy_coordinator, toy_device

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def status(mosquitto, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(fleet, *words):
        code = main(["status", "--broker", mosquitto, "--fleet", fleet, *words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def fleet(mosquitto, tmp_path, request):
    """A fleet in the middle of a run, and its name."""
    name, records, connect = f"status-{abs(hash(request.node.name))}", Records(), over_mqtt(mosquitto)
    coordinator = toy_coordinator(
        connect,
        tmp_path / "run",
        fleet=name,
        config=toy_config(rules=StopRules()),
        settings=CoordinatorSettings(status_interval_s=0.05),
        on_record=records,
    )
    devices = [toy_device(connect, tmp_path, device, fleet=name) for device in ("pi-01", "pi-02")]
    with running(coordinator, *devices):
        records.wait("merge", 2, device="pi-01")
        records.wait("merge", 2, device="pi-02")
        records.until("state", lambda one: one["device"] == "pi-01" and one["iterations"] > 5)
        records.until("state", lambda one: one["device"] == "pi-02" and one["iterations"] > 5)
        yield name, coordinator


def test_a_fleet_nobody_has_heard_of_is_a_timeout(status):
    begun = time.monotonic()
    code, out, err = status("nobody", "--timeout", "0.3")
    assert code == 4
    assert out == ""
    assert err.startswith("hermes-iot: nothing is known of fleet 'nobody' at mqtt://127.0.0.1:")
    assert "start a coordinator" in err
    assert time.monotonic() - begun < 5


def test_a_person_sees_run_coordinator_and_devices(status, fleet):
    code, out, err = status(fleet[0])
    assert (code, err) == (0, "")
    assert f"run {fleet[1].run_id} running, task toy, strategy hermes" in out
    assert "coordinator online: model version" in out
    for name in ("pi-01", "pi-02"):
        (row,) = [line for line in out.splitlines() if line.startswith(name)]
        assert "online" in row
        assert "120" in row


def test_a_program_gets_one_envelope(status, fleet):
    code, out, err = status(fleet[0], "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["schema"], document["ok"], document["dropped"]) == ("hermes-iot/status/1", True, 0)
    assert document["run"]["run"] == fleet[1].run_id
    assert document["coordinator"]["state"] == "online"
    assert set(document["devices"]) == {"pi-01", "pi-02"}
    for device in document["devices"].values():
        assert device["status"]["state"] == "online"
        assert device["state"]["iterations"] > 0
        assert device["allocation"]["samples"] == 120


def test_a_fleet_is_seen_after_everybody_has_left(status, mosquitto, tmp_path):
    connect = over_mqtt(mosquitto)
    with running(
        toy_coordinator(connect, tmp_path / "run", fleet="gone"), toy_device(connect, tmp_path, "pi-01", fleet="gone")
    ) as (one, device):
        one.wait()
        device.wait()
    code, out, _ = status("gone")
    assert code == 0
    assert "finished (12 updates applied)" in out
    assert "coordinator offline" in out
    (row,) = [line for line in out.splitlines() if line.startswith("pi-01")]
    assert "offline" in row


def test_what_cannot_be_read_is_counted_and_colours_nothing(status, mosquitto):
    transport = over_mqtt(mosquitto)("vandal", None)
    transport.start(lambda _event: None, timeout_s=5)
    transport.publish("hermes/v1/junk/all/run", b"\xff", retain=True)
    transport.publish("hermes/v1/junk/up/pi-01/state", b'{"v":2}', retain=True)
    birth = b'{"state":"offline","session":1,"reason":"[bold red]\x1b[2J"}'.replace(b"\x1b", b"\\u001b")
    transport.publish("hermes/v1/junk/up/pi-02/status", birth, retain=True)
    assert transport.flush(timeout_s=5)
    transport.close()
    code, out, _ = status("junk")
    assert code == 0
    assert "2 messages could not be read" in out
    assert "\x1b[2J" not in out
    assert json.loads(status("junk", "--json")[1])["dropped"] == 2


def say(mosquitto, fleet, version):
    """A manifest of that version, retained, as the only word on a fleet or beside others."""
    transport = over_mqtt(mosquitto)("says", None)
    transport.start(lambda _event: None, timeout_s=PATIENCE_S)
    transport.publish(Topics(fleet).all("run"), json.dumps({"v": version, "of": "tomorrow"}).encode(), retain=True)
    assert transport.flush(timeout_s=PATIENCE_S)
    transport.close()


def test_a_fleet_that_speaks_another_version_is_incompatible_and_both_are_named(status, mosquitto):
    say(mosquitto, "tomorrow", 2)
    code, out, err = status("tomorrow", "--timeout", "0.5")
    assert (code, out) == (6, "")
    assert "speaks protocol version 2, this hermes-iot version 1" in err
    assert err.count("\n") == 1


def test_a_word_of_another_version_beside_ours_is_told(status, fleet, mosquitto):
    say(mosquitto, fleet[0], 3)
    code, out, _ = status(fleet[0])
    assert code == 0
    assert f"fleet {fleet[0]} speaks protocol version 3, this hermes-iot version 1" in out
    _, out, _ = status(fleet[0], "--json")
    assert json.loads(out)["other_versions"] == [3]
