"""Types that carry their bounds, and the one place where foreign mappings become our dataclasses.

msgspec checks a JSON or msgpack mapping against a plain frozen dataclass in C, strictly (no "1" for 1), ignores
fields it does not know (a newer minor version may add some) and names the path of what is wrong. It is the only
home of msgspec. A key that stands twice in a JSON object is read as its last value: msgspec is the only reader on
both sides, so nobody can be shown one value and made to obey another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from hermes_iot.errors import ProtocolError
from hermes_iot.protocol.limits import INTEGER_MAX

T = TypeVar("T")

# \Z, not $: the latter lets a trailing newline through.
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
MaybeName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{0,64}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
MaybeSha256 = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
Text = Annotated[str, Meta(max_length=512)]
Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Positive = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Rate = Annotated[float, Meta(gt=0.0, le=1e6)]
Slowdown = Annotated[float, Meta(ge=1.0, le=1e6)]
ChunkBytes = Annotated[int, Meta(ge=1024, le=2**28)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
#: One bit for each of the most parts there can be; base64 in JSON.
Bitmap = Annotated[bytes, Meta(max_length=2048)]

_BRIEF_CHARS: Final = 200


def from_json(payload: bytes, kind: type[T]) -> T:
    """Decode and check one JSON document.

    Raises:
        ProtocolError: ``json`` when it is not JSON (NaN included), ``schema`` when it is not a `kind`.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.ValidationError as error:
        raise ProtocolError("schema", f"not a valid {kind.__name__}: {brief(error)}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError("json", f"not JSON: {brief(error)}") from error


def from_mapping(mapping: Mapping[str, Any], kind: type[T]) -> T:
    """Check an already unpacked mapping.

    Raises:
        ProtocolError: ``schema`` with the path of the first thing wrong.
    """
    try:
        # Without builtin_types a string would pass for bytes, read as base64.
        return msgspec.convert(mapping, type=kind, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError, UnicodeEncodeError) as error:  # the last: half a surrogate pair
        raise ProtocolError("schema", f"not a valid {kind.__name__}: {brief(error)}") from error


def brief(error: Exception) -> str:
    """A library's complaint made fit for a log: it may quote the peer, so no control characters and no great length."""
    text = str(error).encode("unicode_escape").decode("ascii")
    return text if len(text) <= _BRIEF_CHARS else f"{text[: _BRIEF_CHARS - 60]} ... {text[-55:]}"


def to_json(message: object) -> bytes:
    """One JSON document, field order as declared; NaN and infinities become null."""
    return msgspec.json.encode(message)


def to_mapping(message: object) -> dict[str, Any]:
    """A plain mapping of a dataclass, bytes kept as bytes."""
    mapping: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes,))
    return mapping
