"""A real broker for the tests that are marked `mosquitto`, and a loud word when there is none.

A skipped fault test looks like a passed one, so the end of the run says how many were skipped; where CI is set it is
no skip but a failure.
"""

import os

import pytest

from hermes_iot.errors import UsageError
from hermes_iot.runtime import broker

SKIPPED = "needs a broker"


@pytest.fixture(scope="session")
def mosquitto():
    """The URL of a Mosquitto for the whole session; use a topic of your own."""
    with broker.MosquittoBroker() as running:
        yield running.url


def pytest_runtest_setup(item):
    if item.get_closest_marker("mosquitto") is None:
        return
    try:
        broker.find_mosquitto()
    except UsageError as error:
        if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
            pytest.fail(f"CI {SKIPPED}: {error}", pytrace=False)
        pytest.skip(f"{SKIPPED}: {error}")


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get("skipped", [])
    skipped = [report for report in reports if isinstance(report.longrepr, tuple) and SKIPPED in report.longrepr[2]]
    if skipped:
        reason = skipped[0].longrepr[2].removeprefix("Skipped: ")
        terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests against a real broker were skipped: {reason}", red=True)
