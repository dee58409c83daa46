"""A real broker for the tests that are marked `mosquitto`, and a loud word when there is none.

A skipped fault test looks like a passed one, so the end of the run says how many were skipped, whatever they needed; the
same of any test that "needs" something this machine has not. A run in which not one of those that need a broker could be run has shown nothing and fails; where CI is set each of them
is a failure.
"""

import os
from collections import Counter

import pytest

from hermes_iot.errors import UsageError
from hermes_iot.runtime import broker

SKIPPED = "needs a broker"
NONE_RUN = pytest.StashKey[bool]()


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


def pytest_sessionfinish(session, exitstatus):
    chosen = {item.nodeid for item in session.items if item.get_closest_marker("mosquitto") is not None}
    skipped = _skipped(session.config.pluginmanager.get_plugin("terminalreporter"))
    without = {report.nodeid for report, reason in skipped if SKIPPED in reason}
    if exitstatus == pytest.ExitCode.OK and chosen and chosen <= without:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[NONE_RUN] = True


def pytest_terminal_summary(terminalreporter):
    skipped = _skipped(terminalreporter)
    if not skipped:
        return
    terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
    for reason, number in Counter(reason for _, reason in skipped).items():
        what = "tests against a real broker" if SKIPPED in reason else "tests"
        terminalreporter.line(f"{number} {what} were skipped: {reason}", red=True)
    if terminalreporter.config.stash.get(NONE_RUN, False):
        terminalreporter.line("None was run, so this run fails. Without a broker: pytest -m 'not mosquitto'", red=True)


def _skipped(terminalreporter):
    """What was skipped for want of something, with its reason."""
    reports = [] if terminalreporter is None else terminalreporter.stats.get("skipped", [])
    reasons = [
        (report, report.longrepr[2].removeprefix("Skipped: "))
        for report in reports
        if isinstance(report.longrepr, tuple)
    ]
    return [one for one in reasons if one[1].startswith("needs ") or "faults/" in one[0].nodeid]
