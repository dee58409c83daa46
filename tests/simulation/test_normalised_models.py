"""A model with batch normalisation trains through coarse codecs: what its statistics need is found out by itself."""

from __future__ import annotations

import pytest

from hermes_iot.config import RunConfig
from hermes_iot.runtime.simulation.benches import equipment_of
from hermes_iot.runtime.simulation.outcome import SimLimits
from hermes_iot.runtime.simulation.run import simulate
from tests.simulation.fleets import FOUR, LINK

TASK = """
import numpy as np
from torch import nn

DEFAULTS = {"samples": 200, "batch": 16, "epochs": 1, "learning_rate": 0.05}

def build_model():
    return nn.Sequential(
        nn.Linear(20, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4)
    )

def load_data():
    chance = np.random.default_rng(5)
    scale = np.logspace(-1, 2, 20)
    centres = chance.standard_normal((4, 20)) * 1.5
    y = chance.integers(0, 4, 2400)
    x = ((centres[y] + chance.standard_normal((2400, 20))) * scale).astype(np.float32)
    return x[:2000], y[:2000], x[2000:], y[2000:]
"""


@pytest.fixture
def learnt(tmp_path):
    """Loss on the test rows after 10 virtual seconds of hermes-plus."""
    (tmp_path / "normalised.py").write_text(TASK)

    def run(codec, fine):
        config = RunConfig(task=str(tmp_path / "normalised.py"), codec=codec, codec_down=codec, fine=fine)
        equipment = equipment_of(config, devices=FOUR.devices, data_dir=None)
        outcome = simulate(
            config,
            fleet=FOUR,
            link=LINK,
            bench=equipment.bench,
            trainer_of=equipment.trainer_of,
            until=SimLimits(virtual_s=10.0),
        )
        return outcome.summary["loss"]

    return run


@pytest.mark.parametrize("codec", ["int8", "deadzone"])
def test_running_statistics_are_spared_a_coarse_codec_and_nobody_has_to_ask(learnt, codec):
    assert learnt(codec, None) < 0.1
    # variances in blocks with everything else: the loss is large, or no number at all
    assert not learnt(codec, "none") < 0.3
