"""Fleets and links: what a person writes, and what is wrong with it."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from hermes_iot.errors import UsageError
from hermes_iot.runtime.simulation.profiles import (
    ROWS_MAX,
    SLOWNESS_MAX,
    Group,
    LinkProfile,
    fleet_of,
    link_of,
    shipped,
)
from tests.simulation.fleets import FOUR, devices, toy_run

ROOT = Path(__file__).parents[2]

FLEETS = {
    "azure12": 12,
    "churn12": 12 + 2,
    "edge1000": 1_000,
    "edge10000": 10_000,
    "equal12": 12,
    "extreme12": 12,
    "mild12": 12,
    "pi-mix": 12,
}


def written(tmp_path, text, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_every_fleet_that_comes_along_can_be_read_and_has_its_boards():
    assert {name: fleet_of(name).devices for name in shipped("fleets")} == FLEETS


def test_every_link_that_comes_along_can_be_read():
    assert shipped("links") == ("asym", "slow1", "wifi20")
    assert link_of("wifi20") == LinkProfile(up_mbit=20, down_mbit=20, latency_s=0.020)
    assert (link_of("asym").up_mbit, link_of("asym").down_mbit) == (1, 5)


def test_the_papers_fleet_is_two_fast_boards_and_a_factor_of_eight():
    slowness = [group.slowness for group in fleet_of("azure12").groups for _ in group.devices]
    assert slowness == [1, 1, 1.6, 1.6, 1.6, 2.4, 2.4, 2.4, 4, 4, 8, 8]


def test_a_wheel_carries_the_profiles_where_they_are_looked_for():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {f"devices/{kind}": f"hermes_iot/profiles/{kind}" for kind in ("fleets", "links")}
    assert all((ROOT / source).is_dir() for source in included)


def test_a_fleet_of_ones_own_is_named_by_its_path(tmp_path):
    text = """
    batch_s = 0.02
    [[groups]]
    name = "pi"
    count = 12
    slowness = 3
    availability = { up_s = 600, down_s = 60 }
    battery = { batch_j = 0.5, capacity_j = 1000 }
    link = { up_mbit = 1 }
    """
    fleet = fleet_of(written(tmp_path, text))
    group = fleet.groups[0]
    assert (fleet.name, fleet.batch_s, group.slowness) == ("mine", 0.02, 3.0)
    assert list(group.devices)[::11] == ["pi-01", "pi-12"]
    wifi = link_of("wifi20")
    assert group.link.over(wifi) == LinkProfile(up_mbit=1, down_mbit=wifi.down_mbit, latency_s=wifi.latency_s)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_s = 0.01\nbatches = 3\n", ["'batches'", "mine.toml", "'batch_s'"]),
        (
            "batch_s = 0.01\n[[groups]]\nname='pi'\nslowness=1\nslownes=2\n",
            ["'slownes'", "mine.toml", "pi", "'slowness'"],
        ),
        (
            "batch_s=0.01\n[[groups]]\nname='pi'\nslowness=1\nbattery={joules=3}\n",
            ["'joules'", "mine.toml", "battery", "batch_j"],
        ),
        ("batch_s = 0.01\n[[groups]]\nname='pi'\nslowness='two'\n", ["mine.toml", "slowness"]),
        ("batch_s = 0.01\n[[groups]]\nname='pi'\nslowness=0\n", ["mine.toml", "'pi'", "slowness is 0"]),
        ("batch_s = 0.01\n[[groups]]\nname='pi'\nslowness=1.1e6\n", ["mine.toml", "'pi'", "slowness is 1.1e+06"]),
        (
            "batch_s = 0.01\n[[groups]]\nname='pi'\nslowness=1\nmemory_rows_max=9007199254740993\n",
            ["mine.toml", "'pi'", "memory_rows_max is 9007199254740993", "9007199254740991"],
        ),
        (
            f"batch_s = 0.01\n[[groups]]\nname='pi'\nslowness=1\nmemory_rows_max=1{'0' * 400}\n",
            ["mine.toml", "memory_rows_max"],
        ),
        ("batch_s = 0.01\n[[groups]]\nname='pi'\nmemory_rows_max=-1\nslowness=1\n", ["memory_rows_max is -1"]),
        *(
            (
                f"batch_s=0.01\n[[groups]]\nname='pi'\nslowness=1\navailability={{ {power} }}\n",
                ["mine.toml", f"{name} is {value}", "from 1"],
            )
            for power, name, value in (
                ("up_s=1e-6, down_s=60", "up_s", "1e-06"),
                ("up_s=60, down_s=0.99", "down_s", "0.99"),
                ("up_s=inf, down_s=60", "up_s", "inf"),
            )
        ),
        *(
            (
                f"batch_s=0.01\n[[groups]]\nname='pi'\nslowness=1\njoin_at_s=5\n{name}={value}\n",
                ["mine.toml", "'pi'", f"{name} is {value}", "later than join_at_s, 5"],
            )
            for name, value in (("leave_at_s", 2), ("leave_at_s", 5), ("crash_at_s", 2), ("leave_at_s", "inf"))
        ),
        ("batch_s = 0.01\n[[groups]]\nname='pi'\n", ["mine.toml", "slowness"]),
        ("batch_s = 0.01\ngroups = []\n", ["mine.toml", "no groups"]),
        ("batch_s = nan\n[[groups]]\nname='pi'\nslowness=1\n", ["mine.toml", "batch_s is nan"]),
        ("batch_s = 0.01\n[[groups]]\nname='a'\nslowness=1\n[[groups]]\nname='a'\nslowness=1\n", ["mine.toml", "'a'"]),
        (
            "batch_s = 0.01\n[[groups]]\nname='a'\nnames=['x','x']\ncount=2\nslowness=1\n",
            ["mine.toml", "board 'x' is there twice"],
        ),
        (
            "batch_s=0.01\n[[groups]]\nname='a'\nslowness=1\n[[groups]]\nname='b'\nnames=['a-1']\nslowness=1\n",
            ["mine.toml", "board 'a-1' is there twice"],
        ),
        ("batch_s = 0.01\n[[groups]]\nname='a b'\nslowness=1\n", ["mine.toml", "'a b'"]),
        ("batch_s = 0.01\nname = 'x'\n", ["'name'", "mine.toml"]),
        ("batch_s = \n", ["mine.toml", "not valid TOML"]),
        (f"batch_s = {'[' * 3000}", ["mine.toml", "cannot be read", "nested too deeply"]),
        (f"batch_s = {'9' * 5000}", ["mine.toml", "cannot be read", "thousands of digits"]),
    ],
)
def test_what_is_wrong_with_a_fleet_is_said_on_one_line_with_file_and_key(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        fleet_of(written(tmp_path, text))
    line = str(caught.value)
    assert "\n" not in line
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("up_mbit = 1\ndown_mbit = 0\n", ["mine.toml", "down_mbit is 0"]),
        ("up_mbit = 1\ndown_mbit = 1\nlatency = 3\n", ["mine.toml", "'latency'", "'latency_s'"]),
        ("up_mbit = 1\ndown_mbit = 1\nloss = 1.0\n", ["mine.toml", "loss is 1.0"]),
    ],
)
def test_what_is_wrong_with_a_link_is_said_the_same_way(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        link_of(written(tmp_path, text))
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_board_at_every_bound_is_heard_by_its_coordinator():
    group = Group(name="most", slowness=SLOWNESS_MAX, memory_rows_max=ROWS_MAX)
    outcome = toy_run(replace(FOUR, groups=(*FOUR.groups, group)), virtual_s=2.0)
    assert devices(outcome)["most-1"]["host"] == "most"


def test_a_name_that_does_not_exist_gets_the_nearest_one():
    with pytest.raises(UsageError, match="'azure12'"):
        fleet_of("azure21")
    with pytest.raises(UsageError, match="there is no file"):
        fleet_of("somewhere/azure12.toml")
