"""What travels is known without anything heavy: `status` and `--help` load the protocol and must stay quick."""

import json
import subprocess
import sys

HEAVY = {"numpy", "torch", "scipy", "paho", "tinydb", "typer", "safetensors", "sklearn", "matplotlib"}
IMPURE = {"asyncio", "socket"}

SCRIPT = """
import importlib, json, pkgutil, sys
import hermes_iot.protocol
names = [m.name for m in pkgutil.walk_packages(hermes_iot.protocol.__path__, "hermes_iot.protocol.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted(name.partition(".")[0] for name in sys.modules)]))
"""


def loaded():
    """The protocol's modules, and the top-level packages that a fresh interpreter holds after importing them all."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    names, packages = json.loads(done.stdout)
    return set(names), set(packages)


def test_importing_the_protocol_loads_no_heavy_library():
    names, packages = loaded()
    assert {f"hermes_iot.protocol.{name}" for name in ("topics", "messages", "codec", "chunks", "wire")} <= names
    assert not packages & (HEAVY | IMPURE)
