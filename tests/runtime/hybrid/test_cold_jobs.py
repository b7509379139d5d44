"""The CPU's part of a layer as C functions: what a stream's host functions start and await."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest
from helpers_cold_jobs import N_EMBD, N_FF, Buffers, block_of
from helpers_kernels import same_bits, tokens

from powerinfer_py.kernels.cold_jobs import can_run, host_functions, make_job, make_worker
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.reference import ReferenceKernels


def call(function: int, job: object) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(job.address)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_a_job_is_the_part_with_its_mask(n_tokens: int, threads: int) -> None:
    kernels, worker, buffers = NativeKernels(threads), make_worker(), Buffers(n_tokens)
    block = block_of(kernels)
    submit, wait, run = host_functions()
    job = make_job(worker, kernels, block, buffers.h, buffers.bits, buffers.y)
    everything = make_job(worker, kernels, block, buffers.h, None, buffers.y)
    for seed in range(20):
        mask = buffers.fill(seed)
        expected = kernels.feed_forward_part(block, buffers.h, mask)
        buffers.y.fill_(float("nan"))
        if seed % 2:
            call(run, job)
        else:
            call(submit, job)
            call(wait, job)
        assert same_bits(buffers.y, expected.y)
        counts = (expected.gate_products, expected.up_products, expected.down_products, expected.n_fired)
        assert job.take_counts() == counts
        assert job.take_counts() == (0, 0, 0, 0)
        call(run, everything)
        assert same_bits(buffers.y, kernels.feed_forward_part(block, buffers.h, None).y)
    assert not worker.take_error()


def test_submitting_returns_at_once_and_waiting_sleeps() -> None:
    """Another caller has the threads meanwhile; the one that waits uses next to no processor time."""
    kernels, worker, buffers = NativeKernels(1), make_worker(), Buffers(3)
    submit, wait, _ = host_functions()
    job = make_job(worker, kernels, block_of(kernels), buffers.h, buffers.bits, buffers.y)
    buffers.fill(0)
    big, h = block_of(kernels, 20_000), tokens(1000, N_EMBD)
    holder = threading.Thread(target=lambda: kernels.feed_forward_part(big, h, None))
    holder.start()
    time.sleep(0.05)
    started, busy = time.perf_counter(), time.thread_time()
    call(submit, job)
    submitted = time.perf_counter() - started
    call(wait, job)
    waited, busy = time.perf_counter() - started, time.thread_time() - busy
    holder.join()
    assert waited > 0.02
    assert submitted < 0.5 * waited
    assert busy < 0.5 * waited
    assert buffers.y.isfinite().all()


def test_a_job_before_the_last_one_was_awaited_is_an_error() -> None:
    """Nothing blocks and nothing is overwritten; the flag tells it once."""
    kernels, worker = NativeKernels(1), make_worker()
    first, second = Buffers(64), Buffers(64)
    block = block_of(kernels, N_FF)
    submit, wait, _ = host_functions()
    jobs = [make_job(worker, kernels, block, b.h, b.bits, b.y) for b in (first, second)]
    first.fill(0)
    second.fill(1)
    for _ in range(50):
        call(submit, jobs[0])
        call(submit, jobs[1])
        call(wait, jobs[0])
        if worker.take_error():
            break
    else:
        pytest.fail("the second job was never early enough")
    assert not worker.take_error()
    assert first.y.isfinite().all()


def test_waiting_without_a_job_returns() -> None:
    worker = make_worker()
    worker.wait()
    assert not worker.take_error()


def test_what_does_not_fit_is_refused() -> None:
    kernels, worker, buffers = NativeKernels(1), make_worker(), Buffers(2)
    block = block_of(kernels)
    with pytest.raises(ValueError, match="bits"):
        make_job(worker, kernels, block, buffers.h, buffers.bits[:, 1:], buffers.y)
    with pytest.raises(ValueError, match="y must"):
        make_job(worker, kernels, block, buffers.h, buffers.bits, buffers.y[:1])
    with pytest.raises(ValueError, match="two places"):
        make_job(worker, kernels, block, buffers.h, buffers.bits, buffers.h)
    reference = ReferenceKernels()
    assert can_run(kernels) and not can_run(reference)
    with pytest.raises(TypeError, match="native"):
        make_job(worker, reference, block, buffers.h, buffers.bits, buffers.y)


def test_a_job_keeps_what_it_needs_alive() -> None:
    buffers = Buffers(2)
    kernels = NativeKernels(2)
    expected_kernels = NativeKernels(2)
    job = make_job(make_worker(), kernels, block_of(kernels), buffers.h, buffers.bits, buffers.y)
    del kernels
    mask = buffers.fill(3)
    call(host_functions()[2], job)
    expected = expected_kernels.feed_forward_part(block_of(expected_kernels), buffers.h, mask)
    assert same_bits(buffers.y, expected.y)


def test_a_job_that_is_dropped_while_it_runs_goes_when_it_is_done() -> None:
    """As where a step fails between submit and wait."""
    kernels, worker, buffers = NativeKernels(1), make_worker(), Buffers(64)
    buffers.fill(0)
    job = make_job(worker, kernels, block_of(kernels, 20_000), buffers.h, None, buffers.y)
    call(host_functions()[0], job)
    assert buffers.y.isnan().any()
    del job
    assert buffers.y.isfinite().all()
    assert not worker.take_error()
