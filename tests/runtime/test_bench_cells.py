from dataclasses import replace

import pytest

from hermes_iot.errors import UsageError
from hermes_iot.runtime.bench import cells as cells_module
from hermes_iot.runtime.bench.forecast import Forecast, guess
from hermes_iot.runtime.bench.rows import ABLATIONS, NAMED, completed, row_of, rows_of
from hermes_iot.runtime.bench.workloads import WORKLOADS, workload_of
from hermes_iot.runtime.simulation.profiles import LinkProfile
from tests.support.benches import LINK, cell

VERSIONS = {"torch": "2.0", "numpy": "2.1"}


def key(one, data_sha256="d", source="s", versions=VERSIONS):
    return one.key(data_sha256=data_sha256, source=source, versions=versions)


def test_everything_that_decides_a_result_changes_its_key():
    first = cell("hermes-plus")
    others = [
        cell("hermes-plus", seed=1),
        cell("hermes-plus", constants={"momentum": 0.4}),
        cell("hermes"),
        cell("hermes-plus", link=replace(LINK, latency_s=0.03)),
        cell("hermes-plus", long=True),
        cell("hermes-plus", virtual_s=41.0),
        cell("hermes-plus", workload={"task": "digits"}),
        cell("hermes-plus", workload={"task": "digits"}, dirichlet=0.3),
        cell("hermes-plus", workload={"grid_s": 2.0}),
        replace(first, row=replace(first.row, codec="fp16")),
    ]
    keys = [
        *(key(one) for one in (first, *others)),
        key(first, data_sha256="e"),
        key(first, source="t"),
        key(first, versions={**VERSIONS, "torch": "2.0.1"}),
        key(first, versions={**VERSIONS, "numpy": "2.0"}),
    ]
    assert len(set(keys)) == len(keys)


def test_rows_that_a_fleet_would_have_to_get_are_paid_for():
    """Where data are everybody's for nothing, no byte of them is counted: digits are for CI, cost has no rows."""
    assert {one.name for one in WORKLOADS.values() if one.data_mode == "indexed"} == {"digits-mlp", "cost"}


def test_names_do_not_change_a_key_and_defaults_written_out_neither():
    first = cell("hermes-plus")
    assert key(cell("hermes-plus", label="mine")) == key(first)
    assert key(cell("hermes-plus", constants={"momentum": 0.5})) == key(first)
    assert key(cell("hermes-plus", link_name="other")) == key(first)
    assert key(cell("hermes-plus", link=LinkProfile(up_mbit=20, down_mbit=20, latency_s=0.02))) == key(first)


def test_showing_results_otherwise_leaves_them_valid(tmp_path, monkeypatch):
    for name, text in (("core/a.py", "1"), ("cli/b.py", "2"), ("reporting/c.py", "3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cells_module.hermes_iot, "__file__", str(tmp_path / "__init__.py"))

    def digest():
        cells_module.source_sha256.cache_clear()
        return cells_module.source_sha256()

    try:
        before = digest()
        (tmp_path / "cli/b.py").write_text("two")
        (tmp_path / "reporting/c.py").write_text("three")
        assert digest() == before
        (tmp_path / "core/a.py").write_text("one")
        assert digest() != before
    finally:
        cells_module.source_sha256.cache_clear()


@pytest.mark.parametrize("label", sorted(NAMED))
def test_every_named_row_can_be_built(label):
    assert row_of(label).label == label


def test_ablations_differ_from_the_whole_and_from_each_other():
    keys = {key(cell("hermes-plus", constants=dict(row.constants))) for row in ABLATIONS}
    assert len(keys) == len(ABLATIONS)


def test_rows_are_read_with_constants_in_brackets():
    first, second, third = rows_of("bsp, hermes-plus[momentum=0.7;shares.target_s=2, codec_up=fp16] ,hermes-plus lean")
    assert (first.label, first.strategy, first.constants) == ("bsp", "bsp", {})
    assert second.strategy == "hermes-plus"
    assert second.constants == {"momentum": 0.7, "shares": {"target_s": 2}, "codec_up": "fp16"}
    assert third.constants["shares"]["target_s"] == 4


def test_codecs_of_a_row_are_those_of_the_run():
    row = row_of("bsp[codec=fp16;codec-down=int8]")
    assert (row.codec, row.codec_down, row.constants) == ("fp16", "int8", {})
    config = replace(cell("bsp"), row=row).config()
    assert (config.codec, config.codec_down) == ("fp16", "int8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" , ", "names nothing"),
        ("hermes-pluss", "Did you mean 'hermes-plus'"),
        ("hermes-plus leen", "Did you mean 'hermes-plus lean'"),
        ("hermes-plus[momentum]", "is not understood"),
        ("hermes-plus[momentum=2]", "row 'hermes-plus[momentum=2]'"),
        ("hermes-plus[gaet.kind=none]", "Did you mean 'gate'"),
        ("bsp[codec=zip]", "codec 'zip'"),
        ("bsp[codec=topk5]", "row 'bsp[codec=topk5]': --codec topk5 cannot be used with this strategy"),
        ("hermes-plus[delta_down=false;codec-down=topk5]", "row 'hermes-plus[delta_down=false;codec-down=topk5]'"),
    ],
)
def test_a_row_that_cannot_be_is_refused_with_what_mends_it(text, words):
    with pytest.raises(UsageError) as raised:
        rows_of(text)
    assert words in str(raised.value)


def test_every_comparison_carries_the_honest_baselines_once():
    assert [row.label for row in completed(rows_of("single,bsp"))] == ["single", "bsp", "single averaged", "bsp-tuned"]


def test_an_unknown_workload_is_refused():
    with pytest.raises(UsageError, match="mnist-mlp"):
        workload_of("mnist-mpl")


@pytest.mark.parametrize("targets", [(), (0.9, 0.8), (0.9, 0.9), (0.0,), (1.1,)])
def test_targets_are_rising_accuracies(targets):
    with pytest.raises(UsageError):
        replace(workload_of("digits-mlp"), targets=targets)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dirichlet": 0.0, "workload": {"task": "digits"}}, "--dirichlet 0 cannot be used"),
        ({"patience": 0}, "a patience of 0"),
        ({"virtual_s": 0.0}, "a virtual time of 0 s"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changed, words):
    with pytest.raises(UsageError, match=words):
        cell(**changed)


# --- how long it will take --------------------------------------------------------------------------------------------


def test_nothing_is_foretold_before_a_cell_is_done():
    assert Forecast().left_s([cell("bsp")], jobs=2) is None
    assert Forecast().left_s([], jobs=2) == 0.0


def test_cells_take_what_others_of_their_row_took():
    forecast = Forecast()
    forecast.took(cell("bsp"), 10.0)
    forecast.took(cell("bsp", seed=1), 14.0)
    forecast.took(cell("single"), 2.0)
    assert forecast.expected_s(cell("bsp", seed=2)) == 12.0
    assert forecast.expected_s(cell("hermes")) == pytest.approx(
        26 * guess(cell("hermes")) / (2 * guess(cell("bsp")) + guess(cell("single")))
    )
    assert forecast.left_s([cell("bsp", seed=2), cell("bsp", seed=3)], jobs=2) == 12.0
    assert forecast.left_s([cell("bsp", seed=seed) for seed in (2, 3, 4)], jobs=2) == 18.0
