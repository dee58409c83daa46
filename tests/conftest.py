"""Fixtures for all tests; what concerns the broker is in support/mosquitto.py."""

import itertools

import pytest

from tests.support.mosquitto import mosquitto, pytest_runtest_setup, pytest_terminal_summary

__all__ = ["mosquitto", "pytest_runtest_setup", "pytest_terminal_summary"]

_numbers = itertools.count(1)


@pytest.fixture
def topic():
    """A topic no other test uses: tests share one broker, and it remembers."""
    return f"test/{next(_numbers)}"
