import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_iot.errors import UsageError
from hermes_iot.reporting.units import (
    format_bytes,
    format_count,
    format_factor,
    format_loss,
    format_number_of,
    format_seconds,
    format_share,
    parse_bytes,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("0.5", 0.5),
        ("150s", 150.0),
        ("2m", 120.0),
        ("2min", 120.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("250ms", 0.25),
        ("1m5s", 65.0),
        ("1.5h", 5400.0),
        ("2d", 172_800.0),
        (" 10 S ", 10.0),
    ],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "h", "-5", "1e3", "inf", "nan", "5 parsecs", "30m1h", "1h1h", "1 2", "٣s", "1.s", "9" * 40, "1" * 500],
)
def test_what_is_no_duration_is_refused_with_an_example_that_is_one(text):
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert parse_duration("1h30m") == 5400
    assert "1h30m" in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("120000", 120_000),
        ("50MB", 50_000_000),
        ("50mb", 50_000_000),
        ("1.5GiB", 1_610_612_736),
        ("1.5 GiB", 1_610_612_736),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("7 B", 7),
        ("0.1kB", 100),
    ],
)
def test_byte_counts_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "MB", "50M", "50k", "-1", "1e6", "1,000", "1_000", "5 5MB", "9EiB9", "99EB", "٣MB"]
)
def test_what_is_no_byte_count_is_refused_with_an_example_that_is_one(text):
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert "50MB" in str(caught.value)
    assert parse_bytes("50MB") == 50_000_000


def test_hostile_text_is_quoted_harmlessly():
    for parse in (parse_bytes, parse_duration):
        with pytest.raises(UsageError) as caught:
            parse("\x1b[31m" + "x" * 10_000)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 250


@given(st.integers(min_value=0, max_value=2**62))
def test_a_plain_number_of_bytes_is_itself(count):
    assert parse_bytes(str(count)) == parse_bytes(f"{count}B") == count


@given(st.integers(min_value=0, max_value=10**18))
def test_bytes_read_back_what_was_printed_to_three_digits(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.005)


@given(st.floats(min_value=1e-5, max_value=1e8))
def test_durations_read_back_what_was_printed(seconds):
    coarsest = 0.021 if seconds > 86_000 else 0.009  # half an hour of a day, half a minute of an hour
    assert parse_duration(format_seconds(seconds)) == pytest.approx(seconds, rel=coarsest, abs=5e-6)


@given(st.floats(min_value=0, max_value=8e6))
def test_printed_durations_fit_their_column(seconds):
    assert len(format_seconds(seconds)) <= 7


@given(st.integers(min_value=0, max_value=10**15))
def test_printed_counts_and_bytes_fit_their_columns(count):
    assert len(format_count(count)) <= 5
    assert len(format_bytes(count)) <= 7


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0 s"), (0.0042, "4.20 ms"), (0.9999, "1.00 s"), (38.24, "38.2 s"), (59.99, "1m00s"), (125, "2m05s")],
        *[(3599.8, "1h00m"), (4320, "1h12m"), (86_390, "1d00h"), (273_600, "3d04h"), (None, "-"), (math.nan, "-")],
    ],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_999, "1.00 MB"), (1_250_000, "1.25 MB")],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (1, "100.0 %"), (0.123, "12.3 %"), (0.9999, ">99.9 %"), (1e-6, "<0.1 %"), (None, "-")],
)
def test_shares_are_not_rounded_to_nothing_or_all(share, text):
    assert format_share(share) == text


def test_counts_factors_and_losses():
    assert [format_count(one) for one in (99_999, 123_456, 1_234_567)] == ["99999", "123k", "1.23M"]
    assert [format_factor(one) for one in (8.0, 2.5, 12.34, 150.4)] == ["8x", "2.5x", "12.3x", "150x"]
    assert [format_loss(one) for one in (0.43361, None, math.inf)] == ["0.4336", "-", "-"]


def test_one_thing_is_not_many():
    assert [format_number_of(count, "cell") for count in (0, 1, 2000)] == ["0 cells", "1 cell", "2,000 cells"]
