"""A flat float32 vector as bytes and back: the body of every tensor message.

The paper sends fp16 (arXiv 2410.20495), half the bytes of fp32. int8 and int4 (quantize.py) and the largest few per
cent (sparse.py) are for thin links. A family is a dict: one more codec is one more entry of `CODINGS` and one more word
in `domain.Codec`. A codec says how long its body is for P parameters, so a body of another length is refused before
anything is allocated.

Both sides must decode to the same bits (the coordinator remembers what each device holds), so the byte order is
written down and no scale is left to chance. numpy casts to fp16 at 190-300 MB/s: no reason for anything cleverer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Final

import numpy as np

from hermes_iot.algorithms.deadzone import to_deadzone
from hermes_iot.algorithms.quantize import from_int4, from_int8, int4_bytes, int8_bytes, to_int4, to_int8
from hermes_iot.algorithms.sparse import from_topk, longest_topk, shortest_topk, to_topk
from hermes_iot.algorithms.trees import BLOCK, is_finite
from hermes_iot.domain import Codec, Params
from hermes_iot.errors import ProtocolError

#: The largest finite fp16. Clamping comes before the cast, which would give infinity from 65520 on.
FP16_MAX: Final = np.float32(65504.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """One codec.

    Attributes:
        encode: a finite vector to its body.
        decode: a body of a possible length and P to a new, writable vector of shape (P,).
        body_bytes: P to the body's length, to the largest one where it depends on the entries.
        least_bytes: P to the smallest length; None when every body is `body_bytes` long.
        partial: it leaves entries out, which only a difference can do without.
    """

    encode: Callable[[Params], bytes]
    decode: Callable[[bytes | bytearray | memoryview, int], Params]
    body_bytes: Callable[[int], int]
    least_bytes: Callable[[int], int] | None = None
    partial: bool = False


def _to_fp32(vector: Params) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


def _from_fp32(body: bytes | bytearray | memoryview, size: int) -> Params:
    return np.frombuffer(body, dtype="<f4", count=size).astype(np.float32)


def _to_fp16(vector: Params) -> bytes:
    # The cast rounds to nearest, ties to even. Block by block: clamped and cast at once, a model of 100 MB would lie in
    # memory twice more.
    encoded = BytesIO()
    for at in range(0, vector.size, BLOCK):
        encoded.write(np.clip(vector[at : at + BLOCK], -FP16_MAX, FP16_MAX).astype("<f2").data)
    return encoded.getvalue()


def _from_fp16(body: bytes | bytearray | memoryview, size: int) -> Params:
    return np.frombuffer(body, dtype="<f2", count=size).astype(np.float32)


def _topk(percent: int) -> Coding:
    return Coding(
        encode=partial(to_topk, percent=percent),
        decode=partial(from_topk, percent=percent),
        body_bytes=partial(longest_topk, percent=percent),
        least_bytes=partial(shortest_topk, percent=percent),
        partial=True,
    )


CODINGS: Final[Mapping[str, Coding]] = {
    "fp32": Coding(encode=_to_fp32, decode=_from_fp32, body_bytes=lambda size: 4 * size),
    "fp16": Coding(encode=_to_fp16, decode=_from_fp16, body_bytes=lambda size: 2 * size),
    "int8": Coding(encode=to_int8, decode=from_int8, body_bytes=int8_bytes),
    "int4": Coding(encode=to_int4, decode=from_int4, body_bytes=int4_bytes),
    "deadzone": Coding(encode=to_deadzone, decode=from_int4, body_bytes=int4_bytes, partial=True),
    "topk5": _topk(5),
    "topk10": _topk(10),
}


def pack(vector: Params, codec: Codec) -> bytes:
    """Encode a vector of shape (P,). In fp16, magnitudes above 65504 become 65504.

    Raises:
        ValueError: not a flat float32 vector, or one with NaN or infinity. Whoever sends has looked before, and
            clamping would dress infinity up as a number.
    """
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise ValueError(f"a flat float32 vector is needed, not {vector.dtype}{vector.shape}")
    if not is_finite(vector):
        raise ValueError("the vector holds NaN or infinity")
    return CODINGS[codec].encode(vector)


def unpack(body: bytes | bytearray | memoryview, codec: Codec, size: int, *, allow_nonfinite: bool = False) -> Params:
    """Decode a peer's body into a new, writable vector of shape (size,).

    Raises:
        ProtocolError: unknown codec (reason ``codec``), a length that `size` parameters cannot have (``size``),
            something `pack` never writes (``schema``; only codecs with scales), or NaN or infinity among the entries
            (``finite``; only fp32 and fp16 can say them).
    """
    coding = CODINGS.get(codec)
    if coding is None:
        raise ProtocolError("codec", f"codec {str(codec)[:20]!r} is not known here")
    length, most = memoryview(body).nbytes, coding.body_bytes(size)
    least = coding.least_bytes(size) if coding.least_bytes else most
    if not least <= length <= most:
        wanted = f"{most}" if least == most else f"{least} to {most}"
        raise ProtocolError("size", f"a body of {length} bytes is not the {wanted} of {size} parameters in {codec}")
    vector = coding.decode(body, size)
    if not allow_nonfinite and not is_finite(vector):
        raise ProtocolError("finite", "the vector holds NaN or infinity")
    return vector


def pack_with_feedback(vector: Params, residual: Params | None, codec: Codec) -> tuple[bytes, Params]:
    """Encode a vector and what earlier bodies left unsaid, so that what a codec drops is delayed and not lost.

    Error feedback (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847): u = vector + residual is encoded, and
    what comes back of it is subtracted from u. The decoded bodies and the last residual add up to all the vectors.

    Args:
        vector: shape (P,).
        residual: what the last call returned; None at the beginning.
        codec: may differ from call to call.

    Returns:
        The body, and the new residual of shape (P,): zeros with fp32.

    Raises:
        ValueError: as `pack`, also when the sum overflows or the residual is not a flat float32 vector of shape (P,).
    """
    if residual is None:
        wanted = vector
    elif residual.shape != vector.shape or residual.dtype != vector.dtype:
        raise ValueError(f"a residual {residual.dtype}{residual.shape} is not one of {vector.dtype}{vector.shape}")
    else:
        # An overflow is infinity, which `pack` refuses in words.
        with np.errstate(over="ignore"):
            wanted = vector + residual
    body = pack(wanted, codec)
    return body, wanted - CODINGS[codec].decode(body, wanted.size)
