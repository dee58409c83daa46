"""Numbers as people read and write them.

Bytes are decimal (1 kB = 1,000 B) because that is how networks and tariffs count; binary units are read too. What is
printed can be typed back in: `parse_duration` and `parse_bytes` read every text the two formatters make. A letter that
could mean two things (``50M``) is refused rather than guessed. Everything printed here is plain ASCII.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final

from hermes_iot.errors import UsageError

#: What stands where there is no number.
NOTHING: Final = "-"

DURATION_EXAMPLES: Final = "Write seconds or a sum of units, e.g. 90, 150s, 2m or 1h30m"
BYTES_EXAMPLES: Final = "Write bytes or a unit, e.g. 120000, 50MB or 1.5GiB"

_SECONDS_MAX: Final = 1e9
_BYTES_MAX: Final = 2**63 - 1
_TEXT_CHARS_MAX: Final = 64

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m(?:in)?)?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?")
_DURATION_UNITS_S: Final = tuple(map(Decimal, ("86400", "3600", "60", "1", "0.001")))
_BYTES = re.compile(rf"{_NUMBER} ?([a-z]*)")
_DECIMAL_UNITS: Final = ("kB", "MB", "GB", "TB", "PB", "EB")
_FACTORS: Final = {
    "": 1,
    "b": 1,
    **{unit.lower(): 1000**power for power, unit in enumerate(_DECIMAL_UNITS, 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtpe", 1)},
}


def format_bytes(count: float | None) -> str:
    """``512 B``, ``1.25 MB``: three digits, decimal units."""
    if count is None or not math.isfinite(count):
        return NOTHING
    if count < 1000:  # noqa: PLR2004 - the first unit begins there
        return f"{count:.0f} B"
    value = float(count)
    for unit in _DECIMAL_UNITS:
        value /= 1000
        if value < 999.5 or unit == _DECIMAL_UNITS[-1]:  # noqa: PLR2004 - above it three digits would round to 1000
            return f"{_three_digits(value)} {unit}"
    raise AssertionError


def format_seconds(seconds: float | None) -> str:
    """``4.20 ms``, ``38.2 s``, ``2m05s``, ``1h12m``, ``3d04h``: never longer than seven characters up to 99 days."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds <= 0:
        return "0 s"
    if seconds < 0.9995:  # noqa: PLR2004 - above it three digits would round to 1000 ms
        return f"{_three_digits(seconds * 1000)} ms"
    if seconds < 59.95:  # noqa: PLR2004 - above it three digits would round to 60.0 s
        return f"{_three_digits(seconds)} s"
    if (whole := round(seconds)) < 3_600:  # noqa: PLR2004 - an hour
        return f"{whole // 60}m{whole % 60:02}s"
    if (minutes := round(seconds / 60)) < 1_440:  # noqa: PLR2004 - a day
        return f"{minutes // 60}h{minutes % 60:02}m"
    hours = round(seconds / 3_600)
    return f"{hours // 24}d{hours % 24:02}h"


def format_share(share: float | None) -> str:
    """A share in [0, 1] as a percentage; what is not quite nothing or everything is not rounded to it."""
    if share is None or not math.isfinite(share):
        return NOTHING
    if 0 < share < 0.0005:  # noqa: PLR2004 - would print as 0.0 %
        return "<0.1 %"
    if 0.9995 <= share < 1:  # noqa: PLR2004 - would print as 100.0 %
        return ">99.9 %"
    return f"{share * 100:.1f} %"


def format_count(count: int) -> str:
    """A whole number in at most five characters: ``99999``, ``123k``, ``1.23M``."""
    if count < 100_000:  # noqa: PLR2004 - five digits
        return str(count)
    value = float(count)
    for letter in "kMGTP":
        value /= 1000
        if value < 999.5:  # noqa: PLR2004 - above it three digits would round to 1000
            return f"{_three_digits(value)}{letter}"
    return f"{count:.0e}"


def format_number_of(count: int, what: str) -> str:
    """``1 cell``, ``1,200 cells``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def format_factor(factor: float) -> str:
    """``8x``, ``2.5x``, ``12.3x``, ``150x``: how many times."""
    digits = _three_digits(factor)
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}x"


def format_loss(loss: float | None) -> str:
    """Four significant digits."""
    return NOTHING if loss is None or not math.isfinite(loss) else f"{loss:.4g}"


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``150s``, ``2m``, ``1h30m``, ``250ms``.

    Raises:
        UsageError: anything else.
    """
    squeezed = _squeezed(text)
    found = _DURATION.fullmatch(squeezed)
    if re.fullmatch(_NUMBER, squeezed):
        seconds = float(squeezed)
    elif squeezed and found is not None:
        numbers = (Decimal(number or "0") for number in found.groups())
        seconds = float(sum(number * unit for number, unit in zip(numbers, _DURATION_UNITS_S, strict=True)))
    else:
        raise UsageError(f"{_quoted(text)} is not a duration", mend=DURATION_EXAMPLES)
    if seconds > _SECONDS_MAX:
        raise UsageError(f"{_quoted(text)} is too long a duration", why="it is over 30 years", mend=DURATION_EXAMPLES)
    return seconds


def parse_bytes(text: str) -> int:
    """Bytes from ``120000``, ``50MB`` (decimal), ``1.5GiB`` (binary); upper and lower case mean the same.

    Raises:
        UsageError: anything else, also ``50M``, which could mean either.
    """
    found = _BYTES.fullmatch(text.strip().lower()) if len(text) <= _TEXT_CHARS_MAX else None
    if found is None or found[2] not in _FACTORS:
        raise UsageError(f"{_quoted(text)} is not a number of bytes", mend=BYTES_EXAMPLES)
    exact = Decimal(found[1]) * _FACTORS[found[2]]
    if exact > _BYTES_MAX:
        raise UsageError(f"{_quoted(text)} is too many bytes", why="more than 8 EiB", mend=BYTES_EXAMPLES)
    return int(exact)


def _three_digits(value: float) -> str:
    if value < 9.995:  # noqa: PLR2004 - above it two decimals would round to 10.00
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"  # noqa: PLR2004 - would round to 100.0


def _squeezed(text: str) -> str:
    """Without blanks before units and parts, so that "38.2 s" and "1h 30m" are read; not inside a number."""
    if len(text) > _TEXT_CHARS_MAX:
        return ""
    return re.sub(r"(?<=[0-9]) (?=[a-z])|(?<=[a-z]) (?=[0-9])", "", text.strip().lower())


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _TEXT_CHARS_MAX else f"{text[:_TEXT_CHARS_MAX]}...")
