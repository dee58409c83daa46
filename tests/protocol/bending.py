"""Encode, decode and bend messages of any kind alike, and ask for which reason something is refused."""

import json
import tracemalloc

import msgpack
import pytest

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Chunk
from tests.protocol.samples import CHUNK, SAMPLES
from tests.protocol.strategies import JSON_KINDS, TENSOR_KINDS

LIMITS = Limits()
KIB, MIB = 1024, 1024 * 1024
EVERY_KIND = (*JSON_KINDS, *TENSOR_KINDS, Chunk)
MSGPACK_KINDS = (*TENSOR_KINDS, Chunk)


def by_name(kind):
    return kind.__name__


def encode(message, *, compress=True):
    if isinstance(message, Chunk):
        return codec.encode_chunk(message)
    if isinstance(message, TENSOR_KINDS):
        return codec.encode_tensors(message, compress=compress)
    return codec.encode_json(message)


def decode(payload, kind, limits=LIMITS):
    if kind is Chunk:
        return codec.decode_chunk(payload, limits)
    return (codec.decode_tensors if kind in TENSOR_KINDS else codec.decode_json)(payload, kind, limits)


def sample(kind):
    return CHUNK if kind is Chunk else SAMPLES[kind]


def mapping_of(kind):
    """The sample as the mapping that travels."""
    payload = encode(sample(kind), compress=False)
    return json.loads(payload) if kind in JSON_KINDS else msgpack.unpackb(payload)


def bent(kind, **changes):
    """The sample's bytes with fields changed or added; a field set to `Ellipsis` is left out."""
    mapping = {name: value for name, value in (mapping_of(kind) | changes).items() if value is not ...}
    return json.dumps(mapping).encode() if kind in JSON_KINDS else msgpack.packb(mapping)


def refusal(payload, kind, limits=LIMITS):
    """The reason for which `payload` is refused."""
    with pytest.raises(ProtocolError) as caught:
        decode(payload, kind, limits)
    assert len(str(caught.value)) < 400, "an error must not carry the payload into the log"
    assert str(caught.value).isprintable(), "an error must not carry control characters into the log"
    return caught.value.reason


def refusal_and_peak(payload, kind, limits=LIMITS):
    """The reason of the refusal and the most Python memory in bytes that it took."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        reason = refusal(payload, kind, limits)
        return reason, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
