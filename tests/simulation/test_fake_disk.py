"""A disk that keeps what it must and nothing more: after a death, after a power cut, and when it is full."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hermes_iot.errors import StorageError
from hermes_iot.runtime.simulation.fake_disk import FakeDisk
from hermes_iot.storage.atomic import make_directory, write_atomic
from hermes_iot.storage.disk import disk, using
from hermes_iot.storage.journal import Journal
from hermes_iot.storage.locks import hold

HERE = Path("/here")
FILE = HERE / "file"


def a_disk(seed=0, **options):
    made = FakeDisk(np.random.default_rng(seed), **options)
    with using(made):
        make_directory(HERE)
    return made


def content(one, path=FILE, *, limit=1000):
    try:
        return one.read(path, limit)[1]
    except FileNotFoundError:
        return None


def appended(one, data, *, sync=False):
    descriptor = one.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    one.write(descriptor, data)
    if sync:
        one.sync(descriptor)
        names = one.open(HERE, os.O_RDONLY | os.O_DIRECTORY)
        one.sync(names)
        one.close(names)
    one.close(descriptor)


def test_a_death_loses_nothing_and_frees_the_locks():
    one = a_disk()
    with using(one):
        held = hold(HERE / "lock", thing="it", mend="wait")
        with pytest.raises(StorageError, match="it is in use"):
            hold(HERE / "lock", thing="it", mend="wait")
        appended(one, b"written")
        one.killed()
        assert content(one) == b"written"
        hold(HERE / "lock", thing="it", mend="wait")
    assert held is not None


def test_a_power_cut_loses_what_was_not_synced():
    one = a_disk()
    appended(one, b"safe", sync=True)
    appended(one, b" and not")
    assert one.power_cut(torn=False) == 1
    assert content(one) == b"safe"


def test_a_power_cut_loses_a_name_whose_directory_was_not_synced():
    one = a_disk()
    descriptor = one.open(FILE, os.O_WRONLY | os.O_CREAT)
    one.write(descriptor, b"written")
    one.sync(descriptor)
    one.power_cut(torn=False)
    assert content(one) is None


def test_a_torn_write_is_a_part_that_may_end_in_zeros():
    left = set()
    for seed in range(200):
        one = a_disk(seed)
        appended(one, b"safe", sync=True)
        appended(one, b"torn")
        one.power_cut(torn=True)
        left.add(content(one))
    assert {b"safe", b"safetorn", b"safeto", b"safeto\0", b"safe\0\0\0\0"} <= left
    assert all((b"safetorn".startswith(one.rstrip(b"\0")) and one.startswith(b"safe")) for one in left)


def test_blocks_of_what_was_not_synced_may_be_missing_in_its_midst():
    written = bytes(range(1, 251)) * 12
    holes = set()
    for seed in range(200):
        one = a_disk(seed)
        appended(one, b"safe" * 30, sync=True)
        appended(one, written)
        one.power_cut(torn=True)
        left = content(one, limit=10_000)
        assert left.startswith(b"safe" * 30)
        wrong = [at for at, (is_, was) in enumerate(zip(left, b"safe" * 30 + written, strict=False)) if is_ != was]
        assert all(left[at] == 0 for at in wrong)
        if wrong and wrong[-1] < len(left) - 1:
            holes.add((wrong[0], wrong[-1]))
    assert {first % 512 for first, _ in holes if first != 120} == {0}
    assert {last % 512 for _, last in holes} == {511}
    assert {first for first, _ in holes} >= {120, 512, 1024}, "and none begins in what was safe"


def test_a_directory_that_was_not_made_safe_is_gone_with_all_that_was_safe_in_it():
    one = a_disk()
    one.make_directory(HERE / "new")
    with using(one):
        write_atomic(HERE / "new" / "file", b"safe in it")
        one.power_cut(torn=False)
        assert not one.is_directory(HERE / "new")
        assert content(one, HERE / "new" / "file") is None
        make_directory(HERE / "new")
        write_atomic(HERE / "new" / "file", b"safe in it")
        one.power_cut(torn=False)
    assert content(one, HERE / "new" / "file") == b"safe in it"


@pytest.mark.parametrize("dies_at", range(8))
def test_a_directory_made_by_one_that_was_killed_is_safe_when_the_next_has_made_sure_of_it(dies_at):
    left = [10**6]

    def dies():
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    one = a_disk(on_operation=dies)
    with using(one):
        left[0] = dies_at
        with contextlib.suppress(KeyboardInterrupt):
            make_directory(HERE / "a" / "b" / "c")
        left[0] = 10**6
        one.killed()
        make_directory(HERE / "a" / "b" / "c")
        one.power_cut(torn=False)
    assert one.is_directory(HERE / "a" / "b" / "c")


def test_of_unsynced_renames_a_power_cut_leaves_the_first_so_many():
    left = set()
    for seed in range(50):
        one = a_disk(seed)
        appended(one, b"one", sync=True)
        for name in ("a", "b"):
            one.replace(FILE if name == "a" else HERE / "a", HERE / name)
        one.power_cut(torn=True)
        left.add(tuple(one.names(HERE)))
    assert left == {("file",), ("a",), ("b",)}


def test_an_atomic_write_is_old_or_new_wherever_the_power_goes():
    found = set()
    for fails_at in range(12):
        countdown = [10**6]

        def dies(countdown=countdown):
            countdown[0] -= 1
            if countdown[0] < 0:
                raise KeyboardInterrupt

        for torn in (False, True):
            one = a_disk(fails_at, on_operation=dies)
            countdown[0] = 10**6
            with using(one):
                write_atomic(FILE, b"old")
                countdown[0] = fails_at
                with contextlib.suppress(KeyboardInterrupt):
                    write_atomic(FILE, b"new")
                countdown[0] = 10**6
                one.power_cut(torn=torn)
            found.add(content(one))
    assert found == {b"old", b"new"}


def test_a_full_disk_takes_what_fits_and_says_so():
    one = a_disk()
    one.free_bytes = 3
    descriptor = one.open(FILE, os.O_WRONLY | os.O_CREAT)
    assert one.write(descriptor, b"12345") == 3
    with pytest.raises(OSError, match="No space") as full:
        one.write(descriptor, b"45")
    assert full.value.errno == errno.ENOSPC
    one.unlink(FILE)
    assert one.free_bytes == 3


def test_the_journal_keeps_its_promise_on_it():
    one = a_disk()
    with using(one):
        journal = Journal(HERE)
        journal.append(b"first")
        journal.sync()
        journal.append(b"second")
        one.free_bytes = 4
        with pytest.raises(StorageError, match="the disk is full"):
            journal.sync()
        one.free_bytes = None
        journal.sync()
        journal.append(b"third")
        one.power_cut(torn=False)
        assert [payload for _, payload in Journal(HERE).read()] == [b"first", b"second"]


def test_it_stands_in_for_the_kernels_in_its_block_only():
    kernel = disk()
    one = a_disk()
    with using(one):
        assert disk() is one
    assert disk() is kernel
