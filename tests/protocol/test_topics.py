import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import UsageError
from hermes_iot.protocol.topics import ALL, DOWN, UP, Address, Topics, check_name
from hermes_iot.protocol.wire import ROUTES
from tests.protocol.strategies import names, steady

TOPICS = Topics("lab-1")
LONGEST = "n" * 64

#: Every topic there is, written out as protocol.md and the broker's ACL have it.
EVERY = {
    "hermes/v1/lab-1/all/coordinator": Address(direction="all", channel="coordinator"),
    "hermes/v1/lab-1/all/run": Address(direction="all", channel="run"),
    "hermes/v1/lab-1/all/model": Address(direction="all", channel="model"),
    "hermes/v1/lab-1/all/model/12": Address(direction="all", channel="model_part", part=12),
    "hermes/v1/lab-1/down/pi-01/alloc": Address(direction="down", channel="alloc", device="pi-01"),
    "hermes/v1/lab-1/down/pi-01/ack": Address(direction="down", channel="ack", device="pi-01"),
    "hermes/v1/lab-1/down/pi-01/model": Address(direction="down", channel="model", device="pi-01"),
    "hermes/v1/lab-1/down/pi-01/data": Address(direction="down", channel="data", device="pi-01"),
    "hermes/v1/lab-1/down/pi-01/cmd": Address(direction="down", channel="cmd", device="pi-01"),
    "hermes/v1/lab-1/up/pi-01/status": Address(direction="up", channel="status", device="pi-01"),
    "hermes/v1/lab-1/up/pi-01/state": Address(direction="up", channel="state", device="pi-01"),
    "hermes/v1/lab-1/up/pi-01/update": Address(direction="up", channel="update", device="pi-01"),
    "hermes/v1/lab-1/up/pi-01/request": Address(direction="up", channel="request", device="pi-01"),
    "hermes/v1/lab-1/up/pi-01/metrics": Address(direction="up", channel="metrics", device="pi-01"),
    "hermes/v1/lab-1/up/pi-01/rsp": Address(direction="up", channel="rsp", device="pi-01"),
}

addresses = st.one_of(
    st.builds(Address, direction=st.just("all"), channel=st.sampled_from(sorted(ALL))),
    st.builds(Address, direction=st.just("all"), channel=st.just("model_part"), part=st.integers(0, 999_999)),
    st.builds(Address, direction=st.just("down"), channel=st.sampled_from(sorted(DOWN)), device=names),
    st.builds(Address, direction=st.just("up"), channel=st.sampled_from(sorted(UP)), device=names),
)


def built(topics, address):
    if address.channel == "model_part":
        return topics.model_part(address.part)
    if address.direction == "all":
        return topics.all(address.channel)
    return (topics.down if address.direction == "down" else topics.up)(address.device, address.channel)


@pytest.mark.parametrize("topic", EVERY)
def test_each_documented_topic_is_built_and_parsed(topic):
    assert TOPICS.parse(topic) == EVERY[topic]
    assert built(TOPICS, EVERY[topic]) == topic


@steady
@given(prefix=names, fleet=names, address=addresses)
def test_whatever_is_built_is_parsed_back_and_no_other_fleet_hears_it(prefix, fleet, address):
    topics = Topics(fleet, prefix=prefix)
    topic = built(topics, address)
    assert topics.parse(topic) == address
    assert Topics(fleet + "x" if len(fleet) < 64 else "x", prefix=prefix).parse(topic) is None
    assert Topics(fleet, prefix=prefix + "x" if len(prefix) < 64 else "x").parse(topic) is None


@steady
@given(prefix=names, fleet=names, address=addresses)
def test_a_topic_has_at_most_seven_slashes_and_fits_aws(prefix, fleet, address):
    topic = built(Topics(fleet, prefix=prefix), address)
    assert topic.count("/") <= 7
    assert len(topic.encode()) <= 256, "AWS IoT Core takes 256 bytes of topic"


@steady
@given(st.text(max_size=80) | st.text("hermes/v1lab-allupdownmodel+#$\x00\n0123456789", max_size=60))
def test_any_text_that_parses_is_a_topic_we_would_build(topic):
    for candidate in (topic, f"hermes/v1/lab-1/{topic}", f"hermes/v1/lab-1/up/{topic}", f"hermes/v1/lab-1/all/{topic}"):
        address = TOPICS.parse(candidate)
        assert address is None or built(TOPICS, address) == candidate


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "hermes/v1/lab-1",
        "hermes/v1/lab-1/",
        "hermes/v2/lab-1/all/run",
        "hermes/v1/lab-2/all/run",
        "hermes/v1/lab-1x/all/run",
        "/hermes/v1/lab-1/all/run",
        "hermes/v1/lab-1/all/run/",
        "hermes/v1/lab-1/all//run",
        "hermes/v1/lab-1/all/model_part",
        "hermes/v1/lab-1/all/status",
        "hermes/v1/lab-1/all/model/",
        "hermes/v1/lab-1/all/model/-1",
        "hermes/v1/lab-1/all/model/07",
        "hermes/v1/lab-1/all/model/+",
        "hermes/v1/lab-1/all/model/1_0",
        "hermes/v1/lab-1/all/model/\u0663",
        "hermes/v1/lab-1/all/model/1000000",
        "hermes/v1/lab-1/all/model/1\n",
        "hermes/v1/lab-1/all/model/1/1",
        "hermes/v1/lab-1/up/pi-01/alloc",
        "hermes/v1/lab-1/down/pi-01/update",
        "hermes/v1/lab-1/down/pi-01/all",
        "hermes/v1/lab-1/up/+/update",
        "hermes/v1/lab-1/up/#",
        "hermes/v1/lab-1/up//update",
        "hermes/v1/lab-1/up/pi-01\n/update",
        "hermes/v1/lab-1/up/pi 01/update",
        "hermes/v1/lab-1/up/pi-01/update/0",
        f"hermes/v1/lab-1/up/{'x' * 65}/update",
        "hermes/v1/lab-1/up/../down/pi-01/cmd",
        "$SYS/broker/uptime",
        "$share/group/hermes/v1/lab-1/all/run",
    ],
)
def test_a_foreign_or_hostile_topic_is_nobodys(topic):
    assert TOPICS.parse(topic) is None


@pytest.mark.parametrize("name", ["", "a/b", "a+", "#", "a b", "a\n", "ä", "a.b", "x" * 65, "\x00"])
def test_a_name_unsafe_in_a_topic_is_refused_with_the_remedy(name):
    for refused in (
        lambda: check_name("device", name),
        lambda: Topics(name),
        lambda: Topics("lab-1", prefix=name),
        lambda: TOPICS.of_device(name),
    ):
        with pytest.raises(UsageError, match="only letters, digits"):
            refused()


def test_the_longest_names_are_taken():
    assert check_name("fleet", LONGEST) == LONGEST
    assert Topics(LONGEST, prefix=LONGEST).parse(f"{LONGEST}/v1/{LONGEST}/up/{LONGEST}/state") is not None


def test_a_device_subscribes_to_all_and_to_itself_without_any_wildcard():
    assert set(TOPICS.of_device("pi-01")) == {
        "hermes/v1/lab-1/all/run",
        "hermes/v1/lab-1/all/coordinator",
        "hermes/v1/lab-1/all/model",
        "hermes/v1/lab-1/down/pi-01/cmd",
        "hermes/v1/lab-1/down/pi-01/ack",
        "hermes/v1/lab-1/down/pi-01/alloc",
        "hermes/v1/lab-1/down/pi-01/model",
        "hermes/v1/lab-1/down/pi-01/data",
    }
    assert not any(mark in topic for topic in TOPICS.of_device("pi-01") for mark in "+#")


def test_the_coordinator_subscribes_to_everything_devices_say_and_nothing_else():
    assert set(TOPICS.of_coordinator()) == {f"hermes/v1/lab-1/up/+/{channel}" for channel in UP}


def test_a_viewer_sees_no_tensors_and_no_data():
    heard = {topic.rsplit("/", 1)[1] for topic in TOPICS.of_viewer() if "/down/" in topic or "/up/" in topic}
    assert heard == {"alloc", "ack", "status", "state"}


def test_every_route_has_a_topic_and_every_topic_a_route():
    routes = {(route.direction, route.channel) for route in ROUTES.values()}
    assert len(routes) == len(ROUTES), "two messages on one topic"
    assert routes == {("all", c) for c in ALL} | {("down", c) for c in DOWN} | {("up", c) for c in UP}
    parsed = {(address.direction, address.channel) for address in EVERY.values()}
    assert parsed == routes | {("all", "model_part")}


def test_what_was_parsed_once_is_remembered_and_strangers_topics_are_not():
    topics = Topics("lab")
    ours, theirs = topics.up("pi-1", "state"), Topics("barn").up("pi-1", "state")
    assert topics.parse(ours) is topics.parse(ours) == Address(direction="up", channel="state", device="pi-1")
    assert topics.parse(theirs) is topics.parse(theirs) is None
