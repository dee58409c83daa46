"""F20, F21, F23, F24 and F29 on a real broker: hostile bytes are counted under their reason and cost nobody anything."""

import json
import random
import re
import struct
from pathlib import Path

import msgpack
import pytest
import zstandard

from hermes_iot.errors import Incompatible
from hermes_iot.protocol import codec
from hermes_iot.protocol.chunks import parts_for, place, split
from hermes_iot.protocol.limits import TENSOR_FIELDS_BYTES_MAX, Limits
from hermes_iot.protocol.messages import Chunk, DeviceStatus, ModelInfo
from tests.faults.fleet import board, more_merges
from tests.faults.stranger import met
from tests.support.fleet import over_mqtt, running

pytestmark = pytest.mark.mosquitto

#: What one stranger may make the coordinator hold, and lose again, while it is refused.
GROWTH_BYTES_MAX = 64 * 1024 * 1024


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def forget_peak():
    """What this process holds now is the most it has held."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes():
    """The most it has held since."""
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def in_chunks(one, whole, chunk_bytes=100_000):
    for chunk in split(whole, chunk_bytes=chunk_bytes):
        one.up("update", codec.encode_chunk(chunk))


def bent(one, seq, **changes):
    """A good update's bytes with fields changed."""
    whole = codec.encode_tensors(one.update(seq), compress=False)
    return msgpack.packb(msgpack.unpackb(whole) | changes)


def refused(one, channel, reason):
    return one.records.wait("refused", device=one.name, channel=channel, reason=reason)


def test_F20_cut_random_huge_and_deep_messages_are_refused_in_bounded_memory(mosquitto, tmp_path):
    chance = random.Random(20)
    with met(mosquitto, tmp_path, fleet="hostile") as one:
        before, resident = one.model, resident_bytes()
        good = codec.encode_tensors(one.update(1), compress=False)
        in_chunks(one, good[:-5])
        refused(one, "update", "msgpack")
        in_chunks(one, b"\x81\xa1a\xdd" + struct.pack(">I", 2**32 - 1) + b"\xc0" * 1_000_000)
        in_chunks(one, b"\x81\xa1a" + b"\x91" * 1_000_000)
        in_chunks(one, b"\x81\xa1a" * 300_000 + b"\x80")
        in_chunks(one, chance.randbytes(500_000))
        for channel in ("status", "state", "update", "request", "metrics", "rsp"):
            one.up(channel, chance.randbytes(2000))
            one.up(channel, b"[" * 100_000)
        one.up("state", b"x" * (Limits().json_bytes_max + 1))
        refused(one, "state", "size")
        one.settled()
        assert one.model == before
        assert resident_bytes() - resident < GROWTH_BYTES_MAX
        tally = one.coordinator.machine.tally
        assert tally.received == tally.rejected == sum(tally.reasons.values()) >= 5


def test_F21_a_zip_bomb_does_not_go_off(mosquitto, tmp_path):
    with met(mosquitto, tmp_path, fleet="bombs") as one:
        before, wire = one.model, one.coordinator.link.wire
        # One as large as a message may be here, one of the size that a message may have where nothing is known.
        small, large = (zstandard.ZstdCompressor(level=19).compress(bytes(size)) for size in (1 << 25, 1 << 28))
        resident = resident_bytes()
        forget_peak()
        for claim in (1000, 1 << 25, 1 << 28, 1 << 30, 2**62):
            in_chunks(one, bent(one, 1, packing="zstd", body=small, body_bytes=claim))
        one.records.wait("refused", 5, device=one.name, channel="update", reason="inflate")
        in_chunks(one, bent(one, 1, packing="zstd", body=large, body_bytes=1 << 28))
        refused(one, "update", "size")
        assert wire.half_received.reserved_bytes == 0
        assert peak_bytes() - resident < GROWTH_BYTES_MAX, "not even for a moment"
        assert one.model == before
        assert resident_bytes() - resident < GROWTH_BYTES_MAX


def test_F23_an_update_of_another_model_is_refused_and_its_sender_told_what_is_expected(mosquitto, tmp_path):
    with met(mosquitto, tmp_path, fleet="mismatch") as one:
        before, manifest = one.model, one.coordinator.machine.manifest
        for seq, changes in enumerate(
            (
                {"model": "3c" * 32},
                {"parameters": manifest.model.parameters + 1},
                {"parameters": manifest.model.parameters - 1, "body": b""},
            ),
            start=1,
        ):
            update = one.update(seq, **changes)
            one.say(update)
            assert one.answered(update) == ("rejected", "model_mismatch")
        other_codec = one.update(4, codec="int8")
        one.say(other_codec)
        assert one.answered(other_codec) == ("rejected", "codec")
        short = one.update(5, body=b"\x00")
        one.say(short)
        assert one.answered(short) == ("rejected", "size")
        assert one.model == before
        said = one.watcher.newest(one.topics.all("run"), type(manifest))
        assert said.model == manifest.model
        assert isinstance(said.model, ModelInfo)
        assert dict(one.coordinator.machine.tally.reasons) == {"model_mismatch": 3, "codec": 1, "size": 1}


def test_F24_another_protocol_version_is_refused_as_such_on_both_sides(mosquitto, tmp_path, caplog):
    with met(mosquitto, tmp_path, fleet="versions") as one:
        before = one.model
        in_chunks(one, bent(one, 1, v=2))
        refused(one, "update", "version")
        birth = json.loads(codec.encode_json(DeviceStatus(state="online", session=7)))
        one.up("status", json.dumps(birth | {"v": 2}).encode())
        refused(one, "status", "version")
        assert one.model == before
        assert "version" in caplog.text


def versioned(one, version):
    """The coordinator's manifest, as one that speaks another version would say it."""
    manifest = json.loads(codec.encode_json(one.coordinator.machine.manifest))
    one.publish(one.topics.all("run"), json.dumps(manifest | {"v": version}).encode(), retain=False)


def test_F24_a_device_that_meets_a_run_of_a_later_version_ends_with_both_versions_and_one_of_an_older_is_ignored(
    mosquitto, tmp_path
):
    with met(mosquitto, tmp_path, fleet="later") as one:
        device = board(over_mqtt(mosquitto), tmp_path, "pi-02", fleet="later")
        with running(device) as old:
            more_merges(one.records, "pi-02")
            versioned(one, 0)
            more_merges(one.records, "pi-02")
            versioned(one, 2)  # left of a run that is over, for all that can be known
            more_merges(one.records, "pi-02")
            leader = {"v": 2, "state": "online", "session": "of-version-two"}
            one.publish(one.topics.all("coordinator"), json.dumps(leader).encode(), retain=False)
            error = old.ended()
        assert isinstance(error, Incompatible)
        assert error.exit_code == 6
        assert re.search(r"led in protocol version 2: .* speaks version 1\b", str(error))
        assert "\n" not in str(error)
        one.records.wait("left", device="pi-02")


def test_F29_a_device_that_finishes_nothing_holds_what_one_device_may_and_nobody_up(mosquitto, tmp_path):
    with met(mosquitto, tmp_path, fleet="loris") as one:
        wire = one.coordinator.link.wire
        limits, chance = wire.limits, random.Random(29)
        longest = 4 * one.coordinator.machine.manifest.model.parameters + TENSOR_FIELDS_BYTES_MAX
        resident, parts = resident_bytes(), parts_for(longest, chunk_bytes=100)
        for _ in range(50):
            # A claim of the largest message there may be, and never more than its first slice.
            body = chance.randbytes(place(0, parts, longest).stop)
            claim = Chunk(id=chance.randbytes(32), part=0, parts=parts, total=longest, body=body)
            one.up("update", codec.encode_chunk(claim))
        one.settled()
        assert resident_bytes() - resident < GROWTH_BYTES_MAX
        assert wire.displaced == 50 - 1, "of updates a device has one under way"
        held = wire._reassembler
        assert len(held._transfers) == 1 <= limits.transfers_per_device_max
        assert held._reserved_bytes < longest + 2 * TENSOR_FIELDS_BYTES_MAX
        assert wire.next_deadline() is not None
