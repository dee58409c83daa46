import pytest

from hermes_iot.runtime.bench.ratios import Ratio, Spread, paper_table, share, speedup, spread, target_table

NONE = Spread(median=None, least=None, most=None)


def effort(t_s, *, model=100, pushes=10, iterations=30):
    return {
        "t_s": t_s,
        "bytes_model": model,
        "bytes_data": 10,
        "bytes_control": 1,
        "pushes": pushes,
        "iterations": iterations,
        "samples": 500,
        "iterations_per_push": iterations / pushes,
        "accuracy": 0.98,
    }


def cell(label, seed, t_s, *, end_s=1000.0, model=100):
    reached = effort(t_s, model=model) if t_s is not None else None
    return {
        "label": label,
        "seed": seed,
        "targets": [{"target": 0.98, "reached": reached}],
        "paper_stop": {"patience": 10, "reached": reached},
        "stop_rule": {"reached": None},
        "end": {"kind": "target" if reached else "cap", "reason": "", "t_s": end_s},
        "at_end": {**effort(end_s), "accuracy": 0.97},
        "best_accuracy": 0.985,
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 1.0, 2.0], Spread(median=2.0, least=1.0, most=3.0)),
        ([4.0, 1.0], Spread(median=2.5, least=1.0, most=4.0)),
        ([3.0, None, 1.0], Spread(median=3.0, least=1.0, most=None)),  # not 2: the missing one took longest
        ([None, 1.0], Spread(median=None, least=1.0, most=None)),
        ([None, None, 1.0], Spread(median=None, least=1.0, most=None)),
        ([None], NONE),
        ([], NONE),
    ],
)
def test_a_seed_that_did_not_get_there_counts_as_the_slowest(values, expected):
    assert spread(values) == expected


def test_a_speedup_is_the_ratio_of_two_medians():
    assert speedup(spread([1200.0]), spread([100.0]), ended=spread([2000.0])) == Ratio(value=12.0)
    assert speedup(spread([100.0]), spread([200.0]), ended=NONE) == Ratio(value=0.5)


def test_against_a_reference_that_did_not_get_there_it_is_a_bound():
    assert speedup(NONE, spread([100.0]), ended=spread([2000.0])) == Ratio(value=20.0, bound=">")
    assert speedup(NONE, spread([100.0]), ended=NONE) is None


def test_a_row_that_did_not_get_there_has_none():
    assert speedup(spread([1200.0]), NONE, ended=spread([2000.0])) is None
    assert share(spread([10.0]), NONE) is None
    assert share(NONE, spread([10.0])) is None
    assert share(spread([0.0]), spread([10.0])) is None
    assert share(spread([200.0]), spread([50.0])) == 0.25


def test_a_table_has_every_row_and_says_how_many_seeds_got_there():
    cells = [
        *(cell("bsp", seed, t_s, model=1000) for seed, t_s in enumerate([1300.0, 1200.0, 1100.0])),
        *(cell("hermes", seed, t_s) for seed, t_s in enumerate([300.0, None, 400.0])),
        *(cell("asp", seed, None) for seed in range(3)),
    ]
    bsp, hermes, asp, failed = target_table(["bsp", "hermes", "asp", "lost"], cells, 0)
    assert (bsp["reached"], hermes["reached"], asp["reached"], failed["reached"]) == (3, 2, 0, 0)
    assert (bsp["seeds"], failed["seeds"]) == (3, 0)
    assert hermes["t_s"] == {"median": 400.0, "least": 300.0, "most": None}
    assert hermes["speedup"] == {"value": 3.0, "bound": ""}
    assert hermes["model_share"] == 0.1
    assert bsp["bytes_all"]["median"] == 1011
    assert asp["t_s"]["median"] is None
    assert asp["speedup"] is None
    assert asp["ends"] == ["cap"]
    assert hermes["ends"] == ["cap", "target"]
    assert failed["final_accuracy"]["median"] is None


def test_without_bsp_there_are_no_ratios():
    (row,) = paper_table(["hermes"], [cell("hermes", 0, 300.0)])
    assert row["t_s"]["median"] == 300.0
    assert (row["speedup"], row["model_share"]) == (None, None)
