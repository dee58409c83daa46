"""How good bytes become bad ones: cut, flip, repeat, splice; and for documents a node that is something else.

All chance comes from a `random.Random`, so that a seed, Hypothesis or a coverage-guided fuzzer can drive it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

Bend = Callable[[bytes, Random], bytes]

#: What numbers, lengths and texts of a format least expect.
_EDGES = (b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00" * 8, b"\xff" * 8)
_ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**53,
    2**63,
    10**25,
    10**400,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x00\x1b[31m\ud800",
    "9" * 5000,
    [],
    [[]],
    {},
    {"": None},
    [0] * 100,
    "a" * 5000,
)


def of_bytes(data: bytes, chance: Random) -> bytes:
    """A few changes anywhere."""
    bent = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start, stop = sorted((chance.randrange(len(bent) + 1), chance.randrange(len(bent) + 1)))
        match chance.randrange(7):
            case 0:
                del bent[start:]
            case 1 if bent:
                bent[start % len(bent)] ^= 1 << chance.randrange(8)
            case 2:
                bent[start:stop] = b""
            case 3:
                bent[start:start] = bent[start:stop][:4096]
            case 4:
                edge = chance.choice(_EDGES)
                bent[start : start + len(edge)] = edge
            case 5:
                bent[start:start] = chance.randbytes(chance.randrange(9))
            case _:
                bent[start : start + 8] = chance.randbytes(8)
    return bytes(bent)


def of_document(document: Any, chance: Random) -> Any:
    """The same document with one or two nodes that are something else, or gone, or there twice."""
    bent = document
    for _ in range(chance.randint(1, 2)):
        bent = _at_a_node(bent, chance)
    return bent


def of_json(data: bytes, chance: Random) -> bytes:
    """JSON that is still JSON, most of the time."""
    if chance.random() < 0.25:
        return of_bytes(data, chance)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(data, chance)
    return json.dumps(of_document(document, chance)).encode()


def of_lines(data: bytes, chance: Random) -> bytes:
    """One JSON document per line."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    lines[at] = of_json(lines[at], chance)
    return b"\n".join(lines)


def _at_a_node(node: Any, chance: Random) -> Any:
    inside = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    if not inside or chance.random() < 0.15:
        return chance.choice(_ODD)
    key = chance.choice(inside)
    bent = dict(node) if isinstance(node, dict) else list(node)
    if chance.random() < 0.2:
        del bent[key]
    else:
        bent[key] = _at_a_node(bent[key], chance)
    return bent
