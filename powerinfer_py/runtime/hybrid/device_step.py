"""What is enqueued on the device for a stretch of layers: the same calls whether they run at once or are captured.

For a split layer: attention, predictor, norm; the FFN's input and the cold neurons' bits go to the CPU's side, the hot
neurons are computed meanwhile, and then

    y = residual + hot part + cold part        (in this order; the down bias belongs to the hot part)

In a prompt the cold part may be computed on the device too, its rows brought there in bands (`cold_stream`). A layer
without cold neurons is the same calls, so that no kernel is compiled for it alone, and asks nothing of the CPU. Nothing
here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from powerinfer_py.kernels.blocks import FeedForwardResult, LayerCache
from powerinfer_py.kernels.composition import normalise
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.runtime.hybrid.buffers import Buffers
from powerinfer_py.runtime.hybrid.cold_side import ColdSide
from powerinfer_py.runtime.hybrid.cold_stream import ColdStream
from powerinfer_py.runtime.hybrid.device import Device, Mark
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory
from powerinfer_py.runtime.hybrid.layers import DeviceLayer, Head

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Masks:
    """What an observer sees of a layer. predictor_input: (T, n_embd); predicted, hot_fired: (T, ..; bool), all on the
    device; cold_fired on the CPU. Those of neurons in the order of places."""

    predictor_input: Tensor
    predicted: Tensor | None
    hot_fired: Tensor | None
    cold_fired: Tensor | None


@dataclass(eq=False)
class LayerRun:
    """What a layer leaves behind. predictions: marks before and after each. cold: the CPU's result, where it is known
    at once."""

    predictions: list[tuple[Mark, Mark]] = field(default_factory=list)
    cold: FeedForwardResult | None = None
    masks: Masks | None = None


@dataclass(frozen=True, eq=False)
class DeviceStep:
    """Everything that a step needs besides the tokens.

    parallel: attention and FFN read the layer's input. layers: numbers in the model. cold_stream: for prompts, whose
    cold neurons may be computed on the device; None where they never are.
    """

    parallel: bool
    layers: range
    device: Device
    kernels: Kernels
    memory: DeviceMemory
    buffers: Buffers
    caches: Sequence[LayerCache]
    rope: RopeTable | None
    cold_stream: ColdStream | None = None

    def layer(
        self,
        local: int,
        layer: DeviceLayer,
        x: Tensor,
        host_kernels: Kernels,
        cold_side: ColdSide | None,
        *,
        observe: bool = False,
        timed: bool = False,
    ) -> tuple[Tensor, LayerRun]:
        """The residual stream after a layer, (T, n_embd) on the device, and what it leaves behind.

        host_kernels: those that the cold block was prepared for. timed: puts marks around the predictor.
        """
        buffers, run = self.buffers, LayerRun()
        buffers.workspace.reset()
        attended = self.kernels.attention_block(
            layer.attention, x, x, self.caches[local], buffers.slots, buffers.positions, self.rope
        )
        ffn_input = x if self.parallel else attended
        y = buffers.next_stream()
        self._feed_forward(local, layer, ffn_input, attended, y, host_kernels, cold_side, run, observe, timed)
        return y, run

    def predictor_seconds(self, layers: Sequence[DeviceLayer]) -> float:
        """What the predictors of these layers take for as many tokens as the buffers hold now; waits for the device."""
        x = self.buffers.send()
        with self.memory.into(self.buffers.workspace):
            before = self.device.mark()
            for layer in layers:
                self.buffers.workspace.reset()
                if layer.predictor is not None:
                    self.kernels.predict(layer.predictor, x, layer.hot.sparse_threshold)
            after = self.device.mark()
        self.device.synchronise()
        return after.seconds_since(before)

    def head(self, head: Head, rows: Tensor) -> Tensor:
        """Logits of a few tokens, in the workspace: rows (K, n_embd) -> (K, n_vocab)."""
        return self.kernels.linear(head.output, normalise(self.kernels, head.norm, rows))

    def _feed_forward(
        self,
        local: int,
        layer: DeviceLayer,
        ffn_input: Tensor,
        residual: Tensor,
        y: Tensor,
        host_kernels: Kernels,
        cold_side: ColdSide | None,
        run: LayerRun,
        observe: bool,
        timed: bool,
    ) -> None:
        import torch

        kernels, n_hot = self.kernels, layer.order.hot.size
        mask = self._predict(layer, ffn_input, run, timed)
        # The bits follow the input in memory, so that one copy takes both down.
        h = normalise(kernels, layer.norm, ffn_input)
        index = self.layers[local]
        stream = None if observe else self._stream_of(index, layer, len(h))
        cold = layer.cold if stream is None else None
        if cold is not None:
            if cold_side is None:
                raise ValueError("a split layer needs the CPU's side")
            bits = None if mask is None else kernels.pack_mask(mask, n_hot)
            cold_side.start(host_kernels, cold, h, bits, observe=observe)
        hot = None
        if n_hot:
            hot_mask = None if mask is None else mask[:, :n_hot]
            counts = self.buffers.counts(local)
            hot = kernels.add_feed_forward_part(layer.hot, h, hot_mask, residual, y, observe=observe, counts=counts)
        elif layer.hot.weights.down_bias is not None:
            torch.add(residual, layer.hot.weights.down_bias, out=y)
        else:
            y.copy_(residual)
        if stream is not None:
            stream.add(index, layer.order, h, mask, y, self.buffers.counts(local))
        if cold is not None and cold_side is not None:
            sums, run.cold = cold_side.finish()
            y.add_(sums)
        if observe:
            cold_fired = None if run.cold is None else run.cold.fired
            run.masks = Masks(ffn_input, mask, None if hot is None else hot.fired, cold_fired)

    def _stream_of(self, index: int, layer: DeviceLayer, n_tokens: int) -> ColdStream | None:
        """What brings the layer's cold neurons here for so many tokens; None where the CPU computes them."""
        stream = self.cold_stream
        wanted = layer.cold is not None and stream is not None and stream.wanted(index, layer.order, n_tokens)
        return stream if wanted else None

    def _predict(self, layer: DeviceLayer, x: Tensor, run: LayerRun, timed: bool) -> Tensor | None:
        if layer.predictor is None:
            return None
        before = self.device.mark() if timed else None
        mask = self.kernels.predict(layer.predictor, x, layer.hot.sparse_threshold)
        if before is not None:
            run.predictions.append((before, self.device.mark()))
        return mask
