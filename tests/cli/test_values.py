"""Readers of flag values: what they take, what they refuse and how they say so."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerinfer_py.cli.values import integer, logit_bias, number, unescape, vram_budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15043+1", (15043, 1.0)),
        ("15043-1", (15043, -1.0)),
        ("2-inf", (2, -math.inf)),
        ("2-INF", (2, -math.inf)),
        ("7+0.5", (7, 0.5)),
        ("7 - 1e2", (7, -100.0)),
        ("7+.5", (7, 0.5)),
    ],
)
def test_logit_bias(text: str, expected: tuple[int, float]) -> None:
    assert logit_bias(text) == expected


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (logit_bias, "5", "TOKEN_ID"),
        (logit_bias, "5*2", "TOKEN_ID"),
        (logit_bias, "-5+2", "TOKEN_ID"),
        (logit_bias, "5+nan", "TOKEN_ID"),
        (logit_bias, "5+1.2.3", "TOKEN_ID"),
        (logit_bias, "5+inf", r"not \+inf"),
        (integer(), "1.5", "whole number"),
        (integer(), "1_000", "whole number"),
        (integer(), "", "whole number"),
        (integer(), "٣", "whole number"),
        (integer(), "9" * 5000, "whole number"),
        (integer(1, 4), "5", "from 1 to 4"),
        (integer(1), "0", "1 or more"),
        (number(high=1), "2", "1 or less"),
        (number(), "nan", "expected a number"),
        (number(), "inf", "expected a number"),
        (number(), "8GB", "expected a number"),
        (number(above=0), "0", "larger than 0"),
        (vram_budget, "-2", "must be -1"),
        (vram_budget, "8GB", "expected a number"),
        (vram_budget, "1e30", "must be at most"),
    ],
)
def test_refused_values(read: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        read(text)


def test_accepted_values() -> None:
    assert integer(-1)("-1") == -1
    assert number(0, 1)("1e-3") == 0.001
    assert vram_budget("-1") == -1
    assert vram_budget("7.5") == 7.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a\nb\rc\td", "a\nb\rc\td"),
        (r"\'\"\\", "'\"\\"),
        (r"\\n", r"\n"),
        (r"\x41\xc3\xa9", "Aé"),
        (r"\q\x4\xzz", r"\q\x4\xzz"),
        ("ends in \\", "ends in \\"),
        ("é\\é", "é\\é"),
    ],
)
def test_unescape(text: str, expected: str) -> None:
    assert unescape(text) == expected


@given(st.text(st.characters(codec="utf-8", exclude_characters="\\")))
def test_text_without_backslashes_is_unchanged(text: str) -> None:
    assert unescape(text) == text


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        unescape(r"\xff")
