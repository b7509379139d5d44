"""Times prompts and decoding of a loaded model, with the bytes a token needs. `powerinfer-bench` and tools stand on it.

Times are those of forwards, sampling apart, taken on the very path that generates text: `LLM.generate` and its stats.
Nothing here chooses models or options, and nothing is printed. Invariant: a test that claims n tokens ran n tokens; a
prefix that the cache knew, or a text that ended early, is an error and never a faster result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any

import numpy as np

from powerinfer_py.config import SamplingParams
from powerinfer_py.errors import OptionError
from powerinfer_py.generation.llm import LLM
from powerinfer_py.gguf import TensorInfo
from powerinfer_py.models.traffic import RowShares, TokenBytes, decode_bytes, prompt_bytes
from powerinfer_py.runtime.peak_memory import device_peak_bytes, host_peak_bytes

WARM_UP_TOKENS = 8


class Phase(StrEnum):
    """What is timed; the values are llama-bench's names."""

    PROMPT = "pp"
    DECODE = "tg"


@dataclass(frozen=True)
class BenchmarkTest:
    """`tokens` of a prompt, or as many decoded one by one, behind `depth` tokens that the cache holds already."""

    phase: Phase
    tokens: int
    depth: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.depth < 0:
            raise OptionError(f"a test runs 1 token or more at depth 0 or more, not {self.tokens} at {self.depth}")

    @property
    def name(self) -> str:
        """As llama-bench has it: pp512, tg128, tg128 @ d1024."""
        return f"{self.phase}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def context_length(self) -> int:
        """Tokens the context must hold: decoding begins behind one token at least, and samples one that never runs."""
        return self.tokens + (self.depth if self.phase is Phase.PROMPT else max(1, self.depth) + 1)


@dataclass(frozen=True)
class Measurement:
    """One test. seconds: of each repetition. bytes: a token's. gpu_share: of the neurons computed, those on the GPU.

    Shares are of neurons, counted over all repetitions; peaks in bytes, since `peak_memory.forget_peaks`.
    """

    test: BenchmarkTest
    seconds: tuple[float, ...]
    bytes: TokenBytes
    share_computed: float
    share_fired: float
    share_of_rows: float
    predictor_s_per_token: float
    gpu_share: float
    host_peak_bytes: int | None
    device_peak_bytes: int

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.test.tokens / seconds for seconds in self.seconds]

    @property
    def gb_per_s(self) -> float:
        """Bytes that the tokens needed over the median time, 10^9 a second."""
        return self.bytes.total * median(self.rates) / 1e9

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        rates = self.rates
        return {
            "test": self.test.name,
            "phase": str(self.test.phase),
            "tokens": self.test.tokens,
            "depth": self.test.depth,
            "tokens_per_s": {"median": median(rates), "min": min(rates), "max": max(rates)},
            "seconds": list(self.seconds),
            "bytes_per_token": {**self.bytes.to_dict(), "total": self.bytes.total},
            "gb_per_s": self.gb_per_s,
            "share_computed": self.share_computed,
            "share_fired": self.share_fired,
            "share_of_rows": self.share_of_rows,
            "predictor_s_per_token": self.predictor_s_per_token,
            "gpu_share": self.gpu_share,
            "cpu_share": 1.0 - self.gpu_share,
            "host_peak_bytes": self.host_peak_bytes,
            "device_peak_bytes": self.device_peak_bytes,
        }


def random_ids(n_vocab: int, n: int, seed: int) -> list[int]:
    """Ordinary tokens; the first ones of a vocabulary are often special."""
    ids: list[int] = np.random.default_rng(seed).integers(n_vocab // 4, n_vocab, n).tolist()
    return ids


def measure(
    llm: LLM,
    tensors: Mapping[str, TensorInfo],
    test: BenchmarkTest,
    *,
    repeats: int = 1,
    warm_up: bool = True,
    temperature: float = 0.8,
) -> Measurement:
    """Runs a test `repeats` times. tensors: those of the model's file. temperature: of the text that is decoded; 0 or
    less follows the most likely tokens, which in many models soon go round in circles.

    The model must be loaded for one sequence (`max_batch=1`) with room for `test.context_length` tokens, and its
    statistics are overwritten. Raises OptionError or ContextError where it is not.
    """
    if llm.kv_cache.n_slots != 1:
        raise OptionError("a benchmark times one sequence: load the model with max_batch=1")
    run = _run_prompt if test.phase is Phase.PROMPT else _run_decode
    context = _context(llm, test)
    if warm_up:
        shorter = min(test.tokens, WARM_UP_TOKENS)
        run(llm, context, test.tokens if test.phase is Phase.PROMPT else shorter, 0, temperature)
    llm.stats.clear()
    seconds = tuple(run(llm, context, test.tokens, 1 + number, temperature) for number in range(repeats))
    activity, figures = llm.engine.activity, llm.stats.to_dict()
    # Before its first decoded token each repetition of a decode runs the last one of its context, alone like the rest.
    n_run = repeats * (test.tokens + (test.phase is Phase.DECODE))
    return Measurement(
        test,
        seconds,
        _bytes(llm, tensors, test),
        activity.share_computed,
        activity.share_fired,
        activity.share_of_rows,
        activity.predictor_s / n_run,
        float(figures["gpu_share"]),
        host_peak_bytes(),
        device_peak_bytes(),
    )


def _context(llm: LLM, test: BenchmarkTest) -> list[int]:
    """The tokens before the test, put into the cache; decoding needs one at least to begin with."""
    n = test.depth if test.phase is Phase.PROMPT else max(1, test.depth)
    context = random_ids(llm.config.n_vocab, n, 0)
    if context:
        llm.generate([context], SamplingParams(max_tokens=0))
    return context


def _run_prompt(llm: LLM, context: list[int], n: int, seed: int, temperature: float) -> float:
    """Seconds of a prompt of n tokens behind the context."""
    llm.engine.cache.truncate(0, len(context))
    prompt = context + random_ids(llm.config.n_vocab, n, 1000 + seed)
    before, started = llm.stats.prompt_tokens, llm.stats.prompt_s
    llm.generate([prompt], SamplingParams(max_tokens=0, temperature=temperature))
    if llm.stats.prompt_tokens - before != n:
        raise AssertionError(f"{llm.stats.prompt_tokens - before} prompt tokens were computed, expected {n}")
    return llm.stats.prompt_s - started


def _run_decode(llm: LLM, context: list[int], n: int, seed: int, temperature: float) -> float:
    """Seconds of n tokens decoded behind the context, all of which but the last token the cache holds."""
    before, started = llm.stats.decode_tokens, llm.stats.decode_s
    params = SamplingParams(max_tokens=n + 1, temperature=temperature, seed=seed, ignore_eos=True)
    llm.generate([context], params)
    if llm.stats.decode_tokens - before != n:
        raise AssertionError(f"{llm.stats.decode_tokens - before} tokens were decoded, expected {n}")
    return llm.stats.decode_s - started


def _bytes(llm: LLM, tensors: Mapping[str, TensorInfo], test: BenchmarkTest) -> TokenBytes:
    predictors_run = llm.sparsity == "predictor"
    if test.phase is Phase.DECODE:
        # Token i of n attends to itself and to the depth + i before it.
        read = cache_position_bytes(llm) * (max(1, test.depth) + (test.tokens + 1) / 2)
        shares = RowShares.counted(llm.engine.activity)
        return decode_bytes(tensors, shares, predictors_run=predictors_run, cache_bytes=read)
    # A chunk reads the cache once, as far as it has grown by then.
    size = llm.options.batch_size
    ends = [min(start + size, test.tokens) for start in range(0, test.tokens, size)]
    read = cache_position_bytes(llm) * sum(test.depth + end for end in ends) / test.tokens
    return prompt_bytes(tensors, predictors_run=predictors_run, tokens=test.tokens, chunks=len(ends), cache_bytes=read)


def cache_position_bytes(llm: LLM) -> float:
    """Bytes of the keys and values of one token in all layers."""
    cache = llm.kv_cache
    return cache.n_bytes / (cache.n_slots * cache.n_ctx)
