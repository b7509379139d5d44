"""Times launch configurations of the Triton kernels that decode on this machine's GPU, shape by shape.

    python tools/tune_triton.py --json docs/results/triton_tuning.json

For every kernel, storage and shape of `CASES` each configuration is run on as many different matrices as it takes to
leave the L2 cache, captured in one CUDA graph; the median of several replays counts. How far a result is from that of
the fallback stands beside its time. The winners belong into `launch.RECORDED`. Kernels are compiled beforehand by
several processes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from result_header import header

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import GGMLType, row_bytes
from powerinfer_py.kernels.triton import attention_rows, down_rows, launch
from powerinfer_py.kernels.triton.attention_rows import attend_rows
from powerinfer_py.kernels.triton.device_rows import STORAGES, DeviceRows, empty_arrays
from powerinfer_py.kernels.triton.hidden_rows import Neurons, hidden_rows
from powerinfer_py.kernels.triton.matrix_vector import linear

# Bytes of the matrices that take turns: several times the largest L2 cache.
ROTATED_BYTES = 256 << 20
REPLAYS = 7
ACTIVE = 0.1
Q4, F16, Q8 = GGMLType.Q4_0, GGMLType.F16, GGMLType.Q8_0


@dataclass(frozen=True)
class Case:
    """A kernel over matrices of one shape. n_ctx: positions of attention, 0 for the others."""

    kernel: str
    type: GGMLType
    rows: int
    cols: int
    active: float = 1.0


CASES = [
    *(
        Case("linear", t, rows, cols)
        for t in (Q4, F16)
        for rows, cols in ((4096, 4096), (12288, 4096), (1024, 4096), (11008, 1024))
    ),
    Case("linear", F16, 32000, 4096),
    *(Case("linear", Q4, rows, cols) for rows, cols in ((8192, 8192), (1024, 8192), (28672, 1024))),
    Case("linear", Q8, 4096, 4096),
    *(Case("hidden", t, 11008, 4096, ACTIVE) for t in (Q4, F16)),
    Case("hidden", Q4, 11008, 4096),
    Case("hidden", Q4, 28672, 8192, ACTIVE),
    *(Case("down", t, 11008, 4096, active) for t in (Q4, F16) for active in (ACTIVE, 1.0)),
    Case("down", Q4, 28672, 8192, ACTIVE),
    *(Case("attention", F16, 32, 128, context) for context in (100, 1000, 4000)),
]


def configurations(case: Case) -> Iterator[dict[str, Any]]:
    """What is tried, the fallback first."""
    yield {}
    if case.kernel in ("linear", "hidden"):
        lane = {Q4: 1024, F16: 256, Q8: 512}[case.type]
        for rows, warps, spread, stages, programs in itertools.product(
            (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4), (1, 2, 3), (264, 528, 1056, 1 << 20)
        ):
            step = lane * warps * spread
            one_tile = case.cols <= step
            sound = step < 2 * case.cols and rows * step // (32 * warps) <= (256 if case.type is Q4 else 128)
            if not sound or (case.type is Q4 and spread > 1) or (case.type is not Q4 and (rows == 1 or warps < 4)):
                continue
            if (programs == 1 << 20 or case.kernel == "hidden") and stages > 1:
                continue
            if not one_tile and (stages > 1 or case.type is Q4):
                continue
            yield {"rows": rows, "step": step, "warps": warps, "stages": stages, "programs": programs}
    elif case.kernel == "down":
        for chunk, columns, warps, parts in itertools.product((16, 32, 64), (128, 256, 512), (4, 8), (64,)):
            if chunk * columns // (32 * warps) <= 256:
                name = "TILE" if case.type is F16 else "BLOCK_TILE"
                yield {name: (chunk, columns), "warps": warps, "PARTS": parts}
    else:
        for tile, chunk, warps in itertools.product((16, 32, 64, 128), (64, 128), (2, 4, 8)):
            if tile <= chunk:
                yield {"_WHOLE": tile, "CHUNK": chunk, "warps": warps}


def new(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory of the GPU."""
    return torch.empty(shape, dtype=dtype, device="cuda")


def random_rows(case: Case, rows: int, cols: int, seed: int) -> DeviceRows:
    """A matrix of random bits with sound scales."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    storage = STORAGES[case.type]
    values, scales = empty_arrays(
        storage, rows, cols, lambda shape, dtype: torch.empty(shape, dtype=dtype, device="cuda")
    )
    if scales is None:
        values.normal_(generator=generator)
    else:
        values.view(torch.uint8).random_(0, 256, generator=generator)
        scales.uniform_(0.5, 1.0, generator=generator)
    return DeviceRows(storage, rows, cols, values, scales, 1.0)


class Bench:
    """One case: its matrices, and a call of the kernel on the i-th of them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        if case.kernel == "attention":
            self._attention()
            return
        n_bytes = case.rows * row_bytes(case.type, case.cols) * (2 if case.kernel == "hidden" else 1)
        self.n = max(2, -(-ROTATED_BYTES // n_bytes))
        generator = torch.Generator(device="cuda").manual_seed(1)
        self.matrices = [random_rows(case, case.rows, case.cols, i) for i in range(self.n)]
        mask = torch.rand(case.rows, device="cuda", generator=generator) < case.active
        self.ids = mask.nonzero().flatten().to(torch.int32)
        self.bytes = float(case.rows * row_bytes(case.type, case.cols))
        self.counts = torch.zeros(4, dtype=torch.int64, device="cuda")
        full = torch.zeros(1, case.rows, dtype=torch.int32, device="cuda")
        full[0, : len(self.ids)] = self.ids
        self.lists = full, torch.tensor([len(self.ids)], dtype=torch.int32, device="cuda")
        self.bytes *= len(self.ids) / case.rows
        if case.kernel == "down":
            self.x = torch.randn(1, case.rows, device="cuda", generator=generator)
            self.y = torch.empty(1, case.cols, device="cuda")
        else:
            self.x = torch.randn(1, case.cols, device="cuda", generator=generator)
            self.y = torch.zeros(1, case.rows, device="cuda")
        if case.kernel == "hidden":
            self.others = [random_rows(case, case.rows, case.cols, 100 + i) for i in range(self.n)]
            # Where nearly all of what is named fires.
            self.x.abs_()
            for gate in self.matrices:
                gate.values.copy_(gate.values.abs() if gate.scales is None else gate.values | 0x88)
            self.bytes *= 2

    def _attention(self) -> None:
        heads, dim, self.n = self.case.rows, self.case.cols, 8
        n_ctx, position = 4096, int(self.case.active)
        self.caches = [torch.randn(1, heads, n_ctx, dim, device="cuda").half() for _ in range(2 * self.n)]
        self.x = torch.randn(1, heads, dim, device="cuda")
        self.y = torch.empty(1, heads * dim, device="cuda")
        self.places = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.full((1,), position, device="cuda")
        self.bytes = 2.0 * heads * dim * 2 * (position + 1)

    def call(self, i: int) -> None:
        """The kernel on the i-th matrix."""
        case = self.case
        if case.kernel == "linear":
            linear(self.matrices[i], self.x, self.y)
        elif case.kernel == "hidden":
            neurons = Neurons(self.matrices[i], self.others[i], None, None, Activation.RELU, 0.0)
            hidden_rows(neurons, self.x, self.y, self.counts, lists=self.lists, mask=None, all_up=False, fired=None)
        elif case.kernel == "down":
            down_rows.down_rows(self.matrices[i], self.x, self.y, self.counts, new, lists=self.lists)
        else:
            k, v = self.caches[2 * i], self.caches[2 * i + 1]
            attend_rows(self.x, k, v, *self.places, 0.1, self.y, new, case.cols)

    def seconds(self) -> float:
        """Of one call, in a graph of calls."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(self.n):
                self.call(i)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for i in range(self.n):
                    self.call(i)
            times = []
            for _ in range(REPLAYS):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) / 1e3 / self.n)
        return median(times[1:])


class Setting:
    """One configuration in force."""

    def __init__(self, case: Case, config: dict[str, Any]) -> None:
        self.case, self.config = case, config
        self.kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        case, config = self.case, self.config
        if not config:
            return
        if case.kernel in ("linear", "hidden"):
            self._set(launch, "row_config", lambda *_: launch.RowConfig(**config))
            return
        warps = config["warps"]
        run = launch.run

        def with_warps(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
            if "combine" not in kernel.fn.__name__:
                arguments["warps"] = warps
            run(kernel, grid, **arguments)

        module = down_rows if case.kernel == "down" else attention_rows
        self._set(launch, "run", with_warps)
        for name, value in config.items():
            if name != "warps":
                self._set(module, name, value)

    def _set(self, holder: Any, name: str, value: Any) -> None:
        self.kept.append((holder, name, getattr(holder, name)))
        setattr(holder, name, value)

    def __exit__(self, *_: object) -> None:
        for holder, name, value in reversed(self.kept):
            setattr(holder, name, value)


def measure(case: Case) -> list[dict[str, Any]]:
    """Every configuration of a case."""
    bench, found = Bench(case), []
    wanted: torch.Tensor | None = None
    for config in configurations(case):
        with Setting(case, config):
            try:
                bench.call(0)
                result = bench.y.clone()
                if wanted is None:
                    wanted = result
                error = float((result - wanted).square().mean() / wanted.square().mean().clamp(min=1e-30))
                seconds = bench.seconds()
            except Exception as error_:
                found.append({**config, "error": str(error_)[:120]})
                continue
        found.append({**config, "us": seconds * 1e6, "gb_per_s": bench.bytes / seconds / 1e9, "nmse": error})
    return found


def compile_some(part: int, parts: int) -> None:
    """Runs every `parts`-th configuration once, which leaves its kernels in Triton's cache."""
    number = 0
    for case in CASES:
        bench: Bench | None = None
        for config in configurations(case):
            number += 1
            if number % parts != part:
                continue
            bench = bench or Bench(Case(case.kernel, case.type, case.rows, case.cols, case.active))
            with Setting(case, config):
                try:
                    bench.call(0)
                except Exception:
                    continue
        del bench


def main(argv: list[str] | None = None) -> int:
    """The command. Exit code 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that compile")
    parser.add_argument("--only", default="", help="part of a kernel's name")
    parser.add_argument("--compile", action="store_true", help="compile and measure nothing")
    parser.add_argument("--no-compile", action="store_true", help="measure what was compiled before")
    parser.add_argument("--part", type=int, default=-1, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: no CUDA device was found", file=sys.stderr)
        return 1
    CASES[:] = [case for case in CASES if args.only in case.kernel]
    if args.part >= 0:
        compile_some(args.part, args.processes)
        return 0
    command = [sys.executable, __file__, "--processes", str(args.processes), "--only", args.only, "--part"]
    n_processes = 0 if args.no_compile else args.processes
    for process in [subprocess.Popen([*command, str(i)]) for i in range(n_processes)]:
        process.wait()
    if args.compile:
        return 0
    results = []
    for case in CASES:
        found = measure(case)
        timed = sorted((f for f in found if "us" in f), key=lambda f: f["us"])
        results.append({**asdict(case), "type": case.type.name, "found": found})
        print(case.kernel, case.type.name, case.rows, case.cols, case.active, "fallback", _brief(found[0]), flush=True)
        for best in timed[:3]:
            print("    ", _brief(best), flush=True)
    report = {**header("tools/tune_triton.py", argv), "device": torch.cuda.get_device_name(), "cases": results}
    text = json.dumps(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(text[:200])
    return 0


def _brief(found: dict[str, Any]) -> str:
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in found.items())


if __name__ == "__main__":
    sys.exit(main())
