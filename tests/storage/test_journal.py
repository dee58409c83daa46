"""A journal holds every synced record after any crash, and never passes off a shorter one as whole."""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import StorageError
from hermes_iot.runtime.simulation.fake_disk import FakeDisk
from hermes_iot.storage import journal as module
from hermes_iot.storage.atomic import Damaged, DiskFull
from hermes_iot.storage.disk import Disk, using
from hermes_iot.storage.journal import Journal, segments

RECORDS = [b"first", b"", b"third record", bytes(range(256))]


def written(directory, records=RECORDS, **options):
    """A closed journal with one group of records."""
    journal = Journal(directory, **options)
    for record in records:
        journal.append(record)
    journal.sync()
    journal.close()
    return directory


def payloads(directory, start=0):
    return [payload for _, payload in Journal(directory).read(start)]


def newest(directory):
    return directory / f"journal-{segments(directory)[-1]:012}.log"


@given(groups=st.lists(st.lists(st.binary(max_size=200), max_size=4), max_size=6), segment=st.integers(1, 400))
def test_what_was_synced_is_read_again_in_order(groups, segment):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for group in groups:  # opened anew for each, so every segment is once the newest at a start
            journal = Journal(directory, segment_bytes=segment)
            indices = [journal.append(record) for record in group]
            journal.sync()
            assert journal.synced_index == journal.next_index
            assert indices == list(range(journal.next_index - len(group), journal.next_index))
            journal.close()
        flat = [record for group in groups for record in group]
        assert list(Journal(directory).read()) == list(enumerate(flat))
        half = len(flat) // 2
        assert payloads(directory, half) == flat[half:]


def test_a_record_may_be_given_in_pieces(tmp_path):
    journal = Journal(tmp_path)
    journal.append(b"head", memoryview(b"body"), b"")
    journal.sync()
    assert payloads(tmp_path) == [b"headbody"]


def test_what_was_not_synced_is_not_read(tmp_path):
    journal = Journal(tmp_path)
    journal.append(b"kept")
    journal.sync()
    journal.append(b"lost")
    assert (journal.synced_index, journal.next_index, journal.unsynced_bytes) == (1, 2, 16 + 4)
    assert [payload for _, payload in journal.read()] == [b"kept"]
    journal.close()
    assert payloads(tmp_path) == [b"kept"]


@pytest.mark.parametrize("newer", [b"", b"another group of bytes"], ids=["one segment", "after others"])
def test_a_tail_torn_at_any_byte_leaves_the_whole_records_before_it(tmp_path, newer):
    directory = written(tmp_path / "whole", segment_bytes=40 if newer else 1000)
    path = newest(directory)
    content, first = path.read_bytes(), segments(directory)[-1]
    ends = [16]
    for record in RECORDS[first:]:
        ends.append(ends[-1] + 16 + len(record))
    assert ends[-1] + 20 == len(content), "a mark follows"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends[1:])
        journal = Journal(directory)
        assert journal.next_index == first + whole
        assert journal.torn_bytes == length - (max(end for end in ends if end <= length) if length >= 16 else 0)
        assert [payload for _, payload in journal.read()] == RECORDS[: first + whole]
        journal.append(b"new")
        journal.sync()
        journal.close()
        assert payloads(directory) == [*RECORDS[: first + whole], b"new"]
        for leftover in segments(directory):
            if leftover > first:
                (directory / f"journal-{leftover:012}.log").unlink()


def test_a_changed_bit_is_never_read_as_a_record(tmp_path):
    content = newest(written(tmp_path / "whole")).read_bytes()
    for bit in range(16 * 8, len(content) * 8, 7):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        directory = tmp_path / f"bit-{bit}"
        directory.mkdir()
        (directory / "journal-000000000000.log").write_bytes(changed)
        if bit // 8 < len(content) - 20:
            with pytest.raises(Damaged, match=r"journal-000000000000\.log .*was safe once"):
                payloads(directory)
        else:  # in the mark: who is without one may be whole
            assert payloads(directory) == RECORDS


@pytest.mark.parametrize("older", [False, True], ids=["the newest", "an older"])
@pytest.mark.parametrize("bit", range(0, 16 * 8, 7))
def test_a_changed_bit_in_a_segments_beginning_costs_no_record(tmp_path, bit, older):
    written(tmp_path, segment_bytes=1)
    if older:
        journal = Journal(tmp_path, segment_bytes=1)
        journal.append(b"later")
        journal.sync()
        journal.close()
    path = tmp_path / "journal-000000000000.log"
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(StorageError):
        Journal(tmp_path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("where", ["in its payload", "in its length"])
def test_damage_in_a_large_record_is_told_from_a_torn_tail(tmp_path, where):
    journal = Journal(tmp_path)
    for number in range(3):
        journal.append(bytes([number]) * 2_500_000)
    journal.sync()
    journal.close()
    path = newest(tmp_path)
    content = bytearray(path.read_bytes())
    content[16 + (16 + 1000 if where == "in its payload" else 2)] ^= 8
    path.write_bytes(content)
    with pytest.raises(Damaged, match="record 0 is not what was written, and was safe once"):
        Journal(tmp_path)
    assert path.stat().st_size == len(content)


def test_a_journal_that_ends_before_what_is_known_of_is_damaged(tmp_path):
    written(tmp_path)
    with pytest.raises(Damaged, match="it ends before record 4, where 40 are known of"):
        list(Journal(tmp_path).read(40))


def test_damage_before_the_end_is_an_error_and_nothing_is_cut_off(tmp_path):
    path = newest(written(tmp_path))
    content = bytearray(path.read_bytes())
    content[16 + 16] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="record 0 is not what was written"):
        Journal(tmp_path)
    assert path.read_bytes() == content


def test_a_missing_or_shortened_segment_in_the_middle_is_an_error(tmp_path):
    for number in range(4):
        journal = Journal(tmp_path, segment_bytes=1)
        journal.append(bytes([number]))
        journal.sync()
        journal.close()
    assert segments(tmp_path) == [0, 1, 2, 3]
    middle = tmp_path / "journal-000000000001.log"
    content = middle.read_bytes()
    middle.write_bytes(content[:-20])
    assert payloads(tmp_path) == [bytes([number]) for number in range(4)], "its records are all there"
    middle.write_bytes(content[:-21])
    with pytest.raises(Damaged, match="the next segment begins at 2"):
        Journal(tmp_path)
    middle.unlink()
    with pytest.raises(Damaged, match="the next segment begins at 2"):
        Journal(tmp_path)


def test_segments_nobody_needs_are_cut_and_the_rest_says_where_it_begins(tmp_path):
    journal = Journal(tmp_path, segment_bytes=1)
    for number in range(5):
        journal.append(bytes([number]))
        journal.sync()
    assert journal.cut(3) == 3
    assert segments(tmp_path) == [3, 4]
    assert journal.cut(3) == 0
    assert [index for index, _ in journal.read(3)] == [3, 4]
    with pytest.raises(Damaged, match="records 1 to 2 are missing"):
        list(journal.read(1))
    assert journal.cut(100) == 1, "the segment written to stays"
    assert Journal(tmp_path).next_index == 5


def test_a_new_segment_can_be_begun_so_that_all_before_can_be_cut(tmp_path):
    journal = Journal(tmp_path)
    journal.append(b"old")
    journal.sync()
    journal.roll()
    journal.roll()
    assert segments(tmp_path) == [0]
    journal.append(b"new")
    journal.sync()
    assert journal.cut(1) == 1
    assert list(journal.read(1)) == [(1, b"new")]


def test_a_journal_may_begin_at_any_index(tmp_path):
    journal = Journal(tmp_path, first=17)
    assert journal.append(b"a") == 17
    journal.sync()
    assert list(Journal(tmp_path).read(17)) == [(17, b"a")]


@pytest.mark.parametrize("before", [0, 1], ids=["first group", "later group"])
@pytest.mark.parametrize("reached", [0, 3, 16, 30])
def test_a_full_disk_loses_nothing_and_the_next_try_writes_it(tmp_path, monkeypatch, before, reached):
    journal = Journal(tmp_path)
    if before:
        journal.append(b"before")
        journal.sync()
    journal.append(b"during" * 10)
    real, room = os.writev, [reached]

    def writev(descriptor, pieces):
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        count = real(descriptor, [b"".join(bytes(piece) for piece in pieces)[: room[0]]])
        room[0] -= count
        return count

    monkeypatch.setattr(module.os, "writev", writev)
    with pytest.raises(StorageError, match="the disk is full"):
        journal.sync()
    assert payloads(tmp_path) == [b"before"][:before]
    assert journal.synced_index == before
    monkeypatch.setattr(module.os, "writev", real)
    journal.sync()
    assert payloads(tmp_path) == [*[b"before"][:before], b"during" * 10]


class Dying(Disk):
    """The kernel's disk, of which power goes while it makes a group safe."""

    def __init__(self):
        self.dies = False

    def sync_data(self, descriptor):
        if self.dies:
            raise KeyboardInterrupt
        super().sync_data(descriptor)


PAGES = 12


def cut_while_syncing(directory, missing, *, safe=3):
    """A journal whose newest group was written and not made safe; the pages `missing` did not reach the disk."""
    disk = Dying()
    with using(disk):
        journal = Journal(directory)
        for number in range(safe):
            journal.append(b"safe %d" % number)
        journal.sync()
        begins = newest(directory).stat().st_size
        for number in range(PAGES * 4):
            journal.append(bytes([number + 1]) * 1000)
        disk.dies = True
        with pytest.raises(KeyboardInterrupt):
            journal.sync()
    content = bytearray(newest(directory).read_bytes())
    for page in missing:
        place = slice(max(page * 4096, begins), min((page + 1) * 4096, len(content)))
        content[place] = bytes(place.stop - place.start)
    newest(directory).write_bytes(content)
    return [b"safe %d" % number for number in range(safe)]


@pytest.mark.parametrize("missing", [(0,), (1,), (0, 2, 5), (PAGES - 1,), range(1, PAGES), range(PAGES)])
def test_pages_of_a_group_that_was_never_safe_may_be_missing_in_any_order(tmp_path, missing):
    safe = cut_while_syncing(tmp_path, missing)
    journal = Journal(tmp_path)
    assert journal.torn_bytes > 0
    found = [payload for _, payload in journal.read()]
    assert found[: len(safe)] == safe
    assert found[len(safe) :] == [bytes([number + 1]) * 1000 for number in range(len(found) - len(safe))]
    journal.append(b"new")
    journal.sync()
    journal.close()
    assert payloads(tmp_path) == [*found, b"new"]


def test_a_segment_of_which_the_first_page_is_missing_and_nothing_was_safe_is_begun_anew(tmp_path):
    cut_while_syncing(tmp_path, (0,), safe=0)
    newest(tmp_path).write_bytes(bytes(4096) + newest(tmp_path).read_bytes()[4096:])
    journal = Journal(tmp_path, first=0)
    assert (journal.next_index, journal.torn_bytes) == (0, PAGES * 4 * 1016 + 16)
    journal.append(b"new")
    journal.sync()
    assert payloads(tmp_path) == [b"new"]


def test_what_a_start_has_made_safe_is_damaged_when_it_is_not_whole_any_more(tmp_path):
    cut_while_syncing(tmp_path, ())
    journal = Journal(tmp_path)
    assert (journal.next_index, journal.torn_bytes) == (3 + PAGES * 4, 0)
    journal.close()
    content = bytearray(newest(tmp_path).read_bytes())
    content[-100] ^= 1
    newest(tmp_path).write_bytes(content)
    with pytest.raises(Damaged, match=f"record {PAGES * 4 + 2} is not what was written, and was safe once"):
        Journal(tmp_path)


def test_a_group_is_safe_where_only_its_mark_finds_no_room(tmp_path):
    class Tight(Disk):
        room = 10**6

        def writev(self, descriptor, pieces):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = b"".join(pieces)[: self.room]
            self.room -= len(taken)
            return super().writev(descriptor, [taken])

    disk = Tight()
    with using(disk):
        journal = Journal(tmp_path)
        journal.append(b"first")
        disk.room = 16 + 5 + 7
        journal.sync()
        assert (disk.room, journal.synced_index, journal.unsynced_bytes) == (0, 1, 0)
        disk.room = 10**6
        journal.append(b"second")
        journal.sync()
        journal.close()
    assert payloads(tmp_path) == [b"first", b"second"]
    assert newest(tmp_path).stat().st_size == 16 + (16 + 5) + (16 + 6) + 20


def test_a_journal_is_there_from_its_beginning_on():
    one = FakeDisk(np.random.default_rng(0))
    with using(one):
        Journal(Path("/run/journal"), first=4)
        one.power_cut(torn=False)
        assert segments(Path("/run/journal")) == [4]
        assert Journal(Path("/run/journal")).next_index == 4


@pytest.mark.parametrize("dies_at", range(5))
def test_what_was_found_and_not_made_safe_by_the_one_before_is_made_safe(dies_at):
    """Killed between a segment's creation and its directory's fsync: the next process appends, syncs, and power goes."""
    left = [None]

    def count():
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

    one = FakeDisk(np.random.default_rng(0), on_operation=count)
    with using(one):
        journal = Journal(Path("/run"))
        journal.append(b"first")
        journal.sync()
        journal.roll()
        left[0] = dies_at
        journal.append(b"second")
        with contextlib.suppress(KeyboardInterrupt):
            journal.sync()
        left[0] = None
        one.killed()
        journal = Journal(Path("/run"))
        for number in range(3):
            journal.append(b"acknowledged %d" % number)
            journal.sync()
        synced = list(journal.read())
        one.power_cut(torn=False)
        assert list(Journal(Path("/run")).read()) == synced
        assert len(synced) >= 4


class Watched(Disk):
    """The kernel's disk; full while `full`, and it notes which thread syncs."""

    def __init__(self):
        self.full = False
        self.syncs = []

    def writev(self, descriptor, pieces):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().writev(descriptor, pieces)

    def sync_data(self, descriptor):
        super().sync_data(descriptor)
        self.syncs.append(threading.current_thread().name)


LARGE = [bytes([number]) * 300_000 for number in range(40)]


def test_megabytes_are_made_safe_by_a_thread_and_sync_waits_for_all_of_them(tmp_path):
    disk = Watched()
    with using(disk):
        journal = Journal(tmp_path)
        for record in LARGE:
            journal.append(record)
        assert journal.unsynced_bytes > 0
        journal.sync()
        assert journal.unsynced_bytes == 0
        assert journal.synced_index == len(LARGE)
        journal.close()
    assert [name.startswith("hermes-journal") for name in disk.syncs] == [True] * (len(disk.syncs) - 1) + [False]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hermes-journal")]
    assert payloads(tmp_path) == LARGE


def test_little_traffic_starts_no_thread(tmp_path):
    disk = Watched()
    with using(disk):
        written(tmp_path)
    assert disk.syncs == [threading.main_thread().name]


def test_a_disk_that_filled_up_behind_our_back_is_told_of_by_sync_and_nothing_is_lost(tmp_path):
    disk = Watched()
    with using(disk):
        journal = Journal(tmp_path)
        journal.append(b"before")
        journal.sync()
        disk.full = True
        for record in LARGE:
            journal.append(record)
        with pytest.raises(DiskFull):
            journal.sync()
        with pytest.raises(DiskFull):
            journal.sync()
        assert journal.synced_index == 1
        disk.full = False
        journal.append(b"after")
        journal.sync()
        journal.close()
    assert payloads(tmp_path) == [b"before", *LARGE, b"after"]


def test_a_disk_without_threads_is_written_by_the_caller(tmp_path):
    disk = Watched()
    disk.threads = False
    with using(disk):
        written(tmp_path, LARGE)
    assert set(disk.syncs) == {threading.main_thread().name}
    assert payloads(tmp_path) == LARGE


def test_a_newer_format_is_refused_with_the_remedy(tmp_path):
    path = newest(written(tmp_path))
    content = bytearray(path.read_bytes())
    content[7] = 2
    path.write_bytes(content)
    with pytest.raises(StorageError, match="newer hermes-iot") as refused:
        Journal(tmp_path)
    assert refused.value.mend == "Upgrade hermes-iot"


_WRITER = """
import sys
from pathlib import Path
from hermes_iot.storage.journal import Journal

journal = Journal(Path(sys.argv[1]), segment_bytes=5000)
while True:
    for number in range(3):
        journal.append(journal.next_index.to_bytes(4, "little") * 100)
    journal.sync()
    print(journal.synced_index, flush=True)
"""


def test_a_killed_writer_leaves_everything_it_reported_as_synced(tmp_path):
    for round_ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            reported = [int(writer.stdout.readline()) for _ in range(20 + round_)][-1]
        finally:
            writer.kill()
            writer.wait()
            writer.stdout.close()
        found = payloads(tmp_path)
        assert len(found) >= reported
        assert found == [index.to_bytes(4, "little") * 100 for index in range(len(found))]
