"""The broker must not matter: one script, one seed, the same bits over memory and over Mosquitto."""

import pytest

from tests.support.fleet import Lockstep, in_memory, over_mqtt

#: Large enough for several chunks per model, and unequal enough that the allocator has something to do.
TOY = {"features": 64, "classes": 10, "rows": 2000}
PACES = {"pi-01": 1e-4, "pi-02": 1.1e-4, "pi-03": 1.2e-4, "pi-04": 1e-3}


def script(connect, directory, fleet):
    with Lockstep(connect, directory, fleet=fleet, paces=PACES, toy=TOY, chunk_bytes=1024) as steps:
        return steps, steps.run()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return script(in_memory(), tmp_path_factory.mktemp("memory"), "lockstep")


def counted(summary):
    """What the summary counts, without what names this run and these bytes."""
    devices = [{key: value for key, value in row.items() if not key.startswith("bytes_")} for row in summary["devices"]]
    keys = ("accuracy", "loss", "model_version", "iterations", "wall_s", "reasons")
    return devices, *(summary[key] for key in keys), *(summary[key] for key in summary if key.startswith("updates_"))


def same(one, other):
    assert one[0].models == other[0].models
    assert one[0].final == other[0].final
    assert one[0].allocations == other[0].allocations
    assert counted(one[1]) == counted(other[1])


def test_the_script_trains_and_reallocates(reference):
    fleet, summary = reference
    assert summary["updates_applied"] == 12
    assert [version for version, _ in fleet.models] == list(range(13))
    assert len({digest for _, digest in fleet.models}) == 13
    assert max(version for _, version, _, _ in fleet.allocations) > 1, "nobody was reallocated"
    assert summary["iterations"] > summary["updates_published"]


def test_the_same_script_in_memory_twice_gives_the_same_bits(reference, tmp_path):
    same(reference, script(in_memory(), tmp_path, "lockstep"))


@pytest.mark.mosquitto
def test_the_same_script_over_mosquitto_gives_the_same_bits(reference, mosquitto, tmp_path):
    same(reference, script(over_mqtt(mosquitto), tmp_path, "lockstep"))
