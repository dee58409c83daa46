"""Whatever a broker hands over, only `ProtocolError` comes out of `Wire.incoming` (F20, F21)."""

import contextlib
import json
import tracemalloc
from dataclasses import replace

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import split
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Model, Update
from hermes_iot.protocol.topics import Topics
from hermes_iot.protocol.wire import Wire
from tests.protocol.bending import by_name, mapping_of
from tests.protocol.samples import SAMPLES
from tests.protocol.strategies import KINDS, TENSOR_KINDS, json_values, steady

TOPICS = Topics("lab-1")
LISTENER = Wire(TOPICS, limits=Limits(transfers_bytes_max=64 * 1024))
ALL_TOPICS = [
    *(next(iter(Wire(TOPICS).outgoing(SAMPLES[kind], device="pi-01"))).topic for kind in KINDS),
    TOPICS.model_part(0),
    TOPICS.model_part(999_999),
]


def hear(topic, payload):
    """What comes out is one of ours or nothing; the only error is the peer's."""
    try:
        result = LISTENER.incoming(topic, payload, now=0.0)
    except ProtocolError as error:
        result = None
        if not error.reason.isidentifier():
            raise
    assert result is None or type(result.message) in KINDS


@settings(steady, max_examples=300)
@given(st.sampled_from(ALL_TOPICS), st.binary(max_size=400))
def test_fuzz_any_bytes_on_any_topic(topic, payload):
    hear(topic, payload)


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_fuzz_valid_packets_cut_flipped_and_spliced(kind):
    packets = [
        p
        for n in (64, 100_000)
        for p in Wire(TOPICS, chunk_bytes=n).outgoing(SAMPLES[kind], device="pi-01")
        if kind in TENSOR_KINDS or n > 64
    ]

    @settings(steady, max_examples=80)
    @given(st.sampled_from(packets), st.data())
    def fuzz(packet, data):
        payload = bytearray(packet.payload)
        for _ in range(data.draw(st.integers(1, 4))):
            start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(payload))] * 2)))
            payload[start:stop] = data.draw(st.binary(max_size=12) | st.just(bytes(payload[start:stop]) * 2))
        hear(packet.topic, bytes(payload))

    fuzz()


@pytest.mark.parametrize("kind", TENSOR_KINDS, ids=by_name)
def test_fuzz_whole_messages_of_any_fields_inside_correct_chunks(kind):
    """Damage in flight ends at the checksum; a hostile sender's does not."""
    [packet] = Wire(TOPICS).outgoing(SAMPLES[kind], device="pi-01")
    scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
    keys = st.sampled_from(sorted(mapping_of(kind))) | st.text(max_size=5)

    @settings(steady, max_examples=100)
    @given(st.dictionaries(keys, scalars | json_values, min_size=1, max_size=4), st.binary(max_size=3))
    def fuzz(changes, tail):
        whole = msgpack.packb(mapping_of(kind) | changes, default=str) + tail
        for chunk in split(whole, chunk_bytes=100):
            hear(packet.topic, codec.encode_chunk(chunk))

    fuzz()


#: Of the run that a wire knows here: a model of 610 parameters, in fp32.
LONGEST_BODY_BYTES = 4 * 610
BOMBS = {size: zstandard.ZstdCompressor(level=19).compress(bytes(size)) for size in (LONGEST_BODY_BYTES, 2**20, 2**28)}


@settings(steady, max_examples=60)
@given(
    st.sampled_from([Update, Model]),
    st.sampled_from(sorted(BOMBS)),
    st.sampled_from([0, 1000, LONGEST_BODY_BYTES, LONGEST_BODY_BYTES + 1, 2**20, 2**28, 2**30, 2**62]),
    st.sampled_from([100, 1000, 120_000]),
    st.sampled_from([None, 2**20, 2**28]),
)
def test_fuzz_no_claim_makes_a_wire_that_knows_its_run_hold_more_than_its_model(kind, size, claim, chunk_bytes, total):
    wire = Wire(TOPICS)
    wire.expect(kind, body_bytes_max=LONGEST_BODY_BYTES)
    whole = msgpack.packb(mapping_of(kind) | {"packing": "zstd", "body": BOMBS[size], "body_bytes": claim})
    [packet] = Wire(TOPICS).outgoing(SAMPLES[kind], device="pi-01")
    payloads = [
        codec.encode_chunk(chunk if total is None else replace(chunk, total=total))
        for chunk in split(whole, chunk_bytes=chunk_bytes)
    ]
    came = None
    tracemalloc.start()
    try:
        for payload in payloads:
            with contextlib.suppress(ProtocolError):
                came = wire.incoming(packet.topic, payload, now=0.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (came is not None) == (size == claim == LONGEST_BODY_BYTES and total is None)
    assert peak < 4 * (LONGEST_BODY_BYTES + 4096) + 64 * 1024
    assert wire.half_received.reserved_bytes < LONGEST_BODY_BYTES + 3 * 4096


@settings(steady, max_examples=150)
@given(st.sampled_from(ALL_TOPICS), json_values)
def test_fuzz_any_json_on_any_topic(topic, value):
    hear(topic, json.dumps(value).encode())
