"""Where a value comes from: the command line, else HERMES_* variables, else hermes.toml, else the default."""

import os

import pytest

from hermes_iot.cli import main
from hermes_iot.cli.connect import BrokerOptions
from hermes_iot.errors import HermesError


class Reached(HermesError):
    """The command has read its values; the test has seen enough."""


@pytest.fixture(autouse=True)
def empty_room(tmp_path, monkeypatch):
    """No configuration but the test's."""
    for name in list(os.environ):
        if name.startswith("HERMES_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def device(monkeypatch):
    """Run the device command up to its runner; what it was given."""

    def run(*words):
        seen = {}

        def runner(config, **options):
            seen.update(config=config, **options)
            raise Reached("far enough")

        def trainer_of(**options):
            seen.update(options)

        monkeypatch.setattr("hermes_iot.runtime.device.DeviceRunner", runner)
        monkeypatch.setattr("hermes_iot.runtime.trainers.for_device", trainer_of)
        assert main(["device", *words]) == 1
        return seen

    return run


@pytest.fixture
def coordinator(monkeypatch):
    """Run the coordinator command up to its bench; the run's settings, and where it would look and write."""

    def run(*words):
        seen = {}

        def look(topics, _connect, **_options):
            seen["topics"] = topics

        def bench(settings, **options):
            seen.update(settings=settings, **options)
            raise Reached("far enough")

        monkeypatch.setattr("hermes_iot.runtime.leadership.look_for_leader", look)
        monkeypatch.setattr("hermes_iot.runtime.trainers.for_coordinator", bench)
        assert main(["coordinator", *words]) == 1
        return seen

    return run


BASE = ("--broker", "mqtt://h", "--fleet", "lab")


def test_device_takes_its_values_in_this_order(device, monkeypatch, tmp_path):
    words = (*BASE, "--id", "pi-01")
    assert device(*words)["config"].slowdown == 1.0
    (tmp_path / "hermes.toml").write_text("slowdown = 2\n")
    assert device(*words)["config"].slowdown == 2.0
    monkeypatch.setenv("HERMES_SLOWDOWN", "3")
    assert device(*words)["config"].slowdown == 3.0
    assert device(*words, "--slowdown", "4")["config"].slowdown == 4.0


def test_coordinator_takes_its_values_in_this_order(coordinator, monkeypatch, tmp_path):
    words = (*BASE, "--task", "digits")
    assert coordinator(*words)["settings"].seed == 0
    (tmp_path / "hermes.toml").write_text("seed = 2\n")
    assert coordinator(*words)["settings"].seed == 2
    monkeypatch.setenv("HERMES_SEED", "3")
    assert coordinator(*words)["settings"].seed == 3
    assert coordinator(*words, "--seed", "4")["settings"].seed == 4


def test_a_device_needs_no_words_at_all(device, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    for name, value in {
        "BROKER": "mqtt://h",
        "FLEET": "attic",
        "ID": "pi-07",
        "PREFIX": "other",
        "STATE_DIR": str(tmp_path / "state"),
        "DATA_DIR": str(tmp_path / "data"),
        "ROWS": "0:20",
        "MAX_ROWS": "100",
        "ONCE": "1",
        "TASK": "digits",
    }.items():
        monkeypatch.setenv(f"HERMES_{name}", value)
    seen = device()
    config = seen["config"]
    assert (config.fleet, config.device, config.prefix) == ("attic", "pi-07", "other")
    assert (config.state_dir, config.rows_max, config.own_rows) == (tmp_path / "state", 100, 20)
    assert config.settings.once
    assert (seen["task"], seen["data_dir"], seen["rows"]) == ("digits", tmp_path / "data", slice(0, 20))


def test_a_coordinator_needs_no_words_at_all(coordinator, tmp_path):
    (tmp_path / "hermes.toml").write_text(
        """
        broker = "mqtt://h"
        fleet = "attic"
        task = "mnist"
        target-accuracy = 0.97
        max-wall = 90
        max-bytes = "50MB"
        learning-rate = 0.25
        run-dir = "here"
        telemetry = "sampled"
        strategy = "hermes"

        [hermes.gate]
        alpha = -1.5
        """
    )
    seen = coordinator()
    settings = seen["settings"]
    assert seen["topics"].fleet == "attic"
    assert (settings.task, settings.learning_rate, settings.telemetry) == ("mnist", 0.25, "sampled")
    assert (settings.rules.target_accuracy, settings.rules.max_wall_s) == (0.97, 90.0)
    assert settings.rules.max_bytes == 50_000_000
    assert settings.constants == {"gate": {"alpha": -1.5}}
    assert (tmp_path / "here").is_dir()


def test_constants_of_the_command_line_stand_over_those_of_the_file(coordinator, tmp_path):
    (tmp_path / "hermes.toml").write_text('strategy = "hermes"\n[hermes.gate]\nalpha = -1.5\nwindow = 7\n')
    seen = coordinator(*BASE, "--task", "digits", "--set", "gate.alpha=-1.0", "--set", "pushed=delta")
    assert seen["settings"].constants == {"gate": {"alpha": -1.0, "window": 7}, "pushed": "delta"}


def test_a_strategy_of_ones_own_has_a_table_too(coordinator, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Config:\n    speed: int = 1\n"
        "def build_strategy(config):\n    return config\n"
    )
    (tmp_path / "hermes.toml").write_text("[mine]\nspeed = 3\n")
    words = (*BASE, "--task", "digits")
    assert coordinator(*words, "--strategy", "mine.py")["settings"].constants == {"speed": 3}
    assert coordinator(*words, "--strategy=./mine.py")["settings"].constants == {"speed": 3}
    monkeypatch.setenv("HERMES_STRATEGY", "./mine.py")
    assert coordinator(*words)["settings"].constants == {"speed": 3}
    monkeypatch.delenv("HERMES_STRATEGY")
    (tmp_path / "hermes.toml").write_text('strategy = "./mine.py"\n[mine]\nspeed = 4\n')
    assert coordinator(*words)["settings"].constants == {"speed": 4}


def test_a_file_named_by_the_environment_gives_way_to_one_named_by_hand(device, monkeypatch, tmp_path):
    words = (*BASE, "--id", "pi-01")
    for number in (2, 3, 4):
        (tmp_path / f"{number}.toml").write_text(f"slowdown = {number}\n")
    (tmp_path / "2.toml").rename(tmp_path / "hermes.toml")
    monkeypatch.setenv("HERMES_CONFIG", "3.toml")
    assert device(*words)["config"].slowdown == 3.0
    assert device(*words, "--config", "4.toml")["config"].slowdown == 4.0
    assert device(*words, "--config=4.toml")["config"].slowdown == 4.0


def test_keys_of_other_commands_do_not_disturb(device, tmp_path):
    (tmp_path / "hermes.toml").write_text('task = "digits"\ntarget-accuracy = 0.9\ndevices = 3\nslowdown = 2\n')
    assert device(*BASE, "--id", "pi-01")["config"].slowdown == 2.0


@pytest.mark.parametrize("name", ["HERMES_NEW", "HERMES_TAKEOVER", "HERMES_JSON", "HERMES_SET"])
def test_what_a_person_decides_each_time_does_not_come_from_the_environment(coordinator, monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, "1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "registry.json").write_text("{}")
    assert coordinator(*BASE, "--task", "digits", "--run-dir", "run")["settings"].constants == {}


def test_a_demo_brings_its_own_broker_whatever_a_real_fleet_uses(monkeypatch, tmp_path):
    seen = []

    def boards(_directory):
        raise Reached("far enough")

    def place(access, **_options):
        seen.append(access)

    monkeypatch.setattr("hermes_iot.runtime.boards.Boards", boards)
    monkeypatch.setattr("hermes_iot.cli.demo.BrokerOptions.of", place)
    monkeypatch.setenv("HERMES_BROKER", "mqtt://production")
    (tmp_path / "hermes.toml").write_text('broker = "mqtt://production"\n')
    assert main(["demo"]) == 1
    assert seen == []


def test_the_password_comes_from_a_file_before_the_environment(monkeypatch, tmp_path):
    assert BrokerOptions.of("mqtt://me@h").password is None
    monkeypatch.setenv("HERMES_PASSWORD", "from-environment")
    assert BrokerOptions.of("mqtt://me@h").password == "from-environment"
    (tmp_path / "secret").write_text("from-file\n")
    assert BrokerOptions.of("mqtt://me@h", password_file=tmp_path / "secret").password == "from-file"


def test_help_names_the_variable_of_every_option_that_has_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["coordinator", "--help"]) == 0
    said = capsys.readouterr().out
    for name in ("BROKER", "FLEET", "TARGET_ACCURACY", "MAX_WALL", "CA_FILE"):
        assert f"HERMES_{name}" in said
    for name in ("TAKEOVER", "NEW", "JSON", "SET"):
        assert f"HERMES_{name}]" not in said
