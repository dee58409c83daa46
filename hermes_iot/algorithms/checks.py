"""One line per field to validate a configuration dataclass, and one line for the person when it does not hold.

Configurations come from a person's TOML file or from a run's manifest, so a field may hold any JSON type.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from hermes_iot.errors import UsageError

#: Mini-batches of one iteration; nobody means more.
STEPS_MAX: Final = 10**6


def require_option(config: Any, name: str, literal: Any) -> None:
    """The field is one of the words of a `Literal`.

    Raises:
        UsageError: it is not.
    """
    options = get_args(literal)
    if getattr(config, name) not in options:
        raise refusal(config, name, " or ".join(options))


def require_whole(config: Any, name: str, least: int, most: int) -> None:
    """The field is a whole number in [least, most]; true and 3.0 are not.

    Raises:
        UsageError: it is not.
    """
    value = getattr(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise refusal(config, name, f"a whole number from {least} to {most}")


def require_number(config: Any, name: str, least: float, most: float) -> None:
    """The field is a number in [least, most]; NaN is in no such range.

    Raises:
        UsageError: it is not.
    """
    value = getattr(config, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        raise refusal(config, name, f"a number from {least:g} to {most:g}")


def refusal(config: Any, name: str, wanted: str) -> UsageError:
    """The error for a field that is not what it must be."""
    owner = type(config).__name__.removesuffix("Config").lower()
    return UsageError(f"{owner} {name} {getattr(config, name)!r:.60} cannot be used", why=f"it must be {wanted}")
