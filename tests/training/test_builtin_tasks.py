import contextlib
import gzip
import hashlib
import io
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import DataUnavailable, UsageError
from hermes_iot.training.builtin import cifar10, digits, mnist, occupancy
from hermes_iot.training.data import normalise, sha256
from hermes_iot.training.tasks import resolve, task_names
from hermes_iot.training.torch_trainer import TorchTrainer

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def records(count: int, label: int | None = None) -> bytes:
    table = RNG.integers(256, size=(count, cifar10.RECORD_BYTES), dtype=np.uint8)
    table[:, 0] = np.arange(count) % 10 if label is None else label
    return table.tobytes()


def room(*, rows: int = 3, header: str | None = None, line: str | None = None) -> str:
    lines = [header or ",".join(f'"{name}"' for name in occupancy.HEADER)]
    lines += [f'"{n}","2015-02-04 {n % 24:02}:00:00",23.18,27.27,426,721.25,0.0048,{n % 2}' for n in range(rows)]
    return "\n".join(lines + ([line] if line else [])) + "\n"


def urls_point_at(monkeypatch, module, base: str, body: bytes) -> None:
    source = replace(
        module._SOURCE,
        urls=(base,),
        digest=hashlib.new(module._SOURCE.algorithm, body).hexdigest(),
    )
    monkeypatch.setattr(module, "_SOURCE", source)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("digits", 4810), ("mnist", 109_386), ("mnist-cnn", 103_018), ("cifar10", 967_322), ("occupancy", 145)],
)
def test_the_models_have_the_size_they_are_quoted_with(name, parameters):
    assert name in task_names()
    assert sum(p.numel() for p in resolve(name).build_model().parameters()) == parameters


class TestDigits:
    def test_a_fifth_of_every_class_is_for_testing(self):
        x, y, x_test, y_test = digits.load_data()
        assert (x.shape, x_test.shape) == ((1438, 64), (359, 64))
        assert 0 <= x.min() < x.max() == 1
        for digit in range(10):
            assert (y_test == digit).sum() == pytest.approx(
                0.2 * ((y == digit).sum() + (y_test == digit).sum()), abs=0.6
            )

    def test_the_split_is_the_same_for_ever(self):
        one, two = (sha256(normalise(digits.load_data(), origin="t")) for _ in range(2))
        assert one == two

    def test_without_scikit_learn_the_way_out_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(UsageError, match=r"pip install 'hermes-iot\[demo\]'"):
            resolve("digits").load_data()


class TestIdx:
    def test_images_and_labels_are_read(self):
        images = RNG.integers(256, size=(5, 4, 3), dtype=np.uint8)
        assert np.array_equal(mnist.parse_idx(idx(images), axes=3), images)
        assert mnist.parse_idx(idx(np.arange(5, dtype=np.uint8)), axes=1).tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", "no IDX file"),
            (b"\x00\x00\x08", "no IDX file"),
            (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "no IDX file"),
            (idx(np.zeros((2, 2), np.uint8)), "no IDX file"),
            (idx(np.zeros(9, np.uint8))[:-1], "cut short or too long"),
            (idx(np.zeros(9, np.uint8)) + b"x", "cut short or too long"),
            (b"\x00\x00\x08\x01\xff\xff\xff\xff", "cut short or too long"),
        ],
    )
    def test_anything_else_is_refused(self, content, complaint):
        with pytest.raises(UsageError, match=complaint):
            mnist.parse_idx(content, axes=1)

    @given(st.binary(max_size=60), st.sampled_from([1, 3]))
    def test_noise_raises_nothing_but_our_own_error(self, noise, axes):
        with contextlib.suppress(UsageError):
            mnist.parse_idx(b"\x00\x00\x08" + bytes([axes]) + noise, axes=axes)


class TestMnistFiles:
    @pytest.fixture
    def small(self, monkeypatch):
        """Four files in the official format with a few images, known to the task by their digests."""
        contents = {}
        for part, rows in (("train", 30), ("t10k", 10)):
            contents[f"{part}-images-idx3-ubyte"] = idx(RNG.integers(256, size=(rows, 28, 28), dtype=np.uint8))
            contents[f"{part}-labels-idx1-ubyte"] = idx(RNG.integers(10, size=rows, dtype=np.uint8))
        self.know(monkeypatch, contents)
        return contents

    @staticmethod
    def know(monkeypatch, contents):
        known = {
            name: (
                hashlib.sha256(content).hexdigest(),
                len(content),
                hashlib.md5(gzip.compress(content, mtime=0)).hexdigest(),
            )
            for name, content in contents.items()
        }
        monkeypatch.setattr(mnist, "_FILES", known)

    @pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
    @pytest.mark.parametrize("packed", [True, False])
    def test_files_are_found_packed_or_not_in_the_usual_places(self, small, tmp_path, place, packed):
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in small.items():
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content, 1) if packed else content)
        x, y, x_test, y_test = mnist.load_data(tmp_path)
        assert (x.shape, x.dtype, y.shape) == ((30, 28, 28), np.uint8, (30,))
        assert (x_test.shape, y_test.shape) == ((10, 28, 28), (10,))
        assert TorchTrainer(resolve("mnist"), resolve("mnist", data_dir=tmp_path).load_data(), seed=0).train_rows == 27

    def test_they_are_downloaded_once_into_the_cache(self, small, site, monkeypatch):
        monkeypatch.setattr(mnist, "_MIRRORS", (f"{site.url}/down/", f"{site.url}/up/"))
        site.bodies = {f"/up/{name}.gz": gzip.compress(content, mtime=0) for name, content in small.items()}
        for _ in range(2):
            assert len(mnist.load_data()[0]) == 30
        assert len(site.asked) == 8  # each at the first mirror, then at the second, and never again

    def test_other_images_in_the_same_format_are_refused(self, small, tmp_path):
        for name, content in small.items():
            (tmp_path / name).write_bytes(content)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(small["train-labels-idx1-ubyte"][:-1] + b"\x0b")
        with pytest.raises(UsageError, match="another SHA-256"):
            mnist.load_data(tmp_path)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("t10k-labels-idx1-ubyte", idx(np.full(10, 10, np.uint8))),
            ("t10k-labels-idx1-ubyte", idx(np.zeros(9, np.uint8))),
            ("t10k-images-idx3-ubyte", idx(np.zeros((10, 28, 27), np.uint8))),
        ],
    )
    def test_files_that_do_not_belong_together_are_refused(self, small, tmp_path, monkeypatch, name, content):
        small[name] = content
        self.know(monkeypatch, small)
        for file, data in small.items():
            (tmp_path / file).write_bytes(data)
        with pytest.raises(UsageError, match="do not belong together"):
            mnist.load_data(tmp_path)

    def test_offline_without_files_the_places_and_the_address_are_named(self, site, tmp_path, monkeypatch):
        monkeypatch.setattr(mnist, "_MIRRORS", (f"{site.url}/",))
        with pytest.raises(DataUnavailable) as caught:
            resolve("mnist", data_dir=tmp_path / "data").load_data()
        for part in (tmp_path / "data" / "mnist", tmp_path / "cache", f"{site.url}/train-images", "--data-dir"):
            assert str(part) in str(caught.value)


class TestCifar:
    @pytest.mark.parametrize("place", ["", "cifar10", "cifar-10", "cifar-10-batches-bin"])
    def test_a_part_of_the_set_is_read_in_order(self, tmp_path, place):
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        two, one, test = records(7), records(5), records(3)
        (folder / "data_batch_2.bin").write_bytes(two)
        (folder / "data_batch_1.bin").write_bytes(one)
        (folder / "test_batch.bin").write_bytes(test)
        x, y, x_test, y_test = cifar10.load_data(tmp_path)
        assert (x.shape, x.dtype, len(x_test), len(y_test)) == ((12, 3, 32, 32), np.uint8, 3, 3)
        assert y.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]
        assert x[5].tobytes() == two[1 : cifar10.RECORD_BYTES]

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", "0 bytes are not"),
            (records(2)[:-1], "are not 1 to"),
            (records(2, label=10), "label 10"),
            (None, "test_batch.bin is missing"),
        ],
    )
    def test_damaged_files_are_refused(self, tmp_path, content, complaint):
        (tmp_path / "data_batch_1.bin").write_bytes(records(4))
        if content is not None:
            (tmp_path / "test_batch.bin").write_bytes(content)
        with pytest.raises(UsageError, match=complaint):
            cifar10.load_data(tmp_path)

    def test_an_absurdly_large_file_is_refused_unread(self, tmp_path):
        path = tmp_path / "data_batch_1.bin"
        with path.open("wb") as file:
            file.truncate(cifar10.RECORD_BYTES * 10**7)  # sparse: takes no room
        with pytest.raises(UsageError, match="are not 1 to"):
            cifar10.read_batches([path])

    @staticmethod
    def archive(names, content, *, link=False) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            if link:
                member = tarfile.TarInfo("x/test_batch.bin")
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(member)
        return out.getvalue()

    NAMES = tuple(f"data_batch_{n}.bin" for n in range(1, 6))

    def test_the_official_archive_is_fetched_and_unpacked_once(self, site, tmp_path, monkeypatch):
        monkeypatch.setattr(cifar10, "RECORDS_MAX", 4)
        names = ["../../escape.bin", *(f"cifar-10-batches-bin/{name}" for name in (*self.NAMES, "test_batch.bin"))]
        body = self.archive(names, records(4))
        site.bodies["/c.tar.gz"] = body
        urls_point_at(monkeypatch, cifar10, f"{site.url}/c.tar.gz", body)
        for _ in range(2):
            assert [len(part) for part in cifar10.load_data()] == [20, 20, 4, 4]
        assert site.asked == ["/c.tar.gz"]
        cached = tmp_path / "cache" / "hermes-iot" / "cifar10"
        assert sorted(path.name for path in cached.iterdir()) == sorted((*self.NAMES, "test_batch.bin"))
        assert not list(tmp_path.rglob("escape.bin"))

    def test_an_archive_that_somebody_put_there_is_unpacked_and_kept(self, site, tmp_path, monkeypatch):
        monkeypatch.setattr(cifar10, "RECORDS_MAX", 4)
        archive = tmp_path / "cifar-10-binary.tar.gz"
        archive.write_bytes(self.archive([f"x/{name}" for name in (*self.NAMES, "test_batch.bin")], records(4)))
        urls_point_at(monkeypatch, cifar10, f"{site.url}/c.tar.gz", b"")
        assert len(cifar10.load_data(tmp_path)[0]) == 20
        assert archive.exists()
        assert not site.asked

    @pytest.mark.parametrize("case", ["lacks", "link", "size", "cut", "noise"])
    def test_a_hostile_archive_is_refused(self, tmp_path, monkeypatch, case):
        monkeypatch.setattr(cifar10, "RECORDS_MAX", 4)
        names = [f"x/{name}" for name in self.NAMES]
        body = {
            "lacks": self.archive(names, records(4)),
            "link": self.archive(names, records(4), link=True),
            "size": self.archive(names, records(3)),
            "cut": self.archive(names, records(4))[:5000],
            "noise": b"no archive at all" * 99,
        }[case]
        path = tmp_path / "c.tar.gz"
        path.write_bytes(body)
        with pytest.raises(UsageError, match="lacks test_batch.bin" if case in ("lacks", "link") else "c.tar.gz"):
            cifar10.unpack(path, tmp_path / "out")
        assert not (tmp_path / "out" / "test_batch.bin").exists()


class TestOccupancy:
    def test_a_row_is_five_sensors_and_the_time_of_day(self):
        x, y = occupancy.parse(room(rows=7).encode(), origin="f")
        assert x.shape == (7, 7)
        assert x[6, :5].tolist() == pytest.approx([23.18, 27.27, 426, 721.25, 0.0048])
        assert x[6, 5:].tolist() == pytest.approx([1, 0], abs=1e-6)  # six in the morning
        assert y.tolist() == [0, 1, 0, 1, 0, 1, 0]

    @pytest.mark.parametrize("line", ['"9",2015-02-11 14:48:00,1,2,3,4,5,1', "2015-02-11 14:48:00,1,2,3,4,5,1"])
    def test_dates_are_quoted_or_not_and_rows_numbered_or_not(self, line):
        assert occupancy.parse(room(line=line).encode(), origin="f")[0].shape == (4, 7)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("", "no occupancy file"),
            (room(header="a,b"), "no occupancy file"),
            (room(rows=0), "no row"),
            (room(line='"9","2015-02-04 10:00:00",1,2,3,4,5,2'), "line 5"),
            (room(line='"9","2015-02-04 10:00:00",nan,2,3,4,5,1'), "line 5"),
            (room(line='"9","2015-02-04 10:00:00",1e999,2,3,4,5,1'), "line 5"),
            (room(line='"9","2015-02-04 10:00:00",warm,2,3,4,5,1'), "line 5"),
            (room(line='"9","yesterday",1,2,3,4,5,1'), "line 5"),
            (room(line='"9","2015-02-04 10:00:00",1,2'), "line 5"),
            (room(line='"9",7,7,"2015-02-04 10:00:00",1,2,3,4,5,1'), "line 5"),
            (room(line='"9","2015-02-04 10:00'), "line"),
            (room(line="\u00fc"), "line"),
            ("\x00\x00", "no occupancy file"),
        ],
    )
    def test_what_does_not_fit_is_refused_naming_the_line(self, content, complaint):
        with pytest.raises(UsageError, match=complaint):
            occupancy.parse(content.encode(), origin="f.txt")

    @given(st.binary(max_size=200))
    def test_noise_raises_nothing_but_our_own_error(self, noise):
        with pytest.raises(UsageError):
            occupancy.parse(room().encode() + b"\n,," + noise, origin="f")

    def test_a_devices_own_days_are_used_with_the_published_test_weeks(self, site, tmp_path, monkeypatch):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as packed:
            for name in occupancy.FILES:
                packed.writestr(name, room(rows=4))
        site.bodies["/o.zip"] = out.getvalue()
        urls_point_at(monkeypatch, occupancy, f"{site.url}/o.zip", out.getvalue())
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "datatraining.txt").write_text(room(rows=9))
        assert [len(part) for part in occupancy.load_data(tmp_path / "own")] == [9, 9, 8, 8]
        assert [len(part) for part in occupancy.load_data()] == [4, 4, 8, 8]
        assert site.asked == ["/o.zip"]

    @pytest.mark.parametrize("case", ["lacks", "large", "noise", "encrypted"])
    def test_a_hostile_archive_is_refused(self, tmp_path, monkeypatch, case):
        path = tmp_path / "o.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in occupancy.FILES[: 1 if case == "lacks" else 3]:
                packed.writestr(name, room(rows=50))
        if case == "large":
            monkeypatch.setattr(occupancy, "_BYTES_MAX", 100)
        if case == "noise":
            path.write_bytes(b"PK" + bytes(500))
        if case == "encrypted":
            body = bytearray(path.read_bytes())
            body[body.index(b"PK\x01\x02") + 8] |= 1
            path.write_bytes(body)
        with pytest.raises(UsageError, match=r"o\.zip"):
            occupancy.unpack(path, tmp_path / "out")


class TestRealData:
    """The published files, read with their directory given as a person gives it."""

    @pytest.mark.parametrize(
        ("name", "counts", "shape"),
        [
            ("mnist", {(60_000, 10_000)}, (28, 28)),
            ("mnist-cnn", {(60_000, 10_000)}, (28, 28)),
            ("cifar10", {(50_000, 10_000), (10_000, 2_000)}, (3, 32, 32)),  # the whole set, or the part at hand
            ("occupancy", {(8_143, 12_417)}, (7,)),
        ],
    )
    def test_every_row_is_there_and_the_model_takes_it(self, real_data: Path, name, counts, shape):
        task = resolve(name, data_dir=real_data)
        data = task.load_data()
        assert data.test is not None
        assert (data.train.rows, data.test.rows) in counts
        assert data.train.x.shape[1:] == shape
        trainer = TorchTrainer(task, data, seed=1)
        loss = trainer.score(trainer.initial(1), "validation").loss
        assert 0 < loss < 5

    def test_occupancy_is_learnt_in_two_passes(self, real_data: Path, make_job):
        task = resolve("occupancy", data_dir=real_data)
        trainer = TorchTrainer(task, task.load_data(), seed=1)
        params = trainer.initial(1)
        for step in range(2):
            job = make_job(params, samples=trainer.train_rows, learning_rate=task.defaults.learning_rate, key=(step,))
            params = trainer.train(job).params
        accuracy = trainer.score(params, "test").accuracy
        assert accuracy is not None
        assert accuracy > 0.95

    def test_the_standardisation_is_that_of_the_training_file(self, real_data: Path):
        x = resolve("occupancy", data_dir=real_data).load_data().train.x[:, :5].astype(np.float64)
        assert occupancy._MEAN[:5] == pytest.approx(x.mean(axis=0), rel=1e-4)
        assert occupancy._STD[:5] == pytest.approx(x.std(axis=0), rel=1e-4)
