"""The device's shell: births and farewells, work that fails, rows that must be fetched, ids that are taken."""

import itertools
import json
import shutil
import threading
import time

import pytest

from hermes_iot.core.effects import FetchKeyframe, ForgetKeyframe, Prepare, Rebirth, StoreShard
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Trained
from hermes_iot.errors import (
    AccessDenied,
    BrokerError,
    IdConflict,
    Incompatible,
    ProtocolError,
    StorageError,
    UsageError,
)
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import DeviceState, DeviceStatus, Model
from hermes_iot.protocol.topics import Topics
from hermes_iot.runtime import worker
from hermes_iot.runtime.loop import Inbox
from hermes_iot.runtime.worker import Failed, ThreadWorker
from hermes_iot.training.toy import ToyTrainer
from hermes_iot.transport.base import Refused
from hermes_iot.transport.memory import MemoryBroker
from tests.core.hand import manifest
from tests.support.fleet import (
    PATIENCE_S,
    HeldWorker,
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
ENDLESS = toy_config(rules=StopRules())


@pytest.fixture
def broker():
    return MemoryBroker(clock=time.monotonic)


@pytest.fixture
def connect(broker):
    return in_memory(broker)


@pytest.fixture
def fleet(connect, tmp_path):
    """A coordinator that leads an endless run, and what it records."""
    records = Records()
    with running(toy_coordinator(connect, tmp_path / "run", config=ENDLESS, on_record=records)):
        yield records


def status(broker, name="pi-01"):
    return codec.decode_json(broker.retained[TOPICS.up(name, "status")], DeviceStatus, Limits())


# --- comings and goings ---------------------------------------------------------------------------------------------


def test_a_device_that_is_stopped_says_so_and_gives_its_reason(broker, connect, fleet, tmp_path):
    with running(toy_device(connect, tmp_path, "pi-01")) as one:
        fleet.wait("merge", 1)
        one.runner.stop("moved to the attic")
        assert one.wait() == "moved to the attic"
    assert (status(broker).state, status(broker).reason) == ("offline", "moved to the attic")
    fleet.wait("left", device="pi-01", reason="moved to the attic")


def test_a_long_reason_is_cut_rather_than_refused_by_everybody(broker, connect, fleet, tmp_path):
    with running(toy_device(connect, tmp_path, "pi-01")) as one:
        fleet.wait("joined")
        one.runner.stop("x" * 5000)
        one.wait()
    assert status(broker).reason.startswith("xxx")
    fleet.wait("left", device="pi-01")


@pytest.mark.parametrize(
    "error",
    [
        Incompatible("task 'x' is not installed here", why="w" * 2000),
        UsageError("u" * 2000),
        StorageError("cannot write", why="the disk is full"),
        ZeroDivisionError("a bug"),
    ],
)
def test_a_device_that_fails_does_not_seem_online_ever_after(broker, connect, fleet, tmp_path, error):
    def trainer_of(_manifest, _shards):
        raise error

    with running(toy_device(connect, tmp_path, "pi-01", trainer_of=trainer_of)) as one:
        raised = one.ended()
    assert raised is error or isinstance(raised, UsageError)
    assert status(broker).state == "offline"
    assert 0 < len(status(broker).reason) <= 200
    fleet.wait("left", device="pi-01", reason=status(broker).reason)


def test_an_unreachable_broker_is_an_error_and_leaves_nothing_locked(broker, connect, tmp_path):
    broker.drop("pi-01")
    before = set(threading.enumerate())
    with pytest.raises(BrokerError):
        toy_device(connect, tmp_path, "pi-01").run()
    broker.restore("pi-01")
    toy_device(connect, tmp_path, "pi-01").close()
    assert set(threading.enumerate()) == before


def test_a_state_directory_in_use_is_refused_and_leaves_no_thread(connect, tmp_path):
    holder = toy_device(connect, tmp_path, "pi-01")
    before = set(threading.enumerate())
    with pytest.raises(IdConflict, match="is in use") as caught:
        toy_device(connect, tmp_path, "pi-01")
    assert caught.value.exit_code == 7
    assert set(threading.enumerate()) == before
    holder.close()


def test_an_unusable_shard_directory_is_refused_and_leaves_nothing_locked(connect, tmp_path):
    (tmp_path / "pi-01").mkdir()
    (tmp_path / "pi-01" / "shards").write_text("a file where the directory should be")
    before = set(threading.enumerate())
    with pytest.raises(StorageError):
        toy_device(connect, tmp_path, "pi-01")
    assert set(threading.enumerate()) == before
    (tmp_path / "pi-01" / "shards").unlink()
    toy_device(connect, tmp_path, "pi-01").close()


def test_an_access_list_that_refuses_a_topic_ends_the_device(connect, tmp_path):
    with running(toy_device(connect, tmp_path, "pi-01")) as one:
        one.runner.inbox.post(Refused(topic=TOPICS.up("pi-01", "update"), reason="Not authorized"))
        assert isinstance(one.ended(), AccessDenied)


def test_an_access_list_may_keep_a_device_from_reading_its_own_status(connect, fleet, tmp_path):
    with running(toy_device(connect, tmp_path, "pi-01")) as one:
        one.runner.inbox.post(Refused(topic=TOPICS.up("pi-01", "status"), reason="Not authorized"))
        fleet.wait("merge", 2)
        assert one.error is None


# --- a lost memory --------------------------------------------------------------------------------------------------


def test_a_board_with_a_new_card_rises_above_its_former_sessions_and_contributes(broker, connect, fleet, tmp_path):
    for _ in range(2):
        with running(toy_device(connect, tmp_path, "pi-01")) as one:
            fleet.wait("merge", len(fleet.of("merge")) + 2)
            one.leave()
    shutil.rmtree(tmp_path / "pi-01")
    with running(toy_device(connect, tmp_path, "pi-01")) as one:
        fleet.wait("merge", 2, device="pi-01", session=3)
        assert one.runner.machine.memory.session == 3
        broker.drop("pi-01")
        broker._clock = lambda: time.monotonic() + 60  # the will is delayed
        broker.expire()
        assert (status(broker).state, status(broker).session) == ("offline", 3), "the will names the new session"
        broker.restore("pi-01")
    again = json.loads((tmp_path / "pi-01" / "device.json").read_text())["body"]
    assert again["session"] == 3


def test_after_a_raised_session_keyframe_chunks_are_fetched_again_and_chunks_stay_small(connect, tmp_path):
    device = toy_device(connect, tmp_path, "pi-01", worker_of=HeldWorker)
    device.start()
    device._perform([Prepare(manifest=manifest(chunk_bytes=2048))])
    device._perform([FetchKeyframe(parts=2)])
    first = device.link
    device._perform([Rebirth()])
    assert device.link is not first
    assert device.link.wire.chunk_bytes == 2048
    assert device.link.wire._limits_of[Model].inflated_bytes_max < 1000, "and no body is longer than the run's model"
    asked = []
    device.link.transport.subscribe = asked.append
    device._perform([FetchKeyframe(parts=2)])
    assert asked == [(TOPICS.model_part(0), TOPICS.model_part(1))]
    device.close()


def test_chunks_of_a_keyframe_that_shrank_are_not_listened_to_any_more(connect, tmp_path):
    device = toy_device(connect, tmp_path, "pi-01", worker_of=HeldWorker)
    device.start()
    asked, forgotten = [], []
    device.link.transport.subscribe, device.link.transport.unsubscribe = asked.append, forgotten.append
    parts = [TOPICS.model_part(part) for part in range(4)]
    device._perform([FetchKeyframe(parts=4), FetchKeyframe(parts=2), FetchKeyframe(parts=3), ForgetKeyframe()])
    assert asked == [tuple(parts), (parts[2],)]
    assert forgotten == [(parts[2], parts[3]), tuple(parts[:3])]
    device._perform([ForgetKeyframe()])
    assert len(forgotten) == 2, "nothing to forget, nothing said"
    device.close()


# --- work that fails ------------------------------------------------------------------------------------------------


class Trainer(ToyTrainer):
    """A toy whose n-th iteration does something else."""

    def __init__(self, act, number=3, **options):
        super().__init__(**options)
        self._act, self._number, self._count = act, number, itertools.count(1)

    def train(self, job):
        if next(self._count) == self._number:
            self._act()
        return super().train(job)


def acting(act, **options):
    return lambda manifest, shards: Trainer(act, seed=manifest.seed, shards=shards, **options)


def raising(error):
    def act():
        raise error

    return act


def test_a_tasks_own_error_ends_the_device_as_it_is(connect, fleet, tmp_path):
    error = UsageError("my_task.py: loss() failed", why="ValueError: no")
    with running(toy_device(connect, tmp_path, "pi-01", trainer_of=acting(raising(error)))) as one:
        assert one.ended() is error
    assert fleet.all, "the coordinator lives"


@pytest.mark.parametrize("error", [RuntimeError("shape '[3]' is invalid"), MemoryError(), SystemExit(3)])
@pytest.mark.usefixtures("fleet")
def test_any_other_error_in_training_is_one_line_that_names_the_task(connect, tmp_path, error):
    with running(toy_device(connect, tmp_path, "pi-01", trainer_of=acting(raising(error)))) as one:
        raised = one.ended()
    assert isinstance(raised, UsageError)
    assert f"task 'toy' failed while training: {type(error).__name__}: {error}" in str(raised)
    assert raised.__cause__ is error


def test_rows_that_are_not_there_are_waited_for_and_nobody_dies(connect, fleet, tmp_path):
    act = raising(ProtocolError("rows", "row 5000 of 800"))
    with running(toy_device(connect, tmp_path, "pi-01", trainer_of=acting(act))) as one:
        fleet.wait("state", device="pi-01", phase="waiting", iterations=2)
        assert one.error is None


def test_the_worker_tells_the_loop_what_was_raised():
    inbox = Inbox()
    one = ThreadWorker(inbox)
    for act in (raising(ValueError("no")), lambda: "well"):
        one.submit(act)
    first, second = inbox.take(timeout_s=PATIENCE_S), inbox.take(timeout_s=PATIENCE_S)
    one.close()
    assert isinstance(first, Failed)
    assert str(first.error) == "no"
    assert second == "well"


def test_a_worker_that_is_closed_starts_nothing_more():
    inbox, begun, go = Inbox(), threading.Event(), threading.Event()
    one = ThreadWorker(inbox)
    one.submit(lambda: (begun.set(), go.wait(PATIENCE_S), "first")[2])
    one.submit(lambda: "second")
    assert begun.wait(PATIENCE_S)
    closing = threading.Thread(target=one.close)
    closing.start()
    while not one._closed:
        closing.join(0.001)
    go.set()
    closing.join(PATIENCE_S)
    assert inbox.take(timeout_s=PATIENCE_S) == "first"
    assert inbox.take(timeout_s=0) is None


@pytest.mark.usefixtures("fleet")
def test_an_iteration_that_takes_long_does_not_hold_up_a_device_that_leaves(broker, connect, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "LEAVE_S", 0.1)
    begun, go = threading.Event(), threading.Event()

    def act():
        begun.set()
        go.wait(6 * PATIENCE_S)

    with running(toy_device(connect, tmp_path, "pi-01", trainer_of=acting(act))) as one:
        assert begun.wait(PATIENCE_S)
        one.runner.stop()
        assert one.wait(PATIENCE_S) == "stopped"
    go.set()
    assert status(broker).state == "offline"


@pytest.mark.usefixtures("fleet")
def test_an_emulated_board_that_idles_leaves_at_once(connect, tmp_path):
    trained = threading.Event()
    device = toy_device(connect, tmp_path, "pi-01", trainer_of=acting(trained.set, number=1))
    device._workshop._slowdown = 1e6
    with running(device) as one:
        assert trained.wait(PATIENCE_S)
        device.stop()
        assert one.wait(PATIENCE_S) == "stopped"


def test_a_shard_that_is_not_what_its_name_says_is_counted_and_dropped(connect, tmp_path):
    device = toy_device(connect, tmp_path, "pi-01", worker_of=HeldWorker)
    device.start()
    device._perform([StoreShard(sha256="0" * 64, body=b"something else")])
    assert not device._workshop.has("0" * 64)
    device.close()


# --- two under one id -----------------------------------------------------------------------------------------------


@pytest.mark.mosquitto
def test_on_a_broker_that_keeps_silent_the_younger_of_two_leaves_and_the_older_goes_on(mosquitto, tmp_path):
    connect, records, ahead_s = over_mqtt(mosquitto), Records(), [0.0]
    coordinator = toy_coordinator(connect, tmp_path / "run", fleet="twins", config=ENDLESS, on_record=records)
    older = toy_device(connect, tmp_path / "a", "pi-01", fleet="twins", clock=lambda: time.monotonic() + ahead_s[0])
    with running(coordinator, older) as (_, one):
        records.wait("merge", 1)
        ahead_s[0] = 60.0  # it has served for a minute
        younger = Running(toy_device(connect, tmp_path / "b", "pi-01", fleet="twins"))
        error = younger.ended()
        assert isinstance(error, IdConflict)
        assert "'pi-01' is in use in fleet 'twins'" in str(error)
        records.wait("merge", len(records.of("merge")) + 3)
        assert one.error is None
    assert one.outcome == "stopped"


def test_on_a_broker_that_tells_the_younger_of_two_leaves_and_the_older_goes_on(connect, fleet, tmp_path, monkeypatch):
    monkeypatch.setattr("hermes_iot.runtime.claim.RETAKE_AFTER_S", 0.05)
    ahead_s = [0.0]
    older = toy_device(connect, tmp_path / "a", "pi-01", clock=lambda: time.monotonic() + ahead_s[0])
    with running(older) as one:
        fleet.wait("merge", 1)
        ahead_s[0] = 60.0
        younger = Running(toy_device(connect, tmp_path / "b", "pi-01"))
        assert isinstance(younger.ended(), IdConflict)
        fleet.wait("merge", len(fleet.of("merge")) + 3)
        assert one.error is None


# --- what is reported -----------------------------------------------------------------------------------------------


def test_a_diverged_iteration_is_reported_and_not_sent(broker, connect, fleet, tmp_path):
    class Diverging(ToyTrainer):
        def train(self, job):
            result = super().train(job)
            return Trained(
                params=result.params * float("nan"), loss=float("nan"), samples=result.samples, mini_batches=1
            )

    def trainer_of(manifest, shards):
        return Diverging(seed=manifest.seed, shards=shards)

    with running(toy_device(connect, tmp_path, "pi-01", trainer_of=trainer_of)):
        state = fleet.wait("state", device="pi-01", gate="diverged")
        assert state["loss"] is None
    said = codec.decode_json(broker.retained[TOPICS.up("pi-01", "state")], DeviceState, Limits())
    assert said.diverged == said.iterations > 0
    assert said.published == 0
