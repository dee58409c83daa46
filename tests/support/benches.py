"""Hand-made curves and cells for the tests of the benchmark."""

from __future__ import annotations

from dataclasses import replace

from hermes_iot.runtime.bench.cells import Cell, Row, Setting
from hermes_iot.runtime.bench.workers import Failure
from hermes_iot.runtime.bench.workloads import WORKLOADS
from hermes_iot.runtime.simulation.outcome import Point
from hermes_iot.runtime.simulation.profiles import FleetProfile, Group, LinkProfile

THREE = FleetProfile(
    name="three",
    batch_s=0.01,
    jitter=0.07,
    groups=(Group(name="fast", slowness=1.0, count=2), Group(name="slow", slowness=4.0)),
)
LINK = LinkProfile(up_mbit=20, down_mbit=20, latency_s=0.02)


def point(t_s, accuracy, *, loss=None, samples=None):
    """After t seconds: version t, 100 t model bytes, 10 t of data, t of control, 2 t pushes of 6 t iterations."""
    return Point(
        t_s=float(t_s),
        version=int(t_s),
        bytes_model=int(100 * t_s),
        bytes_data=int(10 * t_s),
        bytes_control=int(t_s),
        pushes=int(2 * t_s),
        iterations=int(6 * t_s),
        samples=int(1000 * t_s) if samples is None else samples,
        loss=1.0,
        accuracy=accuracy,
        validation_loss=loss,
    )


def curve(*accuracies):
    """One point a second, from 0."""
    return [point(second, accuracy) for second, accuracy in enumerate(accuracies)]


def setting(**changed):
    """The cost task, seconds of virtual time."""
    workload = replace(WORKLOADS["cost"], targets=(0.5, 0.7), **changed.pop("workload", {}))
    base = Setting(workload=workload, fleet=THREE, fleet_name="three", link=LINK, link_name="lan", virtual_s=40.0)
    return replace(base, **changed)


def cell(strategy="bsp", *, seed=0, label=None, constants=None, **changed):
    """One cell of `setting`."""
    row = Row(label=label or strategy, strategy=strategy, constants=constants or {})
    return Cell(setting=setting(**changed), row=row, seed=seed)


class Here:
    """`workers.each` without processes: in this one, and it notes what was begun.

    Args:
        fails: labels whose cells come to nothing.
    """

    def __init__(self, *, fails=()):
        self.begun = []
        self._fails = fails

    def __call__(self, pieces, work, *, jobs, started):  # noqa: ARG002
        for piece in pieces:
            self.begun.append((piece.cell.row.label, piece.cell.seed))
            started(piece)
            yield piece, Failure("it was told to") if piece.cell.row.label in self._fails else work(piece)
