"""Compiles the Triton kernels for real GPUs on a machine without one, and records what each takes.

    python tools/record_triton_kernels.py --json docs/results/triton_kernels.json
    python tools/record_triton_kernels.py --quick

Every specialisation of `triton_variants` for every compute capability that launches it; registers, stack (spills) and
shared memory come from Triton's own `cuobjdump -res-usage`. --quick: one of each kernel for 8.0, and the hot kernels in
F16 and Q4_0 for 8.0, 8.9 and 9.0, in Q4_0 for all; attention of single tokens for 8.0, a part of it for 8.9 and 9.0.
The last line is one JSON object. Nothing is run: this says nothing about speed. It must run without
TRITON_INTERPRET. Exit code 1 where a hot kernel spills on 8.0, 8.9 or 9.0.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from result_header import header
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_variants import Variant, record_variants

from powerinfer_py.kernels.triton.launch import TENSOR_CORES

CAPABILITIES = (75, 80, 86, 89, 90, 120)
# What runs for every token and reads what a token's time goes to, and the products of prompts.
HOT = (
    "linear",
    "hidden",
    "down",
    "chunk",
    "group",
    "combine_chunks",
    "combine",
    "product",
    "add_parts",
    "hidden_tiles",
    "down_tiles",
    "tiles",
)
DECODE = ("linear", "hidden", "down")
ATTENTION = ("chunk", "group")
UNSPILLED = (80, 89, 90)


def cuobjdump() -> Path:
    """The program that comes with Triton."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_variant(variant: Variant, capability: int) -> dict[str, Any]:
    """Registers of a thread, bytes of its stack, and bytes of shared memory of a program."""
    places = {name: i for i, (name, _) in enumerate(variant.signature)}
    source = ASTSource(
        variant.kernel,
        signature=dict(variant.signature),
        constexprs={(places[name],): value for name, value in variant.constants},
        attrs={(places[name],): [["tt.divisibility", 16]] for name in variant.multiples},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": variant.fusion}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(cuobjdump()), "-res-usage", file.name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", output)
    if usage is None:
        raise ValueError(f"cuobjdump says nothing of {variant.name}: {output!r}")
    registers, stack, static_shared, local = map(int, usage.groups())
    return {
        "kernel": variant.name,
        "storage": variant.storage,
        "capability": capability,
        "registers": registers,
        "stack_bytes": stack + local,
        "shared_bytes": max(compiled.metadata.shared, static_shared),
        "warps": variant.warps,
        "constants": {name: value for name, value in variant.constants if isinstance(value, (int, str))},
    }


def is_quick(variant: Variant, capability: int, seen: set[str]) -> bool:
    """Whether --quick compiles this. seen: kernels of which one was taken for 8.0."""
    if capability == 80 and (variant.name not in seen or variant.name in ATTENTION):
        return True
    if variant.name in ATTENTION:
        # Of the width that most models have one of every type of cache; groups over q8_0, the nearest to spilling, all.
        if capability == 90 and variant.name == "group" and variant.storage == "q8_0":
            return True
        is_first = f"{variant.name}/{variant.storage}/{capability}" not in seen
        return is_first and dict(variant.constants)["DIM"] == 128 and capability in UNSPILLED
    if variant.name not in DECODE or variant.storage not in ("f16", "q4_0"):
        return False
    first = (variant.name, variant.storage, str(capability))
    return "/".join(first) not in seen and (variant.storage == "q4_0" or capability in UNSPILLED)


def records(quick: bool, capabilities: list[int]) -> Iterator[dict[str, Any]]:
    """One for each variant and capability."""
    variants = record_variants()
    seen: set[str] = set()
    for capability in capabilities:
        for variant in variants:
            if variant.name == "group" and capability < 10 * TENSOR_CORES[0]:
                # Never launched there.
                continue
            if quick and not is_quick(variant, capability, seen):
                continue
            seen.update({variant.name, f"{variant.name}/{variant.storage}/{capability}"})
            yield compile_variant(variant, capability)


def spilled(record: dict[str, Any]) -> bool:
    """Whether this must not be: a hot kernel that keeps something in local memory."""
    return record["kernel"] in HOT and record["capability"] in UNSPILLED and record["stack_bytes"] > 0


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each compilation to stderr, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    parser.add_argument("--quick", action="store_true", help="a part that takes under a minute")
    parser.add_argument("--capability", type=int, action="append", metavar="CC", help="e.g. 89; default: all")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    head = header("tools/record_triton_kernels.py", argv)
    results = []
    for record in records(args.quick, args.capability or list(CAPABILITIES)):
        results.append(record)
        print(
            f"{record['kernel']:15} {record['storage']:5} {record['capability']:4} registers {record['registers']:4} "
            f"stack {record['stack_bytes']:5} shared {record['shared_bytes']:6}",
            file=sys.stderr,
        )
    bad = [record for record in results if spilled(record)]
    summary = {
        **head,
        "compilations": len(results),
        "kernels": sorted({record["kernel"] for record in results}),
        "spilled": bad,
    }
    if args.json is not None:
        # A line a record, so that a change shows as one.
        lines = ",\n".join(json.dumps(record) for record in results)
        first = json.dumps(summary)[:-1]
        args.json.write_text(f'{first},\n"records": [\n{lines}\n]}}\n', encoding="utf-8")
    print(json.dumps(summary))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
