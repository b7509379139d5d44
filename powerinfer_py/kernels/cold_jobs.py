"""The CPU's part of an FFN as jobs that run without Python: what host functions of a device's stream call, or what a
thread of its own computes as the device raises flags.

A job is a block prepared by the native kernels over buffers with fixed addresses. The buffers are the caller's to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from powerinfer_py.kernels.blocks import FeedForwardBlock
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.mask_bits import bytes_of_bits

if TYPE_CHECKING:
    from torch import Tensor

    from powerinfer_py import _native


def make_worker() -> _native.ColdWorker:
    """A thread for jobs."""
    from powerinfer_py import _native

    return _native.ColdWorker()


def make_follower() -> _native.ColdFollower:
    """A thread that follows whole steps."""
    from powerinfer_py import _native

    return _native.ColdFollower()


def make_sequence(
    follower: _native.ColdFollower, jobs: Sequence[_native.ColdJob], flags: Sequence[tuple[Tensor, Tensor]]
) -> _native.ColdSequence:
    """A step's jobs in order, for `follower`, each with the flags (int32) by which it is begun and is done."""
    from powerinfer_py import _native

    addresses = [(begun.data_ptr(), done.data_ptr()) for begun, done in flags]
    return _native.ColdSequence(follower, list(jobs), addresses, list(flags))


def raise_flag(flag: Tensor) -> None:
    """Writes 1 into a flag, int32 (1), as a device's stream does."""
    from powerinfer_py import _native

    _native.raise_flag(flag.data_ptr())


def await_flag(flag: Tensor, seconds: float) -> bool:
    """Waits until a flag is 1, without the GIL and for at most so long; whether it is."""
    from powerinfer_py import _native

    return _native.await_flag(flag.data_ptr(), seconds)


def host_functions() -> tuple[int, int, int]:
    """Addresses of submit, wait, and both in one; each takes a job's address."""
    from powerinfer_py import _native

    return _native.cold_host_functions()


def can_run(kernels: Kernels) -> bool:
    """Whether jobs can be made for these kernels: native ones alone."""
    return kernels.name == "native"


def make_job(
    worker: _native.ColdWorker,
    kernels: Kernels,
    block: FeedForwardBlock,
    h: Tensor,
    bits: Tensor | None,
    y: Tensor,
) -> _native.ColdJob:
    """A job of a block prepared by `kernels`: h, y (T, n_embd), bits (T, bytes; uint8) or None, all on the host.

    Raises TypeError for kernels that are not native, ValueError for tensors that do not fit.
    """
    from powerinfer_py import _native
    from powerinfer_py.kernels.cpu import NativeKernels

    if not isinstance(kernels, NativeKernels):
        raise TypeError(f"jobs run on native kernels, not on {kernels.name} ones")
    n_tokens, rows, cols = h.shape[0], block.weights.up.rows, block.weights.up.cols
    shapes = [("h", h, (n_tokens, cols), 4), ("y", y, (n_tokens, cols), 4)]
    if bits is not None:
        shapes.append(("bits", bits, (n_tokens, bytes_of_bits(rows)), 1))
    for name, tensor, shape, size in shapes:
        if tuple(tensor.shape) != shape or tensor.element_size() != size or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous with shape {shape}, not {tuple(tensor.shape)}")
    return _native.ColdJob(
        worker,
        kernels.native,
        block.handle,
        h.data_ptr(),
        0 if bits is None else bits.data_ptr(),
        y.data_ptr(),
        n_tokens,
    )
