import math

import numpy as np
import pytest

from hermes_iot.errors import UsageError
from hermes_iot.training.partitions import dirichlet

LABELS = np.random.default_rng(0).integers(10, size=3000)


def split(devices=12, alpha=0.3, seed=1, labels=LABELS, **options):
    return dirichlet(labels, devices, alpha, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 100.0])
@pytest.mark.parametrize("devices", [1, 12, 300])
def test_every_row_goes_to_one_device_and_none_goes_short(devices, alpha):
    parts = split(devices, alpha)
    assert len(parts) == devices
    assert sorted(np.concatenate(parts)) == list(range(3000))
    assert min(part.size for part in parts) >= 10
    assert all(np.array_equal(part, np.sort(part)) for part in parts)


def commonest(alpha):
    """The share of a device's commonest class, averaged over devices."""
    return np.mean([np.bincount(LABELS[part]).max() / part.size for part in split(alpha=alpha)])


def test_a_small_alpha_skews_the_labels():
    assert commonest(0.05) > 0.6
    assert commonest(1000.0) < 0.16  # ten classes


def test_a_minimum_that_takes_every_row_is_met():
    parts = split(300, 0.01, rows_min=10)
    assert [part.size for part in parts] == [10] * 300


def test_the_same_generator_gives_the_same_split():
    one, two, other = split(), split(), split(seed=2)
    assert [part.tolist() for part in one] == [part.tolist() for part in two]
    assert [part.tolist() for part in one] != [part.tolist() for part in other]


@pytest.mark.parametrize("labels", [LABELS.astype(np.float32), LABELS.reshape(300, 10)])
def test_targets_that_are_no_classes_are_refused(labels):
    with pytest.raises(UsageError, match="labels"):
        split(labels=labels)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"devices": 0},
        {"devices": 301},
        {"rows_min": 0},
        {"rows_min": 251},
    ],
)
def test_numbers_that_leave_no_split_are_refused(options):
    with pytest.raises(UsageError):
        split(**options)
