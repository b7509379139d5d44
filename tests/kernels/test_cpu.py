"""The native kernels' edges: what they refuse, what they keep alive, that they write where told and nowhere else."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows, smallest_cols
from helpers_kernels import TYPE_IDS, Guarded, mask_of, matrix_of, same_bits, tokens

from powerinfer_py import _native
from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType, row_bytes
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.matrix import RopeTable

Call = Callable[[NativeKernels], object]


def small(kernels: NativeKernels) -> object:
    return matrix_of(kernels, random_rows(GGMLType.F32, 4, 8))


ONES = torch.ones(2, 8)
WRONG: dict[str, tuple[type[Exception], Call]] = {
    "x of another width": (ValueError, lambda k: k.linear(small(k), torch.ones(2, 7))),
    "x of one dimension": (ValueError, lambda k: k.linear(small(k), torch.ones(8))),
    "x of float64": (TypeError, lambda k: k.linear(small(k), ONES.double())),
    "x with gaps": (ValueError, lambda k: k.linear(small(k), torch.ones(8, 2).T)),
    "x on another device": (ValueError, lambda k: k.linear(small(k), ONES.to("meta"))),
    "bias of another length": (ValueError, lambda k: k.linear(small(k), ONES, torch.ones(5))),
    "bias of float16": (TypeError, lambda k: k.linear(small(k), ONES, torch.ones(4).half())),
    "mask of another shape": (ValueError, lambda k: k.linear_masked(small(k), ONES, torch.ones(2, 5).bool())),
    "mask of uint8": (TypeError, lambda k: k.linear_masked(small(k), ONES, torch.ones(2, 4).byte())),
    "coefficients of another width": (ValueError, lambda k: k.accumulate_rows(small(k), torch.ones(2, 5))),
    "ids of int32": (TypeError, lambda k: k.rows(small(k), torch.zeros(2, dtype=torch.int32))),
    "ids of two dimensions": (ValueError, lambda k: k.rows(small(k), torch.zeros(2, 2, dtype=torch.int64))),
    "a norm weight of another length": (ValueError, lambda k: k.rms_norm(ONES, torch.ones(7), 1e-5)),
    "a norm bias of another length": (ValueError, lambda k: k.layer_norm(ONES, torch.ones(8), torch.ones(7), 1e-5)),
    "positions of another length": (
        ValueError,
        lambda k: k.rope(torch.ones(2, 1, 8), torch.zeros(3, dtype=torch.int64), table(8)),
    ),
    "more rotated dimensions than there are": (
        ValueError,
        lambda k: k.rope(torch.ones(2, 1, 8), torch.zeros(2, dtype=torch.int64), table(10)),
    ),
}


def table(n_rot: int) -> RopeTable:
    return RopeTable(torch.ones(4, n_rot // 2), torch.ones(4, n_rot // 2), halves=True)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_refused(case: str) -> None:
    error, call = WRONG[case]
    with pytest.raises(error):
        call(NativeKernels(1))


@pytest.mark.parametrize("change", ["k", "v", "k_cache", "v_cache", "slots", "positions", "heads"])
def test_attention_refuses_shapes_that_do_not_agree(change: str) -> None:
    arguments = {
        "q": torch.ones(2, 4, 8),
        "k": torch.ones(2, 2, 8),
        "v": torch.ones(2, 2, 6),
        "k_cache": torch.zeros(1, 2, 5, 8).half(),
        "v_cache": torch.zeros(1, 2, 5, 6).half(),
        "slots": torch.zeros(2, dtype=torch.int64),
        "positions": torch.arange(2),
    }
    NativeKernels(1).attention(**arguments, scale=1.0)
    if change == "heads":
        arguments["q"] = torch.ones(2, 3, 8)
    else:
        arguments[change] = arguments[change][..., :-1].contiguous()
    with pytest.raises((ValueError, IndexError)):
        NativeKernels(1).attention(**arguments, scale=1.0)


@pytest.mark.parametrize(
    ("type_id", "rows", "cols", "n_bytes"),
    [(0, 2, 2, 15), (0, 2, 2, 17), (2, 1, 33, 36), (14, 1, 32, 210), (4, 1, 32, 18), (24, 1, 1, 1), (0, -1, 4, 16)],
)
def test_a_matrix_that_cannot_be_is_refused(type_id: int, rows: int, cols: int, n_bytes: int) -> None:
    with pytest.raises(ValueError):
        _native.Matrix(np.zeros(n_bytes, np.uint8), type_id, rows, cols)


def test_a_matrix_takes_contiguous_bytes_only() -> None:
    for data in (
        np.zeros(16, np.int8),
        np.zeros(4, np.float32),
        np.zeros(32, np.uint8)[::2],
        np.zeros((4, 4), np.uint8),
    ):
        with pytest.raises(TypeError):
            _native.Matrix(data, 0, 2, 2)


def test_addresses_that_cannot_be_are_refused() -> None:
    kernels = _native.CpuKernels(None, 1)
    matrix = _native.Matrix(np.zeros(16, np.uint8), 0, 2, 2)
    out = Guarded(1, 2)
    with pytest.raises(ValueError, match="x is null"):
        kernels.linear(matrix, 0, 1, 0, 0, out.address)
    with pytest.raises(ValueError, match="y is null"):
        kernels.linear(matrix, out.address, 1, 0, 0, 0)
    with pytest.raises(ValueError, match="tokens"):
        kernels.linear(matrix, out.address, -1, 0, 0, out.address)
    with pytest.raises(TypeError):
        kernels.linear(matrix, -1, 1, 0, 0, out.address)
    with pytest.raises(TypeError):
        kernels.linear(None, out.address, 1, 0, 0, out.address)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_number_of_threads_out_of_range_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        NativeKernels(threads)


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'neon'.*scalar"):
        NativeKernels(1, "neon")


def test_what_was_asked_for_is_reported() -> None:
    for isa in _native.available_isas():
        kernels = NativeKernels(3, isa)
        assert (kernels.isa, kernels.threads) == (isa, 3)
    assert NativeKernels(1).isa == _native.available_isas()[-1]


@pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=TYPE_IDS)
@pytest.mark.parametrize("isa", _native.available_isas())
def test_outputs_are_written_whole_and_nothing_else_is(isa: str, ggml_type: GGMLType) -> None:
    kernels = _native.CpuKernels(isa, 2)
    rows, cols = 21, 1 * smallest_cols(ggml_type) if smallest_cols(ggml_type) > 1 else 19
    stored = random_rows(ggml_type, rows, cols)
    matrix = _native.Matrix(stored.data, int(ggml_type), rows, cols)
    for n_tokens in (1, 3, 6):
        x, c, mask = tokens(n_tokens, cols), tokens(n_tokens, rows), mask_of(n_tokens, rows, 0.5)
        ids = torch.arange(n_tokens)
        product, masked, total, copy = (Guarded(n_tokens, n) for n in (rows, rows, cols, cols))
        kernels.linear(matrix, x.data_ptr(), n_tokens, 0, 0, product.address)
        kernels.linear(matrix, x.data_ptr(), n_tokens, mask.data_ptr(), 0, masked.address)
        kernels.accumulate_rows(matrix, c.data_ptr(), n_tokens, 0, False, total.address)
        kernels.rows(matrix, ids.data_ptr(), n_tokens, copy.address)
        for out in (product, masked, total, copy):
            assert out.untouched_outside()
            assert torch.isfinite(out.values).all()


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("n", [1, 15, 16, 33])
def test_norm_rope_and_attention_write_whole_and_nothing_else(isa: str, n: int) -> None:
    kernels = _native.CpuKernels(isa, 2)
    x, w = tokens(3, n), tokens(1, n)
    rms, layer, rotated, mixed = Guarded(3, n), Guarded(3, n), Guarded(3, n), Guarded(3, n)
    kernels.rms_norm(x.data_ptr(), w.data_ptr(), 3, n, 1e-5, rms.address)
    kernels.layer_norm(x.data_ptr(), w.data_ptr(), 0, 3, n, 1e-5, layer.address)
    positions, slots, angles = torch.arange(3), torch.zeros(3, dtype=torch.int64), tokens(3, n)
    n_rot = n // 2 * 2
    at = positions.data_ptr()
    kernels.rope(x.data_ptr(), at, angles.data_ptr(), angles.data_ptr(), 3, 1, n, n_rot, 3, True, rotated.address)
    cache = torch.zeros(2, 3, n).half()
    kernels.attention(
        *(x.data_ptr(),) * 3, cache[0].data_ptr(), cache[1].data_ptr(), (int(GGMLType.F16),) * 2, slots.data_ptr(), at,
        3, 1, 1, 1, 3, n, n, 1.0, mixed.address,
    )  # fmt: skip
    for out in (rms, layer, rotated, mixed):
        assert out.untouched_outside()
        assert torch.isfinite(out.values).all()


def test_mapped_weights_are_used_in_place_and_kept_alive(tmp_path: Path) -> None:
    stored = random_rows(GGMLType.Q4_0, 6, 64)
    path = tmp_path / "weights"
    path.write_bytes(b"ab" + stored.data.tobytes())
    mapped = np.memmap(path, np.uint8, mode="r", offset=2)
    gone = weakref.ref(mapped)
    kernels = NativeKernels(2)
    handle = _native.Matrix(mapped, 2, 6, 64)
    del mapped
    gc.collect()
    assert gone() is not None
    x = tokens(1, 64)
    out = Guarded(1, 6)
    _native.CpuKernels(None, 1).linear(handle, x.data_ptr(), 1, 0, 0, out.address)
    assert same_bits(out.values, kernels.linear(matrix_of(kernels, stored), x))
    del handle
    gc.collect()
    assert gone() is None


def test_two_threads_may_call_at_once() -> None:
    kernels = NativeKernels(3)
    matrix = matrix_of(kernels, random_rows(GGMLType.Q8_0, 400, 256))
    inputs = [tokens(3, 256, seed) for seed in range(4)]
    coefficients = [tokens(2, 400, seed) for seed in range(4)]
    want = [
        (kernels.linear(matrix, x), kernels.accumulate_rows(matrix, c)[0])
        for x, c in zip(inputs, coefficients, strict=True)
    ]
    failures: list[int] = []

    def work(i: int) -> None:
        for _ in range(100):
            y, z = kernels.linear(matrix, inputs[i]), kernels.accumulate_rows(matrix, coefficients[i])[0]
            if not (same_bits(y, want[i][0]) and same_bits(z, want[i][1])):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_pools_come_and_go_without_a_trace() -> None:
    before = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - counts threads
    x = tokens(1, 256)
    stored = random_rows(GGMLType.F16, 300, 256)
    for _ in range(1000):
        kernels = NativeKernels(5)
        kernels.linear(matrix_of(kernels, stored), x)
        del kernels
    gc.collect()
    assert len(os.listdir("/proc/self/task")) <= before  # noqa: PTH208


def test_idle_threads_sleep() -> None:
    kernels = NativeKernels(2)
    matrix, x = matrix_of(kernels, random_rows(GGMLType.F16, 300, 256)), tokens(1, 256)
    kernels.linear(matrix, x)
    asleep = threading.Event()
    asleep.wait(0.05)
    begin = os.times()
    asleep.wait(0.3)
    end = os.times()
    assert end.user + end.system - begin.user - begin.system <= 0.1


def test_row_bytes_of_the_extension_and_of_python_agree() -> None:
    for ggml_type in WEIGHT_TYPES:
        cols = 2 * smallest_cols(ggml_type)
        matrix = _native.Matrix(np.zeros(3 * row_bytes(ggml_type, cols), np.uint8), int(ggml_type), 3, cols)
        assert (matrix.rows, matrix.cols) == (3, cols)
