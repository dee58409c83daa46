"""Matching against paho's, sizes against paho's bytes: the rules are MQTT's, not ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hermes_iot.transport import rules
from hermes_iot.transport.base import Will

levels = st.sampled_from(["a", "b", "", "$x"])
topics = st.lists(levels, min_size=1, max_size=5).map("/".join).filter(bool)
filters = st.builds(
    lambda parts, tail: "/".join([*parts, *tail]),
    st.lists(st.sampled_from(["a", "b", "", "+", "$x"]), min_size=1, max_size=5),
    st.sampled_from([[], ["#"]]),
).filter(bool) | st.just("#")


@given(filters, topics)
def test_a_filter_matches_what_paho_says_it_matches(topic_filter, topic):
    rules.check_filter(topic_filter)
    rules.check_topic(topic)
    assert rules.matches(topic_filter, topic) == topic_matches_sub(topic_filter, topic)


@given(
    topic=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="+#\0"), min_size=1, max_size=40),
    payload_bytes=st.integers(0, 300) | st.sampled_from([16_370, 16_383, 16_384, 2_097_151, 2_097_152]),
    qos=st.integers(0, 1),
    expiry_s=st.none() | st.integers(0, rules.SECONDS_MAX),
)
def test_the_size_of_a_publish_is_that_of_the_bytes_paho_writes(topic, payload_bytes, qos, expiry_s):
    written = []
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client._sock = object()
    client._packet_queue = lambda _command, packet, *_: written.append(packet)
    properties = None
    if expiry_s is not None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.MessageExpiryInterval = expiry_s
    client._send_publish(1, topic.encode(), bytes(payload_bytes), qos, properties=properties)
    client._sock = None
    size = rules.publish_packet_bytes(topic, bytes(payload_bytes), qos=qos, expiry_s=expiry_s)
    assert size == len(written[0])


def test_a_wildcard_has_no_place_in_a_topic():
    with pytest.raises(ValueError, match="wildcard"):
        rules.check_topic("a/+")


def test_a_session_lasts_at_least_as_long_as_the_will_waits():
    assert rules.session_lasts_s(0, None) == 0
    assert rules.session_lasts_s(5, Will(topic="w", payload=b"", delay_s=15)) == 15
    assert rules.session_lasts_s(60, Will(topic="w", payload=b"", delay_s=15)) == 60
