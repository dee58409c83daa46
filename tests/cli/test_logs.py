"""Log lines stay one line each, whatever a peer called itself."""

import logging

import pytest

from hermes_iot.cli import logs


@pytest.fixture(autouse=True)
def _as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_hostile_host_name_moves_no_cursor_and_begins_no_line(capsys):
    logs.configure(verbose=False)
    logging.getLogger("hermes_iot").warning("host=%s", "attic\x1b[2J\nERROR all is lost")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING host=attic [2J ERROR all is lost")
