"""Cold neurons computed on the device after all: for prompts, where reading their rows once pays for many tokens.

Bands of a layer's cold rows are copied from the file's map into two buffers in turn, and each is computed as a part of
the FFN and added to the sum. While one band is computed the next is copied beside it. Whether that is faster than
computing on the CPU is `prompt_is_streamed`'s to say, from rates.

Order: a band is copied into its buffer only after the band before last, which used it, has been computed; and it is
computed only after it has been copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from powerinfer_py.config import ModelConfig, Sparsity
from powerinfer_py.gguf import keys
from powerinfer_py.kernels.blocks import FeedForwardBlock
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.weights import Assembly
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device import Device, PromptRates
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory, Workspace
from powerinfer_py.runtime.hybrid.neuron_order import NeuronOrder
from powerinfer_py.runtime.hybrid.part_source import DeviceSource

if TYPE_CHECKING:
    from torch import Tensor


def prompt_is_streamed(rates: PromptRates, n_tokens: int, n_weights: int, n_bytes: int) -> bool:
    """Whether `n_weights` cold weights (`n_bytes` on the device) are sooner done there for a chunk of `n_tokens`."""
    if not (rates.stream_bytes_per_s > 0 and rates.device_products_per_s > 0):
        return False
    if not rates.cpu_products_per_s > 0:
        return True
    products = n_tokens * n_weights
    streamed_s = max(n_bytes / rates.stream_bytes_per_s, products / rates.device_products_per_s)
    return streamed_s < products / rates.cpu_products_per_s


@dataclass(frozen=True, eq=False)
class ColdStream:
    """Streams cold neurons of the layers that `file` holds, through `buffers`, `band` neurons at a time.

    least_tokens: of a prompt chunk; fewer are single tokens of sequences, which the CPU computes.
    """

    architecture: Architecture
    config: ModelConfig
    sparsity: Sparsity
    file: FileWeights
    device: Device
    kernels: Kernels
    memory: DeviceMemory
    buffers: tuple[Workspace, Workspace]
    workspace: Workspace
    band: int
    rates: PromptRates
    neuron_bytes: int
    least_tokens: int

    def wanted(self, index: int, order: NeuronOrder, n_tokens: int) -> bool:
        """Whether the cold neurons of layer `index` are streamed for a chunk of `n_tokens`."""
        has_rows = self.sparsity is Sparsity.DENSE or self.file.has(keys.block_tensor(index, "ffn_down_t.weight"))
        if n_tokens < self.least_tokens or not has_rows:
            # A down projection that has to be transposed would be so anew for every band.
            return False
        rows = 3 if self.architecture.gated else 2
        n_weights = order.cold.size * rows * self.config.n_embd
        return prompt_is_streamed(self.rates, n_tokens, n_weights, order.cold.size * self.neuron_bytes)

    def add(
        self, index: int, order: NeuronOrder, h: Tensor, mask: Tensor | None, y: Tensor, counts: Tensor | None
    ) -> None:
        """Adds the cold neurons' part of layer `index` (the model's number) to y (T, n_embd), in the order of places.

        h: (T, n_embd), the FFN's input. mask: (T, n_ff; bool) of all neurons in the order of places, None for all.
        """
        n_hot, n_cold = order.hot.size, order.cold.size
        begins = range(0, n_cold, self.band)
        block = self._beside(lambda: self._load(index, order, 0, begins[0]))
        for number, begin in enumerate(begins):
            end = min(begin + self.band, n_cold)
            before = self.device.mark()
            part = None if mask is None else mask[:, n_hot + begin : n_hot + end]
            with self.workspace.scope():
                y.add_(self.kernels.feed_forward_part(block, h, part, counts=counts).y)
            if end < n_cold:
                following = number + 1
                with self.device.beside(before):
                    block = self._load(index, order, following, begins[following])
                self.device.rejoin()

    def timed_band(self, index: int, order: NeuronOrder, h: Tensor, mask: Tensor | None) -> tuple[float, float]:
        """Seconds to bring the first band here, and to compute it for h (T, n_embd) and mask (T, band), of the host.

        Both once more after a first time, which loads kernels.
        """
        with self.memory.into(self.workspace), self.workspace.scope():
            h_there = self._placed(h)
            mask_there = None if mask is None else self._placed(mask)
            for _ in range(2):
                with self.workspace.scope():
                    self.device.synchronise()
                    started = perf_counter()
                    block = self._beside(lambda: self._load(index, order, 0, 0))
                    self.device.synchronise()
                    loaded = perf_counter()
                    self.kernels.feed_forward_part(block, h_there, mask_there)
                    self.device.synchronise()
                    computed = perf_counter()
        return loaded - started, computed - loaded

    def _placed(self, values: Tensor) -> Tensor:
        return self.memory.allocate(tuple(values.shape), values.dtype).copy_(values)

    def _beside(self, load: Callable[[], FeedForwardBlock]) -> FeedForwardBlock:
        with self.device.beside():
            block = load()
        self.device.rejoin()
        return block

    def _load(self, index: int, order: NeuronOrder, number: int, begin: int) -> FeedForwardBlock:
        """A band as a block, in the buffer whose turn it is; the bias of the whole sum is not its own."""
        buffer = self.buffers[number % 2]
        buffer.reset()
        chosen = NeuronOrder(order.cold[begin : begin + self.band], order.hot)
        source = DeviceSource(self.file, self.kernels, self.memory, buffer, chosen)
        with self.memory.into(buffer):
            block = Assembly(self.architecture, self.config, source, self.sparsity).feed_forward(index)
            block = replace(block, weights=replace(block.weights, down_bias=None))
            return source.prepare_feed_forward(block)
