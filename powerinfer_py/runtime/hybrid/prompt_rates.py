"""How fast the cold part of a prompt is done on either side: measured once, on one band of the model's own rows.

Some tens of milliseconds at load. The inputs are random, the masks as dense as those of models that fire sparsely; the
figures only have to tell two ways apart that usually differ by a multiple.
"""

from __future__ import annotations

from time import perf_counter

from powerinfer_py.config import Sparsity
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.placement.index_choice import ASSUMED_FREQUENCY
from powerinfer_py.runtime.hybrid.cold_stream import ColdStream
from powerinfer_py.runtime.hybrid.device import PromptRates
from powerinfer_py.runtime.hybrid.layers import DeviceLayer

# Enough for kernels of prompts, few enough for a slow CPU.
_TOKENS = 64


def measure_prompt_rates(
    stream: ColdStream, index: int, layer: DeviceLayer, host_kernels: Kernels, n_tokens: int
) -> PromptRates:
    """Rates on the cold neurons of layer `index`, with at most `n_tokens` tokens. Memory: the stream's own."""
    import torch

    if layer.cold is None:
        raise ValueError("a layer without cold neurons has no rate")
    n = min(n_tokens, _TOKENS)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, stream.config.n_embd, generator=generator)
    n_cold, rows = layer.order.cold.size, 3 if stream.architecture.gated else 2
    mask = None
    if stream.sparsity is Sparsity.PREDICTOR:
        mask = torch.rand(n, n_cold, generator=generator) < ASSUMED_FREQUENCY
    started = perf_counter()
    host_kernels.feed_forward_part(layer.cold, h, mask)
    cpu_s = perf_counter() - started
    n_band = min(stream.band, n_cold)
    part = None if mask is None else mask[:, :n_band].contiguous()
    stream_s, device_s = stream.timed_bands(index, layer.order, h, part)
    products = n * rows * stream.config.n_embd
    return PromptRates(n_band * stream.neuron_bytes / stream_s, products * n_cold / cpu_s, products * n_band / device_s)
