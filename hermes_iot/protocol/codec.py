"""Messages to bytes and back: JSON for what people read, msgpack for tensors. The only home of msgpack and zstd.

A tensor message is one flat msgpack map, scalars and one binary ``body``. The body may be zstd-compressed: then
``packing`` says so and ``body_bytes`` gives its inflated length. It stays plain when zstd would not make it smaller.

Hostile input is the rule, not the exception: sizes are bounded before anything is unpacked. `unpackb` with its default
limits turns 2 MB of empty maps into 133 MiB; a bound on each container's length still lets them nest by the million,
so only a flat map is read: no arrays, no map inside the map (v1 can grow by scalar fields only). Duplicate keys are
refused, the inflated size is checked in the frame header first and again by the bounded decompressor (zstandard
ignores its own bound when the frame states its size), one frame fills the body, and the schema check sees only plain
scalars. No pickle, no extension types, no code. An error quotes what a peer sent only shortened and escaped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

import msgpack
import zstandard

from hermes_iot.errors import OtherVersion, ProtocolError
from hermes_iot.protocol.limits import INTEGER_MAX, Limits
from hermes_iot.protocol.messages import VERSION, Chunk, TensorMessage
from hermes_iot.protocol.schema import brief, from_json, from_mapping, to_json, to_mapping

T = TypeVar("T")
Tensor = TypeVar("Tensor", bound=TensorMessage)

_FIELDS_MAX: Final = 64
_TEXT_BYTES_MAX: Final = 4096
_CHUNK_HEADER_BYTES_MAX: Final = 512
_LEVEL: Final = 3
#: The key of the body as msgpack writes it.
_BODY: Final = b"\xa4body"
#: How many bytes msgpack writes before bytes as many as a document that is looked at here holds.
_BINARY_HEADER_BYTES: Final = (5, 3)
#: What follows a chunk's body.
_CHUNK_TAIL: Final = b"\xa1v\x01"
#: From this size on a document's body is not unpacked with the rest, if it is found within so many bytes.
_APART_FROM_BYTES: Final = 16 * 1024
_HEAD_BYTES_MAX: Final = 16 * 1024

# A zstd context costs ten times what it does to a small body (25 us against 2), and one serves one thread at a time:
# whoever needs one takes an idle one, or makes it, and gives it back. A list's pop and append are atomic.
_IDLE_COMPRESSORS: Final[list[zstandard.ZstdCompressor]] = []
_IDLE_DECOMPRESSORS: Final[list[zstandard.ZstdDecompressor]] = []


def encode_json(message: object) -> bytes:
    """One JSON document in the declared field order; NaN and infinities become null."""
    return to_json(message)


def decode_json(payload: bytes, kind: type[T], limits: Limits) -> T:
    """Read one JSON message.

    Raises:
        ProtocolError: ``size``, ``json``, ``version`` or ``schema``.
    """
    if len(payload) > limits.json_bytes_max:
        raise ProtocolError("size", f"{kind.__name__} of {len(payload)} bytes, at most {limits.json_bytes_max}")
    try:
        return from_json(payload, kind)
    except ProtocolError as error:
        # Another version may differ in any field, and only the first fault is reported: look at `v` by itself.
        version = _declared_version(payload) if error.reason == "schema" else None
        if version not in (None, VERSION):
            raise _other_version(kind.__name__, version) from error
        raise


def encode_tensors(message: TensorMessage, *, compress: bool = True) -> bytes:
    """One msgpack document; zstd over the body where that makes it smaller and `compress` allows it."""
    return b"".join(encode_pieces(message, compress=compress))


def encode_pieces(message: TensorMessage, *, compress: bool = True) -> tuple[bytes, bytes]:
    """The same in two pieces, of which the second is the body: a large one need not be copied to be sent."""
    mapping = to_mapping(message)
    body: bytes = mapping.pop("body")
    packing, packed = "none", body
    if compress:
        squeezed = _squeezed(body)
        if len(squeezed) < len(body):
            packing, packed = "zstd", squeezed
    mapping |= {"packing": packing, "body_bytes": len(body)}
    packer = msgpack.Packer(use_bin_type=True, autoreset=False)
    packer.pack_map_header(len(mapping) + 1)
    for key, value in mapping.items():
        packer.pack(key)
        packer.pack(value)
    return packer.bytes() + _BODY + _binary_header(len(packed)), packed


def decode_tensors(payload: bytes | memoryview, kind: type[Tensor], limits: Limits) -> Tensor:
    """Read one reassembled tensor message.

    Raises:
        ProtocolError: ``size``, ``msgpack``, ``version``, ``schema`` or ``inflate``.
    """
    if len(payload) > limits.message_bytes_max:
        raise ProtocolError("size", f"{kind.__name__} of {len(payload)} bytes, at most {limits.message_bytes_max}")
    apart = _apart(payload)
    mapping = _unpack(payload if apart is None else apart[0], kind.__name__)
    packing, raw_bytes = mapping.pop("packing", None), mapping.pop("body_bytes", None)
    if type(raw_bytes) is not int or raw_bytes < 0 or packing not in ("none", "zstd"):
        raise ProtocolError("schema", f"{kind.__name__} says neither 'none' nor 'zstd', or no length of its body")
    if raw_bytes > limits.inflated_bytes_max:
        raise ProtocolError("inflate", f"{kind.__name__} of {raw_bytes} bytes, at most {limits.inflated_bytes_max}")
    message = from_mapping(mapping, kind)
    packed = message.body if apart is None else apart[1]
    if packing == "none" and len(packed) != raw_bytes:
        raise ProtocolError("schema", f"{kind.__name__} has {len(packed)} body bytes, declares {raw_bytes}")
    if packing == "none" and apart is None:
        return message
    return replace(message, body=_inflate(packed, raw_bytes) if packing == "zstd" else bytes(packed))


def encode_chunk(chunk: Chunk) -> bytes:
    """One slice as msgpack."""
    encoded: bytes = msgpack.packb(to_mapping(chunk), use_bin_type=True)
    return encoded


def decode_chunk(payload: bytes, limits: Limits) -> Chunk:
    """Read one slice; claims about the whole are checked against the limits here, before anyone keeps a byte.

    Raises:
        ProtocolError: ``size``, ``msgpack``, ``version``, ``schema`` or ``parts``.
    """
    if len(payload) > limits.message_bytes_max + _CHUNK_HEADER_BYTES_MAX:
        raise ProtocolError("size", f"chunk of {len(payload)} bytes")
    apart = _apart(payload, tail=_CHUNK_TAIL)
    chunk = from_mapping(_unpack(payload if apart is None else apart[0], "Chunk"), Chunk)
    if apart is not None:
        chunk = replace(chunk, body=cast("bytes", apart[1]))  # looked at and copied into place, as bytes are
    if chunk.total > limits.message_bytes_max:
        raise ProtocolError("size", f"message of {chunk.total} bytes, at most {limits.message_bytes_max}")
    if chunk.parts > limits.parts_max or chunk.part >= chunk.parts or chunk.parts > chunk.total:
        raise ProtocolError("parts", f"part {chunk.part} of {chunk.parts}")
    if not 0 < len(chunk.body) <= chunk.total:
        raise ProtocolError("parts", f"part {chunk.part} holds {len(chunk.body)} of {chunk.total} bytes")
    return chunk


def _apart(payload: bytes | memoryview, *, tail: bytes = b"") -> tuple[bytes, memoryview] | None:
    """A large document without its body, and the body, which msgpack would copy; None where it does not end with one.

    `tail` is what follows the body.

    What comes back as the document is checked like any other: with the body in place it is well-formed if and only if
    it is without.
    """
    if len(payload) < _APART_FROM_BYTES:
        return None
    whole = memoryview(payload)
    head = bytes(whole[:_HEAD_BYTES_MAX])
    at = head.find(_BODY)
    if at < 0:
        return None
    ends = len(whole) - len(tail)
    for width in _BINARY_HEADER_BYTES:
        begins = at + len(_BODY) + width
        if head[begins - width : begins] == _binary_header(ends - begins) and whole[ends:] == tail:
            return head[:at] + _BODY + _binary_header(0) + tail, whole[begins:ends]
    return None


def _binary_header(length: int) -> bytes:
    """What msgpack writes before so many bytes."""
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")


def _unpack(payload: bytes | memoryview, name: str) -> dict[str, Any]:
    try:
        mapping = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_OnlyMap(),
            ext_hook=_no_extension,
            max_str_len=_TEXT_BYTES_MAX,
            max_array_len=0,
            max_map_len=_FIELDS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        # StackError, FormatError, ExtraData, OutOfData and bad UTF-8 are all ValueErrors or UnpackExceptions. Never
        # their repr: some of them quote the whole payload in it.
        what = f"{type(error).__name__} {brief(error)}"
        raise ProtocolError("msgpack", f"{name} is not msgpack within bounds: {what}") from error
    if not isinstance(mapping, dict):
        raise ProtocolError("msgpack", f"{name} is a {type(mapping).__name__}, not a map")
    if mapping.get("v") != VERSION:
        raise _other_version(name, mapping.get("v"))
    return mapping


class _OnlyMap:
    """Makes one dict of one map. An inner map is complete before its outer one: the second call unmasks it."""

    def __init__(self) -> None:
        self._seen = False

    def __call__(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        if self._seen:
            raise ValueError("a map inside the map")
        self._seen = True
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise ValueError("a key stands twice")
        return mapping


def _no_extension(code: int, _data: bytes) -> None:
    # max_ext_len=0 alone lets empty ones through.
    raise ValueError(f"extension type {code}")


def _squeezed(body: bytes) -> bytes:
    try:
        compressor = _IDLE_COMPRESSORS.pop()
    except IndexError:
        compressor = zstandard.ZstdCompressor(level=_LEVEL)
    squeezed: bytes = compressor.compress(body)
    _IDLE_COMPRESSORS.append(compressor)
    return squeezed


def _inflate(body: bytes | memoryview, raw_bytes: int) -> bytes:
    try:
        declared = zstandard.frame_content_size(body)
        if declared != raw_bytes:
            raise ProtocolError("inflate", f"zstd frame declares {declared} bytes, the message {raw_bytes}")
        try:
            decompressor = _IDLE_DECOMPRESSORS.pop()
        except IndexError:
            decompressor = zstandard.ZstdDecompressor()
        inflated: bytes = decompressor.decompress(body, max_output_size=raw_bytes, allow_extra_data=False)
        _IDLE_DECOMPRESSORS.append(decompressor)  # one that met a damaged frame is thrown away
    except zstandard.ZstdError as error:
        raise ProtocolError("inflate", f"damaged zstd frame: {brief(error)}") from error
    if len(inflated) != raw_bytes:
        raise ProtocolError("inflate", f"inflated to {len(inflated)} bytes, declared {raw_bytes}")
    return inflated


@dataclass(frozen=True, slots=True, kw_only=True)
class _Versioned:
    v: int | None = None


def _declared_version(payload: bytes) -> int | None:
    try:
        return from_json(payload, _Versioned).v
    except ProtocolError:
        return None


def _other_version(name: str, stated: object) -> OtherVersion:
    version = None
    if isinstance(stated, int) and not isinstance(stated, bool) and abs(stated) <= INTEGER_MAX:
        version = stated
    which = "another protocol version" if version is None else f"protocol version {version}"
    what = f"{name} of {which}; this side speaks {VERSION}: run the same hermes-iot on both sides"
    return OtherVersion(what, version=version)
