"""Measures how long the placement of a large model takes and how good it is, and what splits of a test model capture.

    python tools/measure_solver.py --json docs/results/gpu_index.json

The model is one of 70B in Q4_0 as the solver sees it: sizes, and frequencies that are made up from a seed. Budgets are
shares of the bytes of all neurons; each is solved `--repeats` times, a problem of its own each time. In the `given`
rows all blocks and the head are on the GPU beside the budget; in the others they compete for it, and at a small one
they do not all fit. The second part holds splits of 3/8 of the neurons of tests/fixtures' relu-llama against the most
that so many could capture. The last line is one JSON object. It measures; it asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from result_header import header

from powerinfer_py.cli.command import run_command
from powerinfer_py.config import Sparsity
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.gpuidx import load_gpu_index
from powerinfer_py.placement.most_active import most_active
from powerinfer_py.placement.problem import Floats, LayerProblem, Problem
from powerinfer_py.placement.rates import assumed_rates
from powerinfer_py.placement.sizes import LayerSizes, model_sizes
from powerinfer_py.placement.solver import solve, solve_by_frequency
from powerinfer_py.placement.statistics.frequencies import read_frequencies
from powerinfer_py.placement.statistics.layer_files import read_activations
from powerinfer_py.predictor.files import write_json

SCRIPT = "measure_solver"
FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.95)
# (mode, how often neurons fire). Every mode, and every kind of curve in the mode that depends on it most.
CASES = (
    (Sparsity.PREDICTOR, "power 0.75"),
    (Sparsity.PREDICTOR, "power 1.2"),
    (Sparsity.PREDICTOR, "by depth"),
    (Sparsity.EXACT, "by depth"),
    (Sparsity.EXACT, "all alike"),
    (Sparsity.DENSE, "all alike"),
)
# n_embd 8192: a row of Q4_0, attention with 8 of 64 heads of keys and values, 4096 tokens of them, a predictor of rank
# 1024, a head of 32,000 tokens; staging.
ROW_BYTES = 8192 // 32 * 18
DENSE_BYTES = (2 * 8192 + 2 * 1024) * ROW_BYTES
KV_BYTES = 4096 * 2 * 1024 * 2
PREDICTOR_BYTES = (8192 + 28672) * 1024 // 32 * 18
HEAD_BYTES = 32000 * ROW_BYTES
SPLIT_BYTES = 40 << 20


def frequencies(kind: str, n_layer: int, n_ff: int) -> list[Floats]:
    """Shares of tokens for which each neuron fires.

    `power A` falls as rank to the power -A, 3 to 20 % in the mean of a layer; `by depth` is a spread of logits round a
    mean that grows from layer to layer, counted over 400 tokens; `all alike` is what is assumed without statistics.
    """
    rng = np.random.default_rng(0)
    result = []
    for layer in range(n_layer):
        if kind == "all alike":
            fired = np.full(n_ff, 0.1)
        elif kind == "by depth":
            depth = layer / max(1, n_layer - 1)
            odds = 1 / (1 + np.exp(1.5 - 2 * depth - 1.6 * rng.standard_normal(n_ff)))
            wanted = 0.02 + 0.16 * depth**2 + 0.03 * rng.random()
            fired = np.round(np.minimum(1, odds / odds.mean() * wanted) * 400) / 400
        else:
            fired = np.arange(1, n_ff + 1) ** -float(kind.split()[1]) * rng.uniform(0.7, 1.3, n_ff)
            fired = np.minimum(1, fired / fired.mean() * rng.uniform(0.03, 0.2))
        result.append(rng.permutation(fired))
    return result


def make_problem(mode: Sparsity, kind: str, n_layer: int, n_ff: int) -> tuple[Problem, int]:
    """(the problem with no budget yet, bytes of all neurons)."""
    predictor = PREDICTOR_BYTES if mode is Sparsity.PREDICTOR else 0
    sizes = LayerSizes(DENSE_BYTES, predictor, KV_BYTES, (ROW_BYTES,) * 3, gate_bytes=ROW_BYTES)
    layers = tuple(LayerProblem(sizes, fired) for fired in frequencies(kind, n_layer, n_ff))
    problem = Problem(layers, mode, assumed_rates(), 0, head_bytes=HEAD_BYTES, split_bytes=SPLIT_BYTES)
    return problem, n_layer * sizes.hot_bytes(n_ff)


def solved(n_layer: int, n_ff: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each case, given blocks or not, and budget."""
    rows = []
    for mode, kind in CASES:
        problem, ffn_bytes = make_problem(mode, kind, n_layer, n_ff)
        for given in (False, True):
            for share in SHARES:
                budget = int(share * ffn_bytes)
                # A problem keeps what it has worked out.
                fresh = [replace(problem, budget_bytes=budget, blocks_given=given) for _ in range(repeats)]
                solutions = [solve(one) for one in fresh]
                placement = solutions[0].placement
                rows.append(
                    {
                        "mode": mode.value,
                        "frequencies": kind,
                        "given": given,
                        "share": share,
                        "seconds": [solution.solve_s for solution in solutions],
                        "gap": max(solution.gap for solution in solutions),
                        "blocks": sum(layer.block_on_gpu for layer in placement.layers),
                        "neurons": placement.n_hot,
                        "budget_used": solutions[0].n_bytes / budget,
                    }
                )
    return rows


def captured() -> dict[str, float]:
    """Shares of the activations of the fixture that splits of 3/8 of its neurons capture."""
    folder = FIXTURES / "relu-llama-activation"
    with open_gguf(FIXTURES / "relu-llama.powerinfer.gguf") as file:
        config = read_config(file)
        sizes = model_sizes(file, config, sparsity=Sparsity.PREDICTOR, n_ctx=128)
    n_hot = config.n_layer * config.n_ff * 3 // 8
    counts = read_activations(folder, config.n_layer, config.n_ff)
    fired = read_frequencies(folder, config).fired
    layers = tuple(LayerProblem(layer, row) for layer, row in zip(sizes.layers, fired, strict=True))
    problem = Problem(layers, Sparsity.PREDICTOR, assumed_rates(), 1 << 40, blocks_given=True, neuron_limit=n_hot)
    splits = {
        "PowerInfer": load_gpu_index(FIXTURES / "relu-llama.reference.gpuidx", config.n_layer, config.n_ff).hot,
        "generate_gpuidx": most_active(counts, n_hot, 64, 0),
        "frequency": [layer.hot for layer in solve_by_frequency(problem).placement.layers],
    }
    total = sum(float(layer.sum()) for layer in counts)
    shares = {
        name: sum(float(layer[ids].sum()) for layer, ids in zip(counts, hot, strict=True)) / total
        for name, hot in splits.items()
    }
    most = float(np.sort(np.concatenate(counts))[::-1][:n_hot].sum())
    return {**shares, "most": most / total}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--neurons", type=int, default=28672, help="of a layer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    def run() -> int:
        head = header(f"tools/{SCRIPT}.py", argv)
        result = {
            **head,
            "scipy": version("scipy"),
            "layers": options.layers,
            "neurons": options.neurons,
            "rows": solved(options.layers, options.neurons, options.repeats),
            "captured": captured(),
        }
        if options.json is not None:
            write_json(options.json, result)
        print(json.dumps(result))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    sys.exit(main())
