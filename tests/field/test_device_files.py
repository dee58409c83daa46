"""devices/: every setting there is one that the command line takes, and the unit is one that systemd takes."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hermes_iot import cli
from hermes_iot.cli import files
from hermes_iot.cli.app import command
from hermes_iot.config import read_toml
from hermes_iot.errors import IdConflict, Incompatible, UsageError
from hermes_iot.storage.device_state import state_directory
from hermes_iot.training.download import cache_dir
from hermes_iot.transport.address import BrokerAddress
from tests.field.conftest import ROOT

DEVICES = ROOT / "devices"
UNIT = DEVICES / "hermes-iot-device.service"
PROFILES = sorted(DEVICES.glob("*.toml"))
VERIFY_S = 60.0


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch):
    for name in ("CONFIG", "BROKER", "FLEET", "ID", "PASSWORD", "PASSWORD_FILE", "DATA_DIR", "STATE_DIR"):
        monkeypatch.delenv(f"HERMES_{name}", raising=False)


@pytest.fixture
def systemd_says():
    """What systemd finds wrong with a unit file and its drop-ins; what it says of this machine's own units is left out."""
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("NO SYSTEMD: systemd-analyze is not installed, so no unit was verified")

    def verify(unit):
        command_line = [found, "verify", "--man=no", unit]
        result = subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=VERIFY_S)
        return [line for line in result.stderr.splitlines() if unit.name in line]

    return verify


def parsed(unit):
    """The unit as sections of settings (a setting that stands twice keeps its last value)."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(unit.read_text())
    return parser


# --- settings ---


def test_there_is_a_profile_for_every_family_the_readme_names():
    named = set(re.findall(r"\]\(([a-z0-9-]+\.toml)\)", (DEVICES / "README.md").read_text()))
    assert {path.name for path in PROFILES} == named != set()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_key_of_a_profile_is_an_option_of_the_device_command(profile):
    defaults, constants = files.read(["device", "--config", str(profile)], command())
    assert len(defaults["device"]) == len(read_toml(profile))
    assert constants == {}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_all_that_the_device_command_needs(profile):
    root = command()
    defaults, _ = files.read(["device", "--config", str(profile)], root)
    with root.commands["device"].make_context(
        "device", ["--config", str(profile)], default_map=defaults["device"]
    ) as it:
        given = it.params
    values = read_toml(profile)
    assert (given["device_id"], given["fleet"]) == (values["id"], values["fleet"])
    assert given["max_rows"] == values.get("max-rows", 0)
    assert BrokerAddress.parse(given["broker"]).username == values["id"], "the access list goes by user name"


def test_a_key_that_no_command_knows_is_refused(tmp_path):
    profile = tmp_path / "hermes.toml"
    profile.write_text(PROFILES[0].read_text().replace("fleet =", "flet ="))
    with pytest.raises(UsageError, match="Did you mean 'fleet'"):
        files.read(["device", "--config", str(profile)], command())


def test_the_keys_the_readme_explains_exist():
    readme = (DEVICES / "README.md").read_text()
    table = readme[readme.index("| key | |") : readme.index("**Memory.**")]
    explained = [
        key for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`([^`]+)`", row)
    ]
    options = {word.lstrip("-") for param in command().commands["device"].params for word in param.opts}
    assert len(explained) >= 8
    assert set(explained) <= options


# --- the unit ---


def test_systemd_finds_nothing_wrong_with_the_unit(systemd_says, tmp_path):
    program = Path(sys.executable).parent / "hermes-iot"
    assert program.is_file(), "hermes-iot is not installed beside this interpreter"
    shipped = UNIT.read_text()
    there = "ExecStart=/opt/hermes-iot/venv/bin/hermes-iot "
    assert shipped.count(there) == 1
    unit = tmp_path / UNIT.name
    unit.write_text(shipped.replace(there, f"ExecStart={program} "))
    assert systemd_says(unit) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("PrivateTmp=yes", "PrivateTmp=perhaps"),
        ("Restart=on-failure", "Restart=sometimes"),
        ("RestartSec", "RestartSex"),
    ],
)
def test_systemd_would_notice_a_mistake_in_the_unit(systemd_says, tmp_path, right, wrong):
    unit = tmp_path / UNIT.name
    text = UNIT.read_text().replace("/opt/hermes-iot/venv/bin/hermes-iot", "/usr/bin/env")
    assert text.count(right) == 1
    unit.write_text(text.replace(right, wrong))
    assert systemd_says(unit) != []


def test_systemd_takes_the_brokers_limits(systemd_says, tmp_path):
    unit = tmp_path / "mosquitto.service"
    unit.write_text("[Service]\nExecStart=/usr/bin/env true\n")
    drop_in = tmp_path / "mosquitto.service.d" / "limits.conf"
    drop_in.parent.mkdir()
    shutil.copy(ROOT / "broker" / "limits.conf", drop_in)
    assert systemd_says(unit) == []
    drop_in.write_text("[Service]\nLimitNOFILE=many\n")
    assert systemd_says(unit) != []


def test_the_unit_gives_up_on_what_trying_again_does_not_mend():
    final = {error.exit_code for error in (UsageError, Incompatible, IdConflict)}
    service = parsed(UNIT)["Service"]
    assert service["Restart"] == "on-failure"
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == final


def test_the_unit_leaves_more_time_to_leave_than_the_ten_seconds_a_drain_may_take():
    assert int(parsed(UNIT)["Service"]["TimeoutStopSec"]) > 10


def test_the_units_command_line_is_one_that_the_program_understands():
    _, *arguments = parsed(UNIT)["Service"]["ExecStart"].split()
    assert arguments[0] in command().commands
    with pytest.raises(UsageError, match=r"/etc/hermes-iot/hermes\.toml"):
        files.read(arguments, command())  # understood; the file is the board's


def test_what_the_unit_sets_in_the_environment_is_read(monkeypatch):
    names = {word.partition("=")[0] for word in parsed(UNIT)["Service"]["Environment"].split()}
    assert names == {"HERMES_STATE_DIR", "XDG_CACHE_HOME"}
    assert state_directory("lab", "pi-01", {"HERMES_STATE_DIR": "/state"}) == Path("/state/lab/pi-01")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_dir("digits").is_relative_to("/cache")


def test_a_wrong_setting_is_final_and_a_broker_that_is_away_is_not(tmp_path, monkeypatch, capsys, free_port):
    final = {int(code) for code in parsed(UNIT)["Service"]["RestartPreventExitStatus"].split()}
    monkeypatch.setenv("HERMES_STATE_DIR", str(tmp_path / "state"))
    settings = tmp_path / "hermes.toml"
    settings.write_text(f'broker = "mqtt://127.0.0.1:{free_port}"\nfleet = "lab"\nid = "pi-01"\n')
    assert cli.main(["device", "--config", str(settings)]) not in {0, *final}
    assert "nothing listens" in capsys.readouterr().err
    settings.write_text('broker = "mqtt://127.0.0.1"\nfleet = "lab"\nid = "not an id"\n')
    assert cli.main(["device", "--config", str(settings)]) in final


# --- what a person types ---


@pytest.mark.parametrize("folder", ["broker", "devices", "examples"])
def test_the_commands_of_a_readme_are_shell(folder):
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / folder / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        checked = subprocess.run(
            ["sh", "-n"], input=block, capture_output=True, text=True, check=False, timeout=VERIFY_S
        )
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("folder", ["broker", "devices", "examples"])
def test_the_options_a_readme_gives_to_hermes_iot_exist(folder):
    text = (ROOT / folder / "README.md").read_text()
    commands = command().commands
    used = re.findall(r"hermes-iot (demo|coordinator|device|status)((?:[^`\n]|\\\n)*)", text)
    for name, rest in used:
        known = {word for param in commands[name].params for word in (*param.opts, *param.secondary_opts)}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= {*known, "--help"}
