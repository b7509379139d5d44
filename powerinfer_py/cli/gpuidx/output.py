"""What `powerinfer-gpuidx` prints: the split layer by layer, the budget, estimates; or the same as one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from powerinfer_py.cli.gpuidx.split import Split
from powerinfer_py.errors import printable
from powerinfer_py.placement.budget import minimum_text

ESTIMATE = "an estimate from bandwidths, not a measurement"


def print_json(split: Split, written: Path | None) -> None:
    """One line."""
    print(json.dumps(report(split, written), allow_nan=False))


def report(split: Split, written: Path | None) -> dict[str, Any]:
    """Everything as JSON values."""
    solution, problem = split.solution, split.problem
    return {
        "model": str(split.model),
        "gpu_index": None if written is None else str(written),
        "sparsity": split.sparsity.value,
        "method": split.method,
        "statistics": None if split.frequencies is None else str(split.frequencies.folder),
        "rates": problem.rates.to_dict(),
        "budget": budget_report(split),
        "neurons": problem.n_neurons,
        "neurons_on_gpu": solution.placement.n_hot,
        "neuron_bytes": split.index.vram_capacity,
        "captured": split.captured,
        "blocks_on_gpu": sum(placed.block_on_gpu for placed in solution.placement.layers),
        "head_on_gpu": solution.placement.head_on_gpu,
        "gap": None if solution.bound_s is None else solution.gap,
        "solve_s": solution.solve_s,
        "estimate": {"note": ESTIMATE, "seconds_a_token": solution.seconds, "tokens_per_s": 1 / solution.seconds},
        "layers": layer_rows(split),
        "curve": [
            {**asdict(point), "tokens_per_s": None if point.seconds is None else 1 / point.seconds}
            for point in split.curve
        ],
    }


def budget_report(split: Split) -> dict[str, Any]:
    """Bytes by what they are for; of the whole process where the budget was one of the process."""
    layers = [
        (sizes, placed) for sizes, placed in zip(split.sizes.layers, split.solution.placement.layers, strict=True)
    ]
    on_gpu = [sizes for sizes, placed in layers if placed.block_on_gpu]
    neurons = sum(sizes.hot_bytes(placed.hot.size) for sizes, placed in layers)
    if split.fixed is None:
        return {"budget": split.problem.budget_bytes, "hot neurons": neurons}
    fixed, head = split.fixed, split.solution.placement.head_on_gpu
    used = split.context_bytes + fixed.total + split.solution.n_bytes
    return {
        "budget": split.budget_bytes,
        "minimum_bytes": split.minimum_bytes,
        "prompt_chunk_tokens": fixed.n_tokens,
        "context and modules": split.context_bytes,
        "dense weights": sum(sizes.dense_bytes for sizes in on_gpu) + fixed.tables,
        "predictors": sum(sizes.predictor_bytes for sizes in on_gpu),
        "head": split.sizes.head_bytes if head else 0,
        "KV cache": sum(sizes.kv_bytes for sizes in on_gpu),
        "activations": fixed.activations + (fixed.head_extra if head else 0),
        "staging": fixed.staging if split.solution.placement.is_split(split.config.n_ff) else 0,
        "hot neurons": neurons,
        "unused": split.budget_bytes - used,
    }


def layer_rows(split: Split) -> list[dict[str, Any]]:
    """A row a layer: where its block is, its neurons, how many are on the GPU, what they capture and take."""
    rows = []
    placed_layers = split.solution.placement.layers
    for number, (layer, placed) in enumerate(zip(split.problem.layers, placed_layers, strict=True)):
        total = float(layer.fired.sum())
        captured = float(layer.fired[placed.hot].sum()) / total if total > 0 else 0.0
        rows.append(
            {
                "layer": number,
                "block_on_gpu": placed.block_on_gpu,
                "neurons": layer.fired.size,
                "on_gpu": placed.hot.size,
                "share": placed.hot.size / layer.fired.size,
                "captured": None if split.frequencies is None else captured,
                "bytes": layer.sizes.hot_bytes(placed.hot.size),
            }
        )
    return rows


def print_split(split: Split, written: Path | None) -> None:
    """Tables on stdout."""
    from powerinfer_py.cli.tables import key_value_table, make_console, make_table, size_text

    console = make_console()
    sides = (("layer", "right"), ("block", "left"), ("neurons", "right"), ("on the GPU", "right"), ("share", "right"))
    columns = (*sides, ("captured", "right"), ("size", "right"))
    rows = (
        (
            str(row["layer"]),
            "GPU" if row["block_on_gpu"] else "CPU",
            str(row["neurons"]),
            str(row["on_gpu"]),
            f"{row['share']:.1%}",
            _share(row["captured"]),
            size_text(row["bytes"]),
        )
        for row in layer_rows(split)
    )
    console.print(make_table("Split", columns, rows))
    budget = budget_report(split)
    chunk = budget.pop("prompt_chunk_tokens", None)
    budget.pop("minimum_bytes", None)
    console.print(
        make_table("GPU memory", (("", "left"), ("", "right")), [(k, size_text(n)) for k, n in budget.items()])
    )
    chunk_rows = [] if chunk is None else [("prompt chunk", f"{chunk} tokens")]
    console.print(key_value_table([*_summary(split, written), *chunk_rows]))
    curve = (
        (
            "CPU only" if point.budget_gib == 0 else f"{point.budget_gib:g} GiB",
            "below the minimum" if point.seconds is None else f"{1 / point.seconds:.3g}",
            _share(point.neurons_share),
            _share(point.captured),
        )
        for point in split.curve
    )
    headings = (("budget", "right"), ("tokens/s", "right"), ("neurons", "right"), ("captured", "right"))
    console.print(make_table(f"Other budgets ({ESTIMATE})", headings, curve))


def _summary(split: Split, written: Path | None) -> list[tuple[str, str]]:
    solution, rates = split.solution, split.problem.rates
    placement = solution.placement
    n_blocks = sum(placed.block_on_gpu for placed in placement.layers)
    rows = [
        ("neurons", f"{placement.n_hot} of {split.problem.n_neurons} on the GPU, captured: {_share(split.captured)}"),
        ("blocks", f"{n_blocks} of {len(placement.layers)} on the GPU, head on the {_side(placement.head_on_gpu)}"),
        ("method", f"{split.method}, for sparsity {split.sparsity}, in {solution.solve_s:.2f} s"),
        (
            "rates",
            f"GPU {rates.gpu_bytes_per_s / 1e9:.0f} GB/s, of rows {rates.gpu_rows / 1e9:.0f}; "
            f"CPU {rates.cpu_bytes_per_s / 1e9:.1f} GB/s, of rows {rates.cpu_rows / 1e9:.1f}; "
            f"a layer {rates.layer_s * 1e6:.0f} us and {rates.rows_s * 1e6:.0f} us with hot neurons, "
            f"{rates.synchronise_s * 1e6:.0f} us for cold ones, {rates.change * 1e6:.0f} us to change sides "
            f"({rates.source})",
        ),
        ("expected", f"{1 / solution.seconds:.3g} tokens/s: {ESTIMATE}"),
        ("minimum", minimum_text(split.minimum_bytes)),
        ("written", "nothing" if written is None else printable(str(written), 400)),
    ]
    if solution.bound_s is not None:
        rows.insert(3, ("gap", f"{solution.gap:.4%}: no split by groups that uses the budget is faster by more"))
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _side(on_gpu: bool) -> str:
    return "GPU" if on_gpu else "CPU"
