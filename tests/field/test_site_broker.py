"""broker/: the shipped configuration starts, and its access list lets everybody do what the protocol needs, no more."""

import json
import threading

import pytest

from hermes_iot import cli
from hermes_iot.errors import BrokerError
from hermes_iot.protocol.topics import Topics
from hermes_iot.transport.base import Refused, Will
from hermes_iot.transport.mqtt import MqttTransport
from tests.field.conftest import PASSWORDS, PATIENCE_S
from tests.support.fleet import running, toy_coordinator, toy_device

pytestmark = pytest.mark.mosquitto

LAB = Topics("lab")
FENCE = b"that was all"
DOWN = ("cmd", "ack", "alloc", "model", "data")
UP = ("status", "state", "update", "request", "metrics", "rsp")
ALL = (LAB.all("run"), LAB.all("coordinator"), LAB.all("model"), LAB.model_part(0))


@pytest.fixture
def login(site):
    """`login(name)`: transport and inbox of a user; closed after the test."""
    open_transports = []

    def login(name, **options):
        transport, inbox = site.login(name, **options)
        open_transports.append(transport)
        return transport, inbox

    yield login
    for transport in open_transports:
        transport.close()


def refused(transport, inbox, topics):
    """Which of these topics the broker refuses to take a message on."""
    for topic in topics:
        assert transport.publish(topic, b"{}")
    assert transport.flush(timeout_s=PATIENCE_S)
    return [event.topic for event in inbox.waiting() if isinstance(event, Refused)]


def heard(login, reader, filters, topics):
    """On which of these topics `reader`, subscribed to `filters`, hears what a coordinator says."""
    transport, inbox = login(reader, client_id="reader")
    transport.subscribe(filters)
    assert transport.flush(timeout_s=PATIENCE_S)
    coordinator, _ = login("coordinator", client_id="writer")
    for topic in topics:
        assert coordinator.publish(topic, b"{}")
    coordinator.publish(LAB.all("run"), FENCE)  # everybody may read this one, and it comes last
    return until_fence(inbox)


def until_fence(inbox):
    found = []
    while (event := inbox.delivery()).payload != FENCE:
        found.append(event.topic)
    return found


# --- who gets in ---


@pytest.mark.parametrize(("name", "password"), [(None, None), ("pi-01", "guessed"), ("stranger", "guessed")])
def test_nobody_gets_in_without_the_right_password(site, name, password):
    with pytest.raises(BrokerError, match="does not let"):
        site.login(name, password=password)


def test_clients_are_told_the_packet_limit(login):
    _, inbox = login("pi-01")
    assert inbox.connected().packet_bytes_max == 2_000_000


# --- a device ---


def test_a_device_may_write_all_its_own_topics(login):
    transport, inbox = login("pi-01")
    assert refused(transport, inbox, [LAB.up("pi-01", channel) for channel in UP]) == []


def test_a_device_may_write_nothing_else_and_is_told_so(login):
    transport, inbox = login("pi-01")
    forbidden = [
        *(LAB.up("pi-02", channel) for channel in UP),
        *(LAB.down("pi-01", channel) for channel in DOWN),
        *(LAB.down("pi-02", channel) for channel in DOWN),
        *ALL,
        "hermes/v1/lab/up/pi-011/state",
        "hermes/v2/lab/up/pi-01/state",
        "other/v1/lab/up/pi-01/state",
        "anything",
    ]
    assert refused(transport, inbox, forbidden) == forbidden


def test_what_was_refused_reaches_nobody(login):
    coordinator, seen = login("coordinator")
    coordinator.subscribe(("hermes/#",))
    coordinator.flush(timeout_s=PATIENCE_S)
    device, inbox = login("pi-01")
    assert len(refused(device, inbox, [LAB.up("pi-02", "update"), LAB.all("run"), LAB.down("pi-02", "alloc")])) == 3
    device.publish(LAB.up("pi-01", "state"), FENCE)
    assert until_fence(seen) == []


def test_a_device_hears_what_is_for_it_or_for_all_and_nothing_else_whatever_it_subscribes_to(login):
    # Of what devices say it hears its own status alone: that is how it notices a second one under its id.
    mine = [LAB.up("pi-01", "status"), *(LAB.down("pi-01", channel) for channel in DOWN), *ALL]
    others = [
        *(LAB.down("pi-02", channel) for channel in DOWN),
        *(LAB.up("pi-02", channel) for channel in UP),
        *(LAB.up("pi-01", channel) for channel in UP if channel != "status"),
        "hermes/v2/lab/all/run",
    ]
    assert heard(login, "pi-01", ("#", "$SYS/#"), [*others, *mine]) == mine


def test_a_retained_allocation_of_another_device_is_not_handed_out(login):
    coordinator, _ = login("coordinator")
    for device in ("pi-01", "pi-02"):
        coordinator.publish(LAB.down(device, "alloc"), device.encode(), retain=True)
    coordinator.publish(LAB.all("run"), FENCE, retain=True)
    coordinator.flush(timeout_s=PATIENCE_S)
    device, inbox = login("pi-01")
    for topic in (LAB.down("pi-02", "alloc"), "hermes/v1/+/down/+/alloc", LAB.all("run")):
        device.subscribe((topic,))
    assert until_fence(inbox) == [LAB.down("pi-01", "alloc")]


def test_a_last_will_on_the_topic_of_another_is_never_published(login):
    coordinator, seen = login("coordinator")
    coordinator.subscribe(("hermes/#",))
    coordinator.flush(timeout_s=PATIENCE_S)
    for device in ("pi-02", "pi-01"):
        will = Will(topic=LAB.up(device, "status"), payload=b"dead")
        dying, _ = login("pi-01", client_id="dying", will=will)
        login("pi-01", client_id="dying")  # takes over, so the first one dies
        dying.close()
    coordinator.publish(LAB.all("run"), FENCE)
    assert until_fence(seen) == [LAB.up("pi-01", "status")]


# --- coordinator and viewer ---


def test_a_coordinator_may_write_and_hears_everything_of_its_fleets(login):
    topics = [*(LAB.down("pi-01", channel) for channel in DOWN), *ALL, *(LAB.up("pi-01", channel) for channel in UP)]
    transport, inbox = login("coordinator")
    assert refused(transport, inbox, topics) == []
    transport.close()
    assert heard(login, "coordinator", ("hermes/v1/#",), topics) == topics


def test_a_coordinator_may_write_nothing_outside(login):
    transport, inbox = login("coordinator")
    assert refused(transport, inbox, ["other/v1/lab/all/run"]) == ["other/v1/lab/all/run"]


def test_a_viewer_hears_all_but_the_rows_and_may_say_nothing_to_the_fleet(login):
    shown = [
        *ALL,
        *(LAB.down("pi-01", channel) for channel in DOWN if channel != "data"),
        *(LAB.up("pi-01", channel) for channel in UP),
    ]
    assert heard(login, "viewer", ("hermes/#",), [LAB.down("pi-01", "data"), *shown]) == shown
    viewer, inbox = login("viewer")
    forbidden = [LAB.down("pi-01", "cmd"), LAB.all("run"), LAB.up("pi-01", "update")]
    assert refused(viewer, inbox, forbidden) == forbidden


# --- what the broker keeps ---


def test_retained_messages_survive_a_restart(site, login):
    coordinator, _ = login("coordinator")
    coordinator.publish(LAB.down("pi-01", "alloc"), FENCE, retain=True)
    coordinator.flush(timeout_s=PATIENCE_S)
    site.restart()
    device, inbox = login("pi-01")
    device.subscribe((LAB.down("pi-01", "alloc"),))
    delivery = inbox.delivery()
    assert (delivery.payload, delivery.retain) == (FENCE, True)


# --- the real thing ---


def test_a_whole_run_needs_no_right_that_is_not_granted(site, tmp_path, monkeypatch, capsys):
    refusals = []

    def connect_as(name):
        def connect(client_id, will):
            address = site.address.__class__(host=site.address.host, port=site.address.port, username=name)
            transport = MqttTransport(address, client_id=client_id, will=will, password=PASSWORDS[name])
            return Eavesdropper(transport, refusals)

        return connect

    coordinator = toy_coordinator(connect_as("coordinator"), tmp_path / "run")
    devices = [toy_device(connect_as(name), tmp_path, name) for name in ("pi-01", "pi-02")]
    with running(coordinator, *devices) as threads:
        summary, *_ = [one.wait() for one in threads]
    assert summary["updates_applied"] == 12
    assert {device["device"] for device in summary["devices"]} == {"pi-01", "pi-02"}
    assert refusals == []

    monkeypatch.setenv("HERMES_PASSWORD", PASSWORDS["viewer"])
    monkeypatch.chdir(tmp_path)
    url = site.url.replace("//", "//viewer@")
    assert cli.main(["status", "--broker", url, "--fleet", "lab", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["devices"]) == {"pi-01", "pi-02"}


class Eavesdropper:
    """A transport that also notes refusals."""

    def __init__(self, transport, refusals):
        self._transport = transport
        self._refusals = refusals
        self._lock = threading.Lock()

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def start(self, on_event, *, timeout_s):
        def both(event):
            if isinstance(event, Refused):
                with self._lock:
                    self._refusals.append(event)
            on_event(event)

        self._transport.start(both, timeout_s=timeout_s)
