"""Every mistake in a command is one line that says what, why or what mends it, with the contract's exit code.

Two processes run them all, one half each, so that they can tell afterwards what each of them loaded.
"""

import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from hermes_iot.storage.device_state import DeviceStateStore

#: Run in a process of its own: each command in turn, what it said, and what it was the first to load.
DRIVER = """
import contextlib, io, json, os, sys
from hermes_iot.cli import main

heavy = ("torch", "scipy", "sklearn", "matplotlib")
results = {}
for name, (arguments, variables) in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    before = {one for one in heavy if one in sys.modules}
    os.environ.update(variables)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    for variable in variables:
        del os.environ[variable]
    loaded = [one for one in heavy if one in sys.modules and one not in before]
    results[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "loaded": loaded}
json.dump(results, sys.stdout)
"""

COORDINATOR = "coordinator --broker mqtt://127.0.0.1:{closed} --fleet lab --task digits"
DEVICE = "device --broker mqtt://127.0.0.1:{closed} --fleet lab --id pi-01"
STATUS = "status --broker mqtt://127.0.0.1:{closed} --fleet lab"

#: name: (command, exit code, what the line says)
CASES = {
    # the command itself
    "unknown command": ("frobnicate", 2, r"No such command 'frobnicate'"),
    "unknown option": ("status --fleets lab", 2, r"No such option: --fleets .*--fleet"),
    "unknown option at the root": ("--verbos", 2, r"No such option: --verbos"),
    "missing option": ("device --broker mqtt://h --fleet lab", 2, r"Missing option '--id'.*hermes-iot device --help"),
    "missing value": ("status --broker mqtt://h --fleet", 2, r"Option '--fleet' requires an argument"),
    "a word too many": (STATUS + " now", 2, r"unexpected extra argument.*now"),
    # the broker
    "no scheme": ("status --broker broker.local --fleet lab", 2, r"'broker.local' is not understood: it has no scheme"),
    "wrong scheme": ("status --broker http://h --fleet lab", 2, r"the scheme must be mqtt or mqtts"),
    "no host": ("status --broker mqtt:// --fleet lab", 2, r"the host is missing"),
    "bad port": ("status --broker mqtt://h:99999 --fleet lab", 2, r"a port is a number from 1 to 65535"),
    "password in the address": (
        "status --broker mqtt://me:hunter2@h --fleet lab",
        2,
        r"holds a password.*HERMES_PASSWORD",
    ),
    "unreachable, coordinator": (COORDINATOR, 3, r"refused the connection: nothing listens"),
    "unreachable, device": (DEVICE + " --state-dir {tmp}/fresh", 3, r"refused the connection: nothing listens"),
    "unreachable, status": (STATUS, 3, r"refused the connection: nothing listens"),
    "unknown host": ("status --broker mqtt://no-such-host.invalid --fleet lab", 3, r"cannot be found: the host name"),
    "no CA file": (STATUS + " --ca-file {tmp}/no.pem", 2, r"there is no file .*no\.pem"),
    "no password file": (DEVICE + " --password-file {tmp}/no.txt", 2, r"there is no file .*no\.txt"),
    "a password file that is no text": (DEVICE + " --password-file {tmp}/junk.bin", 2, r"junk\.bin cannot be read"),
    "a certificate without its key": (STATUS + " --cert-file {tmp}/file", 2, r"the key is missing"),
    "TLS files without TLS": (STATUS + " --ca-file {tmp}/file", 2, r"mqtt:// is not encrypted\. Use mqtts://"),
    # names
    "bad fleet": ("status --broker mqtt://h --fleet lab/1", 2, r"fleet 'lab/1' cannot be part of a topic"),
    "long fleet": ("status --broker mqtt://h --fleet " + "x" * 65, 2, r"1 to 64 of them"),
    "bad id": ("device --broker mqtt://h --fleet lab --id pi#1", 2, r"device id 'pi#1' cannot be part of a topic"),
    "empty id": ("device --broker mqtt://h --fleet lab --id=", 2, r"device id '' cannot be part of a topic"),
    "bad prefix": (STATUS + " --prefix a+b", 2, r"prefix 'a\+b' cannot be part of a topic"),
    # task and strategy
    "unknown task": (
        "coordinator --broker mqtt://h --fleet lab --task digts",
        2,
        r"no task 'digts'.*Did you mean 'digits'",
    ),
    "unknown task, device": (DEVICE + " --task minst", 2, r"no task 'minst'.*Did you mean 'mnist'"),
    "no task file": ("coordinator --broker mqtt://h --fleet lab --task {tmp}/no.py", 2, r"no task file .*no\.py"),
    "no task file, device": (DEVICE + " --task {tmp}/no.py", 2, r"no task file .*no\.py.*--task"),
    "a task that lacks a function": (
        "coordinator --broker mqtt://h --fleet lab --task {tmp}/half.py",
        2,
        r"half\.py lacks a function load_data\(\)",
    ),
    "a task that fails": (
        "coordinator --broker mqtt://h --fleet lab --task {tmp}/broken.py",
        2,
        r"broken\.py: importing it failed: ZeroDivisionError: division by zero",
    ),
    "unknown strategy": (COORDINATOR + " --strategy hermess", 2, r"no strategy 'hermess'.*Did you mean 'hermes'"),
    "unknown strategy, device": (DEVICE + " --strategy hermess", 2, r"no strategy 'hermess'"),
    "no strategy file": (COORDINATOR + " --strategy {tmp}/no.py", 2, r"no strategy file .*no\.py.*--strategy"),
    "a strategy that lacks a part": (COORDINATOR + " --strategy {tmp}/half.py", 2, r"'half\.py' is incomplete"),
    "unknown constant": (
        COORDINATOR + " --strategy hermes --set gate.alpa=1",
        2,
        r"unknown key 'alpa' in hermes\.gate.*'alpha'",
    ),
    "unknown group": (
        COORDINATOR + " --strategy hermes --set gaet.alpha=1",
        2,
        r"unknown key 'gaet' in hermes.*'gate'",
    ),
    "constant of another type": (
        COORDINATOR + " --strategy hermes --set gate.alpha=low",
        2,
        r"constant of strategy 'hermes' cannot be used: gate\.alpha is 'low'; it must be a number",
    ),
    "constant of a few words": (
        COORDINATOR + " --set gate.kind=foo",
        2,
        r"gate\.kind is 'foo'; it must be paired or strict or norm or coin or none",
    ),
    "constant that may be none": (
        COORDINATOR + " --strategy hermes --set gate.max_age=soon",
        2,
        r"gate\.max_age is 'soon'; it must be a whole number or none",
    ),
    "constant that is a yes or no": (
        COORDINATOR + " --strategy hermes --set allocation.search_batch=maybe",
        2,
        r"allocation\.search_batch is 'maybe'; it must be true or false",
    ),
    "constant out of range": (COORDINATOR + " --set gate.window=0", 2, r"window"),
    "constant that is a group": (
        COORDINATOR + " --strategy hermes --set gate=1",
        2,
        r"hermes\.gate is 1: a table is expected",
    ),
    "set without a value": (COORDINATOR + " --set gate.alpha", 2, r"--set 'gate.alpha' is not understood"),
    "set below a value": (COORDINATOR + " --strategy hermes --set gate.alpha.x=1", 2, r"alpha"),
    "set of nothing": (COORDINATOR + " --set =1", 2, r"--set '=1' is not understood"),
    "set of brackets without end": (COORDINATOR + " --set gate.alpha=" + "[" * 3000, 2, r"nested too deeply"),
    # words and numbers
    "bad duration": (COORDINATOR + " --max-wall 2x", 2, r"'2x' is not a duration.*1h30m"),
    "bad bytes": (COORDINATOR + " --max-bytes 50M", 2, r"'50M' is not a number of bytes.*50MB"),
    "accuracy in per cent": (COORDINATOR + " --target-accuracy 97", 2, r"97.* is not in \(0, 1\].*0\.97"),
    "accuracy that is no number": (COORDINATOR + " --target-accuracy high", 2, r"'--target-accuracy': .*valid number"),
    "no patience": (COORDINATOR + " --patience 0", 2, r"--patience 0 cannot be used: it must be above 0"),
    "no pushes": (COORDINATOR + " --max-pushes 0", 2, r"--max-pushes 0 cannot be used"),
    "no time to run": (COORDINATOR + " --max-wall 0s", 2, r"--max-wall 0 cannot be used: it must be above 0"),
    "negative seed": (COORDINATOR + " --seed -1", 2, r"'--seed': .*greater than or equal to 0\. See"),
    "a seed too large for JSON": (COORDINATOR + f" --seed {2**53}", 2, r"seed is 9007199254740992"),
    "no samples": (COORDINATOR + " --samples 0", 2, r"samples is 0: it must be at least 1"),
    "no batch": (COORDINATOR + " --batch 0", 2, r"batch is 0"),
    "no epochs": (COORDINATOR + " --epochs 0", 2, r"epochs is 0"),
    "no learning rate": (COORDINATOR + " --learning-rate 0", 2, r"learning rate is 0"),
    "an infinite learning rate": (COORDINATOR + " --learning-rate inf", 2, r"learning rate is inf"),
    "negative lag": (COORDINATOR + " --lag-max -1", 2, r"lag max is -1"),
    "tiny chunks": (COORDINATOR + " --chunk-bytes 10", 2, r"chunk size is 10 bytes"),
    "huge chunks": (COORDINATOR + f" --chunk-bytes {2**29}", 2, r"chunk size is 536870912 bytes"),
    "too much validation": (COORDINATOR + " --validation 0.9", 2, r"validation fraction is 0\.9"),
    "unknown codec": (COORDINATOR + " --codec fp8", 2, r"--codec 'fp8' is not known\. Use fp32 or fp16 or bf16"),
    "codec for nobody": (COORDINATOR + " --codec-for int4", 2, r"--codec-for 'int4' is not understood.*'lte-\*=topk1'"),
    "codec for no device": (COORDINATOR + " --codec-for a/b=int4", 2, r"--codec-for 'a/b=int4' is not understood"),
    "unknown codec for some": (COORDINATOR + " --codec-for lte-*=fp8", 2, r"--codec-for 'fp8' is not known\. Use fp32"),
    "unknown fine": (COORDINATOR + " --fine biases", 2, r"--fine 'biases' is not known\. Use none or vectors"),
    "unknown data mode": (COORDINATOR + " --data remote", 2, r"--data 'remote'.*indexed or local or shipped"),
    "unknown sampling": (COORDINATOR + " --sampling twice", 2, r"--sampling 'twice'"),
    "unknown gate split": (COORDINATOR + " --gate-split none", 2, r"--gate-split 'none'"),
    "unknown telemetry": (COORDINATOR + " --telemetry loud", 2, r"--telemetry 'loud'"),
    "bad rows": (DEVICE + " --rows 10", 2, r"rows '10' are not understood.*0:2000"),
    "rows backwards": (DEVICE + " --rows 20:10", 2, r"rows '20:10' are not understood"),
    "negative rows": (DEVICE + " --rows=-5:10", 2, r"rows '-5:10' are not understood"),
    "faster than it is": (DEVICE + " --slowdown 0.5", 2, r"slowdown 0\.5 cannot be used: it is a factor from 1"),
    "slowdown that is no number": (DEVICE + " --slowdown nan", 2, r"slowdown nan cannot be used"),
    "negative memory": (DEVICE + " --max-rows -1", 2, r"'--max-rows': .*greater than or equal to 0"),
    "no time": (STATUS + " --timeout 0", 2, r"'--timeout': .*greater than"),
    "no data directory": (COORDINATOR + " --data-dir {tmp}/nowhere", 2, r"no directory .*nowhere.*--data-dir"),
    "no data directory, device": (DEVICE + " --data-dir {tmp}/nowhere", 2, r"no directory .*nowhere"),
    # files
    "no such configuration": (STATUS + " --config {tmp}/no.toml", 2, r"no configuration file .*no\.toml.*--config"),
    "not TOML": (STATUS + " --config {tmp}/bad.toml", 2, r"bad\.toml is not valid TOML: .*line 2"),
    "nested TOML": (STATUS + " --config {tmp}/deep.toml", 2, r"deep\.toml cannot be read: .*nested too deeply"),
    "not text": (STATUS + " --config {tmp}/junk.bin", 2, r"junk\.bin cannot be read"),
    "unknown key": (STATUS + " --config {tmp}/key.toml", 2, r"unknown key 'target-acuracy'.*'target-accuracy'"),
    "unknown table": (STATUS + " --config {tmp}/table.toml", 2, r"unknown key 'hermess'.*'hermes'"),
    "a table of a command": (STATUS + " --config {tmp}/command.toml", 2, r"\[coordinator\].*top level"),
    "a table for a value": (STATUS + " --config {tmp}/nested.toml", 2, r"key 'task' in .* a value is expected"),
    "a value for a table": (STATUS + " --config {tmp}/flat.toml", 2, r"key 'hermes' in .* a table is expected"),
    "a decision that is not for files": (STATUS + " --config {tmp}/takeover.toml", 2, r"unknown key 'takeover'"),
    "a value of another type": (
        COORDINATOR + " --config {tmp}/type.toml",
        2,
        r"'--seed': .*integer.*\(from the configuration file\)",
    ),
    "an unknown constant in a table": (COORDINATOR + " --config {tmp}/constant.toml", 2, r"unknown key 'alpa'"),
    "a run directory that is a file": (COORDINATOR + " --run-dir {tmp}/file", 8, r"cannot create .*/file"),
    "a new run in an old directory": (COORDINATOR + " --new --run-dir {tmp}/old", 2, r"/old holds a run already"),
    "a state directory that is a file": (DEVICE + " --state-dir {tmp}/file", 8, r"/file"),
    "a state directory in use": (DEVICE + " --state-dir {tmp}/busy", 7, r"busy is in use: process \d+ on .* has it"),
    # demo
    "two brokers": ("demo --in-memory --broker mqtt://h", 2, r"--in-memory and --broker contradict each other"),
    "no devices": ("demo --devices 0", 2, r"'--devices': .*greater than or equal to 1"),
    "unknown task, demo": ("demo --task digts", 2, r"Did you mean 'digits'"),
}

#: The same with a variable instead of an option: name: (command, variables, exit code, what the line says)
BY_VARIABLE = {
    "bad broker": ("status --fleet lab", {"HERMES_BROKER": "nonsense"}, 2, r"'nonsense' is not understood"),
    "bad number": (COORDINATOR, {"HERMES_SEED": "many"}, 2, r"'--seed': .*integer.*\(from HERMES_SEED\)"),
    "no configuration": (STATUS, {"HERMES_CONFIG": "/no/such.toml"}, 2, r"no configuration file /no/such\.toml"),
    "a table of one's own strategy": (
        COORDINATOR + " --config {tmp}/own.toml",
        {"HERMES_STRATEGY": "{tmp}/half.py"},
        2,
        r"'half\.py' is incomplete",
    ),
}

FILES = {
    "file": b"",
    "junk.bin": b"\xff\xfe\x00\x80",
    "half.py": b"def build_model():\n    pass\n",
    "broken.py": b"1 / 0\n",
    "bad.toml": b'task = "digits"\nseed = = 1\n',
    "deep.toml": b"task = " + b"[" * 3000,
    "key.toml": b"target-acuracy = 0.97\n",
    "table.toml": b"[hermess.gate]\nalpha = -1.0\n",
    "command.toml": b'[coordinator]\ntask = "digits"\n',
    "nested.toml": b'[task]\nname = "digits"\n',
    "flat.toml": b"hermes = 3\n",
    "takeover.toml": b"takeover = true\n",
    "type.toml": b'seed = "many"\n',
    "constant.toml": b'strategy = "hermes"\n[hermes.gate]\nalpa = -1.0\n',
    "own.toml": b"[half]\nspeed = 3\n",
    "old/registry.json": b"{}",
}


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every case gave: without and, where the command knows it, with --json."""
    tmp = tmp_path_factory.mktemp("errors")
    for name, content in FILES.items():
        (tmp / name).parent.mkdir(exist_ok=True)
        (tmp / name).write_bytes(content)
    places = {"tmp": tmp, "closed": closed_port()}
    cases = {}
    for name, (command, *_) in CASES.items():
        cases[name] = (command.format(**places).split(" "), {})
    for name, (command, variables, *_) in BY_VARIABLE.items():
        filled = {key: value.format(**places) for key, value in variables.items()}
        cases[name] = (command.format(**places).split(" "), filled)
    for name, (words, variables) in list(cases.items()):
        if words[0] in {"coordinator", "status", "demo"}:
            cases[f"{name} --json"] = ([words[0], "--json", *words[1:]], variables)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HERMES_")}

    def run(part):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps(dict(part)),
            cwd=tmp,
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with DeviceStateStore(tmp / "busy") as busy, ThreadPoolExecutor(2) as both:
        busy.open()
        halves = both.map(run, ([*cases.items()][::2], [*cases.items()][1::2]))
        return {name: result for half in halves for name, result in half.items()}


ALL = {**{name: case[-2:] for name, case in CASES.items()}, **{name: case[-2:] for name, case in BY_VARIABLE.items()}}


@pytest.mark.parametrize("name", ALL)
def test_a_mistake_is_one_line_with_its_exit_code(results, name):
    (code, says), result = ALL[name], results[name]
    assert "Traceback" not in result["err"]
    assert result["err"].count("\n") == 1, result["err"]
    assert result["err"].startswith("hermes-iot: ")
    assert re.search(says, result["err"]), result["err"]
    assert result["code"] == code
    assert result["out"] == ""


@pytest.mark.parametrize("name", [name for name in ALL if name != "unknown command"])
def test_with_json_a_mistake_is_one_envelope_as_well(results, name):
    result = results.get(f"{name} --json")
    if result is None:
        return  # a device has no --json
    assert result["err"] == results[name]["err"]
    document = json.loads(result["out"])
    assert document["schema"] == "hermes-iot/error/1"
    assert document["ok"] is False
    assert document["exit_code"] == result["code"] == ALL[name][0]
    error = document["error"]
    assert error["what"]
    assert error["why"] or error["mend"]
    assert all(part in result["err"] for part in (error["what"], error["mend"]))


@pytest.mark.parametrize("name", ALL)
def test_a_mistake_loads_nothing_heavy(results, name):
    assert results[name]["loaded"] == []


def test_a_password_is_not_repeated(results):
    assert "hunter2" not in results["password in the address"]["err"]
    assert "hunter2" not in results["password in the address --json"]["out"]
