"""Reads the values of flags out of text, for all commands. Knows no flag by name.

Each reader returns the value or raises argparse.ArgumentTypeError, whose message completes "argument -x: ...".
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

# More than any machine has; beyond it bytes do not fit the files that name them.
_MOST_GIB = 1 << 20
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)


def integer(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers in [low, high]."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
            raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}")
        value = int(text)
        _require_range(value, low, high, text)
        return value

    return read


def number(
    low: float | None = None, high: float | None = None, *, above: float | None = None
) -> Callable[[str], float]:
    """A reader of finite numbers in [low, high], larger than `above`."""

    def read(text: str) -> float:
        value = _finite(text)
        _require_range(value, low, high, text)
        if above is not None and value <= above:
            raise argparse.ArgumentTypeError(f"must be larger than {_bound(above)}, not {text!r}")
        return value

    return read


def vram_budget(text: str) -> float:
    """GiB: -1, or a number >= 0 that some memory could have."""
    value = _finite(text)
    if value > _MOST_GIB:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_GIB} GiB, not {text!r}")
    if value < 0 and value != -1:
        raise argparse.ArgumentTypeError(f"must be -1 (all that is free) or a number of GiB >= 0, not {text!r}")
    return value


def logit_bias(text: str) -> tuple[int, float]:
    """`TOKEN_ID+BIAS` or `TOKEN_ID-BIAS`: (token id, bias). `-inf` bans the token."""
    match = re.fullmatch(r"\s*([0-9]{1,10})\s*([+-])\s*([0-9.]+(?:e[+-]?[0-9]+)?|inf)\s*", text, re.IGNORECASE)
    try:
        value = float(match[3]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or math.isnan(value):
        raise argparse.ArgumentTypeError(f"expected TOKEN_ID(+/-)BIAS such as 15043+1 or 2-inf, not {text!r}")
    if match[2] == "+" and math.isinf(value):
        raise argparse.ArgumentTypeError(f"a bias can be -inf but not +inf: {text!r}")
    return int(match[1]), value if match[2] == "+" else -value


def unicode_text(text: str) -> str:
    """Text that came from the command line; refused where its bytes are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not valid UTF-8 text") from None
    return text


def nonempty_text(text: str) -> str:
    """As `unicode_text`, refused where empty."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return unicode_text(text)


def unescape(text: str) -> str:
    r"""Replaces \n \r \t \' \" \\ and \xHH (a byte of UTF-8); any other backslash stays.

    Raises ValueError where \xHH bytes do not add up to UTF-8.
    """

    def replace(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code[:1] == b"x" and len(code) == 3:
            return bytes([int(code[1:], 16)])
        return _ESCAPES.get(code, match[0])

    return _ESCAPE.sub(replace, text.encode()).decode()


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, not {text!r}")
    return value


def _bound(value: float) -> str:
    """A limit as messages show it: a whole number with all its digits."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _require_range(value: float, low: float | None, high: float | None, text: str) -> None:
    if low is not None and high is not None and not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be from {_bound(low)} to {_bound(high)}, not {text!r}")
    if low is not None and value < low:
        raise argparse.ArgumentTypeError(f"must be {_bound(low)} or more, not {text!r}")
    if high is not None and value > high:
        raise argparse.ArgumentTypeError(f"must be {_bound(high)} or less, not {text!r}")
