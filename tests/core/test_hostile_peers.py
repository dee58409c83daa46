"""Everything a peer may say within the schema, in any order: nothing but our own errors escapes, every bound holds."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_iot.core.effects import Checkpoint, Prepare, StoreMemory, Train
from hermes_iot.domain import Sizing
from hermes_iot.errors import Incompatible, ProtocolError
from hermes_iot.protocol.messages import (
    Ack,
    Allocation,
    Command,
    CoordinatorStatus,
    DeviceState,
    DeviceStatus,
    Metrics,
    Model,
    ModelHead,
    Request,
    Response,
    RunManifest,
    Shard,
    Update,
)
from tests.core.hand import LAYOUT, ME, PARAMETERS, Board, Desk, birth, body, manifest, of, rows_as_bytes, sent
from tests.protocol.strategies import messages

UP = (DeviceStatus, DeviceState, Update, Request, Metrics, Response)
DOWN = (Allocation, Ack, Command, Model, Shard, CoordinatorStatus, RunManifest, ModelHead)

#: Values that lead past the first check, where a schema alone gives noise.
FITTING = {
    "run": st.sampled_from(["run-a", "run-b"]),
    "session": st.integers(0, 3),
    "seq": st.integers(1, 4),
    "version": st.integers(1, 6),
    "base_version": st.integers(0, 6),
    "allocation_version": st.integers(0, 6),
    "model": st.just(LAYOUT),
    "codec": st.just("fp32"),
    "parameters": st.just(PARAMETERS),
    "body": st.sampled_from([body(value) for value in (0.0, 1.0, 3.0, -2e38, 3e38)]),
    "device": st.just(ME),
    "shard": st.sampled_from(["", "aa" * 32, "bb" * 32]),
    "next_shard": st.sampled_from(["", "aa" * 32, "bb" * 32]),
    "sha256": st.sampled_from(["aa" * 32, "bb" * 32]),
    "samples": st.integers(1, 200),
    "batch": st.integers(1, 50),
    "parts": st.integers(1, 9),
    "iteration_s": st.sampled_from([0.0, 1e-300, 0.5, 1.0, 40.0, 1e9]),
    "rows": st.just(()),
}
#: The same words where they mean something else.
OTHERWISE = {(RunManifest, "model"), (CoordinatorStatus, "session"), (DeviceStatus, "rows")}


@st.composite
def bent(draw, kinds):
    """A valid message, some of its fields such as a peer in the middle of a run would send."""
    kind = draw(st.sampled_from(kinds))
    message = draw(messages(kind))
    names = [one.name for one in fields(message) if one.name in FITTING and (kind, one.name) not in OTHERWISE]
    chosen = draw(st.sets(st.sampled_from(names))) if names else set()
    if draw(st.booleans()):
        chosen = set(names)
    changes = {name: draw(FITTING[name]) for name in sorted(chosen)}
    if kind is RunManifest and draw(st.booleans()):
        changes["model"] = manifest().model
    return replace(message, **changes)


pauses = st.sampled_from([0.0, 0.01, 1.0, 7.0, 100.0])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(bent(UP), st.sampled_from(["d1", "d2", "d3", "d4", "d5"]), pauses), max_size=30),
    st.sampled_from(["indexed", "local", "shipped"]),
    st.sampled_from(["fresh", "kept"]),
    st.integers(0, 4),
)
def test_a_coordinator_takes_whatever_devices_say(said, mode, sampling, there):
    about = manifest(data={"mode": mode, "sampling": sampling, "rows": 0 if mode == "local" else 100})
    desk = Desk(
        about=about,
        shard_of=rows_as_bytes if mode == "shipped" else None,
        first=Sizing(samples=40, batch=8),
        devices_max=4,
        lag_max=3,
        status_interval_s=50.0,
        measure_patience_s=5.0,
    ).up()
    for number in range(there):
        desk.hear(birth(), f"d{number + 1}")
    updates = 0
    for message, device, pause in said:
        version = desk.machine.version
        before = {name: one.allocation.version for name, one in desk.machine.members.items() if one.allocation}
        effects = desk.hear(message, device)
        updates += isinstance(message, Update)
        effects += desk.wait(pause)
        assert desk.machine.tally.received == updates
        assert np.isfinite(desk.machine.model).all()
        assert desk.machine.version - version <= 1
        assert len(desk.machine.members) <= 4
        assert len(desk.machine._assigner.allotment.shards()) <= 8
        for one in sent(effects, Allocation):
            assert one.version > before.get(one.device, 0) or one == desk.machine.members[one.device].allocation
            assert 1 <= one.batch <= one.samples
            assert mode == "local" or one.samples <= 100
        for member in desk.machine.members.values():
            assert len(member.timings) <= 17
    assert of(desk.machine._checkpoint(desk.now), Checkpoint)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            bent(DOWN),
            st.booleans(),
            pauses,
            st.sampled_from(["", "trained", "nan", "prepared", "untrainable", "cut", "joined", "found", "missing"]),
        ),
        max_size=40,
    ),
    st.booleans(),
)
def test_a_device_takes_whatever_a_coordinator_says(said, at_work):
    board = Board()
    if at_work:
        board.at_work()
    else:
        board.machine.connected(now=board.now)
    disk = board.machine.memory
    training, preparing = int(at_work), 0
    runs: list[tuple[str, str]] = []
    for message, keyframe, pause, event in said:
        effects = []
        try:
            effects += board.tell(message, keyframe=keyframe and isinstance(message, Model))
        except ProtocolError:
            board.machine.refused()
        except Incompatible:
            return
        match event:
            case "trained" | "nan" if training:
                training = 0
                effects += board.trained(loss=0.5 if event == "trained" else float("nan"))
            case "untrainable" if training:
                training = 0
                effects += board.machine.untrainable("no such rows", now=board.now)
            case "prepared" if runs:
                run, layout = runs[-1]
                effects += board.machine.prepared(run, layout, now=board.now)
            case "cut":
                board.machine.disconnected()
            case "joined":
                effects += board.machine.connected(now=board.now)
            case "found" | "missing":
                effects += board.machine.shard_found("aa" * 32, found=event == "found", now=board.now)
        effects += board.wait(pause)
        for effect in effects:
            match effect:
                case Train(job=job):
                    training += 1
                    assert np.isfinite(job.start).all()
                case Prepare(manifest=about):
                    preparing += 1
                    runs.append((about.run, about.model.sha256))
                case StoreMemory():
                    assert (effect.session, effect.seq) >= (disk.session, disk.seq) or effect.session > disk.session
                    disk = effect
        for one in sent(effects, Update):
            assert (disk.session, disk.seq) >= (one.session, one.seq)
        assert training <= 1
        assert preparing == len(runs)
        if board.machine.part is not None:
            shelf = board.machine.part._shelf
            # three names and a walk's pieces, of the allocation in force and of the one to come
            pieces = max((len(one.shards) for one, *_ in said if isinstance(one, Allocation)), default=0)
            assert len(shelf._held | shelf._sought) <= 3 + 2 * pieces
