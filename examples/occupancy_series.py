"""A task of one's own: is somebody in the office, judging by the last quarter of an hour?

A task is two plain functions, `build_model()` and `load_data(data_dir)`; nothing in here imports hermes-iot. The data
are real: the sensors of an office, one reading a minute (UCI Occupancy Detection; Candanedo and Feldheim, Energy and
Buildings 112, 2016; CC BY 4.0). DATA is a folder with datatraining.txt, datatest.txt and datatest2.txt of that set.

All at once on this machine::

    hermes-iot demo --task examples/occupancy_series.py --data-dir DATA --max-wall 15s

By hand, a coordinator and as many devices as there are boards (each has this file; only its hash travels)::

    hermes-iot coordinator --broker mqtt://localhost --fleet office --task examples/occupancy_series.py \
        --data-dir DATA --max-wall 60s
    hermes-iot device --broker mqtt://localhost --fleet office --id desk-1 --task examples/occupancy_series.py \
        --data-dir DATA

Where rows must not leave their board, give the coordinator `--data local`, and each device the windows that it shall
believe to be its own: `--rows 0:1440` is the first day, `--rows 1440:2880` the second.
"""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

MINUTES = 15
VALIDATION = 0.2

#: Of 960 rows 816 are trained on, whole mini-batches of 16. With 1000 every iteration would end on a step made of two
#: rows, and it is the model after that step which is measured and sent.
DEFAULTS = {"samples": 960, "batch": 16, "epochs": 1, "learning_rate": 0.03}

#: A usual change within a quarter of an hour: temperature, humidity, light, CO2, humidity ratio.
SCALE = (0.2, 0.5, 200.0, 50.0, 1e-4)
LIGHT = 2


class Presence(nn.Module):
    """297 parameters. Takes readings as the sensors give them, (rows, 5, 15), and gives a logit for each row.

    The weather moves temperature, humidity and CO2 from week to week. A model that sees their levels learns its week by
    heart: after 26 iterations this one was right for 81 to 92 % of the minutes of other weeks, and for 98 % when it
    sees how the air moved within the window instead. Light is taken as it is.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(SCALE)[:, None], persistent=False)  # a constant: it never travels
        self.layers = nn.Sequential(nn.Conv1d(5, 8, kernel_size=5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 11, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (rows, 1), above 0 for occupied."""
        level = x.mean(dim=2, keepdim=True)
        level[:, LIGHT] = 0
        logits: Tensor = self.layers((x - level) / self.scale)
        return logits


def build_model() -> nn.Module:
    """A new model. Its first weights come from torch's generator, which the run seeds."""
    return Presence()


def load_data(data_dir: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Windows and answers: training, what the coordinator decides by, and what is only reported.

    Left to itself the coordinator would hold out windows here and there, and each shares 14 of its 15 minutes with one
    that is trained on. So the training week is cut once, in time, before windows are made. The test files are other
    weeks.
    """
    if data_dir is None:
        raise FileNotFoundError("say with --data-dir where the files of UCI Occupancy Detection are")
    folder = data_dir / "occupancy" if (data_dir / "occupancy").is_dir() else data_dir
    week = read(folder / "datatraining.txt")
    cut = round((1 - VALIDATION) * len(week[0]))
    tests = [windows(*read(folder / name)) for name in ("datatest.txt", "datatest2.txt")]
    return {
        "train": windows(*(column[:cut] for column in week)),
        "validation": windows(*(column[cut:] for column in week)),
        "test": (np.concatenate([x for x, _ in tests]), np.concatenate([y for _, y in tests])),
    }


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (rows,), sensors (rows, 5), presence (rows,). The files have a number before each date."""
    with path.open(encoding="ascii", newline="") as file:
        rows = list(csv.reader(file))[1:]
    at = np.array([row[1] for row in rows], dtype="datetime64[s]")
    sensors = np.array([row[2:7] for row in rows], dtype=np.float32)
    return at, sensors, np.array([row[7] for row in rows], dtype=np.int64)


def windows(at: np.ndarray, sensors: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All runs of 15 readings, (windows, 5, 15), and whether somebody was there at the last of them.

    Where the clock does not go on by a minute one stretch ends and another begins: no window reaches across.
    """
    minutes = np.round(np.diff(at) / np.timedelta64(60, "s"))
    edges = [0, *(np.flatnonzero(minutes != 1) + 1), len(at)]
    stretches = [slice(start, stop) for start, stop in pairwise(edges) if stop - start >= MINUTES]
    x = [sliding_window_view(sensors[one], MINUTES, axis=0) for one in stretches]
    return np.concatenate(x), np.concatenate([present[one][MINUTES - 1 :] for one in stretches])
