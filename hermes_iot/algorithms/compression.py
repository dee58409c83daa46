"""A flat float32 vector as bytes and back: the body of every tensor message.

The paper sends fp16 (arXiv 2410.20495), half the bytes of fp32. int8 and int4 (quantize.py), the largest few per
cent (sparse.py) and the signs alone (signs.py) are for thin links. A family is a dict: one more codec is one more entry
of `CODINGS` and one more word in `domain.Codec`. A codec says how long its body is for P parameters, so a body of
another length is refused before anything is allocated. Where a run says so, small tensors are spared the coarse ones (split.py).

Both sides must decode to the same bits (the coordinator remembers what each device holds), so the byte order is
written down and no scale is left to chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Final

import numpy as np

from hermes_iot.algorithms.bfloat import from_bf16, to_bf16
from hermes_iot.algorithms.deadzone import to_deadzone
from hermes_iot.algorithms.halves import from_halves, to_halves
from hermes_iot.algorithms.quantize import from_int4, from_int8, int4_bytes, int8_bytes, to_int4, to_int8
from hermes_iot.algorithms.signs import from_sign, sign_bytes, to_sign
from hermes_iot.algorithms.sparse import from_topk, longest_topk, shortest_topk, to_topk
from hermes_iot.algorithms.split import Split
from hermes_iot.algorithms.trees import BLOCK, is_finite
from hermes_iot.domain import Codec, Params
from hermes_iot.errors import ProtocolError

#: Up to so many entries all blocks are made before they are put together, which is half a copy cheaper.
_JOINED_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """One codec.

    Attributes:
        encode: a finite vector to its body.
        decode: a body of a possible length and P to a new, writable vector of shape (P,).
        body_bytes: P to the body's length, to the largest one where it depends on the entries.
        least_bytes: P to the smallest length; None when every body is `body_bytes` long.
        partial: it leaves out so much that only a difference can do without.
        exact: at least as good as fp16 for every entry; no tensor needs to be spared it.
    """

    encode: Callable[[Params], bytes]
    decode: Callable[[bytes | bytearray | memoryview, int], Params]
    body_bytes: Callable[[int], int]
    least_bytes: Callable[[int], int] | None = None
    partial: bool = False
    exact: bool = False

    def lengths(self, size: int) -> tuple[int, int]:
        """The smallest and the largest length of a body of so many entries."""
        most = self.body_bytes(size)
        return self.least_bytes(size) if self.least_bytes else most, most


def _to_fp32(vector: Params) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


def _from_fp32(body: bytes | bytearray | memoryview, size: int) -> Params:
    return np.frombuffer(body, dtype="<f4", count=size).astype(np.float32)


def _to_fp16(vector: Params) -> bytes:
    # Block by block: clamped and cast at once, a model of 100 MB would lie in memory twice more.
    blocks = (to_halves(vector[at : at + BLOCK]).astype("<u2", copy=False).data for at in range(0, vector.size, BLOCK))
    if vector.size <= _JOINED_MAX:
        return b"".join(blocks)
    encoded = BytesIO()
    for block in blocks:
        encoded.write(block)
    return encoded.getvalue()


def _from_fp16(body: bytes | bytearray | memoryview, size: int) -> Params:
    return from_halves(np.frombuffer(body, dtype="<u2", count=size).astype(np.uint16, copy=False))


def _topk(percent: int) -> Coding:
    return Coding(
        encode=partial(to_topk, percent=percent),
        decode=partial(from_topk, percent=percent),
        body_bytes=partial(longest_topk, percent=percent),
        least_bytes=partial(shortest_topk, percent=percent),
        partial=True,
    )


CODINGS: Final[Mapping[str, Coding]] = {
    "fp32": Coding(encode=_to_fp32, decode=_from_fp32, body_bytes=lambda size: 4 * size, exact=True),
    "fp16": Coding(encode=_to_fp16, decode=_from_fp16, body_bytes=lambda size: 2 * size, exact=True),
    "bf16": Coding(encode=to_bf16, decode=from_bf16, body_bytes=lambda size: 2 * size, exact=True),
    "int8": Coding(encode=to_int8, decode=from_int8, body_bytes=int8_bytes),
    "int4": Coding(encode=to_int4, decode=from_int4, body_bytes=int4_bytes),
    "deadzone": Coding(encode=to_deadzone, decode=from_int4, body_bytes=int4_bytes, partial=True),
    "topk1": _topk(1),
    "topk5": _topk(5),
    "topk10": _topk(10),
    "sign": Coding(encode=to_sign, decode=from_sign, body_bytes=sign_bytes, partial=True),
}


def pack(vector: Params, codec: Codec, split: Split | None = None) -> bytes:
    """Encode a vector of shape (P,). In fp16 and bf16, what is too large becomes the largest number.

    Args:
        vector: shape (P,).
        codec: of its entries.
        split: which of them the codec is not for, if it is not `Coding.exact`.

    Raises:
        ValueError: not a flat float32 vector, or one with NaN or infinity. Whoever sends has looked before, and
            clamping would dress infinity up as a number.
    """
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise ValueError(f"a flat float32 vector is needed, not {vector.dtype}{vector.shape}")
    if not is_finite(vector):
        raise ValueError("the vector holds NaN or infinity")
    return _encoded(vector, CODINGS[codec], split)


def unpack(
    body: bytes | bytearray | memoryview,
    codec: Codec,
    size: int,
    split: Split | None = None,
    *,
    allow_nonfinite: bool = False,
) -> Params:
    """Decode a peer's body into a new, writable vector of shape (size,); `split` as in `pack`.

    Raises:
        ProtocolError: unknown codec (reason ``codec``), a length that `size` parameters cannot have (``size``),
            something `pack` never writes (``schema``; only codecs with scales), or NaN or infinity among the entries
            (``finite``; only fp32, fp16 and bf16 can say them).
    """
    coding = CODINGS.get(codec)
    if coding is None:
        raise ProtocolError("codec", f"codec {str(codec)[:20]!r} is not known here")
    length, (least, most) = memoryview(body).nbytes, _lengths(coding, size, split)
    if not least <= length <= most:
        wanted = f"{most}" if least == most else f"{least} to {most}"
        raise ProtocolError("size", f"a body of {length} bytes is not the {wanted} of {size} parameters in {codec}")
    vector = _decoded(body, coding, size, split)
    if not allow_nonfinite and not is_finite(vector):
        raise ProtocolError("finite", "the vector holds NaN or infinity")
    return vector


def pack_with_feedback(
    vector: Params, residual: Params | None, codec: Codec, split: Split | None = None
) -> tuple[bytes, Params]:
    """Encode a vector and what earlier bodies left unsaid, so that what a codec drops is delayed and not lost.

    Error feedback (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847): u = vector + residual is encoded, and
    what comes back of it is subtracted from u. The decoded bodies and the last residual add up to all the vectors.

    Args:
        vector: shape (P,).
        residual: what the last call returned; None at the beginning.
        codec: may differ from call to call.
        split: as in `pack`.

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
    body = pack(wanted, codec, split)
    return body, wanted - _decoded(body, CODINGS[codec], wanted.size, split)


def body_bytes_max(size: int, split: Split | None = None) -> int:
    """Length of the longest body of so many entries, whatever the codec."""
    return max(_lengths(coding, size, split)[1] for coding in CODINGS.values())


def _lengths(coding: Coding, size: int, split: Split | None) -> tuple[int, int]:
    if split is None or coding.exact:
        return coding.lengths(size)
    least, most = coding.lengths(size - split.fine_size)
    return least + 2 * split.fine_size, most + 2 * split.fine_size


def _encoded(vector: Params, coding: Coding, split: Split | None) -> bytes:
    if split is None or coding.exact:
        return coding.encode(vector)
    coarse, fine = split.apart(vector)
    return coding.encode(coarse) + _to_fp16(fine)


def _decoded(body: bytes | bytearray | memoryview, coding: Coding, size: int, split: Split | None) -> Params:
    if split is None or coding.exact:
        return coding.decode(body, size)
    coarse, fine = memoryview(body)[: -2 * split.fine_size], memoryview(body)[-2 * split.fine_size :]
    return split.together(coding.decode(coarse, split.coarse_size), _from_fp16(fine, split.fine_size))
