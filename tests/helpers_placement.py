"""Placement problems made for tests, and the time of a placement computed anew from the description of the problem."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from powerinfer_py.config import Sparsity
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.placement.problem import LayerProblem, Problem, Rates
from powerinfer_py.placement.sizes import LayerSizes

STATED_RATES = Rates(gpu_bytes_per_s=5e11, cpu_bytes_per_s=2e10, synchronise_s=1e-7, layer_s=0.0, source="stated")


def layer_problem(
    fired: np.ndarray,
    *,
    block: int = 1000,
    row: int = 512,
    rows: int = 3,
    unit: int = 1,
    kv: int = 0,
    predictor: int = 0,
) -> LayerProblem:
    """Neurons of `rows` rows of `row` bytes each, a block of dense weights, predictor and KV cache beside them."""
    sizes = LayerSizes(block, predictor, kv, (row,) * rows, gate_bytes=row, neuron_multiple=unit)
    return LayerProblem(sizes, np.asarray(fired, np.float64))


def random_problem(
    rng: np.random.Generator, *, n_layer: int = 3, n_ff: int = 5, mode: Sparsity | None = None, split: bool = False
) -> Problem:
    """Small, of any mode, with a budget anywhere between nothing and everything. split: which is not for nothing."""
    layers = tuple(
        layer_problem(
            rng.random(n_ff) ** 3,
            block=int(rng.integers(1, 9)) * 700,
            row=int(rng.integers(1, 5)) * 256,
            rows=int(rng.integers(2, 4)),
        )
        for _ in range(n_layer)
    )
    head = int(rng.integers(0, 5000))
    everything = head + sum(layer.sizes.block_bytes + layer.sizes.hot_bytes(n_ff) for layer in layers)
    modes = (Sparsity.EXACT, Sparsity.DENSE, Sparsity.PREDICTOR)
    return Problem(
        layers,
        mode or modes[int(rng.integers(3))],
        Rates(
            gpu_bytes_per_s=float(rng.uniform(2, 40)) * 1e9,
            cpu_bytes_per_s=float(rng.uniform(1, 10)) * 1e9,
            synchronise_s=float(rng.uniform(0, 5e-7)),
            layer_s=float(rng.uniform(0, 1e-7)),
            source="random",
            gpu_rows_bytes_per_s=float(rng.uniform(1, 40)) * 1e9,
            cpu_rows_bytes_per_s=float(rng.uniform(0.5, 10)) * 1e9,
            rows_s=float(rng.uniform(0, 1e-7)),
            change_s=float(rng.uniform(0, 5e-7)),
        ),
        budget_bytes=int(rng.uniform(0, 1.1) * everything),
        head_bytes=head,
        split_bytes=int(rng.integers(1, 8000)) if split else 0,
    )


def seconds_of(problem: Problem, placement: Placement) -> float:
    """The time of a token, layer by layer and neuron by neuron."""
    rates, total, side = problem.rates, 0.0, False
    for layer, placed in zip(problem.layers, placement.layers, strict=True):
        sizes, hot = layer.sizes, set(placed.hot.tolist())
        gpu = cpu = 0.0
        for neuron, fired in enumerate(layer.fired.tolist()):
            rest = sizes.neuron_bytes - sizes.gate_bytes
            gate = {Sparsity.DENSE: 1.0, Sparsity.EXACT: 1.0, Sparsity.PREDICTOR: fired}[problem.mode]
            n_bytes = gate * sizes.gate_bytes + (1.0 if problem.mode is Sparsity.DENSE else fired) * rest
            gpu, cpu = (gpu + n_bytes, cpu) if neuron in hot else (gpu, cpu + n_bytes)
        block = sizes.dense_bytes + sizes.predictor_bytes + sizes.kv_bytes / 2 / problem.n_slots
        if placed.block_on_gpu:
            waits = len(hot) < layer.fired.size
            total += rates.layer_s + block / rates.gpu_bytes_per_s
            total += max(rates.rows_s + gpu / rates.gpu_rows, cpu / rates.cpu_rows if waits else 0.0)
            total += rates.synchronise_s if waits else 0.0
        else:
            total += block / rates.cpu_bytes_per_s + cpu / rates.cpu_rows
        total += rates.change if side != placed.block_on_gpu else 0.0
        side = placed.block_on_gpu
    total += rates.change * (int(side != placement.head_on_gpu) + int(placement.head_on_gpu))
    return total + problem.head_bytes / (rates.gpu_bytes_per_s if placement.head_on_gpu else rates.cpu_bytes_per_s)


def bytes_of(problem: Problem, placement: Placement) -> int:
    """Bytes of a placement, every array rounded up to 256."""
    total = problem.head_bytes + problem.head_extra_bytes if placement.head_on_gpu else 0
    if any(placed.block_on_gpu and placed.hot.size < problem.layers[0].fired.size for placed in placement.layers):
        total += problem.split_bytes
    for layer, placed in zip(problem.layers, placement.layers, strict=True):
        if placed.block_on_gpu:
            sizes = layer.sizes
            total += sizes.dense_bytes + sizes.predictor_bytes + sizes.kv_bytes
            total += sum(-(-placed.hot.size * row // 256) * 256 for row in sizes.neuron_row_bytes)
    return total


def smallest_unit(problem: Problem, placement: Placement) -> int | None:
    """Bytes of the smallest thing that could still be put on the GPU; None where everything is there."""
    sizes = [] if placement.head_on_gpu else [problem.head_bytes + problem.head_extra_bytes]
    for layer, placed in zip(problem.layers, placement.layers, strict=True):
        unit = layer.sizes.neuron_multiple
        if not placed.block_on_gpu:
            is_split = bytes_of(problem, placement) != bytes_of(replace(problem, split_bytes=0), placement)
            sizes.append(layer.sizes.block_bytes + (0 if is_split else problem.split_bytes))
        elif placed.hot.size < layer.fired.size:
            sizes.append(layer.sizes.hot_bytes(placed.hot.size + unit) - layer.sizes.hot_bytes(placed.hot.size))
    return min(sizes, default=None)


def fills(problem: Problem, placement: Placement) -> bool:
    """Whether nothing that is left out would still fit."""
    unit = smallest_unit(problem, placement)
    return unit is None or problem.budget_bytes - bytes_of(problem, placement) < unit


def every_placement(problem: Problem) -> Iterator[Placement]:
    """All placements of the k most valuable neurons a layer; the most valuable are the most frequent."""
    options = []
    for layer in problem.layers:
        order = np.argsort(-layer.fired, kind="stable").astype(np.int32)
        options.append(
            [LayerPlacement(False, np.zeros(0, np.int32))]
            + [LayerPlacement(True, np.sort(order[:k])) for k in range(layer.fired.size + 1)]
        )
    for layers in itertools.product(*options):
        for head in (False, True):
            yield Placement(layers, head)
