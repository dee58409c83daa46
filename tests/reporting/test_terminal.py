"""Names and header lines where there is not room for all of them."""

import io

from rich.console import Console

from hermes_iot.reporting.terminal import Printable, Wrapped, shortened


def test_names_that_would_look_alike_keep_apart():
    names = [f"greenhouse-{place}-sensor-board-of-the-south" for place in ("east", "west", "nord")]
    short = shortened([*names, "pi-01"], 20)
    assert len(set(short)) == 4
    assert max(map(len, short)) <= 20
    assert short[3] == "pi-01"
    assert [one[-2:] for one in short[:3]] == ["#1", "#2", "#3"]


def test_names_that_differ_when_cut_are_cut_and_no_more():
    names = ["a-board-with-a-long-name-1", "a-board-with-a-long-name-2"]
    assert shortened(names, 20) == ["a-board-wi…ng-name-1", "a-board-wi…ng-name-2"]


def shown(width, *pairs):
    out = io.StringIO()
    Console(file=out, width=width).print(Printable(Wrapped(pairs)))
    return out.getvalue().splitlines()


def test_a_header_is_wrapped_between_its_pairs_rather_than_cut():
    pairs = [("task", "cost"), ("fleet", "edge1000"), ("link", "wifi20"), ("broker", ""), ("seed", "0")]
    assert shown(80, *pairs) == ["task cost   fleet edge1000   link wifi20   seed 0"]
    assert shown(30, *pairs) == ["task cost   fleet edge1000", "link wifi20   seed 0"]
    assert shown(12, *pairs) == ["task cost", "fleet edge1…", "link wifi20", "seed 0"]
