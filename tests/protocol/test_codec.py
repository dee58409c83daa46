"""The codec and honest peers: what is sent arrives, what is not exactly a message is refused for the right reason."""

import json
import math
import struct
from dataclasses import fields, replace
from typing import Literal, get_origin, get_type_hints

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol import codec, schema
from hermes_iot.protocol.limits import INTEGER_MAX, Limits
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    Chunk,
    CoordinatorStatus,
    DeviceStatus,
    Update,
)
from tests.protocol.bending import (
    EVERY_KIND,
    LIMITS,
    MSGPACK_KINDS,
    bent,
    by_name,
    decode,
    encode,
    mapping_of,
    refusal,
    sample,
)
from tests.protocol.samples import REPETITIVE_BODY, SAMPLES
from tests.protocol.strategies import JSON_KINDS, TENSOR_KINDS, messages, steady

# --- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_every_message_comes_back_as_it_was_sent(kind):
    @steady
    @given(messages(kind))
    def round_trip(message):
        if kind is Chunk:
            message = replace(message, part=0, parts=1, body=message.body or b"x", total=max(1, len(message.body)))
        payload = encode(message)
        assert decode(payload, kind) == message
        assert encode(decode(payload, kind)) == payload

    round_trip()


@pytest.mark.parametrize("kind", TENSOR_KINDS, ids=by_name)
def test_a_body_survives_bit_for_bit_packed_or_not(kind):
    @steady
    @given(messages(kind), st.booleans())
    def round_trip(message, compress):
        decoded = decode(encode(message, compress=compress), kind)
        assert decoded.body == message.body
        assert decoded == message

    round_trip()


@steady
@given(st.binary(max_size=600) | st.binary(min_size=1, max_size=4).map(lambda unit: unit * 150))
def test_zstd_is_used_only_where_it_is_smaller(body):
    message = replace(SAMPLES[Update], body=body)
    mapping = msgpack.unpackb(codec.encode_tensors(message))
    squeezed = zstandard.ZstdCompressor(level=3).compress(body)
    assert mapping["packing"] == ("zstd" if len(squeezed) < len(body) else "none")
    assert len(mapping["body"]) == min(len(squeezed), len(body))
    assert mapping["body_bytes"] == len(body)
    assert msgpack.unpackb(codec.encode_tensors(message, compress=False))["packing"] == "none"


def test_json_is_one_line_in_the_declared_order():
    payload = codec.encode_json(SAMPLES[Allocation])
    assert b"\n" not in payload
    assert list(json.loads(payload)) == [f.name for f in fields(Allocation)]


def test_a_number_that_is_none_becomes_null_in_json():
    status = replace(SAMPLES[CoordinatorStatus], loss=math.nan, accuracy=math.inf)
    decoded = codec.decode_json(codec.encode_json(status), CoordinatorStatus, LIMITS)
    assert (decoded.loss, decoded.accuracy) == (None, None)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_is_reported_as_it_is(loss):
    decoded = decode(encode(replace(SAMPLES[Update], loss=loss)), Update)
    assert struct.pack(">d", decoded.loss) == struct.pack(">d", loss)


def test_a_will_of_two_fields_is_a_status():
    decoded = codec.decode_json(b'{"state":"offline","session":5}', DeviceStatus, LIMITS)
    assert decoded == DeviceStatus(state="offline", session=5)


# --- versions and unknown fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
@pytest.mark.parametrize("value", [7, "text", None, 1.5, True], ids=repr)
def test_a_field_of_a_later_minor_version_is_ignored(kind, value):
    assert decode(bent(kind, later=value), kind) == sample(kind)


@pytest.mark.parametrize("kind", JSON_KINDS, ids=by_name)
def test_json_may_grow_by_nested_fields(kind):
    assert decode(bent(kind, later={"a": [1, {"b": None}]}), kind) == sample(kind)


@pytest.mark.parametrize("kind", MSGPACK_KINDS, ids=by_name)
@pytest.mark.parametrize("value", [[1], {}, {"a": 1}], ids=repr)
def test_msgpack_stays_flat(kind, value):
    assert refusal(bent(kind, later=value), kind) == "msgpack"


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
@pytest.mark.parametrize("version", [0, 2, 99, -1])
def test_another_major_version_is_refused_as_such(kind, version):
    assert refusal(bent(kind, v=version), kind) == "version"


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_another_major_version_is_told_even_when_its_fields_differ_too(kind):
    gone = [f.name for f in fields(kind) if f.name != "v"]
    assert refusal(bent(kind, v=2, **dict.fromkeys(gone[:-1], ...)), kind) == "version"
    assert refusal(bent(kind, v=2, **dict.fromkeys(gone, "new meaning")), kind) == "version"


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_the_refusal_of_a_version_says_what_to_do(kind):
    with pytest.raises(
        ProtocolError, match="of protocol version 2; this side speaks 1: run the same hermes-iot on both sides"
    ):
        decode(bent(kind, v=2), kind)


def test_a_peer_cannot_dress_a_fault_up_as_another_version():
    assert refusal(bent(Ack, outcome="`$.v`"), Ack) == "schema"
    assert refusal(bent(Ack, v="1"), Ack) == "schema"
    assert refusal(bent(Ack, v=True), Ack) == "schema"


# --- strictness --------------------------------------------------------------------------------------------------


def wrong_values():
    """(kind, field, value) with a value of a type near to, but not, the field's."""
    wrong = {
        int: ["1", True, 1.0, None, [1]],
        float: ["1.0", True, [1.0]],
        str: [1, None, True, ["a"]],
        bool: [0, 1, "true", None],
        bytes: ["AAAA", 1, None],
    }
    for kind in EVERY_KIND:
        hints = get_type_hints(kind)
        for name in mapping_of(kind):
            hint = hints.get(name)
            base = hint if isinstance(hint, type) else type(getattr(sample(kind), name, None))
            # In JSON bytes are text in base64, and what is refused is any other.
            near = ["%", 1, None] if base is bytes and kind not in MSGPACK_KINDS else wrong.get(base, ())
            for value in near:
                if kind in MSGPACK_KINDS or not isinstance(value, bytes):
                    yield pytest.param(kind, name, value, id=f"{kind.__name__}.{name}={value!r}")


@pytest.mark.parametrize(("kind", "name", "value"), list(wrong_values()))
def test_a_value_of_a_neighbouring_type_is_refused(kind, name, value):
    nested = isinstance(value, list) and kind in MSGPACK_KINDS
    no_number = name == "v" and kind in MSGPACK_KINDS and value in ("1", None)
    expected = "msgpack" if nested else "version" if no_number else "schema"
    assert refusal(bent(kind, **{name: value}), kind) == expected


def test_binary_is_never_read_from_base64_text():
    assert refusal(bent(Update, body="AAAAAAAAAAAAAAAAAAAAAA=="), Update) == "schema"
    assert refusal(bent(Chunk, id="A" * 43 + "="), Chunk) == "schema"


def test_msgpack_text_is_never_read_from_binary():
    assert refusal(bent(Update, run=b"mnist"), Update) == "schema"


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_each_required_field_is_required(kind):
    optional = {f.name for f in fields(kind) if f.default != f.default_factory}
    for name in mapping_of(kind):
        if name not in optional:
            assert refusal(bent(kind, **{name: ...}), kind) == "schema"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "nan", "1e999", "-1e999", "01", "1.", "+1", "0x1"])
def test_json_numbers_that_are_none_are_refused(number):
    payload = f'{{"state":"online","session":"a","loss":{number}}}'.encode()
    assert refusal(payload, CoordinatorStatus) in {"json", "schema"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -1e-9, 1.0000001e9])
def test_seconds_are_finite_and_bounded_in_msgpack_too(number):
    assert refusal(bent(Update, train_s=number), Update) == "schema"


@pytest.mark.parametrize("digits", [20, 400, 4_299, 4_301, 100_000])
def test_an_endless_number_is_refused_as_such(digits):
    endless = "9" * digits
    assert refusal(f'{{"run":"r","session":{endless},"seq":1,"outcome":"stale"}}'.encode(), Ack) == "schema"
    assert refusal(f'{{"run":"r","session":-{endless},"seq":1,"outcome":"stale"}}'.encode(), Ack) == "schema"


@pytest.mark.parametrize("name", ["", "a/b", "+", "a\n", "a" * 65, "é"])
def test_a_name_inside_a_message_is_held_to_the_same_rule_as_in_a_topic(name):
    assert refusal(bent(Ack, run=name), Ack) == "schema"
    assert refusal(bent(Update, run=name), Update) == "schema"


@pytest.mark.parametrize("digest", ["", "1F" * 32, "1f" * 31, "1f" * 33, "1f" * 32 + "\n"])
def test_a_digest_is_64_lower_hex_digits(digest):
    assert refusal(bent(Update, model=digest), Update) == "schema"


def test_literals_are_the_only_words_taken():
    for kind in JSON_KINDS:
        for name, hint in get_type_hints(kind).items():
            if get_origin(hint) is Literal and name != "v":
                assert refusal(bent(kind, **{name: "otherwise"}), kind) == "schema"


# --- bounds ------------------------------------------------------------------------------------------------------


def exceed_json_bytes_max():
    payload = encode(sample(Ack))
    assert decode(payload, Ack, Limits(json_bytes_max=len(payload))) == sample(Ack)
    return refusal(payload, Ack, Limits(json_bytes_max=len(payload) - 1))


def exceed_message_bytes_max():
    payload = encode(sample(Update))
    assert decode(payload, Update, Limits(message_bytes_max=len(payload))) == sample(Update)
    assert decode(bent(Chunk, total=500), Chunk, Limits(message_bytes_max=500)).total == 500
    assert refusal(bent(Chunk, total=501), Chunk, Limits(message_bytes_max=500)) == "size"
    assert refusal(bytes(100 + 512 + 1), Chunk, Limits(message_bytes_max=100)) == "size"
    return refusal(payload, Update, Limits(message_bytes_max=len(payload) - 1))


def exceed_inflated_bytes_max():
    message = replace(SAMPLES[Update], body=REPETITIVE_BODY)
    for compress in (True, False):
        payload, most = encode(message, compress=compress), len(REPETITIVE_BODY)
        assert decode(payload, Update, Limits(inflated_bytes_max=most)) == message
        reason = refusal(payload, Update, Limits(inflated_bytes_max=most - 1))
        assert reason == "inflate"
    return reason


def exceed_parts_max():
    assert decode(bent(Chunk, parts=40), Chunk, Limits(parts_max=40)).parts == 40
    assert refusal(bent(Chunk, part=3, parts=3), Chunk) == "parts"
    assert refusal(bent(Chunk, parts=49, total=48), Chunk) == "parts"
    assert refusal(bent(Chunk, body=b""), Chunk) == "parts"
    assert refusal(bent(Chunk, body=bytes(49)), Chunk) == "parts"
    return refusal(bent(Chunk, parts=41), Chunk, Limits(parts_max=40))


@pytest.mark.parametrize(
    ("exceed", "reason"),
    [
        (exceed_json_bytes_max, "size"),
        (exceed_message_bytes_max, "size"),
        (exceed_inflated_bytes_max, "inflate"),
        (exceed_parts_max, "parts"),
    ],
)
def test_one_more_than_a_limit_is_refused_under_its_reason(exceed, reason):
    assert exceed() == reason


def test_every_limit_is_tested_somewhere():
    here = {"json_bytes_max", "message_bytes_max", "inflated_bytes_max", "parts_max"}
    in_test_chunks = {
        "transfers_per_device_max",
        "transfers_bytes_max",
        "transfer_deadline_s",
        "transfer_bytes_per_s_min",
    }
    in_test_reassembly = {"resume_after_s", "resumes_max", "transfers_remembered_max"}
    the_coordinators = {"devices_max"}
    assert {f.name for f in fields(Limits)} == here | in_test_chunks | in_test_reassembly | the_coordinators


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_an_integer_stays_exact_in_every_language(kind):
    hints = get_type_hints(kind, include_extras=True)
    counts = [name for name, hint in hints.items() if hint in (schema.Count, schema.Positive)]
    for name in counts:
        assert refusal(bent(kind, **{name: INTEGER_MAX + 1}), kind) == "schema"
        assert refusal(bent(kind, **{name: -1}), kind) == "schema"
        if hints[name] == schema.Positive:
            assert refusal(bent(kind, **{name: 0}), kind) == "schema"


def test_a_text_is_at_most_512_characters():
    assert decode(bent(Ack, reason="é" * 512), Ack).reason == "é" * 512
    assert refusal(bent(Ack, reason="é" * 513), Ack) == "schema"


def test_a_msgpack_map_has_at_most_64_fields_and_texts_of_4096_bytes():
    free = 64 - len(mapping_of(Update))
    more = {f"x{i}": i for i in range(free)}
    assert decode(bent(Update, **more), Update) == SAMPLES[Update]
    assert refusal(bent(Update, **more, last=1), Update) == "msgpack"
    assert decode(bent(Update, later="a" * 4096), Update) == SAMPLES[Update]
    assert refusal(bent(Update, later="a" * 4097), Update) == "msgpack"
