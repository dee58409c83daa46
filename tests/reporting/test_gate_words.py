"""Why updates were pushed, as far as reports tell it."""

from hermes_iot.reporting.gates import GateWords, forced_of, lines_of


def said(device, iterations, word):
    return {"device": device, "iterations": iterations, "gate": word}


def test_a_reason_counts_once_for_each_iteration_that_a_device_reported():
    words = GateWords()
    words.on_record("state", said("a", 0, ""))
    words.on_record("state", said("a", 3, "age"))
    words.on_record("state", said("a", 3, "age"))  # the same iteration, said again
    words.on_record("state", said("b", 3, "gain"))
    words.on_record("state", said("a", 5, "no"))
    words.on_record("merge", {"device": "a"})
    assert words.counts == {"age": 1, "gain": 1, "no": 1}


def test_words_that_nobody_knows_do_not_fill_the_memory():
    words = GateWords()
    for number in range(1000):
        words.on_record("state", said("a", number + 1, f"word{number}"))
    assert len(words.counts) == 32


def test_forced_pushes_are_a_part_of_those_whose_reason_was_told():
    assert "of 4 pushes whose reason the devices' reports told, 3 (75.0 %) were forced" in forced_of(
        {"age": 3, "first": 1, "no": 9, "diverged": 2}
    )


def test_where_no_gate_decides_nothing_is_said_of_it():
    assert forced_of({}) == ""
    assert forced_of({"barrier": 7}) == ""


def test_a_gates_pushes_and_the_forced_ones_among_them_stand_side_by_side():
    counts = {"paired": {"pushes": 4, "forced": 3, "both": 2}, "strict": None}
    found = {"gate": "paired", "iterations": 8, "would_push": counts}
    assert lines_of(found) == [
        ("paired (it ran)", "4", "50.0 %", "37.5 %", "2"),
        ("strict", "not recorded", "-", "-", "-"),
    ]
