"""How large predictors may become, as options of several commands say it: a rank, or a share of the model's bytes."""

from __future__ import annotations

import argparse


def rank(text: str) -> int | str:
    """Hidden units of a layer, or `auto`."""
    if text == "auto":
        return text
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"expected auto or a whole number, not {text!r}")
    return int(text)


def share(text: str) -> float:
    """`0.1` or `10%`."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.1 or 10%, not {text!r}") from None
