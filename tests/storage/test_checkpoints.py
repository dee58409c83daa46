"""Checkpoints come back bit for bit, or not at all."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from safetensors import numpy as tensor_file
from safetensors import torch as torch_file

from hermes_iot.domain import ModelSignature, TensorSpec
from hermes_iot.errors import Incompatible, StorageError
from hermes_iot.storage import checkpoints
from hermes_iot.storage.atomic import Damaged
from hermes_iot.storage.checkpoints import CheckpointStore, export_model, load, save

ARRAYS = {"model": np.arange(6, dtype=np.float32), "momentum": np.zeros((2, 3), np.float32)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


@given(
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        numpy_st.arrays(
            st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
            numpy_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        max_size=4,
    ),
    metadata=st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False) | st.none(), max_size=4),
)
def test_tensors_and_metadata_come_back_bit_for_bit(arrays, metadata):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        save(path, arrays, metadata)
        loaded, found = load(path)
    assert same(loaded, arrays)
    assert found == metadata


def test_strided_and_byte_swapped_arrays_keep_their_values(path):
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    save(path, {"t": matrix.T, "column": matrix[:, 1], "swapped": matrix.astype(">f4")}, {})
    loaded, _ = load(path)
    assert np.array_equal(loaded["t"], matrix.T)
    assert np.array_equal(loaded["column"], matrix[:, 1])
    assert np.array_equal(loaded["swapped"], matrix)


def test_loaded_arrays_can_be_written_to(path):
    save(path, ARRAYS, {})
    loaded, _ = load(path)
    loaded["model"] += 1
    assert loaded["model"][0] == 1


def test_equal_content_gives_equal_files_in_every_process(path):
    code = (
        "import sys, numpy; from pathlib import Path; from hermes_iot.storage.checkpoints import save;"
        "save(Path(sys.argv[1]), {'b': numpy.ones(3, 'f4'), 'a': numpy.zeros(2, 'i8')}, {'x': 1, 'y': [2.5]})"
    )
    files = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_infinities_survive_in_the_metadata(path):
    save(path, {}, {"best": float("inf")})
    assert load(path) == ({}, {"best": float("inf")})


def test_truncation_at_every_length_is_found(path):
    save(path, ARRAYS, {"version": 1})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged, match=f"{path} is damaged"):
            load(path)


def test_every_flipped_bit_is_found(path):
    save(path, ARRAYS, {"name": "é", "version": 1})
    data = path.read_bytes()
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(Damaged):
            load(path)


@given(data=st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: len(tail).to_bytes(8, "little") + tail))
def test_foreign_bytes_are_damage_and_no_other_error(data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(data)
        with pytest.raises(Damaged):
            load(path)


@pytest.mark.parametrize(
    "entry", ["", "[]", "{}", '{"format":"1","sha256":"","metadata":"{}"}', '{"format":1,"sha256":"","metadata":7}']
)
def test_a_tensor_file_of_somebody_else_is_refused(path, entry):
    path.write_bytes(tensor_file.save(ARRAYS, {"hermes-iot": entry} if entry else None))
    with pytest.raises(Damaged):
        load(path)


@pytest.mark.parametrize("body", ["[]", "1", "nothing", 7])
def test_metadata_that_are_no_mapping_are_damage_whatever_their_checksum(path, body):
    arrays = {name: checkpoints._plain(array) for name, array in ARRAYS.items()}
    entry = {"format": 1, "sha256": checkpoints._checksum(1, arrays, body), "metadata": body}
    path.write_bytes(tensor_file.save(arrays, {"hermes-iot": json.dumps(entry)}))
    with pytest.raises(Damaged):
        load(path)


def test_a_format_that_is_no_number_is_damage(path):
    path.write_bytes(tensor_file.save(ARRAYS, {"hermes-iot": '{"format": 1e999, "sha256": "", "metadata": "{}"}'}))
    with pytest.raises(Damaged):
        load(path)


def test_a_newer_format_and_a_missing_file_are_told_apart_from_damage(path, monkeypatch):
    with pytest.raises(StorageError, match="does not exist") as missing:
        load(path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT_VERSION", 2)
        save(path, ARRAYS, {})
    with pytest.raises(StorageError, match="newer hermes-iot") as newer:
        load(path)
    assert not isinstance(missing.value, Damaged)
    assert not isinstance(newer.value, Damaged)


def test_a_file_too_large_is_not_read(path, monkeypatch):
    save(path, ARRAYS, {})
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES_MAX", 10)
    with pytest.raises(Damaged, match="at most 10 make sense"):
        load(path)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run")


def vector(version):
    return {"model": np.full(100, version, np.float32)}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-7] ^= 16
    path.write_bytes(data)


def test_an_empty_store_has_no_latest(store):
    assert store.latest() is None
    assert store.versions == ()


def test_the_newest_is_found_and_only_the_newest_two_are_kept(store, tmp_path):
    for version in (1, 2, 10):
        store.save(version, vector(version), {"loss": version / 4})
    assert store.versions == (2, 10)
    found = CheckpointStore(tmp_path / "run").latest()
    assert (found.version, found.metadata, found.skipped) == (10, {"loss": 2.5}, ())
    assert same(found.arrays, vector(10))


def test_the_same_version_may_be_saved_again(store):
    store.save(1, vector(1), {})
    store.save(1, vector(2), {})
    assert same(store.latest().arrays, vector(2))


def test_a_damaged_newest_gives_way_to_the_one_before_and_is_named(store, tmp_path):
    store.save(1, vector(1), {})
    flip(store.save(2, vector(2), {}))
    found = CheckpointStore(tmp_path / "run").latest()
    assert found.version == 1
    assert same(found.arrays, vector(1))
    assert len(found.skipped) == 1
    assert "model-000000000002.safetensors is damaged: its checksum does not match" in found.skipped[0]


def test_a_damaged_checkpoint_never_pushes_a_good_one_out(store):
    store.save(1, vector(1), {})
    bad = store.save(9, vector(9), {})
    flip(bad)
    assert store.latest().version == 1
    # Resumed from 1, the run comes by the damaged 9 once more.
    store.save(5, vector(5), {})
    assert store.versions == (1, 5)
    store.save(9, vector(9), {})
    assert store.versions == (5, 9)
    assert store.latest().version == 9
    flip(bad)
    assert store.latest().version == 5
    store.save(11, vector(11), {})
    assert store.versions == (5, 11)
    assert not bad.exists()


def test_when_none_is_good_the_error_names_them_and_a_remedy(store):
    for version in (1, 2):
        flip(store.save(version, vector(version), {}))
    with pytest.raises(StorageError, match=r"000002.*000001.*hermes-iot repair "):
        store.latest()


def test_a_renamed_checkpoint_is_not_taken_for_another_version(store):
    store.save(1, vector(1), {})
    path = store.save(2, vector(2), {})
    path.rename(path.with_name("model-000000000003.safetensors"))
    found = store.latest()
    assert found.version == 1
    assert "it holds version 2" in found.skipped[0]


def test_an_older_version_does_not_land_among_another_runs_checkpoints(store):
    store.save(7, vector(7), {})
    with pytest.raises(StorageError, match="version 7 is there already"):
        store.save(3, vector(3), {})


def test_a_full_disk_leaves_the_checkpoints_there_are(store, monkeypatch):
    store.save(1, vector(1), {})

    def full(*_):
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="the disk is full"):
            store.save(2, vector(2), {})
    assert store.versions == (1,)
    assert store.latest().version == 1
    store.save(2, vector(2), {})
    assert store.versions == (1, 2)


def test_a_store_keeps_at_least_two(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        CheckpointStore(tmp_path, keep=1)


def test_an_exported_model_loads_into_torch_under_its_own_names(path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    names = dict(model.named_parameters())
    signature = ModelSignature(
        tensors=tuple(TensorSpec(name=name, shape=tuple(tensor.shape)) for name, tensor in names.items())
    )
    flat = np.arange(signature.parameters, dtype=np.float32)
    export_model(path, flat, signature, {"run": "r1"})
    state = torch_file.load_file(path)
    assert set(state) == set(names)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert {"1.running_mean", "1.running_var"} <= set(missing)
    loaded = torch.cat([tensor.detach().reshape(-1) for tensor in model.parameters()]).numpy()
    assert np.array_equal(loaded, flat)
    assert load(path)[1] == {"run": "r1"}


def test_an_exported_scalar_keeps_its_shape(path):
    signature = ModelSignature(tensors=(TensorSpec(name="scale", shape=()), TensorSpec(name="w", shape=(2,))))
    export_model(path, np.array([1, 2, 3], np.float32), signature, {})
    arrays, _ = load(path)
    assert (arrays["scale"].shape, arrays["scale"].item(), arrays["w"].tolist()) == ((), 1.0, [2.0, 3.0])


@pytest.mark.parametrize("bad", [np.zeros(4, np.float32), np.zeros(3, np.float64), np.zeros((3, 1), np.float32)])
def test_a_vector_of_another_model_is_not_exported(path, bad):
    signature = ModelSignature(tensors=(TensorSpec(name="w", shape=(3,)),))
    with pytest.raises(Incompatible, match=r"its signature says float32\[3\]"):
        export_model(path, bad, signature, {})
    assert not path.exists()


def test_torch_is_not_loaded_for_any_of_this():
    code = "import sys, hermes_iot.storage.checkpoints; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.lower()) is False
