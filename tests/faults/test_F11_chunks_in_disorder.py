"""F11: an update's chunks come out of order, twice, mixed with another's, or not at all. The original or nothing."""

import random
from dataclasses import replace

import pytest

from tests.faults.fleet import ENDLESS
from tests.faults.stranger import met

pytestmark = pytest.mark.mosquitto

#: 20,020 parameters, 40 kB as fp16, in some forty chunks.
LARGE = {"features": 2000, "classes": 10, "rows": 200}
CONFIG = replace(ENDLESS, chunk_bytes=1024, samples=40)


def test_F11_whatever_becomes_of_the_chunks_each_update_arrives_whole_or_not_at_all(mosquitto, tmp_path):
    chance = random.Random(11)
    with met(mosquitto, tmp_path, fleet="disorder", config=CONFIG, toy=LARGE) as one:
        whole = [one.update(seq, value=0.01 * seq) for seq in (1, 2)]
        first, second = ([packet.payload for packet in one.wire.outgoing(update, device=one.name)] for update in whole)
        lost = second[:20] + second[21:]
        for payload in chance.sample(lost, len(lost)):
            one.up("update", payload)
        # The newer one lacks a chunk; the older one comes in disorder, each chunk twice, between other rubbish.
        for payload in chance.sample(first * 2, 2 * len(first)):
            one.up("update", payload)
        assert one.answered(whole[0]) == ("applied", "")
        one.settled()
        tally = one.coordinator.machine.tally
        assert (tally.applied, tally.rejected) == (1, 0)
        # A device holds one transfer here: the older one has taken the newer one's place, and it is sent again.
        for payload in second:
            one.up("update", payload)
        assert one.answered(whole[1]) == ("applied", "")
