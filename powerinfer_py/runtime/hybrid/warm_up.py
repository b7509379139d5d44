"""Loading a device's kernels before its memory is shared out: one layer of the model run once at every shape.

Kernels are compiled and loaded when they first run, and stay on the device as modules. So the model's last layer, some
of its neurons, and the head run a whole prompt chunk and single tokens, on memory that is given back afterwards; what
the process then still holds is what its context takes.
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
from powerinfer_py.placement.budget import Ledger
from powerinfer_py.placement.fixed_bytes import fixed_bytes
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.placement.sizes import ModelSizes
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device import Device
from powerinfer_py.runtime.hybrid.model import HybridModel, HybridPlan
from powerinfer_py.runtime.kv_cache import KVCache

# Enough for every kernel of hot neurons to run; more would only take memory.
_HOT_NEURONS = 1024


def warm_up(
    device: Device,
    sizes: ModelSizes,
    architecture: Architecture,
    sparsity: Sparsity,
    options: RuntimeOptions,
    file: GGUFFile,
    host_kernels: Kernels,
    rope: RopeTable | None,
) -> None:
    """Runs the last layer and the head over `options.batch_size` tokens, and over one for each sequence."""
    config = sizes.config
    n_tokens = max(options.batch_size, sizes.n_slots)
    layers = range(config.n_layer - 1, config.n_layer)
    plan = HybridPlan(device, sizes, Ledger(1 << 60), fixed_bytes(sizes, n_tokens), _placement(sizes), n_tokens)
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
        for n in sorted({1, sizes.n_slots, min(n_tokens, sizes.n_ctx)}, reverse=True):
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


def _placement(sizes: ModelSizes) -> Placement:
    """The last layer on the device with some of its neurons, and the head."""
    config, multiple = sizes.config, sizes.layers[-1].neuron_multiple
    n_hot = min(_HOT_NEURONS, config.n_ff // 2) // multiple * multiple or config.n_ff
    none = np.zeros(0, np.int32)
    elsewhere = tuple(LayerPlacement(False, none) for _ in range(config.n_layer - 1))
    return Placement((*elsewhere, LayerPlacement(True, np.arange(n_hot, dtype=np.int32))), head_on_gpu=True)
