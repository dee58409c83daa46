import gzip
import hashlib
import socket
from pathlib import Path

import pytest

from hermes_iot.errors import DataUnavailable, StorageError, UsageError
from hermes_iot.training.download import Source, cache_dir, fetch, find, folders, read_bounded, reporting

BODY = bytes(range(256)) * 9000  # more than one block


def a_source(*urls, body=BODY, algorithm="sha256", **changes):
    digest = hashlib.new(algorithm, body).hexdigest()
    return Source(**({"urls": urls, "algorithm": algorithm, "digest": digest, "bytes_max": len(body)} | changes))


def refusal(source, target: Path, **arguments) -> str:
    with pytest.raises(DataUnavailable) as caught:
        fetch(source, target, **arguments)
    assert not target.exists()
    assert not target.parent.exists() or not list(target.parent.iterdir())
    return str(caught.value)


class TestFetch:
    @pytest.mark.parametrize("algorithm", ["sha256", "md5"])
    def test_a_whole_file_gets_its_name(self, site, tmp_path, algorithm):
        site.bodies["/a.bin"] = BODY
        target = tmp_path / "new" / "folder" / "a.bin"
        assert fetch(a_source(f"{site.url}/a.bin", algorithm=algorithm), target) == target
        assert target.read_bytes() == BODY
        assert [path.name for path in target.parent.iterdir()] == ["a.bin"]

    def test_the_second_address_is_tried_when_the_first_fails(self, site, tmp_path):
        site.bodies |= {"/first": b"damaged", "/second": BODY}
        fetch(a_source(f"{site.url}/none", f"{site.url}/first", f"{site.url}/second"), tmp_path / "a")
        assert site.asked == ["/none", "/first", "/second"]
        assert (tmp_path / "a").read_bytes() == BODY

    def test_progress_is_reported_up_to_the_end(self, site, tmp_path):
        site.bodies["/a"] = BODY
        told = []
        with reporting(lambda *step: told.append(step)):
            fetch(a_source(f"{site.url}/a"), tmp_path / "a.bin")
        assert len(told) >= 2
        assert told[-1] == ("a.bin", len(BODY), len(BODY))
        fetch(a_source(f"{site.url}/a"), tmp_path / "b.bin")
        assert told[-1][0] == "a.bin"

    def test_damaged_bytes_leave_nothing_behind(self, site, tmp_path):
        site.bodies["/a"] = BODY[:-1] + b"x"
        assert "expected" in refusal(a_source(f"{site.url}/a"), tmp_path / "cache" / "a")

    def test_a_body_cut_short_leaves_nothing_behind(self, site, tmp_path):
        site.bodies["/a"] = BODY[:1000]
        site.headers["/a"] = {"Content-Length": str(len(BODY))}
        assert "1000 bytes came" in refusal(a_source(f"{site.url}/a"), tmp_path / "cache" / "a")

    def test_an_announced_excess_is_refused_unread(self, site, tmp_path):
        site.bodies["/a"] = BODY
        assert "announces" in refusal(a_source(f"{site.url}/a", bytes_max=100), tmp_path / "cache" / "a")

    @pytest.mark.parametrize("length", [None, "-5", "lots", "\u00b2"])
    def test_a_missing_or_senseless_length_does_not_lift_the_limit(self, site, tmp_path, length):
        site.bodies["/a"] = BODY
        site.headers["/a"] = {"Content-Length": length}
        assert "sends more than" in refusal(a_source(f"{site.url}/a", bytes_max=100), tmp_path / "cache" / "a")

    def test_a_refusal_says_where_we_looked_what_was_tried_and_what_to_do(self, site, tmp_path):
        message = refusal(
            a_source(f"{site.url}/none"), tmp_path / "cache" / "a.gz", looked_in=[Path("/data/x"), Path("/data/y")]
        )
        assert "a.gz is not at hand" in message
        assert "looked in /data/x, /data/y" in message
        assert f"tried {site.url}/none" in message
        assert "404" in message
        assert "--data-dir" in message

    def test_an_offline_machine_gets_the_same_answer(self, tmp_path):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        message = refusal(a_source(url), tmp_path / "cache" / "a")
        assert url in message
        assert "refused" in message.lower()

    def test_a_silent_server_is_given_up(self, tmp_path):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
            assert "timed out" in refusal(a_source(url), tmp_path / "cache" / "a", timeout_s=0.2)

    def test_only_web_addresses_are_opened(self, tmp_path):
        secret = tmp_path / "secret"
        secret.write_bytes(BODY)
        assert "not an http(s) address" in refusal(a_source(secret.as_uri()), tmp_path / "cache" / "a")

    def test_a_place_that_cannot_be_written_is_a_storage_error(self, site, tmp_path):
        site.bodies["/a"] = BODY
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="XDG_CACHE_HOME"):
            fetch(a_source(f"{site.url}/a"), tmp_path / "file" / "a")

    def test_what_the_hook_raises_stops_the_download_cleanly(self, site, tmp_path):
        site.bodies["/a"] = BODY

        def stop(*_):
            raise KeyboardInterrupt

        with reporting(stop), pytest.raises(KeyboardInterrupt):
            fetch(a_source(f"{site.url}/a"), tmp_path / "cache" / "a")
        assert not list((tmp_path / "cache").iterdir())


class TestPlaces:
    def test_the_data_directory_comes_before_the_cache(self, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert folders("mnist", Path("/d"), also=("MNIST/raw",)) == (
            Path("/d"),
            Path("/d/mnist"),
            Path("/d/MNIST/raw"),
            Path("/cache/hermes-iot/mnist"),
        )
        assert folders("mnist", None) == (Path("/cache/hermes-iot/mnist"),)

    @pytest.mark.parametrize("value", ["", "relative/path"])
    def test_the_cache_is_in_the_home_directory_by_default(self, monkeypatch, value):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", "/home/ada")
        assert cache_dir("digits") == Path("/home/ada/.cache/hermes-iot/digits")

    def test_a_user_without_a_home_is_told_what_to_set(self, monkeypatch):
        def homeless():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
        with pytest.raises(DataUnavailable, match="XDG_CACHE_HOME"):
            cache_dir("digits")

    def test_the_first_place_wins_and_folders_do_not_count(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        (tmp_path / "one" / "x").mkdir()
        (tmp_path / "two" / "x").touch()
        places = [tmp_path / "one", tmp_path / "two"]
        assert find(("y", "x"), places) == tmp_path / "two" / "x"
        assert find(("z",), places) is None


class TestReading:
    @pytest.mark.parametrize("level", [None, 1, 9])
    def test_packed_or_not_the_content_is_the_same(self, tmp_path, level):
        path = tmp_path / "a"
        path.write_bytes(BODY if level is None else gzip.compress(BODY, level))
        assert read_bounded(path, bytes_max=len(BODY)) == BODY

    def test_a_bomb_is_not_inflated_past_the_limit(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(gzip.compress(bytes(50_000_000)))
        with pytest.raises(UsageError, match="larger than expected"):
            read_bounded(path, bytes_max=1000)

    @pytest.mark.parametrize("damage", ["cut", "flip", "crc"])
    def test_a_damaged_archive_is_named(self, tmp_path, damage):
        packed = bytearray(gzip.compress(BODY))
        if damage == "cut":
            del packed[len(packed) // 2 :]
        else:
            packed[-6 if damage == "crc" else 12] ^= 0xFF
        path = tmp_path / "a.gz"
        path.write_bytes(packed)
        with pytest.raises(UsageError, match=r"a\.gz cannot be read"):
            read_bounded(path, bytes_max=len(BODY))

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(UsageError, match="none"):
            read_bounded(tmp_path / "none", bytes_max=1)
