"""The layers of a model with two sides, as data, and how each is brought into place.

A layer is whole on the CPU, or its block is on the device; of the latter the neurons are on the device, on the CPU, or
on both. Nothing here decides which: the placement does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from powerinfer_py.config import ModelConfig, Sparsity
from powerinfer_py.gguf import keys
from powerinfer_py.kernels.blocks import AttentionBlock, FeedForwardBlock, Norm, Predictor
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.weights import Assembly, LayerWeights
from powerinfer_py.placement.placement import Placement
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory, Region
from powerinfer_py.runtime.hybrid.neuron_order import NeuronOrder, neuron_order
from powerinfer_py.runtime.hybrid.part_source import ColdSource, DeviceSource, LayerRegions
from powerinfer_py.runtime.hybrid.uploads import Uploader


@dataclass(frozen=True, eq=False)
class HostLayer:
    """A layer wholly on the CPU."""

    weights: LayerWeights


@dataclass(frozen=True, eq=False)
class DeviceLayer:
    """A layer whose block is on the device.

    hot: the FFN of the hot neurons. cold: that of the others on the CPU, None where there are none. predictor: in
    `predictor` mode, its rows in the order of places.
    """

    attention: AttentionBlock
    norm: Norm
    hot: FeedForwardBlock
    cold: FeedForwardBlock | None
    predictor: Predictor | None
    order: NeuronOrder


@dataclass(frozen=True, eq=False)
class Head:
    """The last norm and the output matrix, both on one side."""

    norm: Norm
    output: Matrix
    on_device: bool


@dataclass(frozen=True, eq=False)
class HybridWeights:
    """A contiguous range of layers, the embedding (always on the CPU), and the head where the range ends the model."""

    token_embd: Matrix
    position_embd: Matrix | None
    layers: tuple[HostLayer | DeviceLayer, ...]
    head: Head | None


@dataclass(frozen=True, eq=False)
class Regions:
    """Where weights go on the device: by layer (the model's numbering), and the head."""

    layers: Mapping[int, LayerRegions]
    head: Region | None


@dataclass(frozen=True, eq=False)
class Loader:
    """Brings weights to their sides.

    host_file, device_file: the same model; two objects let a test poison what each side must not read.
    """

    architecture: Architecture
    config: ModelConfig
    sparsity: Sparsity
    host_file: FileWeights
    device_file: FileWeights
    host_kernels: Kernels
    device_kernels: Kernels
    uploader: Uploader
    memory: DeviceMemory
    regions: Regions

    def load(self, placement: Placement, layers: range) -> HybridWeights:
        """All weights of the range. Raises ModelError as `Assembly` does, BudgetError beyond what is reserved."""
        host = Assembly(self.architecture, self.config, self.host_file, self.sparsity)
        token_embd, position_embd = host.embedding()
        for name in (keys.OUTPUT, keys.OUTPUT_NORM, keys.OUTPUT_NORM_BIAS):
            # They belong to the engine that runs the last layer.
            self.host_file.leave_out(name)
        return HybridWeights(
            token_embd,
            position_embd,
            tuple(self._layer(host, i, placement) for i in layers),
            self._head(host, placement) if layers.stop == self.config.n_layer else None,
        )

    def _layer(self, host: Assembly, index: int, placement: Placement) -> HostLayer | DeviceLayer:
        placed = placement.layers[index]
        if not placed.block_on_gpu:
            return HostLayer(host.layer(index))
        order = neuron_order(placed.hot, self.config.n_ff)
        config = self.config
        if self.sparsity is not Sparsity.PREDICTOR and config.has_predictors:
            config = replace(config, has_predictors=False)
            for name in ("fc1.weight", "fc2.weight"):
                self.host_file.leave_out(keys.block_tensor(index, name))
        source = self._device_source(self.regions.layers[index], order)
        weights = Assembly(self.architecture, config, source, self.sparsity).layer(index)
        is_split = order.cold.size > 0
        return DeviceLayer(
            attention=weights.attention,
            norm=weights.feed_forward.norm,
            hot=weights.feed_forward,
            cold=self._cold(index, order) if is_split else None,
            predictor=weights.predictor,
            order=order,
        )

    def _cold(self, index: int, order: NeuronOrder) -> FeedForwardBlock:
        source = ColdSource(self.host_file, self.host_kernels, order)
        assembly = Assembly(self.architecture, self.config, source, self.sparsity)
        return self.host_kernels.prepare_feed_forward(assembly.feed_forward(index))

    def _head(self, host: Assembly, placement: Placement) -> Head:
        if not placement.head_on_gpu:
            return Head(*host.head(), on_device=False)
        if self.regions.head is None:
            raise ValueError("a head on the device needs a region there")
        source = self._device_source(self.regions.head)
        return Head(*Assembly(self.architecture, self.config, source, self.sparsity).head(), on_device=True)

    def _device_source(self, regions: LayerRegions | Region, order: NeuronOrder | None = None) -> DeviceSource:
        return DeviceSource(self.device_file, self.device_kernels, self.uploader, self.memory, regions, order)
