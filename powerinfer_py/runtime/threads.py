"""How many threads there are to use."""

from __future__ import annotations

import os

import psutil


def default_threads() -> int:
    """Physical cores this process may run on: two threads of one core share its multipliers and its cache.

    Where the system hides its topology (some containers), every processor the process may use counts as a core.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))
