"""The codec and hostile peers, F20-F22 of the fault table: refused, in bounded memory, for the right reason."""

import struct
import tracemalloc
from itertools import product

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Ack, Chunk, RunManifest, Update
from tests.protocol.bending import (
    EVERY_KIND,
    KIB,
    LIMITS,
    MIB,
    MSGPACK_KINDS,
    bent,
    by_name,
    decode,
    encode,
    mapping_of,
    refusal,
    refusal_and_peak,
    sample,
)
from tests.protocol.samples import BODY, REPETITIVE_BODY, SAMPLES
from tests.protocol.strategies import JSON_KINDS, json_values, names, steady

# --- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_a_message_cut_short_anywhere_is_refused(kind):
    for compress in (True, False):
        payload = encode(sample(kind), compress=compress)
        for length in range(len(payload)):
            # A number cut short is a number: `0` of `0.01` breaks a bound before the end is missed.
            assert refusal(payload[:length], kind) in {"json", "msgpack", "schema"}


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_bytes_after_the_end_are_refused(kind):
    for tail in (b"{}", b"\x00", b"\xc0" * 100):
        assert refusal(encode(sample(kind)) + tail, kind) in {"json", "msgpack"}


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_a_flipped_bit_gives_a_message_or_a_refusal_and_nothing_else(kind):
    payload = encode(sample(kind))
    for position, bit in product(range(len(payload)), range(8)):
        damaged = bytearray(payload)
        damaged[position] ^= 1 << bit
        try:
            decoded = decode(bytes(damaged), kind)
        except ProtocolError:
            continue
        assert type(decoded) is kind


@pytest.mark.parametrize("kind", MSGPACK_KINDS, ids=by_name)
def test_a_key_that_stands_twice_in_msgpack_is_refused(kind):
    payload = encode(sample(kind), compress=False)
    header, count = (3, payload[2] + 1) if payload[0] == 0xDE else (1, (payload[0] & 15) + 1)
    twice = b"\xde" + struct.pack(">H", count) + payload[header:] + b"\xa1v\x01"
    assert refusal(twice, kind) == "msgpack"


def test_a_key_that_stands_twice_in_json_is_read_as_its_last():
    payload = b'{"run":"r","session":1,"seq":1,"outcome":"stale","seq":2}'
    assert codec.decode_json(payload, Ack, LIMITS).seq == 2


@pytest.mark.parametrize("kind", MSGPACK_KINDS, ids=by_name)
@pytest.mark.parametrize("key", [b"later", 1, None, 1.5, True], ids=repr)
def test_a_key_that_is_no_text_is_refused(kind, key):
    assert refusal(msgpack.packb({**mapping_of(kind), key: 1}, strict_types=True), kind) in {"msgpack", "schema"}


EXTENSIONS = {
    "empty": b"\xc7\x00\x05",
    "fixext1": b"\xd4\x05a",
    "fixext4": b"\xd6\x05aaaa",
    "fixext16": b"\xd8\x05" + b"a" * 16,
    "ext8": b"\xc7\x03\x05aaa",
    "ext16": b"\xc8\x00\x03\x05aaa",
    "ext32": b"\xc9\x00\x00\x00\x03\x05aaa",
    "empty timestamp": b"\xc7\x00\xff",
    "timestamp 32": b"\xd6\xff\x00\x00\x00\x01",
    "timestamp 64": b"\xd7\xff" + bytes(8),
    "timestamp 96": b"\xc7\x0c\xff" + bytes(12),
    "array of empty ones": b"\x91\xc7\x00\x05",
}


@pytest.mark.parametrize("kind", MSGPACK_KINDS, ids=by_name)
@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS)
def test_an_extension_type_is_refused_even_in_a_field_nobody_reads(kind, extension):
    mapping = mapping_of(kind)
    inner = msgpack.packb(mapping)[3 if len(mapping) > 15 else 1 :]
    payload = b"\xde" + struct.pack(">H", len(mapping) + 1) + inner + b"\xa5later" + extension
    assert refusal(payload, kind) == "msgpack"


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
@pytest.mark.parametrize("payload", [b"", b"\xc0", b"\x01", b"\x90", b"\xa1a", b"null", b"[]", b'"a"', b"1"])
def test_a_document_that_is_no_map_is_refused(kind, payload):
    assert refusal(payload, kind) in {"json", "msgpack", "schema"}


# --- memory: F20 -------------------------------------------------------------------------------------------------


def u32(number):
    return struct.pack(">I", number)


FILL = MIB
HUGE = {
    "text that claims 4 GiB": b"\x81\xa1a\xdb" + u32(2**32 - 1) + b"a" * FILL,
    "binary that claims 4 GiB": b"\x81\xa1a\xc6" + u32(2**32 - 1) + b"a" * FILL,
    "array that claims 4 G": b"\x81\xa1a\xdd" + u32(2**32 - 1) + b"\xc0" * FILL,
    "map that claims 4 G": b"\xdf" + u32(2**32 - 1) + b"\xc0" * FILL,
    "extension that claims 4 GiB": b"\x81\xa1a\xc9" + u32(2**32 - 1) + b"\x05" + b"a" * FILL,
    "empty arrays in arrays of 64": b"\x81\xa1a" + b"\xdc\x00\x40" * 3 + b"\x90" * FILL,
    "empty maps in maps of 64": b"\xde\x00\x40"
    + b"".join(b"\xa2%c%c\x80" % pair for pair in product(range(65, 99), repeat=2)),
    "a map in a map in a map": b"\x81\xa1a" * (FILL // 3) + b"\x80",
    "an array in an array": b"\x81\xa1a" + b"\x91" * FILL,
    "a mebibyte after the end": msgpack.packb(mapping_of(Update)) + bytes(FILL),
    "binary for a number": bent(Update, body_bytes=b"\xff" * FILL),
    "binary for a word": bent(Update, packing=b"\xff" * FILL),
    "binary for a name": bent(Update, run=b"\xff" * FILL),
    "binary for the version": bent(Update, v=b"\xff" * FILL),
    "binary for a key": msgpack.packb({b"\xff" * FILL: 1}),
    "no UTF-8": b"\x81\xa1a\xda\x0f\xff" + b"\xff" * FILL,
}


@pytest.mark.parametrize("payload", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("kind", [Update, Chunk], ids=by_name)
def test_hostile_msgpack_costs_less_than_four_times_its_size(payload, kind):
    reason, peak = refusal_and_peak(payload, kind)
    assert reason in {"msgpack", "schema", "version"}
    assert peak < 4 * max(len(payload), 64 * KIB)


def test_the_worst_that_maps_within_maps_can_cost_is_a_constant():
    """Only maps that are still open count, the parser's stack bounds those; 63 small pairs each is the most."""
    pairs = b"".join(b"\xa2" + struct.pack(">H", 0x4141 + i) + b"\xa2bb" for i in range(63))
    reason, peak = refusal_and_peak((b"\xde\x00\x40" + pairs + b"\xa2zz") * 2_000, Update)
    assert reason == "msgpack"
    assert peak < 12 * MIB


def manifest_with(constants):
    return codec.encode_json(SAMPLES[RunManifest]).replace(b'{"alpha":-1.3,"window":10}', constants)


def test_hostile_json_costs_a_bounded_multiple_of_its_limit():
    """Only `constants` builds what it does not know; all else is skipped or refused at its first fault."""
    most = LIMITS.json_bytes_max - 2 * KIB
    tracemalloc.start()
    try:
        for item in (b"[]", b"{}", b"[[]]", b'"ab"', b"1e5"):
            crowd = b'{"a":[' + b",".join([item] * (most // (len(item) + 1))) + b"]}"
            assert codec.decode_json(manifest_with(crowd), RunManifest, LIMITS).run
        assert tracemalloc.get_traced_memory()[1] < 40 * LIMITS.json_bytes_max
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", JSON_KINDS, ids=by_name)
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_deeply_nested_json_is_refused(kind, opening):
    payload = encode(sample(kind))[:-1] + b',"later":' + opening * (100_000 // len(opening))
    reason, peak = refusal_and_peak(payload, kind)
    assert reason == "json"
    assert peak < 4 * len(payload)


def test_deeply_nested_constants_are_refused():
    nested = manifest_with(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}")
    assert refusal(nested, RunManifest) == "json"


def test_an_error_quotes_only_a_little_of_what_came():
    for word in ("A" * 200_000, "\x1b[31m\r\n\x07", "\u202egnp", "\x9b"):
        assert refusal(bent(Ack, outcome=word), Ack) == "schema"


# --- zip bombs: F21 ----------------------------------------------------------------------------------------------


def zstd(raw, **options):
    return zstandard.ZstdCompressor(level=3, **options).compress(raw)


def lying(raw, claim):
    """A zstd frame whose header claims another content size (8-byte size field, single segment)."""
    frame = zstd(raw)
    header = zstandard.frame_header_size(frame)
    return frame[:4] + b"\xe0" + struct.pack("<Q", claim) + frame[header:]


BOMB_BYTES = 64 * MIB
BOMB = zstd(bytes(BOMB_BYTES))


def test_the_lying_frame_is_a_frame_when_it_tells_the_truth():
    raw = BODY * 20
    message = decode(bent(Update, packing="zstd", body=lying(raw, len(raw)), body_bytes=len(raw)), Update)
    assert message.body == raw


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(BOMB, id="honest about its size"),
        pytest.param(zstd(bytes(BOMB_BYTES), write_content_size=False), id="silent about its size"),
        pytest.param(lying(bytes(BOMB_BYTES), 1000), id="claims less"),
        pytest.param(lying(bytes(BOMB_BYTES), 2**63), id="claims more"),
        pytest.param(BOMB * 8, id="eight frames"),
    ],
)
@pytest.mark.parametrize("claims", [1000, BOMB_BYTES, 2**62])
def test_a_bomb_is_refused_before_it_goes_off(body, claims):
    payload = bent(Update, packing="zstd", body=body, body_bytes=claims)
    reason, peak = refusal_and_peak(payload, Update, Limits(inflated_bytes_max=MIB))
    assert reason == "inflate"
    assert peak < 4 * len(payload) + 64 * KIB


@pytest.mark.parametrize(
    ("body", "claims"),
    [
        pytest.param(zstd(BODY * 20) * 2, 320, id="two frames, first read"),
        pytest.param(zstd(BODY * 20) * 2, 640, id="two frames, both read"),
        pytest.param(zstd(BODY * 20) + b"tail", 320, id="bytes after the frame"),
        pytest.param(zstd(BODY * 20) + struct.pack("<II", 0x184D2A50, 4) + b"skip", 320, id="skippable frame after"),
        pytest.param(struct.pack("<II", 0x184D2A50, 4) + b"skip" + zstd(BODY * 20), 320, id="skippable frame before"),
        pytest.param(struct.pack("<II", 0x184D2A50, 4) + b"skip", 0, id="skippable frame alone"),
        pytest.param(zstd(BODY * 20, write_content_size=False), 320, id="no content size"),
        pytest.param(lying(BODY * 20, 319), 319, id="holds a byte more than both say"),
        pytest.param(lying(BODY * 20, 321), 321, id="holds a byte less than both say"),
        pytest.param(zstd(BODY * 20), 319, id="message says less"),
        pytest.param(zstd(BODY * 20), 321, id="message says more"),
        pytest.param(zstd(BODY * 20)[:-1], 320, id="cut short"),
        pytest.param(b"", 0, id="empty"),
        pytest.param(b"", 320, id="empty, claims some"),
        pytest.param(BODY, 16, id="no zstd at all"),
        pytest.param(zstd(BODY * 20, dict_data=zstandard.ZstdCompressionDict(BODY * 60)), 320, id="needs a dictionary"),
    ],
)
def test_a_frame_that_is_not_exactly_one_whole_body_is_refused(body, claims):
    assert refusal(bent(Update, packing="zstd", body=body, body_bytes=claims), Update) == "inflate"


def test_every_flipped_bit_of_a_packed_body_is_refused_or_inflates_to_the_declared_size():
    frame = zstd(REPETITIVE_BODY)
    for position, bit in product(range(len(frame)), range(8)):
        damaged = bytearray(frame)
        damaged[position] ^= 1 << bit
        try:
            message = decode(bent(Update, packing="zstd", body=bytes(damaged), body_bytes=256), Update)
        except ProtocolError:
            continue
        assert len(message.body) == 256


@pytest.mark.parametrize(
    "changes",
    [
        {"packing": "gzip"},
        {"packing": "ZSTD"},
        {"packing": None},
        {"packing": ...},
        {"packing": 1},
        {"packing": b"none"},
        {"body_bytes": ...},
        {"body_bytes": "16"},
        {"body_bytes": True},
        {"body_bytes": 16.0},
        {"body_bytes": -1},
        {"body_bytes": 15},
        {"body_bytes": 17},
    ],
    ids=repr,
)
def test_a_packing_that_is_not_agreed_is_refused(changes):
    assert refusal(bent(Update, **changes), Update) == "schema"


# --- fuzz --------------------------------------------------------------------------------------------------------

msgpack_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def survives(payload, kind):
    """Decoding gives a message that encodes again, or our own error."""
    try:
        decoded = decode(payload, kind)
    except ProtocolError:
        return
    assert type(decoded) is kind
    assert decode(encode(decoded), kind) is not None


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_fuzz_a_field_of_any_value(kind):
    values = json_values if kind in JSON_KINDS else msgpack_values
    keys = st.sampled_from(sorted(mapping_of(kind))) | st.text(max_size=5) | names

    @settings(steady, max_examples=80)
    @given(st.dictionaries(keys, values, min_size=1, max_size=3))
    def fuzz(changes):
        survives(bent(kind, **changes), kind)

    fuzz()


@pytest.mark.parametrize("kind", EVERY_KIND, ids=by_name)
def test_fuzz_any_bytes(kind):
    head = encode(sample(kind))

    @settings(steady, max_examples=80)
    @given(st.binary(max_size=200), st.integers(0, len(head)), st.integers(0, len(head)))
    def fuzz(noise, stop, start):
        survives(noise, kind)
        survives(head[:stop] + noise + head[start:], kind)

    fuzz()
