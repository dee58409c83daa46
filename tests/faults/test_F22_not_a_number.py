"""F22: NaN, infinity, what overflows fp16, a loss of zero. The model stays finite and nobody gets the better of it."""

import math

import numpy as np
import pytest

from tests.faults.stranger import met

pytestmark = pytest.mark.mosquitto


def test_F22_numbers_that_are_none_reach_no_model(mosquitto, tmp_path):
    with met(mosquitto, tmp_path, fleet="numbers") as one:
        before = one.model
        size = one.coordinator.machine.manifest.model.parameters
        assert one.coordinator.machine.manifest.codec == "fp16"
        for seq, worst in enumerate((math.nan, math.inf, -math.inf), start=1):
            vector = np.zeros(size, dtype="<f2")
            vector[seq] = worst
            update = one.update(seq, body=vector.tobytes())
            one.say(update)
            assert one.answered(update) == ("rejected", "finite")
        assert one.model == before
        assert dict(one.coordinator.machine.tally.reasons) == {"finite": 3}
        # The largest numbers there are, a loss of zero and one that is none: whatever is claimed, we measure.
        for seq, (value, loss) in enumerate(
            ((6.5e4, 0.0), (-6.5e4, math.nan), (0.0, math.inf), (1.0, -1e300)), start=4
        ):
            update = one.update(seq, value=value, loss=loss)
            one.say(update)
            assert one.answered(update)[0] in {"applied", "rejected"}
            assert np.isfinite(one.coordinator.machine.model).all()
        weights = [row["weight"] for row in one.records.of("merge")]
        assert all(0.0 <= weight <= 1.0 for weight in weights)
