"""Handwritten digits of 8x8 pixels: 1,797 images that scikit-learn carries, so nothing is downloaded.

The set is small enough for a continuous-integration job and still needs a non-linear model for the last points.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from hermes_iot.errors import UsageError
from hermes_iot.training.data import Array, permutation

DEFAULTS = {"samples": 256, "batch": 16, "epochs": 2, "learning_rate": 0.1}

_TEST_FRACTION = 0.2
_TEST_SEED = 8


def build_model() -> nn.Module:
    """64-64-10, 4,810 parameters."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def load_data() -> tuple[Array, Array, Array, Array]:
    """x_train (1438, 64), y_train, x_test (359, 64), y_test; pixels in [0, 1].

    The test rows are a fifth of every class, chosen once and for all.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - optional, and needed by this task alone
    except ImportError as error:
        why, mend = "it comes with scikit-learn, which is not installed", "Run: pip install 'hermes-iot[demo]'"
        raise UsageError("the data set of task digits is missing", why=why, mend=mend) from error
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    test = np.zeros(len(y), dtype=np.bool_)
    for digit in range(10):
        rows = np.flatnonzero(y == digit)
        test[rows[permutation(_TEST_SEED + digit, rows.size)[: round(_TEST_FRACTION * rows.size)]]] = True
    return x[~test], y[~test], x[test], y[test]
