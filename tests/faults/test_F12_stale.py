"""F12: an update from a model that is too old. Refused by its version, whenever it was made."""

from dataclasses import replace

import pytest

from tests.faults.fleet import ENDLESS
from tests.faults.stranger import met

pytestmark = pytest.mark.mosquitto

LAG_MAX = 2


def test_F12_an_update_of_an_old_model_is_stale_and_changes_nothing(mosquitto, tmp_path):
    with met(mosquitto, tmp_path, fleet="stale", config=replace(ENDLESS, lag_max=LAG_MAX)) as one:
        for seq in range(1, LAG_MAX + 2):
            update = one.update(seq, value=0.01)
            one.say(update)
            assert one.answered(update) == ("applied", "")
        before = one.model
        old = one.update(LAG_MAX + 2, value=9.0, base_version=0)
        one.say(old)
        assert one.answered(old) == ("stale", "lag")
        assert one.model == before
        assert one.coordinator.machine.tally.reasons == {"lag": 1}
        at_the_bound = one.update(LAG_MAX + 3, base_version=before[0] - LAG_MAX)
        one.say(at_the_bound)
        assert one.answered(at_the_bound) == ("applied", "")
