import io
import re
import threading
from itertools import pairwise

import pytest
from rich.cells import cell_len
from rich.console import Console

from hermes_iot.reporting.live import LiveView
from tests.reporting.conftest import PUSHES, SLOW

TITLE = {"run": "toy-20261123-181508-f773", "fleet": "lab", "task": "toy", "strategy": "hermes", "broker": "in-memory"}


class Clock:
    """A tenth of a second passes between two looks at it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 0.1
        return self.now


class Gone(io.StringIO):
    """A terminal whose session has died."""

    def write(self, _text):
        raise OSError(5, "Input/output error")


class Latin(io.StringIO):
    encoding = "latin-1"

    def write(self, text):
        text.encode("latin-1")
        return super().write(text)


def terminal(width=80, height=24, file=None):
    return Console(
        file=file or io.StringIO(), force_terminal=True, width=width, height=height, color_system=None, record=True
    )


def played(view, records):
    with view:
        view.title(**TITLE)
        for event, fields in records:
            view.on_record(event, fields)
    return view


def frame_of(view, width, height):
    page = Console(file=io.StringIO(), width=width, height=height, record=True)
    page.print(view.frame(width, height))
    return page.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("fixture", ["run", "crowd"])
def test_no_line_is_wider_than_the_terminal_and_no_frame_taller(request, width, fixture):
    given = request.getfixturevalue(fixture)
    view = played(LiveView(terminal(width)), given if fixture == "crowd" else given.records)
    view.title(task="a/very/long/path/to/a/file/of/somebody.py", broker="mqtt://" + "broker." * 20 + "example:8883")
    lines = frame_of(view, width, 24)
    assert max(cell_len(line) for line in lines) <= width
    assert len(lines) <= 24


def test_eighty_columns_show_everything_asked_for(run):
    view = played(LiveView(terminal()), run.records)
    text = "\n".join(frame_of(view, 80, 24))
    for words in (
        *TITLE.values(),
        "model version 90",
        "validation accuracy",
        "(best ",
        "loss ",
        "of 5",
        "up ",
        "down ",
    ):
        assert words in text
    slow = view.overview.rows[SLOW]
    line = next(line for line in text.splitlines() if line.startswith(f"{SLOW} "))
    words = line.split()
    assert words[2:5] == ["24x", str(slow.samples), str(slow.batch)]
    assert words[-4:-1] == [str(slow.iterations), str(slow.published), str(slow.applied)]
    assert re.fullmatch(r"(-|-?\d+\.\d\d)/-\d\.\d\d", words[-1])
    assert "emulated" in text
    assert "slowdown" in text


def test_without_an_emulated_device_there_is_no_such_column(run):
    records = [(event, {**fields, "slowdown": 1.0} if event == "joined" else fields) for event, fields in run.records]
    assert "emulated" not in "\n".join(frame_of(played(LiveView(terminal()), records), 80, 24))


def test_fifty_devices_show_the_newest_changes_then_the_slowest_and_count_the_rest(crowd):
    view = played(LiveView(terminal()), crowd)
    text = "\n".join(frame_of(view, 80, 24))
    assert "… and 38 more" in text
    assert sum(line.startswith("d") for line in text.splitlines()) == 12 + 1  # devices and the table's head
    view.overview.elapsed_s += 60  # what happened is old news by then
    for row in view.overview.rows.values():
        row.online, row.iteration_s = True, 2.0 if row.device.startswith(SLOW) else 0.1
    view._shown = set()
    assert all(f"{SLOW}-{copy} " in "\n".join(frame_of(view, 80, 24)) for copy in range(10))


def test_the_screen_is_drawn_at_most_four_times_a_second(run):
    clock, file = Clock(), io.StringIO()
    with LiveView(terminal(file=file), clock=clock) as view:
        drawn = []
        draw = view._draw
        view._draw = lambda now: (drawn.append(now), draw(now))
        for event, fields in run.records:
            if event != "finished":
                view.on_record(event, fields)
        assert len(drawn) > 10
        assert min(after - before for before, after in pairwise(drawn)) >= 0.25
    assert "\x1b[?25h" in file.getvalue()  # the cursor is back


def test_no_thread_is_started(run):
    before = threading.enumerate()
    with LiveView(terminal()) as view:
        for event, fields in run.records:
            view.on_record(event, fields)
        assert threading.enumerate() == before
    assert threading.enumerate() == before


def test_the_last_state_stays_after_a_failure_and_goes_after_a_good_end(run):
    erase = "\x1b[2K"
    kept, gone = io.StringIO(), io.StringIO()

    def failing():
        yield from run.records[:-8]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        played(LiveView(terminal(file=kept)), failing())
    played(LiveView(terminal(file=gone)), run.records)
    assert erase in gone.getvalue().rsplit("\n", 1)[-1]
    assert erase not in kept.getvalue().rsplit("\n", 1)[-1]
    assert "validation accuracy" in kept.getvalue()


def test_plain_lines_carry_no_control_characters_and_tell_the_story(run):
    file = io.StringIO()
    played(LiveView(terminal(file=file), plain=True, clock=Clock()), run.records)
    text = file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    lines = [line.split(" s  ", 1)[1] for line in text.splitlines()]
    assert lines[0] == "run toy-20261123-181508-f773  fleet lab  task toy  strategy hermes  broker in-memory"
    assert f"{SLOW} joined (emulated: 24x slower)" in lines
    assert any(line.startswith(f"{SLOW} re-sized: 120 → ") for line in lines)
    assert any(re.match(r"model \d+: accuracy [\d.]+ %, loss .*applied; up .*B, down .*B$", line) for line in lines)
    assert f"finished: {PUSHES} updates applied" in lines


def test_progress_is_told_every_two_seconds(run):
    clock, file = Clock(), io.StringIO()
    played(LiveView(terminal(file=file), plain=True, clock=clock), run.records)
    until_end = [event for event, _fields in run.records].index("finished")
    told = sum("iterations reported" in line for line in file.getvalue().splitlines())
    assert until_end // 21 - 1 <= told <= until_end // 20 + 1  # ten records a second


@pytest.mark.parametrize("console", [Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=False)])
def test_what_is_no_terminal_gets_plain_lines(run, console):
    played(LiveView(console), run.records)
    assert "\x1b" not in console.file.getvalue()
    assert "d0 joined\n" in console.file.getvalue()


@pytest.mark.parametrize("plain", [True, False])
def test_what_devices_say_cannot_reach_the_terminal(run, plain):
    evil = "[bold red]x[/] [link=http://evil]y[/link] \x1b]0;title\x07\x1b[2J\r\n\u202edrow\u200b \x9b31m"
    joined = next(fields for event, fields in run.records if event == "joined")
    file = io.StringIO()
    console = terminal(120, file=file)
    played(
        LiveView(console, plain=plain),
        [("joined", joined), ("left", {"elapsed_s": 1.0, "device": "d0", "reason": evil})],
    )
    text = file.getvalue()
    for sequence in ("\x1b]0;", "\x07", "\x1b[2J", "\u202e", "\u200b", "\x9b"):
        assert sequence not in text
    assert "[bold red]x[/]" in text  # shown as it is, not obeyed


@pytest.mark.parametrize("plain", [True, False])
def test_a_terminal_that_is_gone_does_not_end_the_run(run, plain):
    view = played(LiveView(terminal(file=Gone()), plain=plain), run.records)
    assert view.overview.applied == PUSHES


@pytest.mark.parametrize("plain", [True, False])
def test_a_terminal_without_utf8_gets_ascii(crowd, plain):
    file = Latin()
    view = LiveView(Console(file=file, force_terminal=True, width=80, height=24), plain=plain)
    played(view, crowd)
    assert file.getvalue().isascii()
    assert ("d4-9 re-sized: 120 > " if plain else "~ and 38 more") in file.getvalue()


def test_names_are_cut_in_the_middle(run):
    records = [
        (event, {**fields, "device": f"greenhouse-north-{fields['device']}"} if "device" in fields else fields)
        for event, fields in run.records
    ]
    text = "\n".join(frame_of(played(LiveView(terminal()), records), 80, 24))
    assert "…" in text
    assert all(re.search(rf"…\S*d{number} ", text) for number in range(5))


def test_a_run_that_goes_on_says_where_from():
    out = io.StringIO()
    with LiveView(Console(file=out, width=100), clock=Clock()) as view:
        view.title(**TITLE)
        view.resumed(run=TITLE["run"], version=41)
        for _ in range(30):
            view.on_record("refused", {"elapsed_s": 9.0, "device": "x", "channel": "update", "reason": "no"})
    lines = out.getvalue().splitlines()
    assert lines[1].endswith(f"resumed run {TITLE['run']} at model version 41")
    assert "model 41: no update yet" in lines[3]
    drawn = LiveView(terminal())
    with drawn:
        drawn.title(**TITLE)
        drawn.resumed(run=TITLE["run"], version=41)
        text = "\n".join(frame_of(drawn, 100, 24))
    assert f"resumed run {TITLE['run']} at model version 41" in text
    assert "model version 41" in text


def test_updates_that_are_ahead_of_a_report_are_not_a_part_of_its_iterations():
    """One iteration and its push reported, three updates applied by then."""
    out = io.StringIO()
    report = {"device": "d1", "online": True, "phase": "training", "gate": "always", "iterations": 1, "published": 1}
    report |= {"iteration_s": 0.1, "z": None, "threshold": None, "samples": 9, "batch": 3}
    merge = {"device": "d1", "version": 3, "applied": 3, "bytes_up": 7, "bytes_down": 7, "accuracy": 0.5, "loss": 1.0}
    with LiveView(Console(file=out, width=100), clock=Clock()) as view:
        view.on_record("state", {"elapsed_s": 1.0, **report})
        for _ in range(3):
            view.on_record("merge", {"elapsed_s": 1.5, **merge})
        for _ in range(20):
            view.on_record("state", {"elapsed_s": 1.6, **report})
    assert "1 iterations reported, 3 updates applied" in out.getvalue()
    text = "\n".join(frame_of(view, 100, 24))
    assert "iterations reported 1   published of these 100.0 %   updates applied 3" in text
