"""`steps`, the range of loops whose bounds are known on the device alone, compiled and under Triton's interpreter.

Compiled it is `tl.range`, whose loads are pipelined as those of no `while` are. The interpreter hands bounds to
Python's `range` as arrays of one element, which numpy refuses from 2.4 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl


def _number(bound: Any) -> int:
    return int(bound.handle.data.item()) if isinstance(bound, tl.tensor) else int(getattr(bound, "value", bound))


def _interpreted(begin: Any, end: Any, step: Any, num_stages: int = 1) -> Iterator[int]:  # noqa: ARG001
    """`tl.range` for the interpreter."""
    yield from range(_number(begin), _number(end), _number(step))


@triton.jit  # type: ignore[untyped-decorator]
def _function() -> None:
    """Something decorated, by which it shows whether decorated functions are compiled."""


steps = tl.range if isinstance(_function, triton.JITFunction) else _interpreted
