"""The executor on a GPU: the logits of the CPU alone however a model is split, and not a byte beyond the budget.

What a split, a captured step and a prompt's stream must give is defined by the tests with the stand-in; these hold a
real device to it.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_hybrid import CAPTURED, bound_of, run_sequences, sequences_of, split
from helpers_logits import TOKENS, nmse

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.config import RuntimeOptions
from powerinfer_py.errors import DeviceError
from powerinfer_py.placement.budget import GIB
from powerinfer_py.placement.fixed_bytes import FixedBytes
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.sizes import ModelSizes
from powerinfer_py.runtime.devices import find_device
from powerinfer_py.runtime.hybrid.cuda_device import CudaDevice
from powerinfer_py.runtime.hybrid.cuda_driver import CudaDriver, Monitor
from powerinfer_py.runtime.hybrid.device import Arrangement, PromptRates
from powerinfer_py.runtime.hybrid.model import Chooser

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # A model's kernels are compiled at its first start on a machine.
    pytest.mark.timeout(600),
]

CASES = [
    ("relu-llama", "predictor"),
    ("relu-llama.q4", "predictor"),
    ("bamboo.q4", "exact"),
    ("relu-falcon", "predictor"),
    ("relu-falcon.q4", "dense"),
    ("opt", "predictor"),
    ("opt", "exact"),
    ("arcee", "dense"),
]
# By these prompts' cold neurons are computed on the device, and on the CPU.
ALWAYS, NEVER = PromptRates(1e30, 1.0, 1e30), PromptRates(0.0, 1.0, 0.0)
N_SEQUENCES = 3
BUDGET = 4.0


def loaded(path: Path, sparsity: str = "auto", **options: Any) -> LLM:
    return LLM(path, sparsity=sparsity, threads=2, **{"max_batch": N_SEQUENCES, "context_length": 32, **options})


def choosing(share: float, **how: Any) -> Chooser:
    def choose(sizes: ModelSizes, _fixed: FixedBytes, _left: int) -> Placement:
        return split(sizes.config, share, **how)

    return choose


def on_gpu(path: Path, sparsity: str, share: float, arrangement: Arrangement, **options: Any) -> LLM:
    how = {name: options.pop(name) for name in ("blocks", "head") if name in options}
    device = CudaDevice(0, arrangement)
    return loaded(path, sparsity, vram_budget=BUDGET, device=device, choose=choosing(share, **how), **options)


def logits_of(llm: LLM, n_sequences: int = N_SEQUENCES, n_single: int = 4) -> np.ndarray:
    with llm:
        return run_sequences(llm.engine, sequences_of(n_sequences, llm.config.n_vocab), n_single)


def process_bytes() -> int:
    """What the driver says this process holds."""
    driver = CudaDriver()
    monitor = Monitor(driver.bus_id(0))
    n_bytes = monitor.process_bytes()
    if n_bytes is None:
        pytest.skip("the driver does not say what a process holds")
    return n_bytes


@pytest.mark.parametrize(("name", "sparsity"), CASES)
def test_every_share_of_neurons(models: dict[str, Path], name: str, sparsity: str) -> None:
    expected = logits_of(loaded(models[name], sparsity))
    for share in (0.0, 0.4, 1.0):
        actual = logits_of(on_gpu(models[name], sparsity, share, Arrangement.EAGER))
        assert nmse(actual, expected) < bound_of(name, sparsity)


@pytest.mark.parametrize("arrangement", CAPTURED)
@pytest.mark.parametrize("name", ["relu-llama", "bamboo.q4", "relu-falcon", "opt"])
def test_captured_steps_are_the_eager_ones(models: dict[str, Path], name: str, arrangement: Arrangement) -> None:
    for share in (0.0, 0.4, 1.0):
        expected = logits_of(on_gpu(models[name], "auto", share, Arrangement.EAGER))
        llm = on_gpu(models[name], "auto", share, arrangement)
        actual = logits_of(llm)
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize("arrangement", list(Arrangement))
def test_blocks_on_either_side(models: dict[str, Path], arrangement: Arrangement) -> None:
    expected = logits_of(loaded(models["relu-llama"]))
    for head in (False, True):
        blocks = [i % 5 != 3 for i in range(12)]
        actual = logits_of(on_gpu(models["relu-llama"], "auto", 0.3, arrangement, blocks=blocks, head=head))
        assert nmse(actual, expected) < bound_of("relu-llama", "predictor")


@pytest.mark.parametrize("n_sequences", [1, 2, 7])
def test_sequences_together(models: dict[str, Path], n_sequences: int) -> None:
    name = "relu-llama.q4"
    expected = logits_of(loaded(models[name], max_batch=7), n_sequences)
    actual = logits_of(on_gpu(models[name], "auto", 0.4, Arrangement.TWO_NODES, max_batch=7), n_sequences)
    assert nmse(actual, expected) < bound_of(name, "predictor")


@pytest.mark.parametrize("name", ["relu-llama", "bamboo.q4", "relu-falcon"])
def test_prompts_with_cold_neurons_on_either_side(models: dict[str, Path], name: str) -> None:
    prompt = (TOKENS * 8)[:200]
    with loaded(models[name], context_length=256) as llm:
        expected = llm.logits([token % llm.config.n_vocab for token in prompt])
    with on_gpu(models[name], "auto", 0.4, Arrangement.TWO_NODES, context_length=256) as llm:
        assert llm.engine.hybrid is not None
        for rates in (NEVER, ALWAYS):
            llm.engine.hybrid.use_prompt_rates(rates)
            actual = llm.logits([token % llm.config.n_vocab for token in prompt])
            assert nmse(actual, expected) < bound_of(name, "predictor")


def test_the_cache_may_hold_blocks(models: dict[str, Path]) -> None:
    types = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    expected = logits_of(loaded(models["bamboo"], "dense", **types))
    actual = logits_of(on_gpu(models["bamboo"], "dense", 0.5, Arrangement.TWO_NODES, **types))
    assert nmse(actual, expected) < 1e-6


def test_steps_repeat_bit_for_bit(models: dict[str, Path]) -> None:
    """Both sides at once, many times: no sum depends on which was faster."""
    with on_gpu(models["relu-llama.q4"], "auto", 0.4, Arrangement.TWO_NODES) as llm:
        sequences = sequences_of(1)
        expected = run_sequences(llm.engine, sequences, n_single=8)
        for _ in range(30):
            assert np.array_equal(run_sequences(llm.engine, sequences, n_single=8), expected)


def test_observers_see_the_neurons_of_the_file(models: dict[str, Path]) -> None:
    seen: list[dict[int, torch.Tensor]] = []
    for llm in (loaded(models["relu-llama"]), on_gpu(models["relu-llama"], "auto", 0.4, Arrangement.TWO_NODES)):
        fired_by_layer: dict[int, torch.Tensor] = {}

        def observe(layer: int, _x: object, _predicted: object, fired: torch.Tensor, found=fired_by_layer) -> None:  # type: ignore[no-untyped-def]
            found[layer] = fired.clone()

        with llm:
            llm.logits(TOKENS, observer=observe)
        seen.append(fired_by_layer)
    for layer, expected in seen[0].items():
        assert (seen[1][layer] ^ expected).sum() <= 0.002 * expected.numel()


@pytest.mark.parametrize("arrangement", list(Arrangement))
def test_the_driver_counts_no_more_than_the_budget(models: dict[str, Path], arrangement: Arrangement) -> None:
    """With prompts and single tokens of several sequences; afterwards only the context stays."""
    before = process_bytes()
    for budget in (1.0, 1.5):
        device = CudaDevice(0, arrangement)
        llm = loaded(
            models["relu-llama"], vram_budget=budget, device=device, context_length=256, disable_gpu_index=True
        )
        with llm:
            llm.generate([TOKENS, TOKENS[:5], TOKENS[:9]], SamplingParams(max_tokens=20, temperature=0.0))
            assert process_bytes() <= budget * GIB
            vram = llm.stats.vram
            assert vram["used_bytes"] <= vram["reserved_bytes"] <= vram["budget_bytes"]
        del llm, device
        gc.collect()
        torch.cuda.empty_cache()
    assert process_bytes() <= max(before, 0) + GIB


def test_more_memory_than_there_is_is_one_clear_line() -> None:
    device = CudaDevice(0, Arrangement.EAGER)
    with pytest.raises(DeviceError, match="could not be had"):
        device.open(2 * device.memory().total_bytes)


def test_a_budget_finds_the_gpu(models: dict[str, Path]) -> None:
    device, notices = find_device(RuntimeOptions(vram_budget=1.0))
    assert isinstance(device, CudaDevice)
    assert not notices
    with loaded(models["bamboo"], vram_budget=BUDGET) as llm:
        text = llm.generate([TOKENS[:6]], SamplingParams(max_tokens=8, temperature=0.0))[0]
        assert len(text.token_ids) == 8
        assert llm.engine.activity.share_on_device == 1.0
