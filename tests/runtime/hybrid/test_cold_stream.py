"""Prompts whose cold neurons are brought to the device in bands: the same logits, and the faster way by the rates."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_hybrid import CountedStandIn, bound_of, run_sequences, sequences_of, some_hot, split
from helpers_late_device import LateDevice, LateKernels, LateSum
from helpers_logits import TOKENS, nmse

from powerinfer_py import LLM
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.placement.sizes import band_bytes
from powerinfer_py.runtime.hybrid.bands import Band
from powerinfer_py.runtime.hybrid.cold_stream import ColdStream, prompt_is_streamed
from powerinfer_py.runtime.hybrid.device import PromptRates
from powerinfer_py.runtime.hybrid.neuron_order import neuron_order

ALWAYS = PromptRates(1e12, 1.0, 1e15)


def load(path: Path, sparsity: str, share: float | None, device: CountedStandIn | None = None) -> LLM:
    options: dict[str, Any] = {"threads": 2, "context_length": 32, "max_batch": 2, "sparsity": sparsity}
    if device is None:
        return LLM(path, **options)
    choose = lambda sizes, _fixed, _left: split(sizes.config, share or 0.0)  # noqa: E731
    llm = LLM(path, vram_budget=1.0, device=device, choose=choose, **options)
    assert llm.engine.hybrid is not None
    device.watch(llm.engine.hybrid.plan.ledger)
    return llm


def streaming(kernels: str = "native") -> CountedStandIn:
    device = CountedStandIn(kernels)
    device._prompt_rates = ALWAYS
    return device


@pytest.mark.parametrize("sparsity", ["predictor", "exact", "dense"])
@pytest.mark.parametrize("name", ["relu-llama", "bamboo.q4", "relu-falcon", "opt"])
def test_streamed_prompts_are_those_of_the_cpu(models: dict[str, Path], name: str, sparsity: str) -> None:
    with load(models[name], sparsity, None) as llm:
        expected = run_sequences(llm.engine, sequences_of(2))
    for share in (0.0, 0.3):
        with load(models[name], sparsity, share, streaming()) as llm:
            assert nmse(run_sequences(llm.engine, sequences_of(2)), expected) < bound_of(name, sparsity)


def test_prompts_are_then_computed_on_the_device_and_single_tokens_on_both(models: dict[str, Path]) -> None:
    with load(models["relu-llama"], "predictor", 0.3, streaming()) as llm:
        llm.logits(TOKENS)
        assert llm.engine.activity.share_on_device == 1.0
        llm.engine.activity.clear()
        llm.logits(TOKENS[:1])
        assert 0.05 < llm.engine.activity.share_on_device < 0.6
    with load(models["relu-llama"], "predictor", 0.3, CountedStandIn()) as llm:
        llm.logits(TOKENS)
        assert 0.05 < llm.engine.activity.share_on_device < 0.6


def test_counts_do_not_depend_on_the_way(models: dict[str, Path]) -> None:
    counts = []
    for device in (streaming(), CountedStandIn()):
        with load(models["relu-falcon"], "predictor", 0.3, device) as llm:
            llm.logits(TOKENS)
            activity = llm.engine.activity
            counts.append([activity.first.sum(), activity.down.sum(), activity.fired.sum(), activity.neurons.sum()])
    assert counts[0] == counts[1]


def test_bands_take_turns_in_two_buffers(models: dict[str, Path]) -> None:
    """Eight bands and more a layer of an eighth each; never more device memory than the two."""
    device = streaming()
    with load(models["relu-llama"], "exact", 0.1, device) as llm:
        assert llm.engine.hybrid is not None
        stream = llm.engine.hybrid.executor.step.cold_stream
        assert stream is not None
        assert stream.band == 128
        held = device.live_bytes
        llm.logits(TOKENS)
        assert device.live_bytes == held
        assert all(0 < place.used_bytes <= place.there.numel() == place.here.numel() for place in stream.places)


def sums_of_two_layers(stream: ColdStream, device: LateDevice | None) -> torch.Tensor:
    """The cold parts of two layers, one after the other, added to ones."""
    order = neuron_order(some_hot(1024, 0.1, 3), 1024)
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(5, stream.config.n_embd, generator=generator)
    mask = torch.rand(5, 1024, generator=generator) < 0.5
    sums = []
    for index in (0, 1):
        y = torch.ones(5, stream.config.n_embd)
        with stream.memory.into(stream.workspace):
            late: Any = y if device is None else LateSum(device, y)
            stream.add(index, order, h, mask, late, None)
        sums.append(y)
    if device is not None:
        device.finish()
    return torch.stack(sums)


@pytest.mark.parametrize("name", ["relu-llama", "relu-falcon.q4"])
@pytest.mark.parametrize("without", [None, "host", "side", "main"])
def test_each_wait_is_needed(models: dict[str, Path], name: str, without: str | None) -> None:
    """On a device that does everything as late as it may, the sums are right, and wrong where one wait is left out."""
    with load(models[name], "predictor", 0.1, streaming()) as llm:
        assert llm.engine.hybrid is not None
        stream = llm.engine.hybrid.executor.step.cold_stream
        assert stream is not None
        expected = sums_of_two_layers(stream, None)
        device: Any = LateDevice(without)
        kernels: Any = LateKernels(stream.kernels, device, stream.workspace)
        places = tuple(Band(place.there, place.here) for place in stream.places)
        for place in places:
            place.there.fill_(255)
            place.here.fill_(255)
        actual = sums_of_two_layers(replace(stream, device=device, kernels=kernels, places=places), device)
    assert torch.isfinite(expected).all()
    assert torch.equal(actual, expected) == (without is None)


def test_both_copies_of_a_band_are_accounted_for(models: dict[str, Path]) -> None:
    """The device's in the ledger, the host's in what is said of the host."""
    device = streaming()
    with load(models["relu-llama"], "exact", 0.1, device) as llm:
        assert llm.engine.hybrid is not None
        n_bytes = band_bytes(llm.engine.hybrid.plan.sizes)
        vram = llm.stats.vram
        assert vram["names"]["staging"]["used_bytes"] > 2 * n_bytes
        assert vram["host_buffer_bytes"] == device.host_bytes > 2 * n_bytes
        assert any("host memory locked" in line for line in llm.memory_table)
    with load(models["relu-llama"], "exact", 1.0, streaming()) as whole:
        assert 0 < whole.stats.vram["host_buffer_bytes"] <= vram["host_buffer_bytes"] - 2 * n_bytes
    del llm
    gc.collect()
    assert device.host_bytes == 0


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_bands_of_other_kernels(models: dict[str, Path], kernels: str) -> None:
    """A layer's cold part, band by band, is what the kernels compute of all rows at once, K-quants included."""
    if kernels == "triton":
        pytest.importorskip("triton")
    for name, sparsity, multiple in (("relu-falcon.q4", "exact", 1), ("silu", "dense", 32), ("silu.k", "dense", 256)):
        with load(models[name], sparsity, 0.0, streaming(kernels)) as llm:
            assert llm.engine.hybrid is not None
            stream = llm.engine.hybrid.executor.step.cold_stream
            assert stream is not None
            n_ff, n_embd = stream.config.n_ff, stream.config.n_embd
            order = neuron_order(np.zeros(0, np.int32), n_ff)
            h = torch.randn(3, n_embd, generator=torch.Generator().manual_seed(2))
            y = torch.zeros(3, n_embd)
            with stream.memory.into(stream.workspace):
                stream.add(0, order, h, None, y, torch.zeros(4, dtype=torch.int64))
            cold = llm.engine.hybrid.weights.layers[0].cold
            whole = llm.engine.kernels.feed_forward_part(cold, h, None).y
            assert stream.band % multiple == 0 < stream.band <= n_ff
            assert nmse(y.numpy(), whole.numpy()) < 1e-3


def test_a_projection_that_would_be_transposed_for_every_band_stays_with_the_cpu(models: dict[str, Path]) -> None:
    with load(models["opt.gguf"], "exact", 0.3, streaming()) as llm:
        llm.logits(TOKENS)
        assert llm.engine.activity.share_on_device < 1.0


def test_columns_are_streamed_between_quantisation_blocks(models: dict[str, Path]) -> None:
    with load(models["silu"], "dense", None) as llm:
        expected = llm.logits([1, 2, 3, 4])

    def halves(sizes: Any, _fixed: object, _left: int) -> Placement:
        n_ff = sizes.config.n_ff
        hot = np.arange(n_ff // 2 // 32 * 32, n_ff, dtype=np.int32)
        return Placement(tuple(LayerPlacement(True, hot) for _ in sizes.layers), head_on_gpu=True)

    with LLM(models["silu"], threads=1, vram_budget=1.0, context_length=32, device=streaming(), choose=halves) as llm:
        assert nmse(llm.logits([1, 2, 3, 4]), expected) < 5e-4
        assert llm.engine.activity.share_on_device == 1.0


def test_rates_are_measured_where_the_device_measures(models: dict[str, Path]) -> None:
    device = CountedStandIn()
    device._warms_up = True
    with load(models["bamboo"], "predictor", 0.3, device) as llm:
        assert llm.engine.hybrid is not None
        stream = llm.engine.hybrid.executor.step.cold_stream
        assert stream is not None
        rates = stream.rates
        assert min(rates.stream_bytes_per_s, rates.cpu_products_per_s, rates.device_products_per_s) > 1e5
        assert np.isfinite(llm.logits(TOKENS)).all()


def test_the_way_that_takes_less_time() -> None:
    """A 7B layer's cold 70 %: 94.7 million weights, 190 MB in F16."""
    n_weights, n_bytes = 94_700_000, 189_000_000
    rates = PromptRates(10e9, 0.25e12, 40e12)
    assert prompt_is_streamed(rates, 512, n_weights, n_bytes)  # 19 ms against 194
    assert not prompt_is_streamed(rates, 16, n_weights, n_bytes)  # 19 ms against 6
    slow_device = PromptRates(10e9, 0.25e12, 0.2e12)
    assert not prompt_is_streamed(slow_device, 512, n_weights, n_bytes)
    assert not prompt_is_streamed(PromptRates(0.0, 1.0, 1e12), 512, n_weights, n_bytes)
    assert not prompt_is_streamed(PromptRates(1e9, 1.0, 0.0), 512, n_weights, n_bytes)
    assert prompt_is_streamed(PromptRates(1e9, 0.0, 1e12), 1, n_weights, n_bytes)
