"""What a person sees with ``mosquitto_sub -t 'hermes/v1/#'`` during a run, and what is left on the broker after it."""

import json
from dataclasses import replace

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol import codec
from hermes_iot.protocol.limits import Limits
from hermes_iot.protocol.messages import Command, Model, Shard, Update
from hermes_iot.protocol.wire import ROUTES
from hermes_iot.runtime.trainers import _shard_of
from hermes_iot.training.toy import ToyTrainer
from tests.support.fleet import Records, Watcher, over_mqtt, running, toy_bench, toy_config, toy_coordinator, toy_device

pytestmark = pytest.mark.mosquitto

FLEET = "wire"
TENSORS = {ROUTES[kind].channel for kind in (Update, Model, Shard)} - {"model"}
KEPT = {(route.direction, route.channel) for route in ROUTES.values() if route.retain} | {("all", "model_part")}


@pytest.fixture(scope="module")
def run(mosquitto, tmp_path_factory):
    """A whole run in which every kind of message is said; what was heard live, and what a late comer finds."""
    tmp_path, connect, records = tmp_path_factory.mktemp("wire"), over_mqtt(mosquitto), Records()
    config = toy_config(data_mode="shipped", telemetry="full", chunk_bytes=1024, rules=StopRules(max_pushes=6))
    toy = {"features": 64, "classes": 10, "rows": 2000}
    bench = toy_bench(config, **toy)
    shipped = replace(bench, data_sha256="", shard_of=_shard_of(bench.trainer.data, config))
    coordinator = toy_coordinator(
        connect, tmp_path / "run", fleet=FLEET, config=config, bench=shipped, on_record=records
    )

    def trainer_of(manifest, shards):
        return ToyTrainer(seed=manifest.seed, shards=shards, **toy)

    with Watcher(connect, fleet=FLEET) as watcher:
        devices = [toy_device(connect, tmp_path, f"pi-0{n}", fleet=FLEET, trainer_of=trainer_of) for n in (1, 2)]
        with running(coordinator, *devices) as (one, *others):
            records.wait("joined", 2)
            coordinator.link.send(Command(id="hello", name="ping"), device="pi-01")
            summary = one.wait()
            for other in others:
                other.wait()
        watcher.settled()
    with Watcher(connect, fleet=FLEET) as late:
        late.settled()
    assert summary["updates_applied"] >= 6
    topics = coordinator.topics
    live = [(topics.parse(one.topic), one) for one in watcher.all if not one.retain]
    kept = [(topics.parse(one.topic), one) for one in late.all if one.retain]
    return live, kept


def is_tensor(address):
    return address.channel in TENSORS | {"model_part"} or (address.direction, address.channel) == ("down", "model")


def test_every_kind_of_message_was_heard(run):
    heard = {(address.direction, address.channel) for address, _ in run[0]}
    assert heard == {(route.direction, route.channel) for route in ROUTES.values()} | {("all", "model_part")}


def test_every_topic_is_one_of_the_designs(run):
    assert all(address is not None for part in run for address, _ in part)


def test_everything_but_tensors_is_readable_json(run):
    said = [one for address, one in run[0] if not is_tensor(address) and one.payload]
    assert len(said) > 20
    for one in said:
        text = one.payload.decode("utf-8")
        assert text.isprintable(), one.topic
        document = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
        assert document["v"] == 1
        assert len(text) < 2000, f"{one.topic} is more than a person wants to read"


def test_tensors_travel_in_chunks_of_the_runs_size(run):
    said = [one for address, one in run[0] if is_tensor(address) and one.payload]
    assert len(said) > 20
    for one in said:
        chunk = codec.decode_chunk(one.payload, Limits())
        assert len(chunk.body) <= 1024
        assert 0 <= chunk.part < chunk.parts


def test_what_is_kept_on_the_broker_is_what_the_design_says(run):
    assert {(address.direction, address.channel) for address, _ in run[1]} == KEPT


def test_what_is_kept_is_the_last_that_was_said(run):
    last = {one.topic: one.payload for _, one in run[0]}
    for _, one in run[1]:
        assert last[one.topic] == one.payload
