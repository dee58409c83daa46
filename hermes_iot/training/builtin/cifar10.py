"""CIFAR-10 (Krizhevsky 2009): 32x32 colour images of ten classes, from the official binary files or a part of them.

A record is 1 label byte and 3,072 pixel bytes: the red, the green, the blue plane, each row by row.

The model has AlexNet's shape (five convolutions, dropout, dense layers), shrunk to about the million parameters of the
paper's (arXiv 2410.20495). The first convolution strides, as AlexNet's does: 16 million multiplications an image, a
quarter of what they would be without, is what a board can bear.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from hermes_iot.errors import UsageError
from hermes_iot.training.data import Array
from hermes_iot.training.download import Source, fetch, find, folders, temporary

DEFAULTS = {"samples": 2000, "batch": 16, "epochs": 1, "learning_rate": 0.05}

RECORD_BYTES: Final = 1 + 3 * 32 * 32
#: Records in an official file; a file may have fewer.
RECORDS_MAX: Final = 10_000

_TRAIN: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST: Final = "test_batch.bin"
_ARCHIVE: Final = "cifar-10-binary.tar.gz"

# The MD5 is the one on the set's page; the address was not reachable where this was written.
_SOURCE: Final = Source(
    urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    algorithm="md5",
    digest="c32a1d4ab5d03f1284b67883e8d87530",
    bytes_max=200_000_000,
)


class AlexNet(nn.Module):
    """967,322 parameters. Takes float32 (rows, 3, 32, 32) in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Mean and standard deviation per channel of the official 50,000 training images. They are constants: not
        # persistent, so they never travel.
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1), persistent=False)
        widths = (3, 64, 128, 192, 160, 128)
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            stride = 2 if number == 0 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number in (0, 1, 4) else []
        layers += [nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 400), nn.ReLU(), nn.Linear(400, 10)]
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            # He et al. 2015 (arXiv 1502.01852). With torch's own start, seven layers of plain SGD stand still for
            # hundreds of steps (measured, one seed: 45 % against 36 % test accuracy after 1,278 steps).
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (rows, 10)."""
        logits: Tensor = self.layers((x - self.mean) / self.std)
        return logits


def build_model() -> nn.Module:
    """A small AlexNet."""
    return AlexNet()


def load_data(data_dir: Path | None = None) -> tuple[Array, Array, Array, Array]:
    """x_train (rows, 3, 32, 32) uint8, y_train, x_test, y_test; of the full set 50,000 and 10,000 rows.

    Raises:
        DataUnavailable: the set is neither here nor to be had.
        UsageError: a file is damaged or missing.
    """
    places = folders("cifar10", data_dir, also=("cifar-10", "cifar-10-batches-bin"))
    folder = next((place for place in places if any((place / name).is_file() for name in _TRAIN)), None)
    if folder is None:
        folder = places[-1]
        archive = find((_ARCHIVE,), places) or fetch(_SOURCE, folder / _ARCHIVE, looked_in=places)
        unpack(archive, folder)
        if archive.parent == folder:
            archive.unlink(missing_ok=True)
    x, y = read_batches([folder / name for name in _TRAIN if (folder / name).is_file()])
    x_test, y_test = read_batches([folder / _TEST])
    return x, y, x_test, y_test


def read_batches(paths: list[Path]) -> tuple[Array, Array]:
    """Images (rows, 3, 32, 32) uint8 and labels (rows,) uint8 of several files, in order.

    Files are read one by one into one array: a board must not hold the set twice.

    Raises:
        UsageError: a file is missing, is no whole number of records, is too long, or holds a label above 9.
    """
    counts = [_records(path) for path in paths]
    x = np.empty((sum(counts), 3, 32, 32), dtype=np.uint8)
    y = np.empty(sum(counts), dtype=np.uint8)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        records = np.fromfile(path, dtype=np.uint8, count=count * RECORD_BYTES)
        if records.size != count * RECORD_BYTES:
            raise UsageError(f"{path} changed while it was read")
        records = records.reshape(count, RECORD_BYTES)
        y[start : start + count] = records[:, 0]
        x[start : start + count] = records[:, 1:].reshape(count, 3, 32, 32)
        start += count
        if records[:, 0].max() > 9:  # noqa: PLR2004 - ten classes
            raise UsageError(f"{path} is no CIFAR-10 batch", why=f"it holds the label {records[:, 0].max()}")
    return x, y


def unpack(archive: Path, folder: Path) -> None:
    """Take the six batches out of the official archive, and nothing else: its paths are not trusted.

    Raises:
        UsageError: it is damaged, or a batch is missing or of another size.
    """
    wanted = {*_TRAIN, _TEST}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                content = tar.extractfile(member) if name in wanted and member.isfile() else None
                if content is None:
                    continue
                if member.size != RECORDS_MAX * RECORD_BYTES:
                    raise UsageError(f"{archive}: {name} has {member.size} bytes")
                with contextlib.closing(content), temporary(folder / name) as file:
                    shutil.copyfileobj(content, file)
                wanted.discard(name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UsageError(f"{archive} cannot be unpacked", why=str(error), mend="Delete it and try again") from error
    if wanted:
        raise UsageError(f"{archive} lacks {', '.join(sorted(wanted))}")


def _records(path: Path) -> int:
    if not path.is_file():
        raise UsageError(f"{path} is missing", mend="Fetch the binary version of CIFAR-10 again")
    count, rest = divmod(path.stat().st_size, RECORD_BYTES)
    if rest or not 1 <= count <= RECORDS_MAX:
        why = f"{path.stat().st_size} bytes are not 1 to {RECORDS_MAX} records of {RECORD_BYTES}"
        raise UsageError(f"{path} is no CIFAR-10 batch", why=why)
    return count
