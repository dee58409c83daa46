"""What MQTT 5 itself prescribes and both transports obey: topic names, filters, packet and session arithmetic.

Kept apart from paho on purpose: the in-memory broker must refuse and match exactly what a real one does, and a wrong
topic must be refused in the caller's thread, not thrown inside the network thread. Numbers in brackets are sections
of the MQTT 5.0 standard.
"""

from __future__ import annotations

from functools import lru_cache

from hermes_iot.transport.base import Will

#: Longest UTF-8 string MQTT can carry [1.5.4].
STRING_BYTES_MAX = 65_535

#: Good topics kept in mind: three for each of ten thousand devices.
_TOPICS_REMEMBERED_MAX = 1 << 15

#: Largest interval in whole seconds [3.3.2.3.3].
SECONDS_MAX = 0xFFFF_FFFF

#: Largest packet MQTT can carry: what the length field can state [1.5.5] and the fixed header itself.
PACKET_BYTES_MAX = 268_435_455 + 5


@lru_cache(maxsize=_TOPICS_REMEMBERED_MAX)
def check_topic(topic: str) -> None:
    """Refuse what cannot be published to [3.3.2.1]; a topic is built by our code, so a bad one is our bug.

    The same few are published to all the time: what was found good is not looked through again.

    Raises:
        ValueError: empty, too long, or with a wildcard or NUL in it.
    """
    _check_string(topic)
    if "+" in topic or "#" in topic:
        raise ValueError(f"topic {topic!r} has a wildcard in it")


def check_publish(topic: str, *, qos: int, expiry_s: int | None) -> None:
    """Refuse a publish no broker would take.

    Raises:
        ValueError: a bad topic, a QoS other than 0 or 1 (we never use 2), an expiry no broker could count.
    """
    check_topic(topic)
    if qos not in (0, 1):
        raise ValueError("qos is 0 or 1")
    if expiry_s is not None and not 0 <= expiry_s <= SECONDS_MAX:
        raise ValueError(f"a message expiry is 0 to {SECONDS_MAX} seconds")


def check_filter(topic_filter: str) -> None:
    """Refuse what cannot be subscribed to [4.7.1].

    Raises:
        ValueError: empty, too long, with NUL, or with a wildcard that does not fill its level.
    """
    _check_string(topic_filter)
    levels = topic_filter.split("/")
    for position, level in enumerate(levels):
        if "#" in level and (level != "#" or position != len(levels) - 1):
            raise ValueError(f"filter {topic_filter!r}: # must be the whole last level")
        if "+" in level and level != "+":
            raise ValueError(f"filter {topic_filter!r}: + must be a whole level")


def _check_string(text: str) -> None:
    if not text:
        raise ValueError("a topic must not be empty")
    if "\0" in text:
        raise ValueError(f"topic {text!r} has a NUL character in it")
    if len(text.encode()) > STRING_BYTES_MAX:
        raise ValueError(f"a topic has at most {STRING_BYTES_MAX} bytes")


def has_wildcard(topic_filter: str) -> bool:
    """Whether the filter can match more than one topic."""
    return "+" in topic_filter or "#" in topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription covers a topic. A leading wildcard leaves out the broker's own `$` topics [4.7.2]."""
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    wanted, given = topic_filter.split("/"), topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position == len(given) or level not in ("+", given[position]):
            return False
    return len(wanted) == len(given)


def publish_packet_bytes(topic: str, payload: bytes, *, qos: int, expiry_s: int | None) -> int:
    """Size on the wire of one PUBLISH [3.3], to be held against the broker's Maximum Packet Size.

    Returns:
        Bytes, fixed header included.
    """
    packet_id = 2 if qos else 0
    properties = 1 if expiry_s is None else 1 + 5
    topic_bytes = len(topic) if topic.isascii() else len(topic.encode())
    remaining = 2 + topic_bytes + packet_id + properties + len(payload)
    # A length is written in groups of 7 bits [1.5.5].
    return 1 + (1 if remaining < 128 else -(-remaining.bit_length() // 7)) + remaining  # noqa: PLR2004 - one group


def session_lasts_s(asked_s: int, will: Will | None) -> int:
    """Session expiry to ask the broker for.

    A will is published when its delay is over or when the session ends, whichever is first [3.1.3.2.2]: a delayed
    will needs a session that lives at least as long, or the delay is silently nothing.
    """
    return max(asked_s, will.delay_s if will is not None else 0)
