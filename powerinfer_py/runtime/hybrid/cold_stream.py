"""Cold neurons computed on the device after all: for prompts, where reading their rows once pays for many tokens.

Bands of a layer's cold rows take turns in two places (`bands.Band`), each of which is page-locked memory on the host
and as much on the device. A band is written on the host as the device holds it, uploaded beside what the device
computes, and computed as a part of the FFN and added to the sum. So three things go on at once: the host writes band
b + 1, the copy engine uploads it as soon as it is written, the device computes band b. Whether that is faster than
computing on the CPU is `prompt_is_streamed`'s to say, from rates.

Order, for bands b and b + 2 of one place, which is all that could be mistaken for each other:

    host:      wait for U(b)   write b + 2   enqueue upload     ..
    side:      wait for C(b)   upload b + 2, mark U(b + 2)
    main:      wait for U(b + 2)   compute b + 2, mark C(b + 2)

- The host writes b + 2 over b only when the upload of b has read it: it waits for U(b).
- The upload writes b + 2 over b on the device only when b has been computed: the side stream waits for C(b).
- Band b + 2 is computed only when it is there: the main stream waits for U(b + 2).
Marks stay with their places from one layer, and one forward, to the next; so the first bands of a layer wait for the
last of the layer before. No wait is circular: each is for a mark of an earlier band, or for the upload just enqueued.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from powerinfer_py.config import ModelConfig, Sparsity
from powerinfer_py.gguf import keys
from powerinfer_py.kernels.blocks import FeedForwardBlock
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.weights import Assembly
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.bands import Band, BandSource
from powerinfer_py.runtime.hybrid.device import Device, Mark, PromptRates
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory, Workspace
from powerinfer_py.runtime.hybrid.neuron_order import NeuronOrder

if TYPE_CHECKING:
    from torch import Tensor

# So many that what is done once for all of them, and the first upload, which waits for the first writing, do not count.
_TIMED_BANDS = 4


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
    """Streams cold neurons of the layers that `file` holds, through `places`, `band` neurons at a time.

    least_tokens: of a prompt chunk; fewer are single tokens of sequences, which the CPU computes.
    """

    architecture: Architecture
    config: ModelConfig
    sparsity: Sparsity
    file: FileWeights
    device: Device
    kernels: Kernels
    host_kernels: Kernels
    memory: DeviceMemory
    places: tuple[Band, Band]
    workspace: Workspace
    band: int
    rates: PromptRates
    neuron_bytes: int
    least_tokens: int

    def has_rows(self, index: int) -> bool:
        """Whether layer `index` can be streamed: a down projection that has to be transposed would be so every time."""
        return self.sparsity is Sparsity.DENSE or self.file.has(keys.block_tensor(index, "ffn_down_t.weight"))

    def wanted(self, index: int, order: NeuronOrder, n_tokens: int) -> bool:
        """Whether the cold neurons of layer `index` are streamed for a chunk of `n_tokens`."""
        if n_tokens < self.least_tokens or not self.has_rows(index):
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
        for number, begin in enumerate(range(0, n_cold, self.band)):
            place, end = self.places[number % 2], min(begin + self.band, n_cold)
            block = self._bring(place, index, order, begin)
            self.device.wait_for(_mark_of(place))
            part = None if mask is None else mask[:, n_hot + begin : n_hot + end]
            with self.workspace.scope():
                y.add_(self.kernels.feed_forward_part(block, h, part, counts=counts).y)
            place.computed = self.device.mark()

    def timed_bands(self, index: int, order: NeuronOrder, h: Tensor, mask: Tensor | None) -> tuple[float, float]:
        """Seconds to bring a band here, one after the other, and to compute it for h (T, n_embd) and mask (T, band),
        both of the host. All of it once more after a first time, which loads kernels.
        """
        n_whole = max(1, order.cold.size // self.band)
        begins = [number % n_whole * self.band for number in range(_TIMED_BANDS)]
        with self.memory.into(self.workspace), self.workspace.scope():
            h_there = self._placed(h)
            mask_there = None if mask is None else self._placed(mask)
            for _ in range(2):
                with self.workspace.scope():
                    self.device.synchronise()
                    started = perf_counter()
                    for number, begin in enumerate(begins):
                        self._bring(self.places[number % 2], index, order, begin)
                    block = self._bring(self.places[0], index, order, 0)
                    self.device.wait_for(_mark_of(self.places[0]))
                    self.device.synchronise()
                    brought = perf_counter()
                    self.kernels.feed_forward_part(block, h_there, mask_there)
                    self.device.synchronise()
                    computed = perf_counter()
        return (brought - started) / (len(begins) + 1), computed - brought

    def _placed(self, values: Tensor) -> Tensor:
        return self.memory.allocate(tuple(values.shape), values.dtype).copy_(values)

    def _bring(self, place: Band, index: int, order: NeuronOrder, begin: int) -> FeedForwardBlock:
        """Writes the band that begins with cold neuron `begin` and enqueues its upload; the block that it will be."""
        if place.uploaded is not None:
            place.uploaded.wait()
        ids = order.cold[begin : begin + self.band]
        source = BandSource(self.file, self.kernels, self.host_kernels, place, ids)
        assembly = Assembly(self.architecture, self.config, source, self.sparsity)
        block = source.prepare_feed_forward(assembly.feed_forward(index))
        if begin + ids.size == order.cold.size:
            source.release()
        with self.device.beside(place.computed):
            place.send(self.device)
            place.uploaded = self.device.mark()
        return block


def _mark_of(place: Band) -> Mark:
    if place.uploaded is None:
        raise ValueError("nothing has been uploaded here")
    return place.uploaded
