"""Loading a device's kernels before its memory is shared out: layers of the model run once in every way there is.

Kernels are compiled and loaded when they first run, and stay on the device as modules. So one layer of each kind that
the model has, with many of its neurons and with few, and the head run whole prompt chunks, short ones and single
tokens, the cold neurons on either side, on memory that is given back afterwards; what the process then still holds is
what its context takes. The budget holds meanwhile too: what does not fit is left out. What a step can launch is
launched here: a test compares the two. Two things are compiled when they are first used: what an observer sees, and
products with a down projection in the order of a dense file, once for every number of hot neurons.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from powerinfer_py.config import RuntimeOptions, Sparsity
from powerinfer_py.gguf import GGUFFile
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.models.activity import Activity
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.models.transformer import Step
from powerinfer_py.placement.fixed_bytes import FixedBytes
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.placement.sizes import ModelSizes
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device import Device, Held, PromptRates
from powerinfer_py.runtime.hybrid.layer_kinds import layer_kinds
from powerinfer_py.runtime.hybrid.model import Chooser, HybridModel, make_plan
from powerinfer_py.runtime.kv_cache import KVCache

# Few enough to be brought over at once: no kernel is compiled for a number of them.
_HOT_NEURONS = 1024
# Rates by which the cold part of a prompt is computed on the CPU, and on the device.
_PROMPT_RATES = (PromptRates(0.0, 1.0, 0.0), PromptRates(1e30, 1.0, 1e30))
# Up to 4 tokens are computed as single ones are; kernels of prompts are configured for each of the other numbers.
_SHORT_PROMPTS = (4, 16, 32, 64, 128, 256, 512)


def warm_up(
    device: Device,
    held: Held,
    sizes: ModelSizes,
    architecture: Architecture,
    sparsity: Sparsity,
    options: RuntimeOptions,
    file: GGUFFile,
    host_kernels: Kernels,
    rope: RopeTable | None,
) -> None:
    """Runs a layer of each kind and the head over prompt chunks, and over a token for each sequence.

    held: what the process holds on the device before. Raises BudgetError as `make_plan` does.
    """
    source = FileWeights(file, host_kernels, replace(options, repack=False))
    for index in _layers_of_each_kind(file, sizes.config.n_layer):
        # A head of a type that becomes F16 takes seconds to bring over: once, with the last layer.
        choose = _chooser(index, head=index == sizes.config.n_layer - 1)
        plan = make_plan(sizes, options, device, held.n_bytes, choose, held.growth_bytes)
        layers = range(index, index + 1)
        model = HybridModel(plan, architecture, sizes.config, sparsity, layers, source, source, host_kernels)
        try:
            _run_all(model, sizes, options, host_kernels, rope)
        finally:
            model.close()
        # Before the next one takes its memory.
        del model


def _layers_of_each_kind(file: GGUFFile, n_layer: int) -> list[int]:
    """Layers of which no two do the same work; of each kind the last, the last one last."""
    return sorted({kind: index for index, kind in enumerate(layer_kinds(file, n_layer))}.values())


def _run_all(
    model: HybridModel, sizes: ModelSizes, options: RuntimeOptions, host_kernels: Kernels, rope: RopeTable | None
) -> None:
    config = sizes.config
    cache = KVCache(
        1,
        sizes.n_slots,
        config.n_head_kv,
        sizes.n_ctx,
        config.head_dim,
        config.head_dim_v,
        options.cache_type_k,
        options.cache_type_v,
        model.kv_regions,
    )
    model.connect(cache.layers, rope)
    n_tokens = min(model.n_tokens, sizes.n_ctx)
    counts = {min(n, n_tokens) for n in (1, sizes.n_slots, *_SHORT_PROMPTS, n_tokens)}
    for rates in _PROMPT_RATES:
        model.use_prompt_rates(rates)
        for n in sorted(counts, reverse=True):
            _run(model, cache, host_kernels, rope, n)


def _run(model: HybridModel, cache: KVCache, host_kernels: Kernels, rope: RopeTable | None, n_tokens: int) -> None:
    """A token of each of `n_tokens` sequences, or so many of one where there are not that many sequences."""
    import torch

    numbers, zeros = torch.arange(n_tokens), torch.zeros(n_tokens, dtype=torch.int64)
    places = (zeros, numbers) if n_tokens <= cache.n_slots else (numbers, zeros)
    # Of a prompt the CPU, where the head is there, is not asked for more than it ever is.
    of_last = n_tokens > cache.n_slots and not model.plan.placement.head_on_gpu
    batch = ForwardBatch(zeros, *places, numbers[-1:] if of_last else None)
    hidden = torch.ones(n_tokens, model.plan.sizes.config.n_embd)
    model.forward(host_kernels, hidden, Step(batch, cache.layers, rope, Activity(1)))


def _chooser(index: int, head: bool) -> Chooser:
    """Layer `index` on the device with at most so many of its neurons, and the head if wanted, as far as they fit."""

    def choose(sizes: ModelSizes, fixed: FixedBytes, left: int) -> Placement:
        config, layer = sizes.config, sizes.layers[index]
        multiple = layer.neuron_multiple
        n_hot = min(_HOT_NEURONS, config.n_ff // 2) // multiple * multiple or config.n_ff
        block_bytes = layer.block_bytes + fixed.staging
        while n_hot and block_bytes + layer.hot_bytes(n_hot) > left:
            n_hot = n_hot // 2 // multiple * multiple
        block_on_gpu = block_bytes <= left
        if block_on_gpu:
            left -= block_bytes + layer.hot_bytes(n_hot)
        elsewhere = LayerPlacement(False, np.zeros(0, np.int32))
        layers = [elsewhere] * config.n_layer
        if block_on_gpu:
            layers[index] = LayerPlacement(True, np.arange(n_hot, dtype=np.int32))
        return Placement(tuple(layers), head_on_gpu=head and sizes.head_bytes + fixed.head_extra <= left)

    return choose
