"""Measures how the time of an FFN grows with the share of its neurons that are computed, and draws it.

    python tools/plot_sparse_cost.py --png sparse_cost.png --json sparse_cost.json

Gate rows, up rows and down rows of as many layers as exceed the caches, a fresh random set of neurons for each, through
the native kernels and in the memory layout of that mode; the dense time reads every row without a mask. The last line
is one JSON object: the straight line through the medians, its R^2, and the time at 100 % against dense. It measures
kernels, not a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from result_header import header
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.errors import PowerInferError
from powerinfer_py.gguf.types import GGMLType, row_bytes
from powerinfer_py.kernels.blocks import FeedForwardBlock, FeedForwardWeights, Norm
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.matrix import Matrix, StoredMatrix
from powerinfer_py.profiler.plot import require_picture

SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Layer:
    """One gated FFN as a mode that skips neurons holds it, and as the dense one does."""

    sparse: FeedForwardBlock
    dense: FeedForwardBlock


def make_layers(kernels: NativeKernels, ggml_type: GGMLType, n_ff: int, n_embd: int, n_layers: int) -> list[Layer]:
    """Layers of random bytes below 60, which are finite numbers in every type. Whatever is computed fires."""
    data = np.random.default_rng(1).integers(0, 60, n_ff * row_bytes(ggml_type, n_embd), dtype=np.uint8)
    norm = Norm(torch.ones(n_embd), None, 1e-5, False)

    def block(matrices: tuple[Matrix, ...], *, dense: bool) -> FeedForwardBlock:
        gate, up, down = matrices
        weights = FeedForwardWeights(
            up=up, gate=gate, down=down, down_is_transposed=True, up_bias=None, gate_bias=None, down_bias=None
        )
        return kernels.prepare_feed_forward(
            FeedForwardBlock(norm, weights, None, Activation.FATRELU, float("-inf"), 0.0, dense)
        )

    def apart() -> tuple[Matrix, ...]:
        return tuple(kernels.matrix("ffn", ggml_type, n_ff, n_embd, data, pack=i < 2, copy=True) for i in range(3))

    stored = [StoredMatrix("ffn", ggml_type, n_ff, n_embd, data)] * 3
    return [
        Layer(
            block(kernels.interleaved(stored[:-1], stored[-1]) or apart(), dense=False),
            block(apart(), dense=True),
        )
        for _ in range(n_layers)
    ]


def sparse_pass(kernels: NativeKernels, layers: list[Layer], x: Tensor, masks: list[Tensor]) -> int:
    """One token through every layer, the masked neurons alone; returns the rows that were read."""
    n_rows = 0
    for layer, mask in zip(layers, masks, strict=True):
        result = kernels.feed_forward_part(layer.sparse, x, mask)
        n_rows += result.gate_products + result.up_products + result.down_products
    return n_rows


def dense_pass(kernels: NativeKernels, layers: list[Layer], x: Tensor) -> None:
    """One token through every layer, every row."""
    for layer in layers:
        kernels.feed_forward_part(layer.dense, x, None)


def measure(kernels: NativeKernels, layers: list[Layer], repeats: int) -> tuple[list[list[float]], list[float]]:
    """Seconds of each pass at each of SHARES, and dense; they take turns, so that a slow moment meets all of them."""
    up = layers[0].dense.weights.up
    n_ff, n_embd = up.rows, up.cols
    x = torch.randn(1, n_embd, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    times: list[list[float]] = [[] for _ in SHARES]
    dense: list[float] = []
    for _ in range(repeats):
        for share, samples in zip(SHARES, times, strict=True):
            n = round(share * n_ff)
            masks = [torch.zeros(1, n_ff, dtype=torch.bool) for _ in layers]
            for mask in masks:
                mask[0, torch.randperm(n_ff, generator=generator)[:n]] = True
            # The masks are new to the caches: rows of the last ones that are asked for again have long been pushed out.
            start = perf_counter()
            n_rows = sparse_pass(kernels, layers, x, masks)
            samples.append(perf_counter() - start)
            if n_rows != 3 * n * len(layers):
                raise AssertionError(f"the kernels read {n_rows} rows, {3 * n * len(layers)} were asked for")
        start = perf_counter()
        dense_pass(kernels, layers, x)
        dense.append(perf_counter() - start)
    return times, dense


def summary(samples: list[list[float]], dense_samples: list[float]) -> dict[str, Any]:
    """Seconds of every pass, their medians, the straight line through the medians and how well it fits."""
    times, dense_s = [median(passes) for passes in samples], median(dense_samples)
    shares, y = np.array(SHARES), np.array(times)
    slope, start = np.polyfit(shares, y, 1)
    residual = ((y - (start + slope * shares)) ** 2).sum()
    return {
        "shares": list(SHARES),
        "median_s": times,
        "median_dense_s": dense_s,
        "line": {"start_s": start, "slope_s": slope, "r_squared": 1 - residual / ((y - y.mean()) ** 2).sum()},
        "all_rows_against_dense": times[-1] / dense_s,
        "samples": {"seconds": samples, "dense_s": dense_samples},
    }


def draw(result: dict[str, Any], title: str, path: Path) -> None:
    """The points, their line and the dense time as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    line = result["line"]
    figure, axes = pyplot.subplots(figsize=(6, 4))
    shares = np.array(SHARES)
    axes.plot(100 * shares, 1e3 * np.array(result["median_s"]), "o", label="measured")
    fitted = line["start_s"] + line["slope_s"] * shares
    axes.plot(100 * shares, 1e3 * fitted, label=f"line, R² = {line['r_squared']:.4f}")
    axes.axhline(1e3 * result["median_dense_s"], color="gray", linestyle="--", label="dense")
    axes.set(xlabel="neurons computed, %", ylabel="milliseconds a token", title=title, ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Runs the measurement and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--type", default="Q4_0", choices=[t.name for t in GGMLType if t.name in ("Q4_0", "Q8_0", "F16")]
    )
    parser.add_argument("--n-ff", type=int, default=11008)
    parser.add_argument("--n-embd", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.png is not None:
        try:
            require_picture(options.png)
        except PowerInferError as error:
            print(f"plot_sparse_cost: {error}", file=sys.stderr)
            return 1
    head = header("tools/plot_sparse_cost.py", argv)
    # torch's own threads spin for a while after a parallel operation, such as making a mask of more than 3,000 neurons,
    # and would take the cores from the kernels under test: rows came at 14 GB/s instead of 20.
    torch.set_num_threads(1)
    kernels = NativeKernels(options.threads)
    layers = make_layers(kernels, GGMLType[options.type], options.n_ff, options.n_embd, options.layers)
    result = summary(*measure(kernels, layers, options.repeats))
    shape = {"type": options.type, "n_ff": options.n_ff, "n_embd": options.n_embd, "layers": options.layers}
    result = {**head, "shape": shape, "threads": options.threads, "isa": kernels.isa, **result}
    if options.png is not None:
        draw(result, f"FFN rows of {options.n_embd} {options.type} weights, {options.threads} threads", options.png)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
