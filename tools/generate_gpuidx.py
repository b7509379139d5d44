"""Makes a gpuidx file with the flags of PowerInfer's `python -m powerinfer`, for scripts that call it.

    python tools/generate_gpuidx.py --activation DIR --neuron 11008 --layer 32 --capacity 100000 \\
        --vram-capacity 2147483648 --output MODEL.gguf.generated.gpuidx

A driver over `placement.most_active`. `powerinfer-gpuidx` needs fewer figures and counts bytes. Unlike the original:
layers are ordered by number, groups default to 64 neurons, flags that contradict the files are refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from powerinfer_py.cli.command import run_command
from powerinfer_py.placement.gpuidx import GpuIndex, write_gpu_index
from powerinfer_py.placement.most_active import most_active
from powerinfer_py.placement.statistics.layer_files import read_activations

PROG = "generate_gpuidx.py"


def build_parser() -> argparse.ArgumentParser:
    """PowerInfer's flags and, but for --batch, its defaults."""
    parser = argparse.ArgumentParser(prog=PROG, description="Choose the most active neurons of all layers.")
    parser.add_argument("--activation", type=Path, required=True, help="folder of activation_{i}.pt")
    parser.add_argument("--neuron", type=int, default=8192 * 4, help="neurons of a layer (default: 32768)")
    parser.add_argument("--capacity", type=int, default=int(8192 * 4 * 32 * 0.1), help="neurons on the GPU, in all")
    parser.add_argument("--layer", type=int, default=59, help="layers (default: 59)")
    parser.add_argument(
        "--vram-capacity", type=int, required=True, help="bytes that the neurons take; goes into the file"
    )
    parser.add_argument("--batch", type=int, default=64, help="neurons chosen at once (default: 64)")
    parser.add_argument("--threshold", type=int, default=0, help="fewest neurons of a layer that gets any (default: 0)")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    return run_command(PROG, lambda: _run(build_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    counts = read_activations(arguments.activation, arguments.layer, arguments.neuron)
    hot = most_active(counts, arguments.capacity, arguments.batch, arguments.threshold)
    total = sum(float(layer.sum()) for layer in counts) or 1.0
    captured = sum(float(layer[ids].sum()) for layer, ids in zip(counts, hot, strict=True)) / total
    write_gpu_index(arguments.output, GpuIndex(tuple(hot), arguments.neuron, arguments.vram_capacity))
    n_hot = sum(ids.size for ids in hot)
    print(f"{n_hot} of {arguments.neuron * arguments.layer} neurons, {captured:.1%} of the activations")
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
