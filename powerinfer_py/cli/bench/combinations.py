"""Which combinations of options a benchmark runs, in which order. It loads and times nothing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from typing import Any

from powerinfer_py.config import RuntimeOptions
from powerinfer_py.errors import ModelError, UnsupportedError, printable
from powerinfer_py.generation.benchmark import BenchmarkTest, Phase
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.runtime.modes import resolve_sparsity


@dataclass(frozen=True)
class Combination:
    """What a model is loaded with. sparsity: resolved, never `auto`. size_bytes: of the model's tensors."""

    model: str
    name: str
    size_bytes: int
    sparsity: str
    threads: int
    batch_size: int
    cache_type_k: str
    cache_type_v: str
    vram_budget: float | None
    gpu_index: str | None

    def llm_options(self, context_length: int) -> dict[str, Any]:
        """Keyword arguments of `LLM` but the model."""
        return {
            "sparsity": self.sparsity,
            "threads": self.threads,
            "batch_size": self.batch_size,
            "cache_type_k": self.cache_type_k,
            "cache_type_v": self.cache_type_v,
            "vram_budget": self.vram_budget,
            "gpu_index": self.gpu_index,
            "context_length": context_length,
            "max_batch": 1,
        }


def combinations(arguments: argparse.Namespace, default_threads: int) -> list[Combination]:
    """All of them, models outermost. Reads the header of each model and refuses a mode that it cannot run in, so that
    this is said before an hour of measuring and not after it.

    Raises FileFormatError, ModelError and UnsupportedError for the files, OptionError for the modes.
    """
    result = []
    for model in arguments.model:
        name, size_bytes, modes = _describe(model, arguments.sparsity or ["auto"])
        for budget, sparsity, threads, batch, type_k, type_v in product(
            arguments.vram_budget or [None],
            modes,
            arguments.threads or [default_threads],
            arguments.batch_size or [512],
            arguments.cache_type_k or ["f16"],
            arguments.cache_type_v or ["f16"],
        ):
            index = arguments.gpu_index
            result.append(Combination(model, name, size_bytes, sparsity, threads, batch, type_k, type_v, budget, index))
    return result


def wanted_tests(arguments: argparse.Namespace) -> list[BenchmarkTest]:
    """The tests of each combination: at every depth the prompts, then the decodes."""
    wanted = (
        (Phase.PROMPT, arguments.n_prompt or [512]),
        (Phase.DECODE, arguments.n_gen or [128]),
    )
    return [
        BenchmarkTest(phase, tokens, depth)
        for depth in arguments.depth or [0]
        for phase, counts in wanted
        for tokens in counts
        if tokens
    ]


def _describe(model: str, sparsity: list[str]) -> tuple[str, int, list[str]]:
    """Name and bytes of a model, and the modes with `auto` resolved."""
    with open_gguf(model) as file:
        try:
            config = read_config(file, RuntimeOptions())
            modes = [str(resolve_sparsity(RuntimeOptions(sparsity=mode).sparsity, config)) for mode in sparsity]  # type: ignore[arg-type]  # RuntimeOptions turns the name into a Sparsity
        except (ModelError, UnsupportedError) as error:
            raise type(error)(f"{printable(model)}: {error}") from None
        return config.name, sum(info.n_bytes for info in file.tensors.values()), modes
