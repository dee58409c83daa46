"""Missing Mosquitto is told loudly; a run that shows nothing fails, and in CI so does each test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFTEST = """
from hermes_iot.errors import UsageError
from hermes_iot.runtime import broker

def missing():
    raise UsageError("mosquitto is not installed")

broker.find_mosquitto = missing

from tests.support.mosquitto import mosquitto, pytest_runtest_setup, pytest_sessionfinish, pytest_terminal_summary
"""

TESTS = """
import pytest

def test_without_a_broker():
    pass

@pytest.mark.mosquitto
def test_one():
    raise AssertionError("must not run")

@pytest.mark.mosquitto
def test_other(mosquitto):
    raise AssertionError("must not run")
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    mosquitto: needs the binary\n")

    def run(ci, *words):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CI": ci}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tmp_path, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    return run


def test_where_every_test_that_needs_the_binary_is_skipped_the_run_fails_and_says_how_many_and_why(run):
    result = run("")
    assert result.returncode == 1, result.stdout
    assert "1 passed, 2 skipped" in result.stdout
    assert "NOT TESTED" in result.stdout
    assert "2 tests against a real broker were skipped: needs a broker: mosquitto is not installed" in result.stdout
    assert "None was run, so this run fails. Without a broker: pytest -m 'not mosquitto'" in result.stdout


def test_who_says_that_there_is_no_broker_gets_a_run_that_passes(run):
    result = run("", "-m", "not mosquitto")
    assert result.returncode == 0, result.stdout
    assert "1 passed, 2 deselected" in result.stdout
    assert "NOT TESTED" not in result.stdout


def test_what_needs_more_than_this_machine_has_is_told_and_so_is_whatever_is_skipped_of_the_faults(run, tmp_path):
    text = "import pytest\n\ndef test_it():\n    pytest.skip({!r})\n"
    (tmp_path / "faults").mkdir()
    for name, reason in (("test_root", "needs root"), ("faults/test_F17", "no disk"), ("test_other", "no matter")):
        (tmp_path / f"{name}.py").write_text(text.format(reason))
    result = run("", "-m", "not mosquitto")
    told = [line for line in result.stdout.splitlines() if "were skipped" in line]
    assert sorted(told) == ["1 tests were skipped: needs root", "1 tests were skipped: no disk"]


def test_a_missing_binary_is_a_failure_in_ci(run):
    result = run("true")
    assert result.returncode == 1
    assert "1 passed, 2 errors" in result.stdout
    assert "CI needs a broker: mosquitto is not installed" in result.stdout
    assert "NOT TESTED" not in result.stdout
