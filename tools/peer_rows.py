"""Rows of a comparison's result file: which is the shortest, and whether a repetition of it agrees.

`compare_peers.py --check FILE` stands on it. A repetition agrees where the range of its samples meets the range that
the file has for the row, in decode and, where it was timed, in the prompt: that is all that a spread of a few samples
can say. It runs on the machine of the file or says that it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from powerinfer_py.errors import FileFormatError

Sample = dict[str, Any]
RATES = {"decode": "decode_tokens_per_s", "prompt": "prompt_tokens_per_s"}


def shortest_row(samples: Mapping[str, Sequence[Sample]], runnable: Sequence[str]) -> str:
    """The engine whose samples took the least time, of those that can be run here. Raises FileFormatError for none."""
    times = {
        name: median(sample["elapsed_s"] for sample in rows)
        for name, rows in samples.items()
        if name in runnable and rows and rows[0].get(RATES["decode"])
    }
    if not times:
        raise FileFormatError("no row of the file can be repeated with the models and engines given")
    return min(times, key=times.__getitem__)


def agreement(recorded: Sequence[Sample], repeated: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """For decode and prompt: both ranges in tokens per second, and whether they meet."""
    result = {}
    for what, key in RATES.items():
        before = [sample[key] for sample in recorded if sample.get(key)]
        now = [sample[key] for sample in repeated if sample.get(key)]
        if before and now:
            result[what] = {
                "recorded": [min(before), max(before)],
                "repeated": [min(now), max(now)],
                "agrees": min(now) <= max(before) and min(before) <= max(now),
            }
    return result
