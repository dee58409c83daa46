"""A task for measuring what a large model costs on its way: a wide multilayer perceptron on a few made-up rows.

``HERMES_BENCH_WIDTH`` units in each of two hidden layers make width^2 + 28 width + 10 parameters: 25,009,815 with the
default. Both sides of a run must see the same value.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from torch import nn

WIDTH = int(os.environ.get("HERMES_BENCH_WIDTH", "4987"))
FEATURES, CLASSES, ROWS = 16, 10, 160
DEFAULTS = {"samples": 32, "batch": 16, "epochs": 1, "learning_rate": 0.01}


def build_model() -> nn.Module:
    """16 - width - width - 10."""
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )


def load_data() -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Rows of noise around their class's mark."""
    draw = np.random.default_rng(25)
    labels = draw.integers(0, CLASSES, ROWS)
    rows = draw.normal(0.0, 0.5, (ROWS, FEATURES)).astype(np.float32)
    rows[np.arange(ROWS), labels] += 2.0
    return {"train": (rows[:128], labels[:128]), "test": (rows[128:], labels[128:])}
