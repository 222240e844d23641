"""Options with units and parts."""

from __future__ import annotations

import click
import pytest

from casckpt.cli import quantities

CONTEXT = click.Context(click.Command("gc"))
PARAMETER = click.Option(["--x"])


@pytest.mark.parametrize(
    ("text", "byte_count"),
    [
        ("0", 0),
        ("1234", 1234),
        ("50G", 50 * 1024**3),
        ("50GiB", 50 * 1024**3),
        ("1.5t", int(1.5 * 1024**4)),
        ("800 MB", 800 * 1024**2),
        ("2K", 2048),
    ],
)
def test_sizes(text, byte_count):
    assert quantities.size(CONTEXT, PARAMETER, text) == byte_count


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * 86400), ("12h", 43200), ("1.5W", 907_200), ("90m", 5400)]
)
def test_ages(text, seconds):
    assert quantities.age(CONTEXT, PARAMETER, text) == seconds


@pytest.mark.parametrize("text", ["", "d", "30", "0d", "-1d", "30y"])
def test_what_is_no_age(text):
    with pytest.raises(click.BadParameter):
        quantities.age(CONTEXT, PARAMETER, text)


@pytest.mark.parametrize("text", ["", "G", "-1", "5X", "1e9", "5 G B"])
def test_what_is_no_size(text):
    with pytest.raises(click.BadParameter):
        quantities.size(CONTEXT, PARAMETER, text)


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_what_is_no_count(text):
    with pytest.raises(click.BadParameter):
        quantities.count(CONTEXT, PARAMETER, text)


def test_options_that_were_not_given_stay_none():
    assert quantities.count(CONTEXT, PARAMETER, None) is None
    assert quantities.size(CONTEXT, PARAMETER, None) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("val_loss", ("val_loss", None, 1)),
        ("val_loss:min", ("val_loss", "min", 1)),
        ("corr:max:3", ("corr", "max", 3)),
        ("corr:3", ("corr", None, 3)),
        ("top:1:max:2", ("top:1", "max", 2)),
    ],
)
def test_best(text, parts):
    assert quantities.best(CONTEXT, PARAMETER, [text]) == [parts]


@pytest.mark.parametrize("text", ["", ":min", "corr:max:0"])
def test_what_is_no_best(text):
    with pytest.raises(click.BadParameter):
        quantities.best(CONTEXT, PARAMETER, [text])
