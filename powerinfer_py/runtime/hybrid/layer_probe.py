"""Times layers of a model on both sides, in the very step that decodes tokens, in memory that is given back.

The layers are consecutive ones of the commonest kind, from the first of the model where it is of that kind: what they
are given are embeddings of its own tokens, another one every step, so that the neurons that fire are those of a model
at work and lie as far apart. They are loaded with all their neurons on the device, with some of them and with none, and
on the CPU alone; a step over no layer is what every step costs. Most of the time goes into loading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from powerinfer_py import __version__
from powerinfer_py.config import RuntimeOptions, Sparsity
from powerinfer_py.gguf import GGUFFile, keys
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.models.activity import Activity
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.models.transformer import Step
from powerinfer_py.placement.budget import budget_in_bytes
from powerinfer_py.placement.device_bytes import FLOAT32_BYTES, aligned, device_type, matrix_bytes
from powerinfer_py.placement.fixed_bytes import fixed_bytes
from powerinfer_py.placement.layer_times import LayerSample, LayerTimes
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.placement.problem import KV_FILL, block_read_bytes
from powerinfer_py.placement.sizes import ModelSizes
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device import Arrangement, Device
from powerinfer_py.runtime.hybrid.device_memory import Region, Workspace, take_tensor
from powerinfer_py.runtime.hybrid.layer_kinds import alike, layer_kinds
from powerinfer_py.runtime.hybrid.layers import DeviceLayer, HostLayer
from powerinfer_py.runtime.hybrid.model import HybridModel, given, make_plan
from powerinfer_py.runtime.hybrid.segments import Segment
from powerinfer_py.runtime.kv_cache import KVCache

if TYPE_CHECKING:
    from torch import Tensor

# Layers whose weights are fewer bytes would be read from the device's cache when they come round again: that of an RTX
# 5090 holds 96 MiB.
_LEAST_BYTES = 128 << 20
_MOST_LAYERS = 8
# Of a layer's neurons: with fewer on the device there is nothing to see.
_LEAST_SHARE = 1 / 8
_WARM_STEPS = 3
_STEPS = 32
# For each way to run the layers; no fewer steps than `_LEAST_STEPS`, however slow they are.
_LIMIT_S = 0.12
_LEAST_STEPS = 3
# What a layer is taken to take where noise exceeds it.
_LEAST_S = 1e-9
_PRODUCTS = 8
_TOO_LITTLE = "the budget leaves too little to measure them with"

# What of loaded layers is run.
Layers = Sequence[DeviceLayer | HostLayer]
Way = Callable[[Layers], Segment]


def probe_kind(
    file: GGUFFile, sizes: ModelSizes, sparsity: Sparsity, options: RuntimeOptions, arrangement: Arrangement
) -> str:
    """What the times of a model's layers depend on besides the machine and its number of threads, as a short text."""
    kinds = layer_kinds(file, sizes.config.n_layer)
    index = alike(kinds, 1).start
    config = replace(sizes.config, name="", n_layer=1, n_ctx_train=sizes.n_ctx)
    facts = (kinds[index], sizes.layers[index], sizes.head_bytes, sizes.n_slots, config, _repacks(options))
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return f"{sparsity} layers {digest}, {arrangement}, version {__version__}"


@dataclass(frozen=True, eq=False)
class LayerTimer:
    """Times layers of one model; see the module.

    context_bytes: what the process holds on the device besides. kernels: those of the CPU.
    """

    device: Device
    context_bytes: int
    file: GGUFFile
    sizes: ModelSizes
    architecture: Architecture
    sparsity: Sparsity
    options: RuntimeOptions
    kernels: Kernels
    rope: RopeTable | None

    def measure(self) -> LayerTimes | str:
        """The times, or why there are none. All memory is free again on return; raises DeviceError where the device
        fails."""
        fitting = self._fitting()
        if fitting is None:
            return _TOO_LITTLE
        try:
            return self._measured(*fitting)
        finally:
            self.device.release()

    def _measured(self, layers: range, n_hot: int, all_wanted: bool) -> LayerTimes:
        size = self.sizes.layers[layers.start]
        few, most = (n // 4 // size.neuron_multiple * size.neuron_multiple for n in (n_hot, 3 * n_hot))
        empty, alone, cold = self._samples(layers, 0, _nothing, _on_device_alone, _everything)
        # What is paid whatever is read shows where little is: few hot neurons, and few cold ones.
        hot = self._samples(layers, n_hot, _on_device_alone)
        hot += self._samples(layers, few, _on_device_alone) if few else []
        split = [cold, *(self._samples(layers, most, _everything) if most else [])]
        (host,) = self._samples(layers, None, _everything)

        def each(sample: LayerSample, besides_s: float = empty.seconds) -> LayerSample:
            seconds, n = max(sample.seconds - besides_s, _LEAST_S), len(layers)
            return LayerSample(seconds / n, sample.hot_bytes / n, sample.cold_bytes / n)

        product_bytes_per_s = self._product_bytes_per_s()
        return LayerTimes(
            step_s=empty.seconds,
            product_bytes_per_s=product_bytes_per_s,
            block_bytes=block_read_bytes(size, self.sizes.n_slots),
            block_s=each(alone).seconds,
            hot=tuple(map(each, hot)),
            split=tuple(map(each, split)),
            host=each(host, 0.0),
            is_whole=all_wanted and product_bytes_per_s is not None,
        )

    @property
    def _free_bytes(self) -> int:
        """Of the budget, beside the context."""
        return budget_in_bytes(self.options.vram_budget or 0.0, self.device.memory) - self.context_bytes

    @property
    def _options(self) -> RuntimeOptions:
        """Options for steps of single tokens. Copies of weights are not locked: they stay for a moment."""
        return replace(self.options, batch_size=1, repack=_repacks(self.options), use_mlock=False, use_mmap=True)

    def _fitting(self) -> tuple[range, int, bool] | None:
        """(layers, hot neurons of each) that fit: one layer with some of its neurons before several with fewer; and
        whether these are all that are wanted."""
        sizes, n_ff = self.sizes, self.sizes.config.n_ff
        kinds = layer_kinds(self.file, sizes.config.n_layer)
        size = sizes.layers[alike(kinds, 1).start]
        fixed = fixed_bytes(sizes, 1)
        left = self._free_bytes - fixed.total - fixed.staging
        wanted = min(int(-(-_LEAST_BYTES // block_read_bytes(size, sizes.n_slots))), _MOST_LAYERS)
        names = [name for name, _, _ in kinds[alike(kinds, 1).start]]
        if self.sparsity is not Sparsity.DENSE and "ffn_down_t.weight" not in names:
            # To transpose a down projection takes seconds.
            wanted = 1
        layers = alike(kinds, wanted)
        for n in range(len(layers), 0, -1):
            if n * (size.block_bytes + size.hot_bytes(n_ff)) <= left:
                return layers[:n], n_ff, n == len(layers)
        n_hot = n_ff
        while n_hot >= _LEAST_SHARE * n_ff and size.block_bytes + size.hot_bytes(n_hot) > left:
            n_hot = int(0.9 * n_hot) // size.neuron_multiple * size.neuron_multiple
        return (layers[:1], n_hot, False) if n_hot >= _LEAST_SHARE * n_ff else None

    def _samples(self, layers: range, n_hot: int | None, *ways: Way) -> list[LayerSample]:
        """Steps over these layers, loaded with so many of their neurons on the device, or with nothing of them there
        (None); one sample for each way to run them."""
        config, options = self.sizes.config, self._options
        hot, none = np.arange(n_hot or 0, dtype=np.int32), np.zeros(0, np.int32)
        on_device = [n_hot is not None and i in layers for i in range(config.n_layer)]
        placed = tuple(LayerPlacement(there, hot if there else none) for there in on_device)
        plan = make_plan(self.sizes, options, self.device, self.context_bytes, given(Placement(placed, False)))
        source = FileWeights(self.file, self.kernels, options)
        model = HybridModel(plan, self.architecture, config, self.sparsity, layers, source, source, self.kernels)
        try:
            with self.device.enqueuing():
                cache = self._cache(model)
            model.connect(cache.layers, self.rope, prompts=False)
            return [self._sample(model, cache, segment) for segment in (way(model.weights.layers) for way in ways)]
        finally:
            model.close()

    def _cache(self, model: HybridModel) -> KVCache:
        config, options = self.sizes.config, self.options
        return KVCache(
            len(model.layers),
            self.sizes.n_slots,
            config.n_head_kv,
            self.sizes.n_ctx,
            config.head_dim,
            config.head_dim_v,
            options.cache_type_k,
            options.cache_type_v,
            {local: _Zeroed(region) for local, region in model.kv_regions.items()},
        )

    def _sample(self, model: HybridModel, cache: KVCache, segment: Segment) -> LayerSample:
        """Medians of some steps, a token each, half-way into its context."""
        import torch

        model.use_segments((segment,))
        position = torch.tensor([int(KV_FILL * (self.sizes.n_ctx - 1))])
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.sizes.config.n_vocab, (_WARM_STEPS + _STEPS,), generator=generator)
        # Rows of the embedding that nobody has read yet may still be on a disk.
        self.kernels.rows(model.weights.token_embd, ids)
        seconds, hot, cold = list[float](), list[float](), list[float]()
        for number in range(len(ids)):
            # An engine has about as much to do around a step.
            started = perf_counter()
            batch = ForwardBatch(ids[number : number + 1], position, torch.zeros(1, dtype=torch.int64))
            activity = Activity(len(model.layers), gated=self.architecture.gated)
            model.forward(self.kernels, None, Step(batch, cache.layers, self.rope, activity))
            elapsed = perf_counter() - started
            if number < _WARM_STEPS:
                continue
            there = Activity(len(model.layers), gated=self.architecture.gated)
            for local, _ in segment.layers if segment.on_device else ():
                there.record_on_device(local, 0, model.device_counts()[local])
            seconds.append(elapsed)
            hot.append(self._bytes(model.layers, there))
            cold.append(self._bytes(model.layers, activity) - hot[-1])
            if len(seconds) >= _LEAST_STEPS and sum(seconds) > _LIMIT_S:
                break
        return LayerSample(median(seconds), median(hot), median(cold))

    def _bytes(self, layers: range, activity: Activity) -> float:
        """Bytes of rows, as `LayerProblem.work` counts them."""
        sizes = self.sizes.layers[layers.start]
        rest = sizes.neuron_bytes - sizes.gate_bytes
        return float(activity.first.sum() * sizes.gate_bytes + activity.down.sum() * rest)

    def _product_bytes_per_s(self) -> float | None:
        """Bytes a second of a product with a matrix of the head's type and shape, all zeros; None without room."""
        import torch

        name = keys.OUTPUT if keys.OUTPUT in self.file.tensors else keys.TOKEN_EMBEDDING
        rows, cols = self.file.tensors[name].shape
        held = device_type(self.file.tensors[name].ggml_type)
        n_bytes, n_values = matrix_bytes(held, rows, cols), FLOAT32_BYTES * (rows + cols)
        needed = aligned(n_bytes) + 2 * aligned(n_values)
        if needed > self._free_bytes:
            return None
        self.device.open(needed)
        with self.device.enqueuing():
            weights = _zeroed(self.device.allocate(aligned(n_bytes)))
            memory = Workspace(self.device.allocate(2 * aligned(n_values)))
            x = _zeroed(memory.take(FLOAT32_BYTES * cols)).view(torch.float32).view(1, cols)
            kernels = self.device.make_kernels(lambda shape, dtype: take_tensor(memory, shape, dtype))
            matrix = kernels.filled_matrix(name, held, rows, cols, weights[:n_bytes], 0.0)
            best = np.inf
            for _ in range(_WARM_STEPS):
                self.device.synchronise()
                started = perf_counter()
                for _ in range(_PRODUCTS):
                    with memory.scope():
                        kernels.linear(matrix, x)
                self.device.synchronise()
                best = min(best, (perf_counter() - started) / _PRODUCTS)
        return n_bytes / best


class _Zeroed:
    """A region whose memory is zero but for the last bytes: keys of undefined bits would make every neuron fire."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def take(self, n_bytes: int) -> Tensor:
        """uint8 (n_bytes)."""
        return _zeroed(self._region.take(n_bytes))


def _zeroed(part: Tensor) -> Tensor:
    """Zeros, as int64: the executor clears its counts with that kernel, so that it is loaded."""
    import torch

    part[: part.numel() // 8 * 8].view(torch.int64).zero_()
    return part


def _repacks(options: RuntimeOptions) -> bool:
    """Whether the CPU's weights are copied into a faster order."""
    return options.repack and not options.use_mlock


def _everything(layers: Layers) -> Segment:
    return Segment(isinstance(layers[0], DeviceLayer), tuple(enumerate(layers)))


def _on_device_alone(layers: Layers) -> Segment:
    """Without what the CPU has to do."""
    return _everything([replace(layer, cold=None) if isinstance(layer, DeviceLayer) else layer for layer in layers])


def _nothing(_layers: Layers) -> Segment:
    return Segment(True, ())
