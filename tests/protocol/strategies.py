"""Hypothesis strategies for every message, derived once from the dataclasses: a new field is covered the day it is added."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import settings
from hypothesis import strategies as st

from hermes_iot.protocol import schema
from hermes_iot.protocol.chunks import pack_parts
from hermes_iot.protocol.messages import Allocation, Chunk, Command, Model, ModelHead, Request, Shard, Update
from hermes_iot.protocol.wire import ROUTES

KINDS = tuple(ROUTES)
TENSOR_KINDS = (Update, Model, Shard)
JSON_KINDS = tuple(kind for kind in KINDS if kind not in TENSOR_KINDS)

#: The same examples on every machine and run; a slow machine fails nothing.
steady = settings(derandomize=True, deadline=None)

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
names = st.text(ALPHABET, min_size=1, max_size=64)
hex_digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
integers = st.integers(-(2**53) + 1, 2**53 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | integers | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
bodies = st.binary(max_size=300) | st.binary(min_size=1, max_size=8).map(lambda unit: unit * 200)
rising_rows = st.lists(st.integers(0, 2**53 - 1), max_size=8, unique=True).map(
    lambda marks: tuple(zip(*[iter(sorted(marks))] * 2, strict=False))
)

_BY_HINT: dict[Any, st.SearchStrategy[Any]] = {
    schema.Name: names,
    schema.MaybeName: st.just("") | names,
    schema.Sha256: hex_digests,
    schema.MaybeSha256: st.just("") | hex_digests,
    schema.Text: texts | st.text("é", min_size=512, max_size=512),
    schema.Digest: st.binary(min_size=32, max_size=32),
    schema.Bitmap: st.binary(max_size=16),
    dict[str, Any]: st.dictionaries(texts, json_values, max_size=4),
    bytes: bodies,
    bool: st.booleans(),
    float: finite,
    None: st.none(),
    type(None): st.none(),
}
#: What a type alone cannot say.
_BY_FIELD: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (Allocation, "rows"): rising_rows,
    (ModelHead, "bytes"): st.integers(16_384, 2**28),
    (ModelHead, "parts"): st.integers(1, 16_384),
}


def of(kind: type) -> st.SearchStrategy[Any]:
    """Valid instances of a message class, all bounds of its types kept and reached."""
    hints = get_type_hints(kind, include_extras=True)
    built = st.builds(kind, **{f.name: _of_field(kind, f.name, hints[f.name]) for f in fields(kind)})
    return built.map(_of_one_transfer) if kind in (Request, Command) else built


def _of_one_transfer(wanted: Any) -> Any:
    """Parts are asked for of a transfer, and at least one of them; or of none."""
    if not wanted.transfer:
        return replace(wanted, parts=0, missing=b"")
    parts = 2 + wanted.parts % 16_383
    return replace(
        wanted, parts=parts, missing=pack_parts({byte * parts // 256 for byte in b"\0" + wanted.missing}, parts)
    )


def _of_field(kind: type, name: str, hint: Any) -> st.SearchStrategy[Any]:
    return _BY_FIELD[kind, name] if (kind, name) in _BY_FIELD else _of_hint(hint)


def _of_hint(hint: Any) -> st.SearchStrategy[Any]:
    if hint in _BY_HINT:
        return _BY_HINT[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(args[0], args[1])
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (Union, types.UnionType):
        return st.one_of(*(_of_hint(arg) for arg in args))
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(_of_hint(args[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*(_of_hint(arg) for arg in args))
    if is_dataclass(hint):
        return of(hint)
    raise TypeError(f"no strategy for {hint}: add one here")


def _bounded(base: type, meta: Any) -> st.SearchStrategy[Any]:
    if base is int:
        return st.integers(meta.ge, meta.le)
    if base is float:
        return st.floats(
            min_value=meta.gt if meta.ge is None else meta.ge, max_value=meta.le, exclude_min=meta.ge is None
        )
    raise TypeError(f"no strategy for {base} with {meta}: add one here")


_STRATEGIES = {kind: of(kind) for kind in (*KINDS, Chunk)}


def messages(kind: type) -> st.SearchStrategy[Any]:
    """Instances of one message class."""
    return _STRATEGIES[kind]


any_message = st.sampled_from(KINDS).flatmap(messages)


def has_device(kind: type) -> bool:
    """Whether the topic of this message names a device."""
    return ROUTES[kind].direction != "all"


def device_of(message: object) -> str:
    """The device a message of this kind must be addressed to, any name where it says nothing itself."""
    if isinstance(message, Allocation | Update) and message.device:
        return message.device
    return "pi-01" if has_device(type(message)) else ""
