"""F14: the broker still holds what an older run said. It is ignored, counted and told."""

from dataclasses import replace

import pytest

from hermes_iot.core.stopping import StopRules
from hermes_iot.protocol import codec
from hermes_iot.protocol.messages import Allocation, DeviceState, RunManifest
from tests.faults.fleet import SOON, board, check, led, more_merges
from tests.support.fleet import PATIENCE_S, Records, Watcher, over_mqtt, running, toy_config

pytestmark = pytest.mark.mosquitto

FLEET = "older"


def test_F14_what_is_retained_of_an_older_run_is_obeyed_by_nobody(mosquitto, tmp_path):
    connect, own = over_mqtt(mosquitto), Records()
    first, _ = led(connect, tmp_path / "a", fleet=FLEET, config=toy_config(rules=StopRules(max_pushes=3)))
    with running(first, board(connect, tmp_path, "pi-01", fleet=FLEET)) as (one, device):
        one.wait()
        device.wait()
    with Watcher(connect, fleet=FLEET) as watcher:
        topics, anybody = watcher.topics, connect("anybody", None)
        anybody.start(lambda _event: None, timeout_s=PATIENCE_S)
        old = watcher.wait(topics.down("pi-01", "alloc"), Allocation, lambda _: True)
        manifest = watcher.wait(topics.all("run"), RunManifest, lambda one: one.state == "finished")
        assert old.run == manifest.run == first.run_id
        # Far ahead of anything the next run will say: only its run id tells that it is not for now.
        stale = codec.encode_json(replace(old, version=1_000_000, epoch=0))
        anybody.publish(topics.down("pi-01", "alloc"), stale, retain=True)
        assert anybody.flush(timeout_s=PATIENCE_S)
        second, records = led(connect, tmp_path / "b", fleet=FLEET)
        device = board(connect, tmp_path, "pi-01", fleet=FLEET, on_record=own, settings=replace(SOON, once=False))
        with running(device):
            # It is there before anybody leads: all it can see is of the run that is over.
            watcher.wait(topics.up("pi-01", "state"), DeviceState, lambda one: one.session == 2)
            with running(second):
                more_merges(records, "pi-01")
                state = watcher.wait(topics.up("pi-01", "state"), DeviceState, lambda one: one.run == second.run_id)
                assert 0 <= state.allocation_version < 1_000_000
                # Said again in the middle of the run, it is ignored again.
                ignored = len(own.of("ignored"))
                anybody.publish(topics.down("pi-01", "alloc"), stale)
                own.wait("ignored", ignored + 1, what="allocation of another run", which=first.run_id)
                dropped = watcher.wait(topics.up("pi-01", "state"), DeviceState, lambda one: one.dropped >= 1).dropped
                assert dropped >= 1
                more_merges(records, "pi-01")
        anybody.close()
        states = [one for one in watcher.said(topics.up("pi-01", "state"), DeviceState) if one.run == second.run_id]
        assert all(one.allocation_version < 1_000_000 for one in states)
    check(second, records)
