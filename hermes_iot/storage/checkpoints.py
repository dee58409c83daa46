"""Tensors on disk: checkpoints to resume from, and the finished model for everybody else. The only home of safetensors.

safetensors because a file of it is only data (nothing runs when it is loaded), because every framework reads it, and
because it needs numpy but not torch. It knows no checksum, so one metadata entry of ours, ``hermes-iot``, holds as JSON
the caller's metadata and a SHA-256 over that metadata and every tensor's name, type, shape and bytes; `load` recomputes
it before anything is handed out. One entry rather than several because safetensors writes its entries in random order:
equal content gives equal files this way.

A store keeps the newest `keep` checkpoints of one run, numbered by model version. Where the newest is damaged, `latest`
says so and gives the one before; together with the journal that still leads to the identical model, provided the
journal is only cut up to the *oldest* checkpoint kept (`CheckpointStore.versions`). Where a version is saved again, for
the log grows although the model stands still, the one before it stays as ``<name>.bak`` and is the second of the two.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as tensor_file

from hermes_iot.domain import ModelSignature, Params
from hermes_iot.errors import Incompatible, StorageError
from hermes_iot.storage import atomic
from hermes_iot.storage.disk import disk

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

#: Nothing larger is read into memory, and so nothing larger is written: four vectors of 4 * 10^9 float32 parameters.
CHECKPOINT_BYTES_MAX = 64 * 1024**3
#: What safetensors puts before the tensors, for each of them at most about this.
_HEAD_BYTES = 1024

#: One may be damaged.
KEEP_MIN = 2

FORMAT_VERSION = 1

_ENTRY = "hermes-iot"
_NAME = re.compile(r"model-([0-9]{12})\.safetensors")


#: The names safetensors has for numpy's types.
_TYPES = {
    "bool": "BOOL",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_ALIGNED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint found.

    Attributes:
        version: the model version it was saved at.
        arrays: its tensors, writable copies.
        metadata: what was saved with them.
        skipped: a sentence for each newer one that could not be used.
    """

    version: int
    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, Any]
    skipped: tuple[str, ...]


def save(path: Path, arrays: Arrays, metadata: Mapping[str, object], *, backup: bool = False) -> None:
    """Write tensors and what belongs to them, atomically.

    Args:
        path: the file; its directory must exist.
        arrays: by name; any shape and stride, of the integer, boolean and IEEE float types.
        metadata: JSON-able; floats come back bit for bit, infinities and NaN included.
        backup: keep the file before as ``<name>.bak``.

    Raises:
        StorageError: it could not be written, or is larger than `load` takes; the file before stands.
    """
    plain = {name: _plain(array) for name, array in arrays.items()}
    body = json.dumps(metadata, separators=(",", ":"))
    size = len(body) + sum(array.nbytes + _HEAD_BYTES for array in plain.values())
    if size > CHECKPOINT_BYTES_MAX:
        raise StorageError(
            f"cannot write {path}",
            why=f"it would have about {size} bytes, at most {CHECKPOINT_BYTES_MAX} can be read again",
            mend="Train a smaller model, or with a strategy that keeps fewer vectors",
        )
    entry = {"format": FORMAT_VERSION, "sha256": _checksum(FORMAT_VERSION, plain, body), "metadata": body}
    atomic.write_atomic(path, *_pieces(plain, {_ENTRY: json.dumps(entry)}), backup=backup)


def load(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `save` wrote: writable arrays by name, and the metadata.

    Raises:
        Damaged: truncated, changed, or not a file of ours.
        StorageError: missing, unreadable, or written in a newer format.
    """
    data = atomic.read_bounded(path, CHECKPOINT_BYTES_MAX)
    if data is None:
        raise StorageError(f"{path} does not exist", mend="Check the path, or start without a checkpoint")
    try:
        arrays = tensor_file.load(data)
        entry = json.loads(_entry(data))
        number, body = int(entry["format"]), entry["metadata"]
        intact = _checksum(number, arrays, body) == entry["sha256"]
        metadata = json.loads(body)
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise atomic.damaged(path, f"it is no checkpoint of hermes-iot ({error})") from error
    if not intact:
        raise atomic.damaged(path, "its checksum does not match")
    if number > FORMAT_VERSION:
        raise StorageError(
            f"{path} was written by a newer hermes-iot",
            why=f"its format is {number}, this version reads up to {FORMAT_VERSION}",
            mend="Upgrade hermes-iot",
        )
    if not isinstance(metadata, dict):
        raise atomic.damaged(path, "its metadata is no mapping")
    return arrays, metadata


def export_model(path: Path, vector: Params, signature: ModelSignature, metadata: Mapping[str, object]) -> None:
    """Write a model under its own tensor names, as `safetensors.torch.load_file` and `load_state_dict` want it.

    Args:
        path: the file; its directory must exist.
        vector: shape (P,), float32.
        signature: the vector's layout.
        metadata: as in `save`.

    Raises:
        Incompatible: the vector is not of this signature.
        StorageError: it could not be written.
    """
    if vector.shape != (signature.parameters,) or vector.dtype != np.float32:
        raise Incompatible(
            "the model cannot be exported",
            why=f"its vector is {vector.dtype}{list(vector.shape)}, its signature says float32[{signature.parameters}]",
        )
    arrays, start = {}, 0
    for spec in signature.tensors:
        arrays[spec.name] = vector[start : start + spec.size].reshape(spec.shape)
        start += spec.size
    save(path, arrays, metadata)


class CheckpointStore:
    """The newest checkpoints of one run, each run in its own directory.

    Args:
        directory: created at the first save.
        keep: how many to keep, at least `KEEP_MIN`.
    """

    def __init__(self, directory: Path, keep: int = KEEP_MIN) -> None:
        if keep < KEEP_MIN:
            raise ValueError(f"keep is {keep}, a store keeps at least {KEEP_MIN} checkpoints")
        self._directory = directory
        self._keep = keep
        self._damaged: set[int] = set()
        self._fallen_back: set[int] = set()  # the backup is whole, the file is not

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions there are, oldest first, those found damaged left out.

        Raises:
            StorageError: the directory cannot be read.
        """
        try:
            names = [_NAME.fullmatch(name) for name in disk().names(self._directory)]
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise atomic.storage_error(error, f"cannot read {self._directory}", self._directory) from error
        return tuple(sorted({int(name[1]) for name in names if name} - self._damaged))

    def save(self, version: int, arrays: Arrays, metadata: Mapping[str, object]) -> Path:
        """Save under a version, then drop what is older than the newest `keep`. Returns the file.

        Raises:
            StorageError: it could not be written, or a newer version lies there that this store has not passed over.
        """
        newest = max(self.versions, default=version)
        if newest > version:
            raise StorageError(
                f"cannot save model version {version} in {self._directory}",
                why=f"version {newest} is there already",
                mend="Give each run its own directory, or resume from the newest checkpoint",
            )
        atomic.make_directory(self._directory)
        atomic.sweep(self._directory)
        path = self.path(version)
        again = version in self.versions and version not in self._fallen_back
        save(path, arrays, {"version": version, "metadata": metadata}, backup=again)
        self._damaged.discard(version)
        self._fallen_back.discard(version)
        self._prune()
        return path

    def read(self, version: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """One checkpoint: its arrays and metadata.

        Raises:
            Damaged: not what was written, or another version's.
            StorageError: missing, unreadable, or of a newer format.
        """
        return _of_version(self.path(version), version)

    def read_backup(self, version: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """The one saved before it under the same version; None where there is none, or it is damaged.

        Raises:
            StorageError: unreadable, or of a newer format.
        """
        path = atomic.backup_of(self.path(version))
        try:
            return _of_version(path, version) if path.exists() else None
        except atomic.Damaged:
            return None

    def repeated(self, version: int) -> bool:
        """Whether a version has a backup: then it needs no older one beside it."""
        return atomic.backup_of(self.path(version)).exists()

    def latest(self) -> Checkpoint | None:
        """The newest that can be read; None when the store is empty.

        Raises:
            StorageError: there are checkpoints and none can be read, or one is of a newer format.
        """
        skipped: list[str] = []
        for version in reversed(self.versions):
            try:
                arrays, metadata = self.read(version)
            except atomic.Damaged as damage:
                skipped.append(f"{damage.what}: {damage.why}")
                before = self.read_backup(version)
                if before is None:
                    self._damaged.add(version)
                    continue
                self._fallen_back.add(version)
                arrays, metadata = before
            return Checkpoint(version=version, arrays=arrays, metadata=metadata, skipped=tuple(skipped))
        if not skipped:
            return None
        raise StorageError(
            f"no checkpoint in {self._directory} can be used",
            why="; ".join(skipped),
            mend=f"hermes-iot repair {self._directory.parent} says what can be mended, and mends it",
        )

    def path(self, version: int) -> Path:
        """Where a version lies, or would."""
        return self._directory / f"model-{version:012}.safetensors"

    def _prune(self) -> None:
        # Damaged ones go only here, once a good one is safe, and never count as one of those kept.
        versions = self.versions
        keep = self._keep - self.repeated(versions[-1])
        for version in {*versions[:-keep], *(bad for bad in self._damaged if bad < versions[-1])}:
            try:
                disk().unlink(self.path(version))
                disk().unlink(atomic.backup_of(self.path(version)))
            except OSError as error:
                raise atomic.storage_error(error, f"cannot remove {self.path(version)}", self._directory) from error
            self._damaged.discard(version)


def _of_version(path: Path, version: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    arrays, envelope = load(path)
    if envelope.get("version") != version or "metadata" not in envelope:
        raise atomic.damaged(path, f"it holds version {envelope.get('version')}")
    return arrays, envelope["metadata"]


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    # safetensors copies raw memory whatever the strides say: a transposed array would come back scrambled.
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _pieces(arrays: Arrays, metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file: its header and the arrays as they lie in memory. The library's own `save` copies them twice."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Wide types first: then every tensor is aligned.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    at = 0
    for name, array in ordered:
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    yield len(text).to_bytes(8, "little") + text
    for _, array in ordered:
        if array.size:
            yield array.data.cast("B")


def _checksum(number: int, arrays: Arrays, body: str) -> str:
    """Over the format's number, the metadata's text and each tensor by name; being JSON keeps the parts apart."""
    digest = hashlib.sha256(f"{number} {body}".encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def _entry(data: bytes) -> str:
    """Our metadata entry from the header, which safetensors has checked but does not hand out for bytes."""
    length = int.from_bytes(data[:8], "little")
    entry: str = json.loads(data[8 : 8 + length])["__metadata__"][_ENTRY]
    return entry
