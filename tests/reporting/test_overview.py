from hermes_iot.reporting.overview import Overview
from tests.reporting.conftest import PUSHES, SLOW


def played(records):
    overview = Overview()
    return overview, [news for event, fields in records if (news := overview.take(event, fields))]


def test_what_was_seen_agrees_with_the_summary(run):
    overview, _news = played(run.records)
    summary = run.summary
    assert list(overview.rows) == [one["device"] for one in summary["devices"]]
    assert (
        overview.applied == summary["updates_applied"] == sum(row.applied for row in overview.rows.values()) == PUSHES
    )
    assert overview.version == summary["model_version"]
    assert overview.accuracy == summary["validation_accuracy"]
    assert overview.best_accuracy >= overview.accuracy
    assert overview.reason == summary["reason"]
    assert sum(overview.dropped.values()) == summary["updates_received"] - summary["updates_applied"]
    for one in summary["devices"]:
        row = overview.rows[one["device"]]
        assert (row.slowdown, *row.allotted) == (one["slowdown"], one["samples"], one["batch"])
        assert (row.iterations, row.published) == (one["iterations"], one["updates_published"])


def test_what_is_worth_saying_is_said(run):
    _overview, news = played(run.records)
    assert news[0] == "d0 joined"
    assert f"{SLOW} joined (emulated: 24x slower)" in news
    assert any(one.startswith(f"{SLOW} re-sized: 120 → ") and "rows (120 rows took" in one for one in news)
    assert f"finished: {PUSHES} updates applied" in news
    assert not any("left" in one for one in news)  # everybody leaves at the end, for the reason already said


def test_a_change_of_size_is_news_and_saying_a_size_again_is_not():
    def allocation(version, samples, batch):
        fields = {"elapsed_s": 1.0, "device": "pi", "version": version, "samples": samples, "batch": batch}
        return "allocation", {**fields, "reason": "256 rows took 2 s"}

    _overview, news = played([allocation(3, 256, 16), allocation(4, 256, 16), allocation(5, 128, 8)])
    assert news == ["pi re-sized: 256 → 128 rows, mini-batch 16 → 8 (256 rows took 2 s)"]


def test_leaving_before_the_end_is_news():
    overview, news = played(
        [
            ("joined", {"elapsed_s": 0.0, "device": "pi", "session": 1, "slowdown": 1.0}),
            ("left", {"elapsed_s": 1.0, "device": "pi", "reason": "connection lost"}),
        ]
    )
    assert news[-1] == "pi left: connection lost"
    assert overview.online == 0


def test_who_is_not_waited_for_any_more_is_news_and_so_is_its_return():
    overview, news = played(
        [
            ("excused", {"elapsed_s": 7.0, "device": "pi", "reason": "its iterations diverge"}),
            ("readmitted", {"elapsed_s": 9.0, "device": "pi"}),
        ]
    )
    assert news == ["pi is not waited for: its iterations diverge", "pi is waited for again"]
    assert overview.rows["pi"].noted_s == 9.0


def test_a_device_that_floods_us_with_rubbish_is_named_once():
    refused = {"elapsed_s": 0.0, "device": "pi", "channel": "state", "reason": "schema"}
    dropped = {"elapsed_s": 0.0, "device": "pi", "session": 1, "seq": 1, "outcome": "stale", "reason": "lag"}
    overview, news = played([("refused", refused), ("dropped", dropped)] * 500)
    assert news == ["pi: state refused (schema)", "pi: update stale (lag)"]
    assert (overview.refused["schema"], overview.dropped["stale"]) == (500, 500)


def test_an_unknown_event_and_a_task_without_accuracy_do_no_harm(run):
    merge = next(fields for event, fields in run.records if event == "merge")
    overview, news = played(
        [("surprise", {"elapsed_s": 5.0}), ("merge", {**merge, "accuracy": None, "loss": float("nan")})]
    )
    assert news == []
    assert (overview.accuracy, overview.loss, overview.best_loss, overview.elapsed_s) == (None, None, None, 5.0)
