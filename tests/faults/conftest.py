"""Directories that a Mosquitto started by root may use."""

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def store():
    """Where a broker keeps what it persists; pytest's own directories are closed to its user."""
    directory = Path(tempfile.mkdtemp(prefix="hermes-faults-"))
    directory.chmod(0o755)
    yield directory / "store"
    shutil.rmtree(directory)
