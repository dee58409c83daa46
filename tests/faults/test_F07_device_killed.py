"""F7: a device is killed at any instant. Its newest update counts once, under the id it had; nothing half is applied."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.paired_gate import PairedGateConfig
from hermes_iot.algorithms.shares import SharesConfig
from hermes_iot.algorithms.strategies import asp, bsp, hermes_plus, ssp
from hermes_iot.algorithms.strategies.hermes import Hermes, HermesConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.effects import Send, StoreMemory
from hermes_iot.core.stopping import StopRules
from hermes_iot.domain import Sizing
from hermes_iot.protocol.messages import Ack, Model, Update
from hermes_iot.storage import atomic
from tests.core.hand import LAYOUT, ME, Board, Desk, ack, birth, body, death, manifest, of, online, sent, update
from tests.core.peers import TOPICS, Fleet
from tests.core.peers import manifest as toy_manifest
from tests.support.fleet import Records, in_memory, running, toy_config, toy_coordinator, toy_device

SETTINGS = CoordinatorSettings(
    first=Sizing(samples=48, batch=8), checkpoint_interval_s=2.0, keyframe_interval_s=1.0, resize_interval_s=1.0
)
#: Name: strategy, and how its rows are drawn.
STRATEGIES = {
    "hermes": (Hermes(HermesConfig(gate=GateConfig(max_age=2))), "fresh"),
    "hermes, differences": (Hermes(HermesConfig(gate=GateConfig(max_age=2), pushed="delta")), "fresh"),
    "hermes-plus": (
        hermes_plus.build_strategy(
            hermes_plus.Config(
                gate=PairedGateConfig(max_age=2), shares=SharesConfig(target_s=1.0, first_s=None, passes_max=None)
            )
        ),
        "walk",
    ),
    "asp": (asp.build_strategy(asp.Config()), "fresh"),
    "ssp": (ssp.build_strategy(ssp.Config(bound=3)), "fresh"),
    "bsp": (bsp.build_strategy(bsp.Config()), "fresh"),
}


def after(memory: StoreMemory) -> StoreMemory:
    """What the next life finds: a session of its own, and what was written down."""
    return replace(memory, session=memory.session + 1)


def pushed(board: Board) -> tuple[StoreMemory, Update]:
    """One push; what was written, and what it named."""
    effects = board.trained()
    (written,) = of(effects, StoreMemory)
    (one,) = sent(effects, Update)
    assert effects.index(written) < effects.index(Send(message=one, device="d1")), "said before it is on disk"
    assert written.update == one
    return written, one


# --- the device by hand -----------------------------------------------------------------------------------------------


def test_F07_an_update_that_was_not_acked_is_sent_again_under_its_own_name():
    memory, lost = pushed(Board().at_work())
    again = Board(memory=after(memory))
    again.machine.connected(now=again.now)
    again.tell(manifest())
    (repeated,) = sent(again.tell(online()), Update)
    assert repeated == lost
    again.prepare()
    again.tell(model_of(3.0), keyframe=True)
    # Its answer is waited for like any other, and the next update has a number above it, in this life's session.
    again.tell(ack(1, 1))
    assert not sent(again.wait(60.0), Update)
    again.tell(model_of(4.0, session=1, seq=1))
    assert again.machine.learner.base[0] == 4.0


def model_of(value, **marks):
    return Model(run="run-a", version=1, model=LAYOUT, codec="fp32", parameters=4, body=body(value), **marks)


@pytest.mark.parametrize("order", ["ack first", "manifest first"])
def test_F07_where_the_ack_was_there_all_along_nothing_is_sent_again(order):
    memory, _ = pushed(Board().at_work())
    again = Board(memory=after(memory))
    again.machine.connected(now=again.now)
    words = [ack(1, 1), manifest()]
    for word in words if order == "ack first" else reversed(words):
        again.tell(word)
    assert not sent(again.tell(online()), Update)
    assert not sent(again.wait(300.0), Update)
    assert again.machine.part.outbox.awaiting is None, "it would wait for an answer that an earlier life was given"
    assert again.machine.memory.update is None


def test_F07_what_is_of_another_run_is_dropped():
    memory, _ = pushed(Board().at_work())
    again = Board(memory=after(memory))
    again.machine.connected(now=again.now)
    effects = again.tell(manifest("run-b")) + again.tell(online()) + again.wait(300.0)
    assert not sent(effects, Update)


def test_F07_one_in_a_codec_that_is_not_the_runs_is_sent_and_the_coordinator_says_what_becomes_of_it():
    memory, update = pushed(Board().at_work())
    again = Board(memory=after(memory))
    again.machine.connected(now=again.now)
    again.tell(manifest(codec="fp16"))
    assert sent(again.tell(online()), Update) == [update]
    for codec_for, fate in (((), ("rejected", "codec")), (((ME, update.codec),), ("applied", ""))):
        desk = Desk(about=manifest(codec="fp16"), codec_for=codec_for).up()
        desk.hear(birth(2))
        (told,) = sent(desk.hear(update), Ack)
        assert (told.outcome, told.reason) == fate


def test_F07_only_the_newest_is_kept():
    board = Board(alone_after_s=1.0).at_work()
    pushed(board)
    board.wait(2.0)
    memory, newest = pushed(board)
    again = Board(memory=after(memory))
    again.machine.connected(now=again.now)
    again.tell(manifest())
    assert sent(again.tell(online()), Update) == [newest]
    assert newest.seq == 2


def test_F07_a_raised_session_leaves_nothing_of_an_older_memory_under_way():
    memory, _ = pushed(Board().at_work())
    again = Board(memory=after(memory))
    again.machine.connected(now=again.now)
    again.tell(manifest())
    (raised,) = of(again.tell(ack(7, 3)), StoreMemory)
    assert (raised.session, raised.seq, raised.update) == (8, 0, None)
    assert not sent(again.tell(online()) + again.wait(300.0), Update)


# --- the coordinator by hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [False, True])
def test_F07_an_update_of_an_earlier_life_counts_once(arrived):
    desk = Desk().up()
    desk.hear(birth(1))
    desk.hear(update(1, session=1))
    if arrived:
        desk.hear(update(2, session=1, value=5.0))
    before = desk.machine.tally.applied
    desk.hear(death(1))
    desk.hear(birth(2))
    effects = desk.hear(update(2, session=1, value=5.0))
    (one,) = sent(effects, Ack)
    assert (one.session, one.seq) == (1, 2)
    assert one.outcome == ("duplicate" if arrived else "applied")
    assert [(answer.session, answer.seq) for answer in sent(effects, Model)] == [(1, 2)], (
        "it waits for this very answer"
    )
    assert desk.machine.tally.applied == before + (not arrived)
    # Once more, however late: never again.
    assert sent(desk.hear(update(2, session=1, value=5.0)), Ack)[0].outcome == "duplicate"
    assert sent(desk.hear(update(3, session=2)), Ack)[0].outcome == "applied"
    assert sent(desk.hear(update(2, session=1, value=5.0)), Ack)[0].outcome == "stale"


def test_F07_an_ack_never_covers_what_was_not_handled():
    """A late repetition of what was handled must not end the waiting for what was not."""
    desk = Desk().up()
    desk.hear(birth(1))
    desk.hear(update(1, session=1))
    desk.hear(birth(2))
    (one,) = sent(desk.hear(update(1, session=1)), Ack)
    assert (one.session, one.seq) < (1, 2)
    assert sent(desk.hear(update(2, session=1)), Ack)[0].outcome == "applied"


def test_F07_past_the_bound_of_staleness_it_is_counted_and_answered():
    desk = Desk(lag_max=3).up()
    for name in ("a", "b"):
        desk.hear(birth(1), name)
    for seq in range(1, 6):
        desk.hear(update(seq, base_version=seq - 1), "b")
    desk.hear(birth(2), "a")
    effects = desk.hear(update(1, session=1, base_version=0), "a")
    (one,) = sent(effects, Ack)
    assert (one.outcome, one.reason, one.session, one.seq) == ("stale", "lag", 1, 1)
    assert sent(effects, Model)


# --- whole fleets in virtual time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [False, True], ids=["lost", "arrived"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_F07_killed_between_the_write_and_the_answer_an_update_has_its_effect_once(name, arrived):
    strategy, sampling = STRATEGIES[name]
    # In a walk, sizes that are not at issue stay as they are.
    settings = replace(SETTINGS, resize_interval_s=1e6) if sampling == "walk" else SETTINGS
    made = Fleet(toy_manifest(sampling=sampling), strategy=strategy, settings=settings, latency_s=0.003)
    made.lead()
    for device, speed in {"d0": 0.02, "d1": 0.03, "d2": 0.05}.items():
        made.join(device, speed=speed)
    victim = made.devices["d1"]
    for _ in range(4):
        made.run(3.0)
        topic, before = TOPICS.up("d1", "update"), victim.disk.update
        made.fault = lambda _client, about, _payload, topic=topic: int(arrived or about != topic)
        made.run_until(lambda before=before: victim.disk.update not in (None, before), within=30.0)
        killed_with = victim.disk.update
        victim.crash()
        made.fault = lambda _client, _topic, _payload: 1
        made.run(1.0)
        victim.start()
        mark = (killed_with.session, killed_with.seq)
        made.run_until(lambda mark=mark: made.leader.machine.members["d1"].handled >= mark, within=60.0)
        made.run(0.5)
        merged = [(one["session"], one["seq"]) for one in made.events("merge") if one["device"] == "d1"]
        assert merged.count(mark) == 1, f"{mark} of {merged[-5:]}"
        trained = victim.trained
        made.run_until(lambda trained=trained: victim.trained > trained + 2, within=60.0)
    tally = made.leader.machine.tally
    assert tally.received == tally.applied + tally.duplicate + tally.stale + tally.rejected
    assert np.isfinite(made.leader.machine.model).all()


# --- the shell --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


def test_F07_killed_between_the_write_and_the_send_a_board_sends_it_in_its_next_life(tmp_path):
    """The directory as it is when the update is about to be sent is what a SIGKILL then leaves."""
    connect, records = in_memory(), Records()
    config = toy_config(rules=StopRules())
    first = toy_device(connect, tmp_path, "pi-01")
    sends, send = [], first._perform

    def perform(effects):
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Update):
                sends.append(effect.message)
                if len(sends) == 3:
                    shutil.copytree(tmp_path / "pi-01", tmp_path / "left" / "pi-01")
                    raise Killed
            send([effect])

    first._perform = perform
    with running(toy_coordinator(connect, tmp_path / "run", config=config, on_record=records)):
        with running(first) as board:
            assert isinstance(board.ended(), Killed)
        with running(toy_device(connect, tmp_path / "left", "pi-01")):
            records.wait("merge", session=1, seq=3)
            records.wait("merge", session=2)
    merged = [(one["session"], one["seq"]) for one in records.of("merge")]
    assert merged[:3] == [(1, 1), (1, 2), (1, 3)]
    assert len(merged) == len(set(merged))


def test_F07_a_push_is_one_write_and_an_iteration_none(tmp_path, monkeypatch):
    """Cards are worn out by writing."""
    connect, records, written = in_memory(), Records(), []
    real = atomic.write_atomic

    def write(path, *data, **options):
        if "pi-01" in path.parts:
            written.append((path.name, sum(map(len, data))))
        real(path, *data, **options)

    monkeypatch.setattr(atomic, "write_atomic", write)
    config = toy_config(rules=StopRules())
    coordinator = toy_coordinator(
        connect, tmp_path / "run", config=config, on_record=records, settings=CoordinatorSettings(resize_interval_s=1e6)
    )
    device, trained = toy_device(connect, tmp_path, "pi-01", on_record=Records()), Records()
    device._on_record = trained
    with running(coordinator), running(device):
        records.wait("merge", 8)
    pushes = sum(bool(one["published"]) for one in trained.of("iteration"))
    assert [name for name, _ in written].count("update.bin") == pushes
    others = [name for name, _ in written if name != "update.bin"]
    assert len(others) <= 4, f"{others}: two for the session, one for the run, one for the allocation"
    bodies = {size for name, size in written if name == "update.bin"}
    assert max(bodies) < device.machine.learner.base.nbytes // 2 + 512, "more than fp16 and its frame"


def test_F07_a_damaged_update_costs_itself_and_no_more(tmp_path, caplog):
    connect, records = in_memory(), Records()
    config = toy_config(rules=StopRules())
    with running(toy_coordinator(connect, tmp_path / "run", config=config, on_record=records)):
        with running(toy_device(connect, tmp_path, "pi-01")):
            records.wait("merge", 3)
        path = tmp_path / "pi-01" / "update.bin"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with running(toy_device(connect, tmp_path, "pi-01")):
            records.wait("merge", session=2)
    assert "update.bin is damaged" in caplog.text
    assert hashlib.sha256((path.with_name("update.bin.damaged")).read_bytes()).digest() == hashlib.sha256(data).digest()
