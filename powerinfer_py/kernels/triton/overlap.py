# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""Kernels whose programs are in place before the kernel ahead of them in the stream has ended.

Some 13 kernels of 2 to 20 us make a layer of a token, and a launch behind the end of another costs 1 to 2 us of them.
From 9.0 on (programmatic dependent launch) a kernel may be launched as soon as all programs of the one ahead have
begun; it then waits for that one's end before it touches memory.

Order: a kernel touches memory only after `wait_for_kernel_ahead`, which returns when the kernel ahead has ended and
what it wrote can be seen. That one did the same, so all before it have ended too: neither a value that is read nor a
place that is written over can be too early. Whatever is launched the plain way waits for the end in any case.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

# The first compute capability that has it.
_CAPABILITY = (9, 0)


@triton.jit
def wait_for_kernel_ahead(EARLY: tl.constexpr):
    """The first thing that a kernel does which may be launched early; then the next one may be."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@cache
def starts_early(device: torch.device) -> bool:
    """Whether kernels are launched so on `device`: where it and Triton can."""
    if device.type != "cuda" or not hasattr(tl.extra.cuda, "gdc_wait"):
        return False
    return torch.cuda.get_device_capability(device) >= _CAPABILITY
