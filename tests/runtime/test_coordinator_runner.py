"""The coordinator's shell: what it leaves behind, what it comes back to, and whom it gives way to."""

import json
import threading
import time

import numpy as np
import pytest

from hermes_iot.core.coordinator import STRANGERS_TOLD, CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.core.effects import Remember
from hermes_iot.core.stopping import StopRules
from hermes_iot.errors import AccessDenied, IdConflict, Incompatible, StorageError, UsageError
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Allocation, CoordinatorStatus, DeviceStatus, ModelHead, RunManifest
from hermes_iot.protocol.topics import NAME, Topics
from hermes_iot.runtime import leadership
from hermes_iot.runtime.manifest import new_run_id
from hermes_iot.storage.checkpoints import CheckpointStore
from hermes_iot.storage.registry import Registry
from hermes_iot.transport.base import Delivery, Refused
from hermes_iot.transport.memory import MemoryBroker, MemoryTransport
from tests.support.fleet import (
    Records,
    Running,
    in_memory,
    over_mqtt,
    running,
    toy_config,
    toy_coordinator,
    toy_device,
)

TOPICS = Topics("lab")
ENDLESS = StopRules()


@pytest.fixture
def broker():
    return MemoryBroker(clock=time.monotonic)


def word(broker, topic, kind):
    return codec.decode_json(broker.retained[topic], kind, Limits())


def leader(broker):
    return word(broker, TOPICS.all("coordinator"), CoordinatorStatus)


def led(connect, tmp_path, *names, run="run", **options):
    """A whole short run; its summary."""
    coordinator = toy_coordinator(connect, tmp_path / run, **options)
    with running(coordinator, *(toy_device(connect, tmp_path, name) for name in names)) as (one, *_):
        return one.wait()


# --- ends -----------------------------------------------------------------------------------------------------------


def test_after_the_end_nobody_seems_to_lead_and_the_next_run_may_begin(broker, tmp_path):
    connect = in_memory(broker)
    first = led(connect, tmp_path, "pi-01", run="one")
    assert leader(broker).state == "offline"
    assert word(broker, TOPICS.all("run"), RunManifest).state == "finished"
    begun = time.monotonic()
    second = led(connect, tmp_path, "pi-01", run="two")
    assert time.monotonic() - begun < leadership.SILENT_S, "nobody was there to wait for"
    assert first["run"] != second["run"]
    assert second["updates_applied"] == 12


def test_the_books_balance_at_the_end(broker, tmp_path):
    summary = led(in_memory(broker), tmp_path, "pi-01", "pi-02")
    outcomes = ("applied", "duplicate", "stale", "rejected")
    assert summary["updates_received"] == sum(summary[f"updates_{outcome}"] for outcome in outcomes)
    assert {row["device"] for row in summary["devices"]} == {"pi-01", "pi-02"}
    assert json.loads(json.dumps(summary)) == summary


def test_a_stop_leaves_a_run_that_can_be_resumed_where_it_was(broker, tmp_path):
    connect, records = in_memory(broker), Records()
    config = toy_config(rules=ENDLESS)
    with running(
        toy_coordinator(connect, tmp_path / "run", config=config, on_record=records),
        toy_device(connect, tmp_path, "pi-01"),
    ) as (one, device):
        records.wait("merge", 5)
        one.leave()
        assert one.wait() is None
        assert leader(broker).state == "offline"
        before = one.runner
        version = before.machine.version
        allocation = word(broker, TOPICS.down("pi-01", "alloc"), Allocation)
        again = toy_coordinator(connect, tmp_path / "run", config=toy_config(rules=StopRules(max_pushes=version + 5)))
        assert again.run_id == before.run_id
        assert again.resumed_version == version
        assert np.array_equal(again.machine.model, before.machine.model)
        with running(again) as two:
            summary = two.wait()
        assert summary["updates_applied"] >= version + 5
        assert summary["model_version"] == summary["updates_applied"]
        assert word(broker, TOPICS.down("pi-01", "alloc"), Allocation).version >= allocation.version
        device.wait()


def test_a_full_disk_ends_the_run_with_one_line_and_devices_are_told(broker, tmp_path):
    settings = CoordinatorSettings(checkpoint_interval_s=0.0)
    coordinator = toy_coordinator(
        in_memory(broker), tmp_path / "run", config=toy_config(rules=ENDLESS), settings=settings
    )
    (tmp_path / "run" / "checkpoints").write_text("a file where the directory should be")
    device = toy_device(in_memory(broker), tmp_path, "pi-01")
    with running(coordinator, device) as (one, other):
        error = one.ended()
        assert isinstance(error, StorageError)
        assert error.exit_code == 8
        assert str(tmp_path / "run") in str(error)
        assert leader(broker).state == "offline", "devices would wait for answers that do not come"
        assert other.runner.running, "devices go on"
    Registry(tmp_path / "run" / "registry.json").close()  # the lock is free again


def test_a_bug_ends_the_run_and_devices_are_told(broker, tmp_path):
    def on_record(event, _fields):
        if event == "merge":
            raise RuntimeError("a bug of ours")

    coordinator = toy_coordinator(in_memory(broker), tmp_path / "run", on_record=on_record)
    with running(coordinator, toy_device(in_memory(broker), tmp_path, "pi-01")) as (one, _):
        assert str(one.ended()) == "a bug of ours"
    assert leader(broker).state == "offline"


def test_an_access_list_that_refuses_a_topic_ends_the_run(broker, tmp_path):
    coordinator = toy_coordinator(in_memory(broker), tmp_path / "run")
    with running(coordinator) as one:
        coordinator.inbox.post(Refused(topic="hermes/v1/lab/all/run", reason="Not authorized"))
        assert isinstance(one.ended(), AccessDenied)


# --- one run, one directory -----------------------------------------------------------------------------------------


def test_a_directory_with_an_ended_run_is_not_used_for_another(broker, tmp_path):
    summary = led(in_memory(broker), tmp_path, "pi-01")
    with pytest.raises(UsageError, match=f"holds run {summary['run']} of fleet 'lab', which is finished"):
        toy_coordinator(in_memory(broker), tmp_path / "run")


def test_another_fleets_directory_is_not_used(broker, tmp_path):
    toy_coordinator(in_memory(broker), tmp_path / "run", fleet="attic").close()
    with pytest.raises(UsageError, match="of fleet 'attic', which is running"):
        toy_coordinator(in_memory(broker), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 0.5}, "learning rate None, not 0.5"),
        ({"seed": 4}, "seed 3, not 4"),
        ({"data_mode": "local"}, "data mode 'indexed', not 'local'"),
        ({"constants": {"gate": {"window": 5}}}, "constants {}, not"),
        ({"task": "other"}, "task 'toy', not 'other'"),
    ],
)
def test_a_run_goes_on_with_the_settings_it_was_begun_with_or_not_at_all(broker, tmp_path, changes, said):
    toy_coordinator(in_memory(broker), tmp_path / "run").close()
    with pytest.raises(UsageError, match=f"was begun with {said}.*--new"):
        toy_coordinator(in_memory(broker), tmp_path / "run", config=toy_config(**changes))


def test_a_run_may_go_on_until_something_else_and_from_another_folder(broker, tmp_path):
    path = tmp_path / "examples" / "toy.py"
    first = toy_coordinator(in_memory(broker), tmp_path / "run", config=toy_config(task=str(path)))
    first.close()
    config = toy_config(task="toy.py", rules=StopRules(max_wall_s=1e6))
    again = toy_coordinator(in_memory(broker), tmp_path / "run", config=config)
    again.close()
    assert again.run_id == first.run_id


def test_settings_that_a_newer_version_wrote_are_not_guessed_at(broker, tmp_path):
    toy_coordinator(in_memory(broker), tmp_path / "run").close()
    with Registry(tmp_path / "run" / "registry.json") as registry:
        (run,) = registry.runs()
        registry.run_started("newer", fleet="lab", task="toy", strategy="x", config={"task": 5}, created_at="2099")
    with pytest.raises(StorageError, match="settings of run newer"):
        toy_coordinator(in_memory(broker), tmp_path / "run")
    assert run["state"] == "running"


def test_a_checkpoint_of_another_model_is_refused(broker, tmp_path):
    coordinator = toy_coordinator(in_memory(broker), tmp_path / "run", config=toy_config(rules=ENDLESS))
    with running(coordinator) as one:
        one.leave()
    with pytest.raises(Incompatible, match="was of another model: 36 parameters there, 99 now"):
        toy_coordinator(
            in_memory(broker), tmp_path / "run", config=toy_config(rules=ENDLESS), toy={"features": 32, "classes": 3}
        )


@pytest.mark.parametrize("task", ["übung.py", "сеть.py", "a b.py", ".py", "-.py", "x" * 200 + ".py", "naïve/päth.py"])
def test_a_tasks_name_in_any_script_gives_a_run_id_that_topics_take(task):
    assert NAME.fullmatch(new_run_id(task))


# --- the registry ---------------------------------------------------------------------------------------------------


def birth(name):
    payload = codec.encode_json(DeviceStatus(state="online", session=1, instance="i"))
    return Delivery(topic=TOPICS.up(name, "status"), payload=payload)


def work_off(runner):
    while (event := runner.inbox.take(timeout_s=0)) is not None:
        runner.handle(event)


def test_a_burst_of_births_is_few_writes_and_no_allocation_is_sent_before_it_is_on_disk(broker, tmp_path, monkeypatch):
    coordinator = toy_coordinator(in_memory(broker), tmp_path / "run", clock=lambda: 0.0)
    saves, early = [], []
    save = coordinator.run_dir.registry._storage.save
    monkeypatch.setattr(coordinator.run_dir.registry._storage, "save", lambda: (saves.append(1), save())[1])

    def look(event):
        if isinstance(event, Delivery) and event.payload:
            device = event.topic.split("/")[4]
            with Registry(tmp_path / "run" / "registry.json", read_only=True) as registry:
                known = registry.allocations_of(coordinator.run_id)
            if device not in known:
                early.append(device)

    viewer = MemoryTransport(broker, client_id="viewer")
    viewer.subscribe((TOPICS.down("+", "alloc"),))
    viewer.start(look, timeout_s=1)
    coordinator.start()
    for number in range(50):
        coordinator.inbox.deliver(birth(f"pi-{number}"))
    work_off(coordinator)
    assert len([topic for topic in broker.retained if topic.endswith("/alloc")]) == 50
    assert early == []
    assert len(saves) == 1
    coordinator.close()


def test_under_lasting_load_nothing_waits_longer_than_a_moment_to_be_recorded(broker, tmp_path):
    now = [0.0]
    coordinator = toy_coordinator(in_memory(broker), tmp_path / "run", clock=lambda: now[0])
    coordinator.start()
    work_off(coordinator)
    for number in range(10):
        coordinator.inbox.deliver(birth(f"pi-{number}"))
    coordinator.handle(coordinator.inbox.take(timeout_s=0))
    assert TOPICS.down("pi-0", "alloc") not in broker.retained
    now[0] = 0.06
    coordinator.handle(coordinator.inbox.take(timeout_s=0))
    assert TOPICS.down("pi-0", "alloc") in broker.retained
    coordinator.close()


def test_what_was_held_back_is_recorded_before_it_leaves(broker, tmp_path):
    coordinator = toy_coordinator(in_memory(broker), tmp_path / "run", clock=lambda: 0.0)
    with running(coordinator) as one:
        coordinator.inbox.post(birth("pi-01"))
        coordinator.stop()
        assert one.wait() is None
    with Registry(tmp_path / "run" / "registry.json", read_only=True) as registry:
        assert set(registry.allocations_of(coordinator.run_id)) == {"pi-01"}


class Keeping(MemoryTransport):
    """A coordinator's transport, as its command makes it; looks at the journal whenever something is acknowledged."""

    def __init__(self, broker, client_id, will, unsynced):
        super().__init__(broker, client_id=client_id, will=will, session_expiry_s=3600, manual_ack=True)
        self.unsynced = unsynced
        self.acknowledged = 0

    def acknowledge(self, receipts):
        assert not self.unsynced(), "the broker may forget what is in no journal"
        self.acknowledged += len(receipts)
        super().acknowledge(receipts)


def keeping(broker, runners, transports):
    def connect(client_id, will):
        if will is None:
            return MemoryTransport(broker, client_id=client_id)
        transports.append(Keeping(broker, client_id, will, lambda: runners[-1].run_dir.unsynced))
        return transports[-1]

    return connect


def test_the_broker_may_forget_an_update_only_once_it_is_in_the_journal(broker, tmp_path):
    runners, transports = [], []
    runners.append(toy_coordinator(keeping(broker, runners, transports), tmp_path / "run"))
    with running(runners[0], toy_device(in_memory(broker), tmp_path, "pi-01")) as (one, _):
        one.wait()
    assert transports[0].acknowledged > 12, "twelve updates, and a birth"


def test_an_update_that_could_not_be_written_is_the_next_coordinators(broker, tmp_path, monkeypatch):
    runners, transports = [], []
    connect = keeping(broker, runners, transports)
    config = toy_config(rules=ENDLESS)
    runners.append(toy_coordinator(connect, tmp_path / "run", config=config))
    broken = StorageError("the disk is gone")

    def sync():
        if runners[0].machine.version == 3:
            raise broken
        type(runners[0].run_dir).sync(runners[0].run_dir)

    monkeypatch.setattr(runners[0].run_dir, "sync", sync)
    with running(runners[0], toy_device(in_memory(broker), tmp_path, "pi-01")) as (one, other):
        assert one.ended() is broken
        other.leave()
    records = Records()
    runners.append(toy_coordinator(connect, tmp_path / "run", config=config, on_record=records))
    assert runners[1].machine.version == 2
    with running(runners[1]):
        records.wait("merge", version=3)


def test_a_shard_fetched_ahead_is_still_known_after_a_restart(broker, tmp_path):
    coordinator = toy_coordinator(in_memory(broker), tmp_path / "run")
    given = Allocation(
        run=coordinator.run_id,
        device="pi-01",
        version=7,
        samples=9,
        batch=3,
        shard="a" * 64,
        shard_bytes=100,
        next_shard="b" * 64,
        next_shard_bytes=200,
        reason="next shard",
    )
    coordinator.run_dir.remember(coordinator.run_id, [Remember(allocations={"pi-01": given})])
    coordinator._perform(coordinator.machine.stop(now=0.0)[:1])  # its checkpoint
    restored = coordinator.run_dir.restored(coordinator.run_id)
    coordinator.close()
    assert restored.allocations == {"pi-01": given}


# --- the keyframe ---------------------------------------------------------------------------------------------------


def keyframe_parts(broker):
    head = TOPICS.all("model")
    return sorted(topic for topic in broker.retained if topic.startswith(f"{head}/"))


def test_a_smaller_model_of_the_next_run_leaves_no_chunk_of_the_last_one(broker, tmp_path):
    big, small = {"features": 64, "classes": 10, "rows": 500}, {"features": 8, "classes": 4, "rows": 500}
    for run, toy in (("big", big), ("small", small)):
        config = toy_config(rules=ENDLESS, chunk_bytes=1024, codec="fp32")
        coordinator = toy_coordinator(in_memory(broker), tmp_path / run, config=config, toy=toy)
        coordinator.start()
        work_off(coordinator)
        parts = word(broker, TOPICS.all("model"), ModelHead).parts
        assert len(keyframe_parts(broker)) == parts
        assert (parts > 1) == (run == "big")
        coordinator.stop()
        work_off(coordinator)
        coordinator.close()


# --- two of them ----------------------------------------------------------------------------------------------------


REAL = [pytest.param(expiry_s, marks=pytest.mark.mosquitto, id=f"mosquitto-{expiry_s}") for expiry_s in (0, 3600)]


@pytest.fixture(params=["memory", *REAL])
def connect(request, broker):
    """Mosquitto 2.0.11 does not tell a client that it was taken over; the in-memory broker does, as newer ones do.

    With a session that outlives the connection, as the command has it, the two share what the broker queues.
    """
    if request.param == "memory":
        return in_memory(broker)
    return over_mqtt(request.getfixturevalue("mosquitto"), session_expiry_s=request.param)


QUICK = CoordinatorSettings(status_interval_s=0.1, linger_s=2.0)
#: An answer that was to be given while the two wrestled for the session is lost, and asked for again.
ASKS_AGAIN = DeviceSettings(once=False, state_interval_s=0.05, retry_s=0.3, retry_max_s=1.0)


def test_the_second_coordinator_is_refused_and_the_first_does_not_notice(connect, tmp_path, request):
    fleet, records = f"two-{request.node.callspec.id}", Records()
    config = toy_config(rules=ENDLESS)
    first = toy_coordinator(connect, tmp_path / "one", fleet=fleet, config=config, settings=QUICK, on_record=records)
    device = toy_device(connect, tmp_path, "pi-01", fleet=fleet)
    with running(first, device) as (one, _):
        records.wait("merge", 2)
        second = Running(toy_coordinator(connect, tmp_path / "two", fleet=fleet, config=config, settings=QUICK))
        error = second.ended()
        assert isinstance(error, IdConflict)
        assert "already led" in str(error)
        version = records.of("merge")[-1]["version"]
        records.wait("merge", version + 3)
        assert one.error is None
    assert records.of("refused") == []
    assert [fields["device"] for fields in records.of("joined")] == ["pi-01"], "nobody had to connect again"


def test_taking_over_pushes_the_first_out_and_the_second_goes_on(connect, tmp_path, request):
    fleet, before, after = f"over-{request.node.callspec.id}", Records(), Records()
    config = toy_config(rules=ENDLESS)
    first = toy_coordinator(connect, tmp_path / "one", fleet=fleet, config=config, settings=QUICK, on_record=before)
    device = toy_device(connect, tmp_path, "pi-01", fleet=fleet, settings=ASKS_AGAIN)
    with running(first, device) as (one, _):
        before.wait("merge", 2)
        second = toy_coordinator(
            connect,
            tmp_path / "two",
            fleet=fleet,
            config=toy_config(rules=StopRules(max_pushes=8)),
            settings=QUICK,
            on_record=after,
            takeover=True,
        )
        with running(second) as two:
            error = one.ended()
            assert isinstance(error, IdConflict)
            assert "took over" in str(error)
            summary = two.wait()
    assert summary["run"] == second.run_id
    assert summary["updates_applied"] == 8
    assert CheckpointStore(tmp_path / "one" / "checkpoints").latest().version == first.machine.version


def test_fleets_of_one_name_under_two_prefixes_do_not_meet(connect, tmp_path, request):
    fleet = f"twin-{request.node.callspec.id}"
    config = toy_config(rules=ENDLESS)
    with running(
        toy_coordinator(connect, tmp_path / "one", fleet=fleet, config=config, settings=QUICK),
        toy_coordinator(connect, tmp_path / "two", fleet=fleet, config=config, settings=QUICK, prefix="other"),
    ) as both:
        for one in both:
            one.leave()
            assert one.wait() is None


# --- odds and ends --------------------------------------------------------------------------------------------------


def test_garbage_from_a_device_is_counted_and_hurts_nobody(broker, tmp_path):
    records = Records()
    coordinator = toy_coordinator(
        in_memory(broker), tmp_path / "run", config=toy_config(rules=ENDLESS), on_record=records
    )
    vandal = MemoryTransport(broker, client_id="vandal")
    vandal.start(lambda _event: None, timeout_s=1)
    with running(coordinator, toy_device(in_memory(broker), tmp_path, "pi-01")) as (one, _):
        records.wait("merge", 1)
        for channel in ("update", "state", "status", "request", "rsp", "metrics"):
            for payload in (b"\xff" * 100, b"{}", b"[]", b"{" * 10_000, b"\x81" * 10_000):
                vandal.publish(TOPICS.up("pi-66", channel), payload)
        records.wait("refused", STRANGERS_TOLD)  # of the thirty: the sender is no member
        records.wait("merge", len(records.of("merge")) + 3)
        assert one.error is None
        assert coordinator.machine.tally.rejected == 5


def test_an_error_while_opening_gives_the_directory_back(broker, tmp_path):
    config = toy_config(strategy="hermes", constants={"gate": {"windo": 5}})
    with pytest.raises(UsageError, match="'windo'"):
        toy_coordinator(in_memory(broker), tmp_path / "run", config=config)
    toy_coordinator(in_memory(broker), tmp_path / "run").close()


def test_no_thread_is_left_behind(tmp_path):
    before = set(threading.enumerate())
    led(in_memory(), tmp_path, "pi-01")
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread
