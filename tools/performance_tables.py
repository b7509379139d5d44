"""The tables and sentences of documents as result files have them; nothing is measured here.

A renderer takes the results named in a document, each with its label, and returns lines of Markdown. It raises
KeyError, TypeError, ValueError or AttributeError for a file of another kind.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

NAMES = {"llama.cpp dense": "llama.cpp, dense", "transformers": "transformers, dense"}
Results = Sequence[tuple[str, dict[str, Any]]]


def engine_name(name: str) -> str:
    """As documents call an engine of a result file."""
    return f"this package, `{name.removeprefix('ours ')}`" if name.startswith("ours ") else NAMES.get(name, name)


def speeds(results: Results) -> list[str]:
    """A row for each engine of each file."""
    lines = [
        "| weights | engine | decode, tokens/s | prompt, tokens/s | MB a token | GB/s | of the bandwidth | neurons |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, result in results:
        for name, row in result["summary"].items():
            if name == "read bandwidth":
                continue
            rates = (row.get(f"{what}_tokens_per_s", {}).get("median") for what in ("decode", "prompt"))
            cells = [label, engine_name(name), *(_number(rate) for rate in rates)]
            if "bytes_per_token" in row:
                cells += [
                    f"{sum(row['bytes_per_token'].values()) / 1e6:.0f}",
                    f"{row['gb_per_s']['median']:.1f}",
                    f"{row['share_of_bandwidth']:.0%}",
                    f"{row['share_computed']:.1%}",
                ]
            lines.append(f"| {' | '.join([*cells, *[''] * (8 - len(cells))])} |")
    return lines


def ratios(results: Results) -> list[str]:
    """A row for each pair of engines: median, lowest and highest over the rounds."""
    lines = ["| ratio, median (lowest to highest) | decode | prompt |", "|---|---:|---:|"]
    for label, result in results:
        pairs: dict[tuple[str, str], dict[str, str]] = {}
        for ratio in result["ratios"]:
            text = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            pairs.setdefault((ratio["ours"], ratio["peer"]), {})[ratio["what"]] = text
        for (ours, peer), texts in pairs.items():
            who = f"{label}: {engine_name(ours)}, against {engine_name(peer)}"
            lines.append(f"| {who} | {texts.get('decode', '')} | {texts.get('prompt', '')} |")
    return lines


def rows(results: Results) -> list[str]:
    """The rows of powerinfer-bench, the columns that tell them apart and what was measured."""
    lines = [
        "| weights | mode | threads | test | tokens/s | range | MB a token | GB/s | probe | neurons | host peak |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for label, result in results:
        for row in result["rows"]:
            rate = row["tokens_per_s"]
            cells = [
                label,
                f"`{row['sparsity']}`",
                str(row["threads"]),
                row["test"],
                _number(rate["median"]),
                f"{_number(rate['min'])} to {_number(rate['max'])}",
                _number(row["bytes_per_token"]["total"] / 1e6),
                f"{row['gb_per_s']:.1f}",
                f"{row['read_bandwidth_gb_per_s']:.1f}",
                f"{row['share_computed']:.1%}",
                f"{row['host_peak_bytes'] / 2**20:.0f} MiB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def reading(results: Results) -> list[str]:
    """GB/s of rows by weight type, threads and share: what measure_row_reading.py found."""
    lines = []
    for _, result in results:
        shares = list(dict.fromkeys(row["share"] for row in result["rows"]))
        names = [f"{share:.0%}" if share < 1 else "all rows" for share in shares]
        if not lines:
            lines = [f"| weights | threads | {' | '.join(names)} | bare read |", f"|---|{'---:|' * (len(names) + 2)}"]
        bare = {probe["threads"]: probe["gb_per_s"]["median"] for probe in result["bare_reads"]}
        for name, threads in dict.fromkeys((row["type"], row["threads"]) for row in result["rows"]):
            rates = [
                f"{row['gb_per_s']['median']:.1f}"
                for row in result["rows"]
                if (row["type"], row["threads"]) == (name, threads)
            ]
            lines.append(f"| {name} | {threads} | {' | '.join(rates)} | {bare[threads]:.1f} |")
    return lines


def caches(results: Results) -> list[str]:
    """Tokens a second and bytes of each type of KV cache at each depth: what compare_cache_types.py found."""
    lines = ["| model | depth | KV cache | decode, tokens/s | range | MB of cache |", "|---|---:|---|---:|---:|---:|"]
    for label, result in results:
        for row in result["rows"]:
            rate = row["tokens_per_s"]
            cells = [label, f"{row['depth']:,}", f"`{row['type']}`", _number(rate["median"])]
            cells += [f"{_number(rate['min'])} to {_number(rate['max'])}", f"{row['cache_bytes'] / 1e6:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def turns(results: Results) -> list[str]:
    """The decode rate of powerinfer-bench over that of powerinfer-run: what compare_bench_and_run.py found."""
    lines = ["| model | rounds | tokens a round | bench / run, median (lowest to highest) |", "|---|---:|---:|---:|"]
    for label, result in results:
        ratio = result["bench_against_run"]
        cells = [label, str(result["rounds"]), str(result["tokens"])]
        cells.append(f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def step(results: Results) -> list[str]:
    """Where the time of a decoded token goes: what plot_decode_step.py found."""
    lines = []
    for _, result in results:
        run = result["runs"]["as it runs"]
        native = sum(part["native_ms"] for part in run["parts"])
        sampling = sum(part["python_ms"] for part in run["parts"] if part["part"] == "sampling")
        python = sum(part["python_ms"] for part in run["parts"]) - sampling
        lines += _wrapped(
            f"Of {run['ms_per_token']:.1f} ms, {native:.1f} are native code; Python takes {python:.1f} ms around and "
            f"between the calls, sampling {sampling:.1f}."
        )
    return lines


def cost(results: Results) -> list[str]:
    """The line through the times of plot_sparse_cost.py, and all rows through a mask against dense."""
    return [
        f"A straight line fits with an R² of {result['line']['r_squared']:.4f}, and all rows through a mask take "
        f"{result['all_rows_against_dense']:.2f} times the dense time."
        for _, result in results
    ]


def start(results: Results) -> list[str]:
    """Seconds of each start and resident memory: what measure_start.py found."""
    lines = []
    for _, result in results:
        middle, starts = result["median"], [f"{row['start_to_first_token_s']:.2f}" for row in result["starts"]]
        lines += _wrapped(
            f"Imports take {middle['imports_s']:.1f} s; from there to the first token the starts took "
            f"{', '.join(starts)} s, {middle['start_to_first_token_s']:.2f} in the median, of which the first token "
            f"itself is {middle['first_token_s']:.2f}. Resident are {middle['resident_bytes'] / 1e9:.2f} GB, "
            f"{result['resident_against_file']:.2f} times the file."
        )
    return lines


def solver(results: Results) -> list[str]:
    """Seconds and gaps of each kind of problem over its budgets: what measure_solver.py found."""
    lines = [
        "| mode | frequencies | blocks and head | seconds, lowest to highest | largest gap |",
        "|---|---|---|---:|---:|",
    ]
    for _, result in results:
        kinds: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
        for row in result["rows"]:
            kinds.setdefault((row["mode"], row["frequencies"], row["given"]), []).append(row)
        for (mode, frequencies, given), rows in kinds.items():
            seconds = [value for row in rows for value in row["seconds"]]
            cells = [f"`{mode}`", frequencies, "given" if given else "of the budget"]
            cells += [f"{min(seconds):.2f} to {max(seconds):.2f}", f"{max(row['gap'] for row in rows):.3%}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def captured(results: Results) -> list[str]:
    """What splits of the fixture capture: what measure_solver.py found."""
    lines = []
    for _, result in results:
        share = result["captured"]
        lines += _wrapped(
            "For 3/8 of the neurons of a test model with 12 layers the original's file captures "
            f"{share['PowerInfer']:.1%} of the activations, this one {share['generate_gpuidx']:.1%}, and single "
            f"neurons (`powerinfer-gpuidx --method frequency`) {share['frequency']:.1%}, of {share['most']:.1%} that "
            "so many neurons could."
        )
    return lines


def origins(results: Results) -> list[str]:
    """Where each file's figures come from. Files of before a header was written know less."""
    lines = ["| file | date | commit | CPU | kernels | torch |", "|---|---|---|---|---|---|"]
    for label, result in results:
        machine = result.get("machine", {})
        processor = machine.get("cpu") or machine.get("processor", {}).get("model", "")
        cpu = ", ".join(filter(None, [processor, machine.get("cpu_signature")]))
        torch = (result.get("versions") or machine.get("versions") or {}).get("torch", "")
        cells = [label, result.get("date", "")[:10], result.get("commit", ""), cpu, _instruction_set(result), torch]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _instruction_set(result: dict[str, Any]) -> str:
    """What the kernels of this package ran on, where a result says so."""
    kernels = result.get("kernels") or result.get("machine", {}).get("kernels") or {}
    samples = result.get("samples", {})
    ours = [row for name, rows in samples.items() if name.startswith("ours") for row in rows]
    sets = result.get("machine", {}).get("instruction_sets") or [""]
    return str(result.get("isa") or kernels.get("running") or (ours[0].get("isa") if ours else None) or sets[-1])


def longer(results: Results) -> list[str]:
    """The last run of each target of record_long_runs.py."""
    lines = ["| command | what | last run |", "|---|---|---|"]
    for _, result in results:
        fuzz, soak, mutants = (result["runs"][target] for target in ("fuzz", "soak", "mutants"))
        rows = [
            (
                "fuzz",
                "atheris on the reader, the tokenizer and the gpuidx loader, 60 s each; the native kernels on random "
                "shapes, index lists and alignments under AddressSanitizer and UndefinedBehaviorSanitizer, 60 s",
                f"{fuzz['inputs']:,} inputs of the readers, and the kernels: no find",
                fuzz,
            ),
            (
                "soak",
                "50 kills of each of five tools; a thousand decode runs at each of 1 to 8 threads",
                f"{soak['passed']} tests in {soak['elapsed_s']:.0f} s, no failure",
                soak,
            ),
            (
                "mutants",
                "disables each check of the reader, the gpuidx loader and the budget",
                f"{mutants['disabled']} checks disabled, {mutants['unnoticed']} unnoticed",
                mutants,
            ),
        ]
        lines += [f"| `make {name}` | {what} | {found} ({run['date'][:10]}) |" for name, what, found, run in rows]
    return lines


def gpu(results: Results) -> list[str]:
    """A row for each case of measure_gpu.py."""
    lines = [
        "| weights | case | mode | step | CPU threads | decode, tokens/s | predicted | of the bandwidth "
        "| prompt, tokens/s "
        "| activations on the GPU | budget, GiB | held, GiB |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for label, result in results:
        for case in result["cases"]:
            decode, captured = case.get("decode") or {}, case.get("captured")
            cells = [
                case.get("weights", label),
                case["case"],
                f"`{case['sparsity']}`",
                case.get("arrangement", ""),
                str(case.get("threads", "")),
                _number(decode["tokens_per_s"]["median"]) if decode else "",
                _number(case.get("expected_tokens_per_s")),
                f"{decode['share_of_bandwidth']:.0%}" if "share_of_bandwidth" in decode else "",
                _number(case["prompt"]["tokens_per_s"]["median"]) if "prompt" in case else "",
                "" if captured is None else f"{captured:.0%}",
                *(
                    f"{case[name] / 2**30:.2f}" if name in case else ""
                    for name in ("budget_bytes", "driver_peak_bytes")
                ),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


RENDERERS: dict[str, Callable[[Results], list[str]]] = {
    "speeds": speeds,
    "ratios": ratios,
    "rows": rows,
    "reading": reading,
    "caches": caches,
    "turns": turns,
    "step": step,
    "cost": cost,
    "start": start,
    "longer": longer,
    "solver": solver,
    "captured": captured,
    "origins": origins,
    "gpu": gpu,
}


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_on_hyphens=False)


def _number(rate: float | None) -> str:
    """Three digits, or as many as stand before the point."""
    if rate is None:
        return ""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"
