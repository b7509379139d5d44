"""Loading a device's kernels before its memory is shared out: one layer of the model run once at every shape.

Kernels are compiled and loaded when they first run, and stay on the device as modules. So the model's last layer, some
of its neurons, and the head run a whole prompt chunk and single tokens, on memory that is given back afterwards; what
the process then still holds is what its context takes. The budget holds meanwhile too: what does not fit is left out.
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
from powerinfer_py.runtime.hybrid.device import Device, Held
from powerinfer_py.runtime.hybrid.model import HybridModel, make_plan
from powerinfer_py.runtime.kv_cache import KVCache

# A split as most are: enough neurons for the kernels of many, and neither they nor their programs and chunks are a
# multiple of 16, for which Triton compiles kernels of their own. More would only take memory.
_HOT_NEURONS = 2100
# Kernels of prompts come in tiles of 16, 32 and 64 tokens.
_SHORT_PROMPTS = (16, 32)


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
    """Runs the last layer and the head over a prompt chunk, and over a token for each sequence.

    held: what the process holds on the device before. Raises BudgetError as `make_plan` does.
    """
    config = sizes.config
    layers = range(config.n_layer - 1, config.n_layer)
    plan = make_plan(sizes, options, device, held.n_bytes, _placement, held.growth_bytes)
    source = FileWeights(file, host_kernels, replace(options, repack=False))
    model = HybridModel(plan, architecture, config, sparsity, layers, source, source, host_kernels)
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
    try:
        n_tokens = min(model.n_tokens, sizes.n_ctx)
        counts = {min(n, n_tokens) for n in (1, sizes.n_slots, *_SHORT_PROMPTS, n_tokens)}
        for n in sorted(counts, reverse=True):
            _run(model, cache, host_kernels, rope, n)
    finally:
        model.close()


def _run(model: HybridModel, cache: KVCache, host_kernels: Kernels, rope: RopeTable | None, n_tokens: int) -> None:
    """A token of each of `n_tokens` sequences, or so many of one where there are not that many sequences."""
    import torch

    numbers, zeros = torch.arange(n_tokens), torch.zeros(n_tokens, dtype=torch.int64)
    places = (zeros, numbers) if n_tokens <= cache.n_slots else (numbers, zeros)
    batch = ForwardBatch(zeros, *places)
    hidden = torch.ones(n_tokens, model.plan.sizes.config.n_embd)
    model.forward(host_kernels, hidden, Step(batch, cache.layers, rope, Activity(1)))


def _placement(sizes: ModelSizes, fixed: FixedBytes, left: int) -> Placement:
    """The last layer on the device with some of its neurons, and the head, as far as they fit into `left` bytes."""
    config, layer = sizes.config, sizes.layers[-1]
    none = np.zeros(0, np.int32)
    n_hot = min(_HOT_NEURONS, config.n_ff // 2) // layer.neuron_multiple * layer.neuron_multiple or config.n_ff
    block_bytes = layer.block_bytes + fixed.staging
    while n_hot and block_bytes + layer.hot_bytes(n_hot) > left:
        n_hot = n_hot // 2 // layer.neuron_multiple * layer.neuron_multiple
    block_on_gpu = block_bytes <= left
    if block_on_gpu:
        left -= block_bytes + layer.hot_bytes(n_hot)
    hot = np.arange(n_hot, dtype=np.int32) if block_on_gpu else none
    elsewhere = (LayerPlacement(False, none),) * (config.n_layer - 1)
    head_on_gpu = sizes.head_bytes + fixed.head_extra <= left
    return Placement((*elsewhere, LayerPlacement(block_on_gpu, hot)), head_on_gpu=head_on_gpu)
