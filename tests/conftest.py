"""Fixtures for all tests; what concerns the broker is in support/mosquitto.py, what concerns faults in faults/covered.py."""

import itertools

import pytest

from tests.faults.covered import pytest_itemcollected
from tests.support.mosquitto import mosquitto, pytest_runtest_setup, pytest_sessionfinish, pytest_terminal_summary

__all__ = [
    "mosquitto",
    "pytest_itemcollected",
    "pytest_runtest_setup",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
]

_numbers = itertools.count(1)


@pytest.fixture
def topic():
    """A topic no other test uses: tests share one broker, and it remembers."""
    return f"test/{next(_numbers)}"
