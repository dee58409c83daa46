"""Any faults in any order (Hypothesis chooses); after each the audit holds, and when they stop everybody goes on."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from hermes_iot.algorithms.compression import pack
from hermes_iot.algorithms.gate import GateConfig
from hermes_iot.algorithms.strategies.hermes import Hermes, HermesConfig
from hermes_iot.core.coordinator import CoordinatorSettings
from hermes_iot.core.device import DeviceSettings
from hermes_iot.domain import Sizing
from hermes_iot.protocol.messages import Command, DeviceStatus, Update
from tests.core.peers import TOPICS, Fleet, manifest, toy

DEVICES_MAX = 4
LIVELY_WITHIN_S = 200.0
CHANNELS = ["update", "model", "ack", "alloc", "state", "status", "request", "data", "model_part", "run", "coordinator"]
#: Repeated long after they were first delivered. The run's own topics are not among them: a broker keeps their order.
REPLAYED = {"update", "model", "ack", "alloc", "state", "status", "request", "data", "model_part"}

which = st.integers(0, DEVICES_MAX - 1)


class FleetMachine(RuleBasedStateMachine):
    """One fleet; devices are d0, d1 ... in the order they join."""

    @initialize(
        mode=st.sampled_from(["indexed", "local", "shipped"]),
        sampling=st.sampled_from(["fresh", "kept"]),
        pushed=st.sampled_from(["model", "model", "delta", "gradients"]),
        latency_s=st.sampled_from([0.0, 0.02]),
        chunk_bytes=st.sampled_from([100, 120_000]),
    )
    def begin(self, *, mode, sampling, pushed, latency_s, chunk_bytes):
        self.kind = {"data_mode": mode, "sampling": sampling}
        self.runs = 0
        self.fleet = Fleet(
            manifest("run-0", **self.kind),
            strategy=Hermes(HermesConfig(gate=GateConfig(max_age=3), pushed=pushed)),
            settings=CoordinatorSettings(
                first=Sizing(samples=40, batch=8),
                checkpoint_interval_s=2.0,
                keyframe_interval_s=1.0,
                linger_s=2.0,
                measure_patience_s=30.0,
            ),
            device_settings=DeviceSettings(retry_s=2.0, retry_max_s=16.0, alone_after_s=5.0),
            chunk_bytes=chunk_bytes,
            latency_s=latency_s,
        )
        self.log: list[tuple[str, str, bytes]] = []
        self.fate = lambda _client, _topic: 1
        self.fleet.fault = self._fault
        self.fleet.lead()
        self.fleet.join("d0", speed=0.05)

    def _fault(self, client, topic, payload):
        address = TOPICS.parse(topic)
        if address is not None and address.channel in REPLAYED and len(self.log) < 400:
            self.log.append((client, topic, payload))
        return self.fate(client, topic)

    def device(self, number, *, alive=True):
        chosen = [node for node in self.fleet.devices.values() if node.alive == alive]
        return chosen[number % len(chosen)] if chosen else None

    # --- time

    @rule(seconds=st.sampled_from([0.01, 0.2, 1.0, 4.0, 20.0]))
    def wait(self, seconds):
        self.fleet.run(seconds)

    @rule(steps=st.integers(1, 12))
    def a_few_things_happen(self, steps):
        for _ in range(steps):
            self.fleet.step()

    # --- devices

    @precondition(lambda self: len(self.fleet.devices) < DEVICES_MAX)
    @rule(speed=st.sampled_from([0.02, 0.1, 0.5]))
    def a_device_joins(self, speed):
        self.fleet.join(f"d{len(self.fleet.devices)}", speed=speed)

    @rule(number=which)
    def a_device_crashes(self, number):
        if node := self.device(number):
            node.crash()

    @rule(number=which, wiped=st.booleans())
    def a_device_boots(self, number, wiped):
        if node := self.device(number, alive=False):
            if wiped:
                node.wipe()
            node.start()

    @rule(number=which)
    def a_device_leaves(self, number):
        if node := self.device(number):
            node.leave()

    @rule(number=which)
    def a_line_is_cut_or_mended(self, number):
        if node := self.device(number):
            (node.disconnect if node.client.online else node.reconnect)()

    @rule(number=which, iterations=st.integers(1, 5))
    def a_device_diverges(self, number, iterations):
        if node := self.device(number):
            node.diverge = iterations

    @rule(number=which)
    def a_cache_loses_everything(self, number):
        if node := self.device(number):
            node.cache.clear()

    @rule(number=which, name=st.sampled_from(["pause", "resume", "resend", "ping", "drain"]))
    def a_command_is_given(self, number, name):
        if node := self.device(number):
            self.fleet.say(Command(id="c", name=name), device=node.name)

    @rule(number=which, back=st.integers(1, 3))
    def a_will_of_an_earlier_session_comes_late(self, number, back):
        if node := self.device(number):
            session = max(0, node.machine.memory.session - back)
            self.fleet.say(DeviceStatus(state="offline", session=session), device=node.name)

    # --- the bus

    @rule(lost=st.sets(st.sampled_from(CHANNELS), min_size=1, max_size=3))
    def channels_lose_everything(self, lost):
        self.fate = lambda _client, topic: int(getattr(TOPICS.parse(topic), "channel", "") not in lost)

    @rule(copies=st.sampled_from([1, 2, 3]))
    def every_delivery_is_repeated(self, copies):
        self.fate = lambda _client, _topic: copies

    @rule(seed=st.integers(0, 99))
    def the_bus_is_lossy(self, seed):
        chance = random.Random(seed)
        self.fate = lambda _client, _topic: chance.choice([0, 1, 1, 2])

    @precondition(lambda self: self.log)
    @rule(number=st.integers(0, 399))
    def something_old_is_delivered_again(self, number):
        client, topic, payload = self.log[number % len(self.log)]
        if (there := self.fleet.broker.clients[client]).online:
            self.fleet.broker.push(there, topic, payload)

    @rule()
    def the_broker_loses_its_store(self):
        self.fleet.broker.retained.clear()
        for node in self.fleet.nodes():
            if node.alive and node.client.online:
                node.disconnect()
                node.reconnect()

    # --- the coordinator

    @rule(after=st.integers(0, 8))
    def the_coordinator_will_die_between_two_effects(self, after):
        self.fleet.leader.effects_left = after

    @rule()
    def the_coordinator_crashes_or_comes_back(self):
        if self.fleet.leader.alive:
            self.fleet.leader.crash()
        else:
            self.lead()

    @rule()
    def the_coordinators_line_is_cut_or_mended(self):
        node = self.fleet.leader
        if node.alive:
            (node.disconnect if node.client.online else node.reconnect)()

    @precondition(lambda self: self.runs < 3)
    @rule(quiet=st.booleans())
    def another_run_begins(self, quiet):
        node = self.fleet.leader
        if node.alive and not quiet:
            node.hear(lambda: node.machine.finish("enough", now=self.fleet.now))
            self.fleet.run(3.0)
        if node.alive:
            node.crash()
        self.runs += 1
        self.fleet.lead(manifest(f"run-{self.runs}", **self.kind), fresh=True)

    def lead(self):
        """Come back: to the same run, or, where that has ended, to another."""
        if self.fleet.leader.quit is not None:
            self.runs += 1
        about = manifest(f"run-{self.runs}", **self.kind)
        self.fleet.lead(about, fresh=self.fleet.leader.quit is not None)

    # --- somebody who does not keep to the rules

    @rule(
        number=which,
        session=st.integers(0, 4),
        seq=st.integers(1, 60),
        base_version=st.integers(0, 100),
        value=st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf, 6e4]),
        bend=st.sampled_from(["", "run", "model", "codec", "parameters", "body"]),
    )
    def an_update_of_any_kind_comes(self, *, number, session, seq, base_version, value, bend):
        signature = toy().signature
        vector = np.full(signature.parameters, value, dtype=np.float32)
        finite = bool(np.isfinite(value))
        update = Update(
            run=self.fleet.manifest.run,
            session=session,
            seq=seq,
            base_version=base_version,
            model=signature.sha256,
            codec="fp16",
            parameters=signature.parameters,
            loss=0.1,
            samples=10,
            batch=2,
            mini_batches=5,
            train_s=0.1,
            iterations=1,
            body=pack(vector, "fp16") if finite else vector.astype("<f2").tobytes(),
        )
        changes = {"run": "run-x", "model": "0" * 64, "codec": "fp32", "parameters": 7, "body": update.body[:-3]}
        if bend:
            update = replace(update, **{bend: changes[bend]})
        # Under a name of its own: to speak in another's name is what the broker's access list is for.
        self.fleet.say(update, device=f"rogue{number}")

    # --- and when it is over

    def teardown(self):
        if not hasattr(self, "fleet"):
            return
        made = self.fleet
        self.fate = lambda _client, _topic: 1
        made.leader.effects_left = None
        if not made.leader.alive or made.leader.machine.finished:
            if made.leader.alive:
                made.run(3.0)
            self.lead()
        for node in made.devices.values():
            if not node.alive:
                node.start()
        for node in made.nodes():
            if node.client.online:
                node.disconnect()
            node.reconnect()
        made.run(1.0)
        for node in made.devices.values():
            node.diverge = 0
            made.say(Command(id="r", name="resume"), device=node.name)
        made.run(0.1)
        live = [node for node in made.devices.values() if node.alive]
        before = {node.name: (node.trained, made.applied(node.name)) for node in live}
        made.run(
            LIVELY_WITHIN_S,
            until=lambda: all(
                node.trained > before[node.name][0] + 1 and made.applied(node.name) > before[node.name][1]
                for node in live
            ),
        )
        stuck = {
            node.name: (node.machine.phase, node.trained - before[node.name][0])
            for node in live
            if made.applied(node.name) <= before[node.name][1]
        }
        assert not stuck, f"no progress in {LIVELY_WITHIN_S} s: {stuck}"


FleetMachine.TestCase.settings = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestFleet = FleetMachine.TestCase
