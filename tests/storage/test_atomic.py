"""Old or new, never a mix; and what is not what was written is noticed."""

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import StorageError
from hermes_iot.storage import atomic
from hermes_iot.storage.atomic import Damaged, backup_of, read_checked, read_newest, write_atomic, write_checked


def checked(path):
    return read_checked(path, kind="test", version=3)


def put(path, payload, **options):
    write_checked(path, payload, kind="test", version=3, **options)


def test_content_is_replaced_and_nothing_else_appears(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_backup_is_the_version_before(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"one", backup=True)
    assert not backup_of(path).exists()
    write_atomic(path, b"two", backup=True)
    write_atomic(path, b"three", backup=True)
    assert (path.read_bytes(), backup_of(path).read_bytes()) == (b"three", b"two")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_backup_that_is_the_same_file_already_leaves_no_third_name(tmp_path):
    # A crash after the backup was linked: rename(2) between two names of one file does nothing and keeps both.
    path = tmp_path / "file"
    write_atomic(path, b"one")
    os.link(path, backup_of(path))
    write_atomic(path, b"two", backup=True)
    assert (path.read_bytes(), backup_of(path).read_bytes()) == (b"two", b"one")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_gets_a_copied_backup(tmp_path, monkeypatch, number):
    def no_links(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    write_atomic(path, b"one")
    monkeypatch.setattr(os, "link", no_links)
    write_atomic(path, b"two", backup=True)
    assert (path.read_bytes(), backup_of(path).read_bytes()) == (b"two", b"one")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_file_is_synced_before_it_is_renamed_and_the_directory_after(tmp_path, monkeypatch):
    seen = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        seen.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[-1])
        fsync(descriptor)

    def renamed(source, target):
        seen.append(f"rename {Path(target).name}")
        replace(source, target)

    directory = tmp_path / "directory"
    directory.mkdir()
    write_atomic(directory / "file", b"one")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomic(directory / "file", b"two", backup=True)
    assert seen == ["fsync tmp", "rename file.bak", "rename file", "fsync directory"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full. Free space in "),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "the file system is read-only. Remount"),
        (errno.EACCES, "permission denied. Give this user"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_an_error_says_what_why_and_what_mends_it_on_one_line(tmp_path, monkeypatch, number, words):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/file: .*{words}") as caught:
        write_atomic(tmp_path / "file", b"x")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 8


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"does not exist\. Create "):
        write_atomic(tmp_path / "nowhere" / "file", b"x")


def test_a_directory_is_made_with_its_parents_or_refused_in_our_words(tmp_path):
    atomic.make_directory(tmp_path / "a" / "b")
    atomic.make_directory(tmp_path / "a" / "b")
    (tmp_path / "a" / "file").write_bytes(b"")
    for refused in (tmp_path / "a" / "file", tmp_path / "a" / "file" / "c" / "d"):
        with pytest.raises(
            StorageError, match=f"cannot create {refused}: {tmp_path}/a/file is a file. Give a directory"
        ):
            atomic.make_directory(refused)


def test_a_directory_in_one_that_may_not_be_read_is_made(tmp_path, monkeypatch):
    def refuse(_directory):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(atomic, "sync_directory", refuse)
    atomic.make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_system_that_takes_no_directory_is_not_said_to_be_missing(tmp_path, monkeypatch):
    """As /proc: the parent is there, and the system says that there is no such file or directory."""

    def refuse(*_words, **_options):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(StorageError, match=f"nothing can be created in {tmp_path}. Give another directory"):
        atomic.make_directory(tmp_path / "x")


def test_sweep_clears_what_killed_writers_left_and_nothing_else(tmp_path):
    for name in (".a.0123456789ab.tmp", ".b.0123456789ab.tmp", ".c.tmp", "a", "a.tmp"):
        (tmp_path / name).write_bytes(b"")
    atomic.sweep(tmp_path, "a")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".b.0123456789ab.tmp", ".c.tmp", "a", "a.tmp"]
    atomic.sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".c.tmp", "a", "a.tmp"]
    atomic.sweep(tmp_path / "nowhere")


@given(payload=st.binary(max_size=300))
def test_any_payload_comes_back(payload):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        put(path, payload)
        assert checked(path) == payload


@given(body=st.recursive(st.none() | st.integers() | st.text(), st.lists) | st.dictionaries(st.text(), st.booleans()))
def test_a_document_is_json_for_everybody(body):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        put(path, json.dumps(body).encode(), document=True)
        assert json.loads(path.read_bytes())["body"] == body
        assert json.loads(checked(path)) == body


@pytest.mark.parametrize("document", [False, True])
def test_truncation_at_every_length_is_found(tmp_path, document):
    path = tmp_path / "file"
    put(path, b'{"a": [1, 2, 3]}', document=document)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged, match="is damaged"):
            checked(path)
    path.write_bytes(data + b"\n")
    with pytest.raises(Damaged):
        checked(path)


@pytest.mark.parametrize("document", [False, True])
def test_every_flipped_bit_is_found(tmp_path, document):
    path = tmp_path / "file"
    put(path, b'{"a": [1, 2, 3]}', document=document)
    data = path.read_bytes()
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(Damaged):
            checked(path)


@given(data=st.binary(max_size=400))
def test_foreign_bytes_are_damage_and_no_other_error(data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(data)
        with pytest.raises(Damaged):
            checked(path)


def test_a_file_of_another_kind_or_too_large_is_refused(tmp_path):
    path = tmp_path / "file"
    write_checked(path, b"x", kind="other", version=1)
    with pytest.raises(Damaged, match="it is a other file, not a test file"):
        checked(path)
    put(path, b"x" * 100)
    with pytest.raises(Damaged, match="at most 50 make sense"):
        read_checked(path, kind="test", version=3, bytes_max=50)


def test_a_newer_format_is_refused_and_never_replaced_by_the_backup(tmp_path):
    path = tmp_path / "file"
    put(path, b"old")
    write_checked(path, b"new", kind="test", version=4, backup=True)
    with pytest.raises(StorageError, match=r"newer hermes-iot: its format is 4, this version reads up to 3") as caught:
        read_newest(path, checked)
    assert not isinstance(caught.value, Damaged)
    assert "Upgrade" in caught.value.mend


def test_an_older_format_is_read(tmp_path):
    path = tmp_path / "file"
    write_checked(path, b"old", kind="test", version=2)
    assert checked(path) == b"old"


def test_the_backup_stands_in_for_a_damaged_or_missing_file(tmp_path):
    path = tmp_path / "file"
    assert read_newest(path, checked) == (None, "")
    put(path, b"one", backup=True)
    put(path, b"two", backup=True)
    assert read_newest(path, checked) == (b"two", "")
    path.write_bytes(b"rubbish")
    value, warning = read_newest(path, checked)
    assert value == b"one"
    assert "file is damaged" in warning
    assert "file.bak is used instead" in warning
    assert atomic.set_aside(path) == tmp_path / "file.damaged"
    value, warning = read_newest(path, checked)
    assert value == b"one"
    assert "is missing" in warning
    assert atomic.set_aside(path) is None


def test_without_a_good_copy_the_error_names_the_file_and_a_remedy(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"rubbish")
    with pytest.raises(Damaged, match=f"{path} is damaged: .*hermes-iot repair {path.parent} "):
        read_newest(path, checked)
    backup_of(path).write_bytes(b"rubbish")
    with pytest.raises(Damaged, match=f"{path} is damaged"):
        read_newest(path, checked)


def test_a_bad_sector_is_damage(tmp_path, monkeypatch):
    def bad(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "file"
    put(path, b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", bad)
        with pytest.raises(Damaged) as caught:
            checked(path)
    assert "the disk cannot read it" in str(caught.value)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(StorageError) as caught:
        checked(tmp_path)
    assert not isinstance(caught.value, Damaged)


def test_a_damaged_file_is_quoted_in_one_short_line_without_control_characters(tmp_path):
    error = atomic.damaged(tmp_path / "f", "it says \x1b[31m\n" + "9" * 5000)
    assert str(error).isprintable()
    assert len(str(error)) < 300 + 400
    assert "it says \\x1b[31m\\n999" in str(error)
