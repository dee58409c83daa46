"""What tests of strategies share: a fleet of names, contributions of a few numbers, and a checkpoint's round trip."""

from __future__ import annotations

import json

import numpy as np

from hermes_iot.algorithms.strategies.base import Contribution, StateDump
from hermes_iot.domain import Trained

#: What every test begins from.
START = np.array([1.0, 1.0], dtype=np.float32)


def vector(*values):
    return np.array(values, dtype=np.float32)


class Devices:
    """A fleet of these, in this order."""

    def __init__(self, names):
        self.names = tuple(names)

    def __len__(self):
        return len(self.names)

    def __iter__(self):
        return iter(self.names)

    def __contains__(self, device):
        return device in self.names


def unmeasured(_params):
    raise AssertionError("the references look at no loss")


def contribution(device, *values, samples=10, iterations=1, lag=0, seconds=1.0, mini_batches=10):
    return Contribution(
        device=device,
        vector=vector(*values),
        base=None,
        lag=lag,
        samples=samples,
        iterations=iterations,
        seconds=seconds,
        mini_batches=mini_batches,
        steps=mini_batches * iterations,
    )


def trained(*values, loss=0.5, mini_batches=1):
    return Trained(params=vector(*values), loss=loss, samples=10, mini_batches=mini_batches)


class Lead:
    """The coordinator half under test, with its state and model: `fleet` is a string, a device a letter."""

    def __init__(self, strategy, fleet, start=START):
        self.strategy = strategy
        self.model = start
        self.fleet = Devices(fleet)
        self.state = strategy.coordinator_start(start)

    def push(self, device, *values, **claims):
        return self._done(
            self.strategy.merge(self.state, self.model, contribution(device, *values, **claims), self.fleet, unmeasured)
        )

    def now(self, fleet):
        self.fleet = Devices(fleet)
        return self._done(self.strategy.changed(self.state, self.model, self.fleet, unmeasured))

    def resize(self, reports):
        self.state, sizes = self.strategy.resize(self.state, reports, self.fleet)
        return sizes

    @property
    def served(self):
        return self.strategy.served(self.state, self.model)

    def _done(self, outcome):
        self.state, merged = outcome
        if merged.model is not None:
            assert merged.model.dtype == np.float32
            self.model = merged.model
        return merged


def stored(dump):
    """A dump as a checkpoint gives it back."""
    scalars = json.loads(json.dumps(dict(dump.scalars), allow_nan=False))
    arrays = {name: np.frombuffer(array.tobytes(), dtype="<f4").copy() for name, array in dump.arrays.items()}
    return StateDump(scalars=scalars, arrays=arrays)
