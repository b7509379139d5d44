"""Products with whole matrices, with chosen rows, sums of rows and lookups against float64, for every storage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows, smallest_cols
from helpers_kernels import ROUNDOFF, mask_of, matrix_of, same_bits, sum_bound, tokens
from helpers_triton import (
    DEVICE_IDS,
    DEVICE_TYPES,
    Poison,
    nmse,
    nmse_of_sums,
    on_device,
    product_bound,
    weights_on_device,
)

from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import Linear
from powerinfer_py.kernels.reference import ReferenceKernels
from powerinfer_py.kernels.triton import down_rows, launch
from powerinfer_py.kernels.triton.kernels import TritonKernels
from powerinfer_py.kernels.triton.matrix_product import product

every_type = pytest.mark.parametrize("ggml_type", DEVICE_TYPES, ids=DEVICE_IDS)


def shapes(ggml_type: GGMLType) -> list[tuple[int, int]]:
    block = smallest_cols(ggml_type)
    if block == 1:
        return [(1, 1), (5, 33), (70, 519)]
    return [(1, block), (13, 3 * block), (70, 5 * block)]


@every_type
@pytest.mark.parametrize("n_tokens", [1, 3, 20])
def test_linear_is_close_to_float64(triton_kernels: TritonKernels, ggml_type: GGMLType, n_tokens: int) -> None:
    for rows, cols in shapes(ggml_type):
        stored = random_rows(ggml_type, rows, cols)
        x, bias = tokens(n_tokens, cols), torch.linspace(-3, 3, rows)
        y = triton_kernels.linear(
            matrix_of(triton_kernels, stored), on_device(triton_kernels, x), on_device(triton_kernels, bias)
        )
        values = weights_on_device(ggml_type, stored.values)
        want = x.numpy().astype(np.float64) @ values.T.astype(np.float64) + bias.numpy()
        bound = product_bound(ggml_type, n_tokens, values, x.numpy()) + ROUNDOFF * np.abs(want)
        error = np.abs(y.cpu().numpy() - want)
        assert (error <= bound).all(), (rows, cols, (error / bound).max())


@every_type
def test_tiles_of_a_device(triton_kernels: TritonKernels, ggml_type: GGMLType, device_config: launch.RowConfig) -> None:
    """The interpreter's own configuration takes 32 rows at once, which leaves no second program."""
    rows, cols = 2 * device_config.rows + 1, 5 * max(32, smallest_cols(ggml_type))
    stored, x = random_rows(ggml_type, rows, cols), tokens(2, cols)
    y = triton_kernels.linear(matrix_of(triton_kernels, stored), on_device(triton_kernels, x)).cpu()
    values = weights_on_device(ggml_type, stored.values)
    want = x.numpy().astype(np.float64) @ values.T.astype(np.float64)
    assert (np.abs(y.numpy() - want) <= product_bound(ggml_type, 2, values, x.numpy())).all()


@pytest.mark.parametrize(
    ("ggml_type", "largest"),
    [(GGMLType.F16, 1e-12), (GGMLType.BF16, 1e-12), (GGMLType.Q8_0, 4e-7), (GGMLType.Q4_0, 4e-7)],
    ids=str,
)
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_a_prompt_has_the_precision_of_its_storage(
    triton_kernels: TritonKernels, reference: ReferenceKernels, ggml_type: GGMLType, largest: float, size: float
) -> None:
    """NMSE: two halves of activations for F16 and BF16, whatever their size; one for quantised weights."""
    stored, x = random_rows(ggml_type, 32, 1024), tokens(16, 1024) * size
    y = triton_kernels.linear(matrix_of(triton_kernels, stored), on_device(triton_kernels, x))
    want = reference.linear(matrix_of(reference, stored), x)
    assert nmse(y / size, want / size) < nmse_of_sums(triton_kernels, largest)


@pytest.mark.parametrize("output", ["sum", "relu", "mask"])
def test_parts_of_products_end_as_whole_ones(
    triton_kernels: TritonKernels, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    stored, x = random_rows(GGMLType.F16, 70, 519), on_device(triton_kernels, tokens(20, 519))
    matrix, results = matrix_of(triton_kernels, stored), []
    bias = on_device(triton_kernels, torch.linspace(-3, 3, 70))
    residual = None if output == "mask" else on_device(triton_kernels, tokens(20, 70))
    for parts in (1, 4):
        monkeypatch.setattr(launch, "tile_config", lambda *_, parts=parts: launch.TileConfig(16, 32, 32, 4, 2, parts))
        y = Poison(str(triton_kernels.device))((20, 70), torch.uint8 if output == "mask" else torch.float32)
        product(
            matrix.handle,
            x,
            y,
            Poison(str(triton_kernels.device)),
            bias=bias,
            residual=residual,
            output=output,  # type: ignore[arg-type]
        )
        results.append(y.cpu().float())
    whole, cut = results
    assert len(whole.unique()) > 1
    assert nmse(cut, whole) < nmse_of_sums(triton_kernels, 1e-12)


def test_tiles_follow_from_shapes_alone() -> None:
    """All tokens of a bucket take one configuration, and all numbers of neurons; parts stay within what is counted."""
    device = torch.device("meta")
    for kernel, storage in itertools.product(("product", "hidden", "down"), launch.STORAGE_CLASSES):
        for last, first in itertools.pairwise((*reversed(launch.TOKEN_BUCKETS), 4)):
            config = launch.tile_config(kernel, storage, last, 4096, 4096, device)
            assert config == launch.tile_config(kernel, storage, first + 1, 4096, 4096, device)
            assert last * config.parts <= 512
            assert config.parts == 1 or kernel != "hidden"
            if kernel != "product":
                assert config == launch.tile_config(kernel, storage, last, 37, 4096, device)
    assert launch.tile_config("product", "q4_0", 513, 1024, 4096, device).parts == 1


@every_type
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_masked_products(triton_kernels: TritonKernels, ggml_type: GGMLType, density: float) -> None:
    rows, cols, n_tokens = 53, 2 * max(32, smallest_cols(ggml_type)), 3
    stored, mask = random_rows(ggml_type, rows, cols), mask_of(3, rows, density)
    poisoned = stored.data.reshape(rows, -1).copy()
    poisoned[~mask.any(dim=0).numpy()] = 0xFF
    x, bias = tokens(n_tokens, cols), torch.linspace(-3, 3, rows)
    matrix = triton_kernels.matrix("w", ggml_type, rows, cols, poisoned.reshape(-1))
    y, count = triton_kernels.linear_masked(
        matrix,
        *(on_device(triton_kernels, tensor) for tensor in (x, mask, bias)),  # type: ignore[arg-type]
    )
    values = weights_on_device(ggml_type, stored.values)
    want = x.numpy().astype(np.float64) @ values.T.astype(np.float64) + bias.numpy()
    bound = product_bound(ggml_type, n_tokens, values, x.numpy()) + 1e-6
    error = np.abs(y.cpu().numpy() - np.where(mask.numpy(), want, 0.0))
    assert (error <= np.where(mask.numpy(), bound, 0.0)).all()
    assert count == int(mask.count_nonzero())


@every_type
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_sums_of_rows(triton_kernels: TritonKernels, ggml_type: GGMLType, density: float) -> None:
    rows, cols, n_tokens = 90, 288 if smallest_cols(ggml_type) < 256 else 512, 2
    stored = random_rows(ggml_type, rows, cols)
    coefficients = tokens(n_tokens, rows) * mask_of(n_tokens, rows, density)
    used = (coefficients != 0).any(dim=0).numpy()
    poisoned = stored.data.reshape(rows, -1).copy()
    poisoned[~used] = 0xFF
    matrix = triton_kernels.matrix("w", ggml_type, rows, cols, poisoned.reshape(-1))
    bias = torch.linspace(-1, 1, cols)
    y, count = triton_kernels.accumulate_rows(
        matrix, on_device(triton_kernels, coefficients), on_device(triton_kernels, bias)
    )
    w, c = weights_on_device(ggml_type, stored.values).astype(np.float64), coefficients.numpy().astype(np.float64)
    error = np.abs(y.cpu().numpy() - (c @ w + bias.numpy()))
    assert (error <= sum_bound(rows, np.abs(c) @ np.abs(w) + 1)).all()
    assert count == int(coefficients.count_nonzero())
    again, _ = triton_kernels.accumulate_rows(
        matrix, on_device(triton_kernels, coefficients), on_device(triton_kernels, bias)
    )
    assert same_bits(y.cpu(), again.cpu())


def test_sums_of_all_rows_add_zeros_too(triton_kernels: TritonKernels) -> None:
    stored = random_rows(GGMLType.Q4_0, 70, 64)
    coefficients = tokens(2, 70) * mask_of(2, 70, 0.5)
    y, count = triton_kernels.accumulate_rows(
        matrix_of(triton_kernels, stored), on_device(triton_kernels, coefficients), all_rows=True
    )
    assert count == 140
    assert nmse(y, coefficients.double() @ torch.from_numpy(stored.values).double()) < 1e-12


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_sums_of_rows_with_more_chunks_than_parts(
    triton_kernels: TritonKernels, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(down_rows, "TILE", (16, 32))
    monkeypatch.setattr(down_rows, "PARTS", parts)
    stored, coefficients = random_rows(GGMLType.F16, 150, 64), tokens(2, 150) * mask_of(2, 150, 0.6)
    y, count = triton_kernels.accumulate_rows(
        matrix_of(triton_kernels, stored), on_device(triton_kernels, coefficients)
    )
    assert nmse(y.cpu(), coefficients.double() @ torch.from_numpy(stored.values).double()) < 1e-12
    assert count == int((coefficients != 0).sum())


@pytest.mark.parametrize("ggml_type", [GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0])
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_three_products_in_one_launch_are_those_of_three(
    triton_kernels: TritonKernels, ggml_type: GGMLType, n_tokens: int
) -> None:
    """Bit for bit, of matrices with as many rows as programs do not share out evenly."""
    x = on_device(triton_kernels, tokens(n_tokens, 96))
    matrices = [matrix_of(triton_kernels, random_rows(ggml_type, rows, 96)) for rows in (70, 1, 33)]
    biases = [None, on_device(triton_kernels, torch.randn(1)), None]
    parts = [Linear(matrix, bias) for matrix, bias in zip(matrices, biases, strict=True)]
    together = triton_kernels._projections(parts, x, None)
    for part, y in zip(parts, together, strict=True):
        assert torch.equal(y, triton_kernels.linear(part.matrix, x, part.bias))


@every_type
def test_rows_are_looked_up(triton_kernels: TritonKernels, ggml_type: GGMLType) -> None:
    stored, ids = random_rows(ggml_type, 9, 1280), torch.tensor([8, 0, 3, 3])
    got = triton_kernels.rows(matrix_of(triton_kernels, stored), on_device(triton_kernels, ids))
    assert (got.cpu().numpy() == weights_on_device(ggml_type, stored.values)[ids.numpy()]).all()


def test_an_id_outside_is_refused_or_nan(triton_kernels: TritonKernels) -> None:
    matrix = matrix_of(triton_kernels, random_rows(GGMLType.F16, 4, 8))
    ids = torch.tensor([1, 4])
    if triton_kernels.device.type == "cpu":
        with pytest.raises(IndexError, match="row 4"):
            triton_kernels.rows(matrix, ids)
    else:
        got = triton_kernels.rows(matrix, on_device(triton_kernels, ids)).cpu()
        assert torch.isnan(got[1]).all()
        assert torch.isfinite(got[0]).all()


@every_type
def test_nan_and_infinity_reach_their_token_alone(triton_kernels: TritonKernels, ggml_type: GGMLType) -> None:
    matrix = matrix_of(triton_kernels, random_rows(ggml_type, 6, 256))
    for n_tokens in (3, 6):
        for value in (float("nan"), float("inf"), -float("inf")):
            x = tokens(n_tokens, 256)
            x[1, 131] = value
            y = triton_kernels.linear(matrix, on_device(triton_kernels, x)).cpu()
            # A quantised weight can be 0, and 0 times infinity is NaN: nothing of the token stays finite.
            assert not torch.isfinite(y[1]).any()
            assert torch.isfinite(y[[0, 2]]).all()


def test_empty_shapes(triton_kernels: TritonKernels) -> None:
    empty = np.zeros(0, np.uint8)
    none = triton_kernels.matrix("w", GGMLType.F32, 0, 8, empty)
    assert triton_kernels.linear(none, on_device(triton_kernels, torch.ones(2, 8))).shape == (2, 0)
    y, count = triton_kernels.accumulate_rows(none, on_device(triton_kernels, torch.ones(2, 0)))
    assert (y.tolist(), count) == ([[0.0] * 8] * 2, 0)
    matrix = matrix_of(triton_kernels, random_rows(GGMLType.Q8_0, 3, 32))
    assert triton_kernels.linear(matrix, on_device(triton_kernels, torch.ones(0, 32))).shape == (0, 3)


def test_wrong_tensors_are_refused(triton_kernels: TritonKernels) -> None:
    matrix = matrix_of(triton_kernels, random_rows(GGMLType.Q8_0, 3, 32))
    with pytest.raises(TypeError, match="x must be"):
        triton_kernels.linear(matrix, on_device(triton_kernels, torch.ones(2, 32).double()))
    with pytest.raises(ValueError, match="shape"):
        triton_kernels.linear(matrix, on_device(triton_kernels, torch.ones(2, 33)))
    with pytest.raises(ValueError, match="gaps"):
        triton_kernels.linear(matrix, on_device(triton_kernels, torch.ones(32, 2)).T)
    with pytest.raises(ValueError, match="bias"):
        triton_kernels.linear(matrix, on_device(triton_kernels, torch.ones(2, 32)), torch.ones(4))
