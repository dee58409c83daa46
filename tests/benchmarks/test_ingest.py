"""The benchmark of the way in: that it measures what it says, not how fast it is here."""

import json
import sys

import pytest

from benchmarks import endurance, ingest
from benchmarks.receivers import Case, Measured
from hermes_iot.runtime.broker import MosquittoBroker


def case(kind, codec="int8", updates=20):
    return Case(kind=kind, parameters=2000, codec=codec, updates=updates, chunk_bytes=1024)


def row(kind, codec, *seconds, tuned=(1.0,)):
    found = [Measured(updates=100, wall_s=one, cpu_s=one / 2, rss_mib=50.0) for one in seconds]
    return ingest.row(case(kind, codec, updates=100), found, [100 / one for one in tuned])


@pytest.mark.mosquitto
@pytest.mark.parametrize("filled", [False, True], ids=["live", "filled"])
@pytest.mark.parametrize("kind", ["tuned", "ingest", "unjournalled", "answering"])
def test_every_end_receives_every_update_once_however_it_is_cut(kind, tmp_path, filled):
    with MosquittoBroker(settings=ingest.SETTINGS) as broker:
        found = ingest.measured(case(kind), broker, "bench-test", tmp_path, filled=filled)
    assert found.updates == 20
    assert found.cpu_s > 0
    assert found.wall_s > 0
    journal = tmp_path / "bench-test" / "journal"
    written = sum(one.stat().st_size for one in journal.glob("*.log")) if journal.exists() else 0
    assert (written > 20 * 2000) == (kind in {"ingest", "answering"}), "each with its body of 2,008 bytes"


def test_a_row_is_held_against_the_tuned_paho_of_its_own_round():
    found = row("ingest", "fp16", 2.0, 8.0, tuned=(1.0, 2.0))
    assert found.per_s == (50 + 12.5) / 2
    assert found.against == (0.5 + 0.25) / 2
    assert found.against_range == (0.25, 0.5)
    assert found.cpu_us == 25_000


def test_the_journals_part_is_what_goes_faster_without_it():
    rows = [
        row("shipped", "fp16", 2.0),
        row("tuned", "fp16", 1.0),
        row("ingest", "fp16", 1.25),
        row("unjournalled", "fp16", 1.0),
        row("ingest", "int8", 1.0),
    ]
    found = {one["what"]: one for one in ingest.verdicts(rows)}
    assert found["allocator tuned / as shipped"]["found"] == 2
    assert found["coordinator fp16 / tuned paho"]["found"] == 0.8
    assert not found["coordinator fp16 / tuned paho"]["met"]
    assert not found["coordinator int8 / tuned paho"]["met"]
    assert found["journal's part of an fp16 update's time"]["found"] == pytest.approx(0.2)
    assert "coordinator topk1 / tuned paho" not in found, "there was no such row"


def test_memory_is_watched_over_updates_that_are_all_applied(tmp_path):
    assert abs(endurance.memory_slope(400, tmp_path / "run")) < 1000


def test_the_document_is_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ingest, "rounds", lambda *_, **__: [row("shipped", "fp16", 2.0), row("tuned", "fp16", 1.0)])
    monkeypatch.setattr(ingest, "verdicts", lambda _rows: [{"what": "nothing", "found": 1.0}])
    monkeypatch.setattr(endurance, "journal_growth", lambda _directory: 2.0)
    out = tmp_path / "bench" / "ingest.json"
    monkeypatch.setattr(sys, "argv", ["ingest", "--parameters", "1000", "--endurance", "0", "--out", str(out)])
    ingest.main()
    shown = capsys.readouterr().out
    assert "bare paho, allocator tuned" in shown
    assert "MISSED" in shown
    document = json.loads(out.read_text())
    assert [one["kind"] for one in document["rows"]] == ["shipped", "tuned"]
    assert document["verdicts"][-1]["met"] is False
